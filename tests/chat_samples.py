"""A small tokenizer, chat templates and files of chats, for the tests of language data."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

import json
import random

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

transformers = pytest.importorskip("transformers")

WORDS = ["good", "bad", "film", "plot", "actor", "the", "was", "very", "quite", "rather", "fine",
         "dull", "great", "poor", "scene", "music", "slow", "long", "short", "funny"]  # fmt: skip
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>", "<|start|>"]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (  # the marks end before the token that ends the turn
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED_WIDE = MARKED.replace(  # the marks enclose it, and the line's end
    "{{ m.content }}{% endgeneration %}", "{{ m.content + '<|im_end|>\n' }}{% endgeneration %}"
).replace("{{ '<|im_end|>\n' }}{% endfor %}",
          "{% if m.role != 'assistant' %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}")  # fmt: skip
THINKING = CHATML.replace(  # writes the last answer otherwise than the others, as Qwen3 does
    "m.role + '\n' + m.content",
    "m.role + '\n' + ('<think>\n\n</think>\n\n' if loop.last and m.role == 'assistant' else '')"
    " + m.content",
)
ASKING = CHATML.replace(  # asks for more than it writes, as DeepSeek-R1 does
    "{{ '<|im_start|>assistant\n' }}", "{{ '<|im_start|>assistant\n<think>\n' }}"
)
FORGETFUL = CHATML.replace(  # leaves earlier answers out
    "m.content +", "('...' if m.role == 'assistant' and not loop.last else m.content) +"
)
BARE = (  # ends no turn with a token of its own
    "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


def tokenizer(template=CHATML, *, end="<|im_end|>", start=None, most=1 << 30):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces, merges = [*SPECIAL, *alphabet], []
    for word in ["Ġ" + w for w in WORDS] + WORDS:
        for cut in range(2, len(word) + 1):
            if word[:cut] not in pieces:
                pieces.append(word[:cut])
                merges.append((word[: cut - 1], word[cut - 1]))
    made = Tokenizer(models.BPE({w: i for i, w in enumerate(pieces)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    if start is not None:
        from tokenizers import processors

        made.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, SPECIAL.index(start))]
        )
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=end, model_max_length=most
    )
    found.chat_template = template
    return found


def some_text(draw, most=20):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(4, most)))


def some_texts(n=60, seed=0, most=20):
    draw = random.Random(seed)
    return [f"{some_text(draw, most)} {i}" for i in range(n)]


def some_chats(n=60, seed=0, turns=2):
    draw = random.Random(seed)
    return [
        [
            {"role": role, "content": f"{some_text(draw, 8)} {i}"}
            for _ in range(turns)
            for role in ("user", "assistant")
        ]
        for i in range(n)
    ]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def chat(*turns):
    roles = ("user", "assistant") * len(turns)
    return [{"role": r, "content": c} for r, c in zip(roles, turns, strict=False)]

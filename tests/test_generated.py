"""Chats that a stand-in teacher wrote: filtered, counted, and whole after every kill."""

import json

import pytest
from chat_samples import write_lines
from text_samples import refused

from tutelage.errors import DataError
from tutelage.tasks.causal_lm.generated import (
    Reply,
    fill_templates,
    generate,
    read_prompts,
    repeated_share,
    why_refused,
)
from tutelage.tasks.causal_lm.reading import read_documents

PROMPTS = [f"What is {i} and {i}?" for i in range(10)]


class Teacher:
    """Answers, remembers what it was asked, and dies when told to."""

    def __init__(self, dies_at=None, answers=None):
        self.asked, self.dies_at, self.answers = [], dies_at, answers or {}

    def __call__(self, prompts, draw):
        if len(self.asked) == self.dies_at:
            raise KeyboardInterrupt
        self.asked.append(prompts)
        return [self.answers.get(p, f"The answer to '{p}' is known to all.") for p in prompts]


def test_a_chat_file_is_made(tmp_path):
    into, teacher = tmp_path / "chats.jsonl", Teacher()
    made = generate(PROMPTS, teacher, into, batch=4)
    assert [len(batch) for batch in teacher.asked] == [4, 4, 2]
    assert (made.prompts, made.asked, made.kept, made.doubled) == (10, 10, 10, 0)
    found = [[(m.role, m.content) for m in d.messages] for d in read_documents(tmp_path)]
    assert found == [
        [("user", p), ("assistant", f"The answer to '{p}' is known to all.")] for p in PROMPTS
    ]


@pytest.mark.parametrize("dies_at", [0, 1, 2])
def test_a_killed_run_goes_on_and_ends_alike(tmp_path, dies_at):
    generate(PROMPTS, Teacher(), tmp_path / "whole.jsonl", key="a", batch=4)
    into = tmp_path / "chats.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generate(PROMPTS, Teacher(dies_at), into, key="a", batch=4)
    assert not into.exists()
    journal = tmp_path / ".chats.jsonl.asked"
    with journal.open("ab") as file:
        file.write(b'[["half a li')  # as a kill in the middle of a write leaves it
    teacher = Teacher()
    made = generate(PROMPTS, teacher, into, key="a", batch=4)
    assert len(teacher.asked) == 3 - dies_at and made.asked == 10 - 4 * dies_at
    assert into.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert generate(PROMPTS, Teacher(0), into, key="a", batch=4).kept == 10  # no one is asked


def test_answers_of_another_teacher_are_not_mixed_in(tmp_path):
    into = tmp_path / "chats.jsonl"
    generate(PROMPTS, Teacher(), into, key="a")
    refused("of another teacher or other settings", generate, PROMPTS, Teacher(), into, key="b")
    refused("to other prompts", generate, PROMPTS[:9], Teacher(), into, key="a")
    (tmp_path / ".chats.jsonl.asked").write_text("no json\n")
    refused("is damaged", generate, PROMPTS, Teacher(), into, key="a")


def test_what_is_not_worth_learning_is_left_out_and_counted(tmp_path):
    loop = "and on and on and " * 9
    same = "I am sorry, but that is nothing I can help with."
    answers = {
        PROMPTS[0]: " \n", PROMPTS[1]: Reply(text="It is", ended=False), PROMPTS[2]: loop,
        PROMPTS[3]: same, PROMPTS[4]: same.upper(), PROMPTS[5]: "Yes.", PROMPTS[6]: "yes.",
        PROMPTS[7]: "It\0 is \ud800.",
    }  # fmt: skip
    made = generate(
        [*PROMPTS, PROMPTS[0].upper(), "  "], Teacher(answers=answers), tmp_path / "a.jsonl"
    )
    assert made.refused == {"empty": 1, "cut": 1, "repeating": 1, "copy": 1}
    assert (made.prompts, made.doubled, made.kept) == (10, 1, 6)
    said = [d.messages[1].content for d in read_documents(tmp_path / "a.jsonl")]
    assert said[:4] == [same, "Yes.", "yes.", "It is \ufffd."]
    assert made.notes() == (
        f"6 of 10 answers are kept in {tmp_path / 'a.jsonl'}",
        "1 prompts were given twice and asked once",
        "1 answers are empty and are left out",
        "1 answers were cut before their end and are left out",
        "1 answers repeat themselves and are left out",
        "1 answers were given before and are left out",
    )


def test_nothing_left_and_a_teacher_who_cannot_count(tmp_path):
    into = tmp_path / "a.jsonl"
    silent = Teacher(answers=dict.fromkeys(PROMPTS, ""))
    refused("no answer is worth learning: 10 answers are empty", generate, PROMPTS, silent, into)
    assert not into.exists()
    into = tmp_path / "b.jsonl"
    refused("gave 1 answers to 10 prompts", generate, PROMPTS, lambda *asked: ["a"], into)
    refused("there are no prompts", generate, ["", " "], Teacher(), into)


def test_repeated_share_by_hand():
    assert repeated_share("a b c d a b c d".split()) == 1 - 4 / 5
    assert repeated_share("a b c d".split()) == repeated_share([], 2) == 0.0
    assert repeated_share("aaaa", 2) == 1 - 1 / 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("The film was good, and the plot of the film was quite good as well.", ""),
        ("good film " * 5, "repeating"),
        ("42", ""),
        ("这部电影很好看，情节也相当有趣，我们都非常喜欢它的音乐。", ""),
        ("这部电影很好看" * 9, "repeating"),
    ],
)
def test_circles_are_found_with_and_without_spaces(text, why):
    assert why_refused(Reply(text=text)) == why


def test_prompts_are_lines_or_cells(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("why\n\n  how so \r\n")
    assert read_prompts(path) == ["why", "how so"]
    rows = [{"prompt": "why", "response": "so"}, {"text": "how"}]
    assert read_prompts(write_lines(tmp_path / "a.jsonl", rows)) == ["why", "how"]
    refused("line 1 has no prompt", read_prompts, write_lines(tmp_path / "b.jsonl", [{"q": 1}]))
    refused("holds no prompts", read_prompts, write_lines(tmp_path / "c.jsonl", []))


def test_templates_are_filled():
    found = fill_templates(["cats", "dogs"], ["What are {topic}?", "Praise {topic}."])
    assert found == ["What are cats?", "Praise cats.", "What are dogs?", "Praise dogs."]
    with pytest.raises(DataError, match="has no {topic}"):
        fill_templates(["cats"], ["What?"])


def test_the_journal_is_whole_lines_of_json(tmp_path):
    generate(PROMPTS, Teacher(), tmp_path / "a.jsonl", batch=5)
    lines = (tmp_path / ".a.jsonl.asked").read_text().splitlines()
    assert [len(json.loads(line)) for line in lines] == [1, 5, 5]

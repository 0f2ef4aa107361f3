"""The few lines that run an artifact: with onnxruntime, or where it is a GGUF with llama.cpp."""

from __future__ import annotations

import json

_OPEN = """\
import json
{imports}
import onnxruntime as ort

session = ort.InferenceSession({path})
stored = session.get_modelmeta().custom_metadata_map
meta = {{key: json.loads(text) for key, text in stored.items()}}
"""
_IMAGE = """\
mean, std = (np.reshape(meta[key], (-1, 1, 1)) for key in ("mean", "std"))

pixels = np.zeros(meta["shape"])  # your image: channels, height, width; 0 to 255
image = (pixels * meta["scale"] - mean) / std
(logits,) = session.run(None, {{meta["input"]: image[None].astype(np.float32)}})
print(meta["classes"][int(logits[0].argmax())])
"""
_SERIES = """\
mean, std = (np.reshape(meta[key], (-1, 1)) for key in ("mean", "std"))

values = np.zeros(meta["shape"])  # your window: channels, steps; NaN where a value is missing
window = np.nan_to_num((values - mean) / std)
({said},) = session.run(None, {{meta["input"]: window[None].astype(np.float32)}})
{answer}
"""
_TEXT = """\
tokenizer = Tokenizer.from_file({tokenizer})  # it cuts and fills up to the right length

ids = np.array([tokenizer.encode("your text").ids], np.int64)
(logits,) = session.run(None, {{meta["input"]: ids}})
print(meta["classes"][int(logits[0].argmax())])
"""
_NUMPY = "import numpy as np"
_BY_TASK = {
    "vision": (_NUMPY, _IMAGE),
    "series": (_NUMPY, _SERIES),
    "text": (f"{_NUMPY}\nfrom tokenizers import Tokenizer", _TEXT),
}
_LANGUAGE = """\
llama-cli -m {path} --conversation   # llama.cpp; tokenizer and chat template are inside

echo "FROM ./{path}" > Modelfile      # or Ollama
ollama create student -f Modelfile && ollama run student
"""
_ANSWER = {
    "classes": ("logits", 'print(meta["classes"][int(logits[0].argmax())])'),
    "values": ("output", 'print(output[0, 0] * meta["target"]["std"] + meta["target"]["mean"])'),
}


def snippet(task: str, path: str, *, decides: str = "classes") -> str:
    """Return a program that decides about one example with the artifact at `path`."""
    if task == "causal_lm":
        return _LANGUAGE.format(path=path)
    said, answer = _ANSWER[decides]
    imports, body = _BY_TASK[task]
    tokenizer = json.dumps(path.rpartition("/")[0] + "/tokenizer.json")
    return _OPEN.format(imports=imports, path=json.dumps(path)) + body.format(
        tokenizer=tokenizer, said=said, answer=answer
    )

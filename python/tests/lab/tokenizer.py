"""A tokenizer in which every token is a word of its own, so that texts have an exact length in tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .prompts import FIRST_WORD, VOCABULARY, word

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
# messages one after the other, without anything around them
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


def write_tokenizer(directory: Path, *, max_tokens: int) -> None:
    """Writes the files that transformers and vLLM read."""
    vocabulary = {name: position for position, name in enumerate(SPECIAL)}
    vocabulary |= {word(token): token for token in range(FIRST_WORD, VOCABULARY)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(name, position) for position, name in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        # a blank before each word, but for the first
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"Regex": "^"}, "content": " "},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": SPECIAL[0]},
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": SPECIAL[0],
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[3],
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", settings)):
        (directory / name).write_text(json.dumps(content, indent=1) + "\n")


def _special(name: str, position: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": position, "content": name, **flags}

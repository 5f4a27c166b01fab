"""Prompts of exact length: lists of token ids, and texts that a made model's tokenizer turns into just those ids."""

from __future__ import annotations

import random

# <unk>, <s>, </s> and <pad> come first in the vocabulary and never in a prompt
FIRST_WORD = 4
VOCABULARY = 1024


def prompt(tokens: int, seed: int = 0, vocabulary: int = VOCABULARY) -> list[int]:
    """`tokens` token ids, the same for the same seed; a longer prompt of a seed begins with the shorter one."""
    source = random.Random(f"prompt {seed}")
    return [source.randrange(FIRST_WORD, vocabulary) for _ in range(tokens)]


def word(token: int) -> str:
    """The word of a token id."""
    return f"w{token}"


def text(tokens: list[int]) -> str:
    """The text that is tokenized into these ids."""
    return " ".join(map(word, tokens))

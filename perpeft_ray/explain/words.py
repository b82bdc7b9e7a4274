"""Maps a title's tokens to the words that a person reads.

Tokenizers cut words into pieces, and byte-level ones cut letters into bytes, so a token is shown as
its part of the title.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from perpeft_ray.encoder.source import parse_encoder


@dataclass(frozen=True)
class TitleWords:
    """The words of a title, including special tokens, and the word of each token."""

    words: list[str]
    """W of them."""
    of_token: NDArray[np.int64]
    """[L]: the number of each token's word, 0..W-1."""

    def sums(self, of_tokens: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums of token values [L] over each word: [W]."""
        return np.bincount(self.of_token, of_tokens, len(self.words)).astype(np.float32)


def title_words(encoder: str, title: str, token_ids: list[int]) -> TitleWords:
    """The words of a title that an encoder tokenised as these L tokens (special ones included).

    Words are separated by spaces; Chinese, Japanese and Korean characters are shown in the
    tokenizer's own pieces. Equal special tokens in a row are one word. Raises ValueError if the
    tokens are not the title's.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(parse_encoder(encoder).path)
    names: list[str] = tokenizer.convert_ids_to_tokens(token_ids)  # type: ignore[assignment]  # of a list, a list
    if not tokenizer.is_fast:  # this tokenizer does not know a token's place in the title
        return _as_they_are([tokenizer.convert_tokens_to_string([name]).strip() for name in names])
    coded = tokenizer(
        title,
        truncation=True,
        max_length=len(token_ids),
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    padding = len(token_ids) - len(coded["input_ids"])
    if coded["input_ids"] != token_ids[: len(coded["input_ids"])]:
        raise ValueError(
            f"the tokens of {title!r} must be {coded['input_ids']}, but are {token_ids}"
        )
    spans = [*coded["offset_mapping"], *[(0, 0)] * padding]
    special = [bool(mask) for mask in [*coded["special_tokens_mask"], *[1] * padding]]
    return _grouped(title, names, spans, special)


def _grouped(
    title: str, names: list[str], spans: list[tuple[int, int]], special: list[bool]
) -> TitleWords:
    words: list[str] = []
    of_token: list[int] = []
    start = end = 0
    """Span of the last word in the title; none after a special token."""
    open_word = False
    for name, (first, last), is_special in zip(names, spans, special, strict=True):
        if is_special:
            if open_word or not words or words[-1] != name:
                words.append(name)
            open_word = False
        else:
            while first < last and title[first].isspace():
                first += 1
            if not open_word or (first >= end and _is_divided(title, end, first)):
                words.append("")
                start, open_word = first, True
            end = max(end, last)
            words[-1] = title[start:end]
        of_token.append(len(words) - 1)
    return TitleWords([word or "·" for word in words], np.array(of_token, dtype=np.int64))


def _is_divided(title: str, end: int, start: int) -> bool:
    """Whether words that end at `end` and begin at `start` are different words."""
    around = title[max(end - 1, 0) : start + 1]
    return any(character.isspace() or _is_wide(character) for character in around)


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in ("W", "F")


def _as_they_are(words: list[str]) -> TitleWords:
    return TitleWords(words, np.arange(len(words)))

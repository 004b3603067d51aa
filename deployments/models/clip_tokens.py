"""CLIP's tokenizer: text to the numbers that an image-text model reads.

Byte-level byte pair encoding, as OpenAI's CLIP and all models that took over its vocabulary have it. The vocabulary and the
merges come with the model (`tokenizer.json`).
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from serve_app.errors import ConfigurationError

START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
_MAX_CHARACTERS = 1_000
"""Of a text: three times what the 75 tokens that are read take."""
_MAX_WORD = 100
"""Characters of a word that are read; the work grows with their square."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """`ids`: as many as the model reads, padded. `used`: how many of them are not padding."""

    ids: tuple[int, ...]
    used: int


class ClipTokenizer:
    """`merges`: pairs in order of rank. `pad_id`: fills up what a text leaves. Raises ConfigurationError where the vocabulary
    lacks what every text needs."""

    def __init__(self, vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], pad_id: int | None = None) -> None:
        self._vocabulary = vocabulary
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._bytes = _byte_symbols()
        needed = (START, END, *self._bytes, *(symbol + _END_OF_WORD for symbol in self._bytes))
        lacking = [symbol for symbol in needed if symbol not in vocabulary]
        if lacking:
            raise ConfigurationError(f"The tokenizer is not CLIP's: it lacks {len(lacking)} symbols, {lacking[0]!r} first.")
        self._start, self._end = vocabulary[START], vocabulary[END]
        self._pad = self._end if pad_id is None else pad_id

    def encode(self, text: str, context_length: int) -> Tokens:
        """Start, the text, end; what does not fit is left out, the end never. Marks of the model in a text are text."""
        ids = [self._start]
        for word in _words(_normalized(text[:_MAX_CHARACTERS])):
            if len(ids) >= context_length - 1:
                break
            ids.extend(self._word_ids(word[:_MAX_WORD]))
        ids = [*ids[: context_length - 1], self._end]
        padding = (self._pad,) * (context_length - len(ids))
        return Tokens((*ids, *padding), len(ids))

    def _word_ids(self, word: str) -> list[int]:
        symbols = [self._bytes[value] for value in word.encode("utf-8", "surrogatepass")]
        symbols[-1] += _END_OF_WORD
        while len(symbols) > 1:
            ranked = [self._ranks.get(pair) for pair in pairwise(symbols)]
            best = min((rank for rank in ranked if rank is not None), default=None)
            if best is None:
                break
            merged: list[str] = []
            index = 0
            while index < len(symbols):
                # Two merges do not overlap: of "aaa" the first two are one.
                if index < len(ranked) and ranked[index] == best:
                    merged.append(symbols[index] + symbols[index + 1])
                    index += 2
                else:
                    merged.append(symbols[index])
                    index += 1
            symbols = merged
        # A merge whose result has no number would be an error of the file; its parts are then unknown, which is the end mark.
        return [self._vocabulary.get(symbol, self._end) for symbol in symbols]


def read_tokenizer(path: Path, pad_token: str | None = None) -> ClipTokenizer:
    """From a `tokenizer.json`. Raises ConfigurationError when it is not there, or not CLIP's byte pair encoding."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model = content["model"]
        if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != _END_OF_WORD:
            raise ConfigurationError(
                f"{path} is a tokenizer of another kind ({model.get('type')}); Kinlens reads CLIP's byte pair encoding only."
            )
        vocabulary: dict[str, int] = {str(symbol): int(number) for symbol, number in model["vocab"].items()}
        for token in content.get("added_tokens", ()):
            vocabulary[str(token["content"])] = int(token["id"])
        merges = [_pair(merge) for merge in model["merges"]]
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is not a tokenizer.json: {type(error).__name__}: {error}.") from error
    if pad_token is not None and pad_token not in vocabulary:
        raise ConfigurationError(f"{path} has no token {pad_token!r}, which texts should be padded with.")
    return ClipTokenizer(vocabulary, merges, None if pad_token is None else vocabulary[pad_token])


def _pair(merge: object) -> tuple[str, str]:
    """Written as "a b" or as ["a", "b"], by the age of the file."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2:
        raise ValueError(f"{merge!r} is not a pair")
    return str(parts[0]), str(parts[1])


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()


def _words(text: str) -> list[str]:
    """As CLIP's pattern cuts them: an English contraction, letters, one digit, or a run of anything else but space."""
    words: list[str] = []
    index = 0
    while index < len(text):
        end = index + 1
        contraction = next((one for one in _CONTRACTIONS if text.startswith(one, index)), None)
        kind = _kind(text[index])
        if contraction is not None:
            end = index + len(contraction)
        elif kind in "LO":
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != " " or contraction is not None:
            words.append(text[index:end])
        index = end
    return words


def _kind(character: str) -> str:
    """Letter, number, space, or other."""
    category = unicodedata.category(character)
    if category[0] in "LN":
        return category[0]
    # The separators of files are space to Python only.
    return " " if character.isspace() and character not in "\x1c\x1d\x1e\x1f" else "O"


def _byte_symbols() -> list[str]:
    """A printable character for each byte: itself where it is one, else the next beyond 255 (GPT-2's table)."""
    own = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(value if value in own else next(others)) for value in range(256)]

"""Text as CLIP reads it. The expected numbers are those of OpenAI's own tokenizer."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from deployments.models.clip_tokens import ClipTokenizer, read_tokenizer
from serve_app.errors import ConfigurationError
from tests.clip import tokenizer

START, END = 49406, 49407


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> ClipTokenizer:
    path = tmp_path_factory.mktemp("clip") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer()), encoding="utf-8")
    return read_tokenizer(path)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("a photo of a cat", [320, 1125, 539, 320, 2368]),
        ("A  Photo\tof\na CAT ", [320, 1125, 539, 320, 2368]),
        ("two children on the beach, 2024", [1237, 2153, 525, 518, 2117, 267, 273, 271, 273, 275]),
        ("it's a dog's life!!!", [585, 568, 320, 1929, 568, 970, 995]),
        ("grüne Straße", [709, 6522, 1422, 1894, 127, 253, 324]),
        ("gru\u0308ne Straße", [709, 6522, 1422, 1894, 127, 253, 324]),
        ("नमस्ते भारत", [3124, 101, 48254, 28505, 19389, 27263, 25130, 3124, 511, 13343, 39136, 27263]),
        ("日本の犬 🐕", [39121, 44353, 21575, 163, 232, 361, 41069]),
        ("", []),
    ],
)
def test_texts_become_the_numbers_of_the_original(clip: ClipTokenizer, text: str, ids: list[int]) -> None:
    tokens = clip.encode(text, 77)
    assert tokens.ids == (START, *ids, END, *[END] * (75 - len(ids)))
    assert tokens.used == len(ids) + 2


def test_what_does_not_fit_is_left_out_but_the_end_stays(clip: ClipTokenizer) -> None:
    tokens = clip.encode("cat " * 200, 16)
    assert tokens.ids == (START, *[2368] * 14, END) and tokens.used == 16
    # In the middle of a word as well.
    assert clip.encode("भारत", 5).ids == (START, 3124, 511, 13343, END)


def test_the_padding_is_the_models_own(clip: ClipTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer()), encoding="utf-8")
    assert read_tokenizer(path, "!").encode("a cat", 8).ids == (START, 320, 2368, END, 0, 0, 0, 0)
    with pytest.raises(ConfigurationError, match="padded with"):
        read_tokenizer(path, "<pad>")


def test_marks_of_the_model_in_a_text_are_text(clip: ClipTokenizer) -> None:
    tokens = clip.encode("<|endoftext|> a cat <|startoftext|>", 77)
    assert tokens.ids.index(END) == tokens.used - 1
    assert tokens.ids.count(START) == 1


@pytest.mark.parametrize("text", ["\x00", "a\x00cat", "\ud800", "\u200b\ufeff", "x" * 100_000, "😀" * 50_000, " " * 100_000])
def test_hostile_texts_are_read_quickly(clip: ClipTokenizer, text: str) -> None:
    begun = time.thread_time()
    tokens = clip.encode(text, 77)
    assert len(tokens.ids) == 77 and tokens.ids[0] == START and END in tokens.ids
    assert time.thread_time() - begun < 1


def test_merges_may_be_written_as_pairs(clip: ClipTokenizer, tmp_path: Path) -> None:
    content = tokenizer()
    model = content["model"]
    assert isinstance(model, dict)
    model["merges"] = [merge.split(" ") for merge in model["merges"]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_tokenizer(path).encode("a photo of a cat", 77) == clip.encode("a photo of a cat", 77)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}', "another kind"),
        ('{"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}}', "another kind"),
        ('{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 1}, "merges": []}}', "lacks"),
        ('{"model": {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": {"a": 1}, "merges": [1]}}', "not a tokenizer"),
        ("[1, 2]", "not a tokenizer"),
        ("{", "not a tokenizer"),
        ("\x00", "not a tokenizer"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        read_tokenizer(path)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_tokenizer(tmp_path / "nothing.json")

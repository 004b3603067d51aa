"""Some of the damaged pictures: `python -m tests.fuzz images` reads tens of thousands."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
import tracemalloc
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve_app.errors import ImageTooLarge
from serve_app.imaging.effort import MAX_SCANS, check_jpeg, check_png
from serve_app.imaging.images import ImageFormat, _grey_to_rgb, decode, sniff
from tests.fuzz import images
from tests.fuzz.bombs import bombs
from tests.fuzz.reading import LIMITS, file_of
from tests.fuzz.seeds import photograph, saved, seeds


def test_damaged_pictures_are_read_or_refused_and_nothing_else(model_cache: Path) -> None:
    report = images.run(400, seed=20, workers=1, cache=model_cache, keep=None, start=100)
    assert report.findings == []
    assert report.files == 400 and sum(report.results.values()) == 400
    # Most of the mutations are small enough to reach a decoder, and some are harmless.
    assert report.results["invalid_image"] > 50
    assert sum(count for name, count in report.results.items() if name in set(ImageFormat)) > 50


def test_the_seeds_are_sound_and_of_every_format() -> None:
    made = [seed for seed in seeds() if seed.family != "real"]
    assert {sniff(seed.data) for seed in made} == set(ImageFormat)
    for seed in made:
        decode(seed.data, LIMITS)


def test_a_number_is_always_the_same_file() -> None:
    assert [file_of(3, number) for number in (100, 101)] == [file_of(3, number) for number in (100, 101)]
    assert file_of(3, 100) != file_of(4, 100)


def test_a_decoder_that_dies_or_hangs_is_noticed(model_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watching itself, without which nothing above means anything."""
    monkeypatch.setattr(images, "work", die)
    assert [one.kind for one in images.run(1, 1, 1, model_cache, None).findings] == ["crash"]
    monkeypatch.setattr(images, "work", hang)
    monkeypatch.setattr(images, "MAX_CPU_S", 0.5)
    assert [one.kind for one in images.run(1, 1, 1, model_cache, None).findings] == ["hang"]


def die(pipe: Connection, seed: int, cache: Path) -> None:
    pipe.send(None)
    if pipe.recv() is not None:
        os.abort()


def hang(pipe: Connection, seed: int, cache: Path) -> None:
    pipe.send(None)
    while pipe.recv() is not None:
        while True:
            pass


@pytest.mark.parametrize(
    "name", ["jpeg of 10,000 scans", "jpeg of five million comments", "png of 1.6 million chunks", "png over the limit"]
)
def test_work_out_of_proportion_is_refused_at_once(name: str) -> None:
    data = dict(bombs())[name]()
    began = time.thread_time()
    with pytest.raises(ImageTooLarge):
        decode(data, LIMITS)
    assert time.thread_time() - began < 0.5


def test_scans_are_counted_of_the_picture_alone() -> None:
    progressive = saved(photograph(), "JPEG", progressive=True)
    at = progressive.rfind(b"\xff\xda")
    scan = progressive[at:-2]

    def with_scans(count: int) -> bytes:
        return progressive[:at] + scan * (count - progressive.count(b"\xff\xda") + 1) + b"\xff\xd9"

    check_jpeg(with_scans(MAX_SCANS))
    too_many = with_scans(MAX_SCANS + 1)
    # Filling before a marker is allowed.
    for data in (too_many, too_many.replace(b"\xff\xda", b"\xff\xff\xff\xda")):
        with pytest.raises(ImageTooLarge):
            check_jpeg(data)
    # A film behind the picture, another picture within its EXIF block, are none of its scans.
    check_jpeg(progressive + scan * 500)
    check_jpeg(saved(photograph(), "JPEG", exif=b"Exif\0\0" + b"\xff\xda\x00\x02" * 500))


@pytest.mark.parametrize("marker", [0x02, 0x4F, 0xBF])
def test_scans_do_not_hide_in_what_is_no_segment(marker: int) -> None:
    """libjpeg passes over a reserved marker where it waits for a restart, without the length that seems to follow it."""
    hidden = bytes((0xFF, marker, 0xF0, 0)) + b"\xff\xda\x00\x02" * (MAX_SCANS + 1)
    with pytest.raises(ImageTooLarge):
        check_jpeg(b"\xff\xd8" + hidden)


def test_a_replica_says_nothing_of_what_is_odd_in_a_picture() -> None:
    """A warning an entry were 13 MB of log for this file."""
    done = subprocess.run([sys.executable, "-c", _READ_ODD], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "TIFF\n", "")


_READ_ODD = """
from deployments.process import tune_process
tune_process()
from serve_app.imaging.images import decode
from tests.fuzz.bombs import bombs
from tests.fuzz.reading import LIMITS
print(decode(dict(bombs())["tiff of 65,535 entries"](), LIMITS).format)
"""


def test_chunks_are_counted_to_the_end_of_the_picture() -> None:
    picture = saved(photograph(), "PNG")
    empty = bytes(4) + b"abCd" + bytes(4)
    check_png(picture + empty * 200_000)
    check_png(picture[:33] + empty * 90_000 + picture[33:])
    check_png(picture[:33] + b"\xff\xff\xff\xff" + picture[33:])


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_deep_grey_is_converted_without_wide_copies(kind: type[np.generic]) -> None:
    """49 megapixels of it are a file of 95 kB; they took 1.4 GB."""
    values = np.zeros((4000, 4000), kind)
    tracemalloc.start()
    try:
        pixels = _grey_to_rgb(values)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pixels.shape == (4000, 4000, 3) and peak < pixels.nbytes + (80 << 20)


def test_values_that_are_no_numbers_are_pixels_all_the_same() -> None:
    import numpy as np

    values = np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    for odd in (np.nan, np.inf, -np.inf):
        pixels = values.copy()
        pixels[0, 0] = odd
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "TIFF")
        assert decode(buffer.getvalue(), LIMITS).pixels.shape == (48, 64, 3)

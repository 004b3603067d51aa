"""What the service does with the bytes of a picture, in a process that may die of it."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from deployments.models.engine import DetectionEngine, DetectionRequest
from deployments.models.loading import load_detector
from deployments.models.packs import PackLocation, resolve
from deployments.models.pictures import CutRequest, InspectRequest, PictureEngine, ThumbnailRequest
from deployments.models.session import Device
from deployments.process import tune_process
from serve_app.errors import ImageError
from serve_app.faces import DetectionOptions
from serve_app.imaging.images import ImageLimits
from serve_app.imaging.media import recognize
from serve_app.imaging.regions import Region
from serve_app.photos import ThumbnailFormat
from tests.fuzz.bombs import bombs
from tests.fuzz.mutations import mutate
from tests.fuzz.seeds import seeds

_libc = ctypes.CDLL(ctypes.util.find_library("c"))
LIMITS = ImageLimits(20 << 20, 50_000_000)
"""Those that the service has by default."""
_ADDRESS_SPACE = 6 << 30
"""So that a file that takes everything ends its own process only."""
_DETECTED = 0.1
"""Share of the readable pictures that go through the detector as well: its own work is not about bytes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one file. `result`: the format where it was read, else the code of the error; None where something else was raised,
    and then `trouble` says what. `peak_bytes`: of memory, above what the process held before."""

    number: int
    mutation: str
    result: str | None
    trouble: str
    peak_bytes: int
    took_s: float
    resident_bytes: int


def file_of(seed: int, number: int) -> tuple[str, bytes]:
    """What was done to which picture, and the file. Bombs come first, as they are; then chance decides."""
    made = bombs()
    if number < len(made):
        name, make = made[number]
        return f"bomb/{name}", make()
    chance = random.Random(f"{seed}/{number}")
    every = seeds()
    chosen = chance.choice(every)
    what, data = mutate(chance, chosen, every)
    return f"{chosen.name}: {what}", data[: LIMITS.max_bytes + 1]


class Reader:
    """The engines of a Detection replica."""

    def __init__(self, cache: Path) -> None:
        pack = resolve(PackLocation("opencv", Path("/nonexistent"), cache))
        self._detection = DetectionEngine(load_detector(pack, Device.CPU, 1), LIMITS, pack.spec.detector.threshold)
        self._pictures = PictureEngine(LIMITS)

    def read(self, data: bytes, chance: random.Random) -> str:
        """As an upload: looked at, inspected, and, where it passes, shown; some are searched for faces. The format, or the
        code of the error."""
        recognize(data, chance.choice((None, "a.jpg", "b.nef", "c.mov", "d.tiff")))
        (info,) = self._pictures.run([InspectRequest(data)])
        wanted = chance.random() < _DETECTED
        if wanted or isinstance(info, ImageError):
            # What inspection refuses, detection refuses: it reads the picture whole where inspection may read an eighth.
            (found,) = self._detection.run([DetectionRequest(data, DetectionOptions(info=True, try_rotations=wanted))])
            if isinstance(info, ImageError):
                return info.code if isinstance(found, ImageError) else "inconsistent"
        assert not isinstance(info, ImageError | bytes)
        image_format = chance.choice((ThumbnailFormat.WEBP, ThumbnailFormat.WEBP, ThumbnailFormat.JPEG, ThumbnailFormat.AVIF))
        (left, right), (top, bottom) = (sorted((chance.random(), chance.random())) for _ in range(2))
        region = Region(left, top, right, bottom)
        for request in (ThumbnailRequest(data, 256, image_format), CutRequest(data, region, 160, image_format)):
            (small,) = self._pictures.run([request])
            if isinstance(small, ImageError):
                # It passed inspection; a JPEG is read in full detail only now, or in less.
                return f"later {small.code}"
        return info.format


def work(pipe: Connection, seed: int, cache: Path) -> None:
    """Reads the files whose numbers come through the pipe, until it is closed; each outcome goes back."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tune_process()
    # Decoders tell the console of every damage.
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    reader = Reader(cache)
    _first_of_each(reader)
    for number in _numbers(pipe):
        pipe.send(_outcome(reader, seed, number))


def _numbers(pipe: Connection) -> Iterable[int]:
    pipe.send(None)
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        if number is None:
            return
        yield number


def _first_of_each(reader: Reader) -> None:
    """What decoders load and keep with their first picture is not the doing of the file under test."""
    for seed in seeds():
        reader.read(seed.data, random.Random(seed.name))


def _outcome(reader: Reader, seed: int, number: int) -> Outcome:
    name, data = file_of(seed, number)
    # What making it left in the allocator must not hide what reading it takes.
    _libc.malloc_trim(0)
    before, began = _restart_peak(), time.process_time()
    result, trouble = None, ""
    try:
        result = reader.read(data, random.Random(f"{seed}/{number}/use"))
    except Exception:
        trouble = traceback.format_exc()
    took_s = time.process_time() - began
    peak, resident = _memory()
    return Outcome(number, name, result, trouble, max(0, peak - before), took_s, resident)


def _restart_peak() -> int:
    """Resident bytes now. proc(5), clear_refs: 5 sets the peak to what is held."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory()[1]


def _memory() -> tuple[int, int]:
    """Bytes: the peak, and now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak, now = (int(fields[name].split()[0]) << 10 for name in ("VmHWM", "VmRSS"))
    return peak, now

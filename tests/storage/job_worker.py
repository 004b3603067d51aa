"""A worker of jobs as a process of its own, to be killed: `python -m tests.storage.job_worker CONFIG`, CONFIG in JSON. The
database and the object store are real, only the two models are fakes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import InvalidImage
from serve_app.faces import DetectionOptions, Detections
from serve_app.postgres.local import dsn
from serve_app.storage.minio_objects import MinioConfig, MinioObjectStore
from serve_app.workshop import open_workshop
from tests.api.conftest import FakeDetector, FakeEmbedder, make_services

SPOILT = b"spoilt"
"""The end of a picture in which the detector finds nothing but an error, until it is mended."""
FATAL = b"fatal"
"""The end of one that kills the process."""


@dataclass
class Detector(FakeDetector):
    mended: bool = False

    async def detect(self, image: bytes, options: DetectionOptions) -> Detections:
        if image.endswith(FATAL):
            signal.raise_signal(signal.SIGKILL)
        if image.endswith(SPOILT) and not self.mended:
            raise InvalidImage("The JPEG data is spoilt.")
        return await super().detect(image, options)


async def main(config: dict[str, object]) -> None:
    postgres, delay_s = Path(str(config["postgres"])), float(str(config["delay_s"]))
    server = config["objects"]
    assert isinstance(server, dict)
    services = make_services(
        Detector(delay_s=delay_s, mended=bool(config["mended"])),
        FakeEmbedder(),
        {"data_dir": postgres.parent, "indexing_concurrency": config["at_once"]},
        lambda: dsn(postgres),
        MinioObjectStore(MinioConfig(**server)),
    )
    workshop = open_workshop(services.settings, services.pipeline, services.gallery, services.model, lambda: dsn(postgres))
    workshop.start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    await workshop.close()


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))

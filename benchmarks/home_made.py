"""The obvious home-made alternative: insightface's FaceAnalysis as its README shows it, behind plain FastAPI and uvicorn."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.ports import HOST, free_port

if TYPE_CHECKING:
    from fastapi import FastAPI

_FOLDER = "HOME_MADE_PACK"
_READY_S = 120


def build() -> FastAPI:
    """For `uvicorn --factory`. Every face that is found is embedded: FaceAnalysis knows no other way."""
    import cv2
    import numpy as np
    from fastapi import FastAPI, File
    from insightface.app import FaceAnalysis

    analysis = FaceAnalysis(
        name=os.environ[_FOLDER], allowed_modules=["detection", "recognition"], providers=["CPUExecutionProvider"]
    )
    analysis.prepare(ctx_id=-1)
    app = FastAPI()

    # A plain function, which FastAPI runs on its threads: as a coroutine it would hold everything else up.
    @app.post("/faces")
    def faces(file: bytes = File()) -> list[dict[str, object]]:
        image = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        return [
            {
                "bbox": face.bbox.tolist(),
                "detection_score": float(face.det_score),
                "embedding": face.normed_embedding.tolist(),
            }
            for face in analysis.get(image)
        ]

    @app.get("/health")
    def health() -> str:
        return "ok"

    return app


@contextmanager
def home_made(pack: Path, workers: int) -> Iterator[tuple[int, int]]:
    """Its process id and port. Raises RuntimeError with its output when it does not get ready."""
    port = free_port()
    command = [
        sys.executable, "-m", "uvicorn", "benchmarks.home_made:build", "--factory", "--host", HOST, "--port", str(port),
        "--workers", str(workers), "--log-level", "warning", "--no-access-log",
    ]  # fmt: skip
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env={**os.environ, _FOLDER: str(pack)}, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(process, port, workers)
            yield process.pid, port
        except RuntimeError as error:
            output.seek(0)
            raise RuntimeError(f"{error}\n{output.read()[-3000:]}") from error
        finally:
            process.terminate()
            process.wait(30)


def _wait(process: subprocess.Popen[bytes], port: int, workers: int) -> None:
    deadline = time.monotonic() + _READY_S
    answered = 0
    # Each answer may be the same worker's; the round that warms up is for the others.
    while answered < workers * 5:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("The home-made service did not get ready.")
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5):
                answered += 1
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)

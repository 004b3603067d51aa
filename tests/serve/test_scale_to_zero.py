"""Analysis without a replica while nobody asks for it: whoever asks first waits for one, and nothing is called missing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import yaml

from tests import data
from tests.serve.conftest import Served
from tests.serve.test_faults import ROOT, kinlens

ANALYZE = "/api/v1/face/analyze-face-advanced"
VERIFY = "/api/v1/face/verify-face"


@pytest.fixture
def without_analysis(served: Served, tmp_path: Path) -> Iterator[Served]:
    """As config/serve_small.yaml has it, with a delay of a second instead of ten minutes."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    small = yaml.safe_load((ROOT / "config" / "serve_small.yaml").read_text())
    (its,) = (one for one in small["applications"][0]["deployments"] if one["name"] == "Analysis")
    assert its["autoscaling_config"]["min_replicas"] == 0
    its["autoscaling_config"] |= {"downscale_delay_s": 1, "downscale_to_zero_delay_s": 1, "look_back_period_s": 4}
    deployments = config["applications"][0]["deployments"]
    deployments[:] = [its if one["name"] == "Analysis" else one for one in deployments]
    path = tmp_path / "to_zero.yaml"
    path.write_text(yaml.safe_dump(config))
    environment = {"DATA_DIR": str(served.output.parent / "data"), "PORT": str(served.port)}
    done = kinlens("apply", "--config", str(path), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    yield served
    done = kinlens("apply", "--config", str(ROOT / "serve_config.yaml"), **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    served.wait_for_replicas("Analysis", 1)


@pytest.mark.timeout(600)  # the configuration is changed twice
def test_who_asks_first_waits_for_the_start_and_nothing_is_missing(without_analysis: Served) -> None:
    served = without_analysis
    image = data.package_image("Tom_Hanks_54745.png")
    with served.client() as client:
        deadline = time.monotonic() + 180
        told: dict[str, object] = {}
        while served.replicas("Analysis") or (told.get("status"), told.get("replicas")) != ("healthy", 0):
            assert time.monotonic() < deadline, f"Analysis did not go: {told}"
            time.sleep(0.3)
            # It tells what it knew up to a second ago, and null while Serve's controller is busy.
            found = client.get("/api/v1/system").json()["deployments"] or ()
            told = next((one for one in found if one["name"] == "Analysis"), {})
        assert told["target"] == 0
        assert client.get("/api/v1/ready").status_code == 200
        parts = client.get("/api/v1/health/parts").json()
        assert "unavailable" not in parts.values(), parts
        # It is of no concern to whoever does not ask for it.
        assert client.post(VERIFY, files={"file": image}).status_code == 200 and not served.replicas("Analysis")

        def ask(number: int) -> httpx.Response:
            path = ANALYZE if number % 2 else f"{VERIFY}?analyze=age"
            return client.post(path, files={"file": image})

        begun = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(ask, range(8)))
        took_s = time.monotonic() - begun
    print(f"\n8 at once, the first of all after {took_s:.1f} s")
    for answer in answers:
        body = answer.json()
        assert answer.status_code == 200 and not body.get("unavailable"), body
        assert 20 < body["faces"][0]["attributes"]["age"]["years"] < 80
    assert len(served.replicas("Analysis")) == 1

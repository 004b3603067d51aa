"""Analysis end to end: HTTP, HAProxy, Detection, Analysis, the models of the default pack."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests import data
from tests.serve.conftest import Served

ANALYZE = "/api/v1/face/analyze-face-advanced"


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with served.client() as found:
        yield found


def test_start_up_names_the_models_and_how_to_get_the_missing(served: Served) -> None:
    text = " ".join(served.output.read_text().split())
    assert "age: dlib_age (CC0-1.0)" in text and "gender: dlib_gender" in text
    assert "race: unavailable" in text and "deepface" in text


def test_six_people_in_one_photo(client: httpx.Client) -> None:
    body = client.post(ANALYZE, files={"file": data.package_image("t1.jpg")}).json()
    assert body["face_count"] == 6 and body["models"] == {"age": "dlib_age", "gender": "dlib_gender"}
    boxes = [face["bbox"] for face in body["faces"]]
    areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in boxes]
    assert areas == sorted(areas, reverse=True)
    attributes = [face["attributes"] for face in body["faces"]]
    assert all(18 < one["age"]["years"] < 60 for one in attributes)
    assert all(one["age"]["low"] < one["age"]["years"] < one["age"]["high"] for one in attributes)
    said = [one["gender"]["top"] for one in attributes]
    assert set(said) == {"female", "male"}
    assert all(-90 < one["quality"]["pose"]["yaw_deg"] < 90 for one in attributes)


def test_one_face_is_said_the_same_alone_and_among_others(client: httpx.Client) -> None:
    """Faces of concurrent requests travel and are computed together; nobody gets a neighbour's answer."""
    images = [data.package_image("Tom_Hanks_54745.png"), data.package_image("t1.jpg")]

    def years(image: bytes) -> list[float]:
        answer = client.post(ANALYZE, params={"actions": "age"}, content=image, headers={"content-type": "image/png"})
        assert answer.status_code == 200, answer.text
        return [face["attributes"]["age"]["years"] for face in answer.json()["faces"]]

    alone = [years(image) for image in images]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(years, images * 24))
    assert together == alone * 24


def test_what_no_model_answers_is_named(client: httpx.Client) -> None:
    image = data.package_image("Tom_Hanks_54745.png")
    body = client.post(ANALYZE, files={"file": image}, data={"actions": "age,race"}).json()
    assert body["unavailable"][0]["attribute"] == "race" and body["faces"][0]["attributes"]["age"]["years"] > 20
    refused = client.post(ANALYZE, files={"file": image}, data={"actions": "race"})
    assert refused.status_code == 503 and refused.json()["code"] == "model_unavailable"
    # Where things lie on the server is for its operator.
    assert "/" not in refused.json()["details"]["unavailable"]["race"]


def test_a_killed_replica_delays_and_loses_nothing(client: httpx.Client, served: Served) -> None:
    image = data.package_image("Tom_Hanks_54745.png")
    (replica, *_) = served.replicas("Analysis")
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(client.post, ANALYZE, files={"file": image}) for _ in range(40)]
        replica.kill()
        found = [answer.result() for answer in answers]
    assert {answer.status_code for answer in found} == {200}
    served.wait_for_replicas("Analysis", 1)
    assert client.post(ANALYZE, files={"file": image}).json()["unavailable"] == []


def test_clients_that_hang_up_take_nobody_with_them(client: httpx.Client, served: Served) -> None:
    """Faces of several requests travel in one call; it must outlive the request that happened to start it."""
    image = data.package_image("Tom_Hanks_54745.png")
    until = time.monotonic() + 6

    def impatient(number: int) -> None:
        with served.client(timeout=0.03 + 0.05 * number) as other:
            while time.monotonic() < until:
                with contextlib.suppress(httpx.TimeoutException):
                    other.post(ANALYZE, files={"file": image})

    def patient(_: int) -> list[tuple[int, float]]:
        answers = []
        while time.monotonic() < until:
            begun = time.monotonic()
            answers.append((client.post(ANALYZE, files={"file": image}).status_code, time.monotonic() - begun))
        return answers

    with ThreadPoolExecutor(12) as pool:
        leaving = [pool.submit(impatient, number) for number in range(6)]
        answers = [answer for found in pool.map(patient, range(6)) for answer in found]
        for one in leaving:
            one.result()
    assert {status for status, _ in answers} == {200} and max(took_s for _, took_s in answers) < 45

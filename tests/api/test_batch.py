from __future__ import annotations

import base64
import time

import pytest

from serve_app.errors import Overloaded
from serve_app.faces import DetectionOptions, Detections
from tests.api.conftest import MakeWorld, World, image
from tests.api.test_face import problem

BATCH = "/api/v1/compare/batch-extract"


def files(*images: bytes) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{number}.jpg", data)) for number, data in enumerate(images)]


@pytest.mark.parametrize("path", [BATCH, "/api/v1/face/batch-extract"])
async def test_results_in_order_with_a_problem_in_place_of_each_failure(world: World, path: str) -> None:
    pictures = [image(1, 1), image(0), b"text", image(2, 3), b"", image() + b"broken"]
    response = await world.client.post(path, files=files(*pictures))
    body = response.json()
    assert response.status_code == 200
    assert [item["index"] for item in body["results"]] == list(range(6))
    assert [item["filename"] for item in body["results"]] == [f"{i}.jpg" for i in range(6)]
    assert [item["problem"] and item["problem"]["code"] for item in body["results"]] == [
        None, "no_face_detected", "unsupported_image", None, "invalid_image", "invalid_image",
    ]  # fmt: skip
    assert body["succeeded"] == 2 and body["failed"] == 4 and body["model"] == "fake-model" and body["dim"] == 4
    first, second = body["results"][0], body["results"][1]
    assert first["face_detected"] is True and first["embedding"] == [0, 1, 0, 0] and first["bbox"] and first["faces"]
    assert second["face_detected"] is False and second["embedding"] is None and second["confidence"] == 0


async def test_a_hundred_pictures_a_few_at_a_time(make_world: MakeWorld) -> None:
    world = make_world(max_workers=4)
    world.detector.delay_s = 0.001
    response = await world.client.post(BATCH, files=files(*(image(1, i % 4) for i in range(100))))
    assert response.json()["succeeded"] == 100
    assert world.detector.most_running <= 4


async def test_json_batches(world: World) -> None:
    pictures = [base64.b64encode(image(1, 2)).decode(), "not base64!"]
    body = (await world.client.post(BATCH, json={"images": pictures, "face": "all"})).json()
    assert [item["problem"] and item["problem"]["code"] for item in body["results"]] == [None, "invalid_image"]
    problem(await world.client.post(BATCH, json={"images": []}), 422, "invalid_request")
    problem(await world.client.post(BATCH, json={"pictures": pictures}), 422, "invalid_request")


async def test_one_large_picture_fails_alone(make_world: MakeWorld) -> None:
    world = make_world(max_image_bytes=1024)
    body = (await world.client.post(BATCH, files=files(image(), image() + b"\0" * 2000, image()))).json()
    assert [item["problem"] and item["problem"]["code"] for item in body["results"]] == [None, "image_too_large", None]


async def test_limits_of_the_whole(make_world: MakeWorld) -> None:
    world = make_world(max_batch_images=3, max_batch_bytes=4096)
    problem(await world.client.post(BATCH, files=files(*[image()] * 4)), 413, "payload_too_large")
    problem(await world.client.post(BATCH, files=files(image() + b"\0" * 5000)), 413, "payload_too_large")
    problem(await world.client.post(BATCH, json={"images": ["aGk="] * 4}), 413, "payload_too_large")


async def test_options_come_before_the_pictures(world: World) -> None:
    boundary = "b"

    def part(name: str, value: bytes, filename: str = "") -> bytes:
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        return f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode() + value + b"\r\n"

    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    end = b"--b--\r\n"
    option, picture = part("face", b"all"), part("files", image(3), "a.jpg")
    body = (await world.client.post(BATCH, content=option + picture + end, headers=headers)).json()
    assert len(body["results"][0]["faces"]) == 3
    problem(await world.client.post(BATCH, content=picture + option + end, headers=headers), 422, "invalid_request")
    problem(await world.client.post(BATCH, content=option + end, headers=headers), 422, "invalid_request")
    problem(
        await world.client.post(BATCH, content=part("other", b"x", "a.jpg") + end, headers=headers), 422, "invalid_request"
    )
    problem(
        await world.client.post(BATCH, content=part("faec", b"x") + picture + end, headers=headers), 422, "invalid_request"
    )


async def test_a_batch_waits_for_room_instead_of_failing(world: World) -> None:
    real, calls = world.detector.detect, 0

    async def sometimes(image: bytes, options: DetectionOptions) -> Detections:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise Overloaded("full", retry_after_s=0)
        return await real(image, options)

    world.detector.detect = sometimes  # type: ignore[method-assign]
    body = (await world.client.post(BATCH, files=files(image(), image()))).json()
    assert body["succeeded"] == 2


async def test_a_slow_picture_is_a_problem_of_its_own(make_world: MakeWorld) -> None:
    world = make_world(worker_timeout=0.05)
    world.detector.delay_s = 5
    body = (await world.client.post(BATCH, files=files(image()))).json()
    assert body["results"][0]["problem"]["code"] == "deadline_exceeded"


async def test_other_bodies(world: World) -> None:
    problem(
        await world.client.post(BATCH, content=image(), headers={"content-type": "image/jpeg"}), 415, "unsupported_media_type"
    )


async def test_a_list_of_a_million_wrong_pictures_is_refused_without_being_read(world: World) -> None:
    begun = time.process_time()
    for path in (BATCH, "/api/v1/photos/upload"):
        for images in ([1] * 9_000, [1] * 500_000):
            response = await world.client.post(path, json={"images": images})
            assert response.status_code == 422, response.text
    assert time.process_time() - begun < 5

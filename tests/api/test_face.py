"""verify-face, extract-embedding and everything a body can do wrong."""

from __future__ import annotations

import asyncio
import base64
import json

import httpx
import pytest

from serve_app.errors import InvalidImage, ModelUnavailable, Overloaded
from tests.api.conftest import KEY, MakeWorld, World, image

VERIFY = "/api/v1/face/verify-face"
EXTRACT = "/api/v1/face/extract-embedding"


def problem(response: httpx.Response, status: int, code: str) -> dict[str, object]:
    """Asserts an RFC 9457 problem and returns it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, object] = response.json()
    assert body["code"] == code and body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    return body


async def test_verify_face_finds_faces_largest_first(world: World) -> None:
    response = await world.client.post(VERIFY, files={"file": image(faces=3)})
    assert response.status_code == 200
    body = response.json()
    assert body["face_detected"] is True and body["face_count"] == 3 and body["confidence"] == pytest.approx(0.9)
    assert [face["bbox"][2] for face in body["faces"]] == [30, 20, 10]
    assert len(body["faces"][0]["landmarks"]) == 5 and body["faces"][0]["crop"] is None
    assert body["image"] == {"width_px": 640, "height_px": 480, "format": "JPEG", "rotation_deg": 0}
    assert world.detector.calls[0].crops == 0 and world.embedder.faces == 0


async def test_no_face_is_an_answer_to_verify_and_an_error_to_extract(world: World) -> None:
    body = (await world.client.post(VERIFY, files={"file": image(faces=0)})).json()
    assert body["face_detected"] is False and body["confidence"] == 0 and body["faces"] == []
    problem(await world.client.post(EXTRACT, files={"file": image(faces=0)}), 422, "no_face_detected")


async def test_extract_embeds_only_what_is_asked_for(world: World) -> None:
    body = (await world.client.post(EXTRACT, files={"file": image(faces=6, identity=2)})).json()
    assert body["embedding"] == [0, 0, 1, 0] and body["dim"] == 4 and body["model"] == "fake-model"
    assert body["face_count"] == 6 and len(body["faces"]) == 1 and world.embedder.faces == 1
    body = (await world.client.post(EXTRACT, files={"file": image(faces=6)}, data={"face": "all", "max_faces": "4"})).json()
    assert len(body["faces"]) == 4 and world.embedder.faces == 5


async def test_only_refuses_a_second_face(world: World) -> None:
    body = problem(await world.client.post(EXTRACT + "?face=only", files={"file": image(faces=2)}), 422, "multiple_faces")
    assert body["details"] == {"face_count": 2}
    assert (await world.client.post(EXTRACT + "?face=only", files={"file": image(faces=1)})).status_code == 200


async def test_every_way_to_send_a_picture(world: World) -> None:
    text = base64.b64encode(image()).decode()
    answers = [
        await world.client.post(EXTRACT, files={"file": ("a.jpg", image(), "image/jpeg")}),
        await world.client.post(EXTRACT, json={"image": text}),
        await world.client.post(EXTRACT, json={"image": f"data:image/jpeg;base64,{text}"}),
        await world.client.post(EXTRACT, json={"image": text[:4] + "\r\n" + text[4:]}),
        await world.client.post(EXTRACT, files={"image": (None, text)}),
        await world.client.post(EXTRACT, content=image(), headers={"content-type": "image/jpeg"}),
        await world.client.post(EXTRACT, content=image(), headers={"content-type": "application/octet-stream"}),
    ]
    assert [answer.status_code for answer in answers] == [200] * len(answers)
    assert len({answer.text for answer in answers}) == 1


async def test_crops_on_request(world: World) -> None:
    body = (await world.client.post(VERIFY, files={"file": image(2)}, data={"return_crops": "true"})).json()
    assert all(base64.b64decode(face["crop"]).startswith(b"\x89PNG") for face in body["faces"])


async def test_options_reach_the_detector(world: World) -> None:
    await world.client.post(VERIFY + "?detection_threshold=0.8&max_faces=2", files={"file": image(3)})
    assert world.detector.calls[0].threshold == 0.8 and world.detector.calls[0].max_faces == 2


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_faces": "0"}, "max_faces"),
        ({"max_faces": "many"}, "max_faces"),
        ({"detection_threshold": "1.5"}, "detection_threshold"),
        ({"detection_threshold": "nan"}, "detection_threshold"),
        ({"face": "smallest"}, "face"),
        ({"return_crops": "perhaps"}, "return_crops"),
        ({"max_face": "1"}, "max_face"),
        ({"\udcff": "1"}, ""),
    ],
)
async def test_bad_options_are_named(world: World, fields: dict[str, str], named: str) -> None:
    content = json.dumps({"image": base64.b64encode(image()).decode(), **fields})
    response = await world.client.post(EXTRACT, content=content, headers={"content-type": "application/json"})
    body = problem(response, 422, "invalid_request")
    errors = body["details"]["errors"]  # type: ignore[index]
    assert named in errors[0]["field"]


@pytest.mark.parametrize("given", [{}, {"image": "aGk=", "image_url": "https://x.example/a.jpg"}])
async def test_exactly_one_picture(world: World, given: dict[str, str]) -> None:
    problem(await world.client.post(VERIFY, json=given), 422, "invalid_request")


async def test_file_in_the_wrong_field(world: World) -> None:
    body = problem(await world.client.post(VERIFY, files={"photo": image()}), 422, "invalid_request")
    assert body["details"] == {"field": "photo"}


async def test_field_twice(world: World) -> None:
    response = await world.client.post(VERIFY, files=[("file", image()), ("file", image())])
    # The second file already is one too many.
    assert response.status_code in (413, 422)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "invalid_image"),
        (b"not a picture at all", 415, "unsupported_image"),
        (b"\xff\xd8\xff" + b"broken", 422, "invalid_image"),
    ],
)
async def test_bytes_that_are_no_picture(world: World, content: bytes, status: int, code: str) -> None:
    problem(await world.client.post(VERIFY, files={"file": ("x.jpg", content)}), status, code)
    problem(await world.client.post(VERIFY, content=content, headers={"content-type": "image/jpeg"}), status, code)


@pytest.mark.parametrize("text", ["not base64!", "data:image/jpeg,plain", "data:image/jpeg;base64", "YQ="])
async def test_broken_base64(world: World, text: str) -> None:
    problem(await world.client.post(VERIFY, json={"image": text}), 422, "invalid_image")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "payload_error"),
        (b"[1]", "application/json", 400, "payload_error"),
        (b'"text"', "application/json", 400, "payload_error"),
        (b"[" * 100_000, "application/json", 400, "payload_error"),
        (b'{"image": 5}', "application/json", 422, "invalid_request"),
        (b'{"file": "text"}', "application/json", 422, "invalid_request"),
        (b'\xff\xfe{"a"', "application/json", 400, "payload_error"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"hello", "", 415, "unsupported_media_type"),
        (b"--x\r\n", "multipart/form-data", 400, "payload_error"),
        (b"nonsense", "multipart/form-data; boundary=x", 400, "payload_error"),
        (b"--x\r\nContent-Disposition: form-data; name=file; filename=a\r\n\r\nabc", "multipart/form-data; boundary=x",
         400, "payload_error"),
        (b"--x\r\nContent-Disposition: attachment\r\n\r\nabc\r\n--x--\r\n", "multipart/form-data; boundary=x", 400, "payload_error"),
        (b"--x\r\nX: " + b"y" * 9000 + b"\r\n\r\nabc\r\n--x--\r\n", "multipart/form-data; boundary=x", None, None),
    ],
)  # fmt: skip
async def test_bodies_that_cannot_be_read(world: World, body: bytes, kind: str, status: int | None, code: str | None) -> None:
    response = await world.client.post(VERIFY, content=body, headers={"content-type": kind})
    if status is None or code is None:
        assert response.status_code in (400, 413) and response.headers["content-type"] == "application/problem+json"
    else:
        problem(response, status, code)


async def test_size_limits(make_world: MakeWorld) -> None:
    world = make_world(max_image_bytes=1024, max_json_bytes=2048)
    large = image() + b"\0" * 2000
    problem(await world.client.post(VERIFY, files={"file": large}), 413, "payload_too_large")
    problem(await world.client.post(VERIFY, content=large, headers={"content-type": "image/jpeg"}), 413, "payload_too_large")
    problem(await world.client.post(VERIFY, json={"image": "A" * 3000}), 413, "payload_too_large")
    text = base64.b64encode(image() + b"\0" * 1100).decode()
    problem(await world.client.post(VERIFY, json={"image": text}), 413, "image_too_large")
    assert world.detector.calls == []


async def test_a_body_without_length_is_limited_while_it_streams(make_world: MakeWorld) -> None:
    world = make_world(max_image_bytes=1024)
    sent = 0

    async def endless() -> object:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b"\xff" * 1024

    response = await world.client.post(VERIFY, content=endless(), headers={"content-type": "image/jpeg"})  # type: ignore[arg-type]
    problem(response, 413, "payload_too_large")


@pytest.mark.parametrize(
    ("header", "expected"),
    [(None, 401), ("Bearer wrong", 401), (f"Basic {KEY}", 401), ("Bearer", 401), (f"Bearer {KEY}", 200), ("Bearer \xff", 401)],
)
async def test_the_key_is_asked_for(world: World, header: str | None, expected: int) -> None:
    headers = [(b"authorization", header.encode("latin-1"))] if header is not None else []
    del world.client.headers["authorization"]
    response = await world.client.post(VERIFY, files={"file": image()}, headers=headers)
    assert response.status_code == expected
    if expected == 401:
        problem(response, 401, "unauthorized")
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert world.detector.calls == []


async def test_service_errors_become_problems(world: World) -> None:
    for error, status, code in (
        (Overloaded("The queue of Detection is full.", retry_after_s=1), 503, "overloaded"),
        (ModelUnavailable("Detection has no replica that answers.", retry_after_s=1), 503, "model_unavailable"),
        (InvalidImage("damaged"), 422, "invalid_image"),
    ):
        world.detector.error = error
        response = await world.client.post(VERIFY, files={"file": image()})
        problem(response, status, code)
        assert response.headers.get("retry-after") == ("1" if status == 503 else None)


async def test_the_unexpected_is_a_500_without_its_story(world: World) -> None:
    async def explode(*_: object) -> None:
        raise RuntimeError("secret path /etc/passwd")

    world.detector.detect = explode  # type: ignore[method-assign, assignment]
    response = await world.client.post(VERIFY, files={"file": image()})
    problem(response, 500, "internal_error")
    assert "secret" not in response.text


async def test_the_time_limit_cancels_the_work(make_world: MakeWorld) -> None:
    # The body has as long: enough for it to be read on a busy machine as well.
    world = make_world(worker_timeout=2)
    world.detector.delay_s = 30
    problem(await world.client.post(VERIFY, files={"file": image()}), 504, "deadline_exceeded")
    await asyncio.sleep(0)
    assert world.detector.cancelled == 1


async def test_a_client_that_leaves_cancels_the_work(world: World) -> None:
    world.detector.delay_s = 30
    body = image()
    sent: list[dict[str, object]] = []
    messages: list[dict[str, object]] = [
        {"type": "http.request", "body": body, "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> dict[str, object]:
        if len(messages) == 1:
            # Leave only once the work has begun.
            while not world.detector.running:  # noqa: ASYNC110  the fake has no event to wait for
                await asyncio.sleep(0)
        return messages.pop(0)

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": VERIFY, "raw_path": VERIFY.encode(), "query_string": b"", "http_version": "1.1",
        "headers": [(b"authorization", f"Bearer {KEY}".encode()), (b"content-type", b"image/jpeg")], "scheme": "http",
        "server": ("test", 80), "client": ("test", 1), "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip
    await asyncio.wait_for(world.api(scope, receive, send), 20)  # type: ignore[arg-type]
    assert world.detector.cancelled == 1
    assert sent[0]["status"] == 499


async def test_request_ids_are_kept_or_made(world: World) -> None:
    kept = await world.client.get("/api/v1/health", headers={"x-request-id": "abc-123"})
    assert kept.headers["x-request-id"] == "abc-123"
    made = await world.client.get("/api/v1/health", headers={"x-request-id": "no spaces; please"})
    assert len(made.headers["x-request-id"]) == 32


async def test_unknown_routes_and_methods(world: World) -> None:
    problem(await world.client.get("/api/v1/nothing"), 404, "not_found")
    response = await world.client.get(VERIFY)
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


async def test_images_by_url_are_off_by_default(world: World) -> None:
    problem(await world.client.post(VERIFY, json={"image_url": "https://example.org/a.jpg"}), 422, "image_url_refused")


async def test_json_numbers_and_booleans(world: World) -> None:
    payload = {"image": base64.b64encode(image(3)).decode(), "max_faces": 2, "return_crops": False}
    response = await world.client.post(VERIFY, content=json.dumps(payload), headers={"content-type": "application/json"})
    assert response.json()["face_count"] == 2


async def test_requests_beyond_the_places_are_refused_before_their_body_is_read(make_world: MakeWorld) -> None:
    world = make_world(places=2)
    world.detector.delay_s = 30
    busy = [asyncio.create_task(world.client.post(VERIFY, files={"file": image()})) for _ in range(2)]
    async with asyncio.timeout(20):
        while world.detector.running < 2:  # noqa: ASYNC110  the fake has no event to wait for
            await asyncio.sleep(0.001)
    response = await world.client.post(VERIFY, content=b"not even a picture", headers={"content-type": "image/jpeg"})
    problem(response, 503, "overloaded")
    assert response.headers["retry-after"] == "1"
    assert (await world.client.get("/api/v1/health")).status_code == 200
    for task in busy:
        task.cancel()
    await asyncio.gather(*busy, return_exceptions=True)
    world.detector.delay_s = 0
    assert (await world.client.post(VERIFY, files={"file": image()})).status_code == 200, "places are given back"

"""Requests that no HTTP library sends, on a socket: each is answered as what it is, and the next one is served."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator

import pytest

from serve_app.faces import DetectionOptions, Detections
from tests.api.conftest import KEY, image
from tests.fuzz.conftest import Listening, answer, listening_to
from tests.storage.conftest import MakeStoredWorld

VERIFY = b"POST /api/v1/face/verify-face"
JSON = b"Content-Type: application/json"


async def is_well(listening: Listening) -> None:
    assert (await listening.client.post("/api/v1/face/verify-face", files={"file": image()})).status_code == 200
    assert listening.world.services.admission.taken == 0


def length(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


TEXTS = [
    '{"name": "a", "metadata": {"x": NaN}}',
    '{"name": "a", "metadata": {"x": 1e999}}',
    '{"name": "a", "metadata": {"x": -Infinity}}',
    '{"name": "a", "metadata": {"x": ' + "9" * 4000 + "}}",
    '{"name": "a", "metadata": {"x": ' + "9" * 5000 + "}}",
    '{"name": "a", "metadata": {"x": 1e308}}',
    '{"name": "a", "metadata": {"\\ud800": "b"}}',
    '{"name": "a", "metadata": {"x": "\\ud800"}}',
    '{"name": "\\ud800"}',
    '{"name": "\\u0000"}',
    '{"name": "a", "metadata": {"x": "\\u0000"}}',
    '{"name": "a", "metadata": {"\\u0000": 1}}',
    '{"name": "a", "external_id": "\\ud83d"}',
    '{"\\ud800": 1}',
    '{"name": "a", "name": "b"}',
    '{"name": "a", "metadata": ' + '{"x":' * 400 + "1" + "}" * 400 + "}",
    '{"name": "a", "metadata": ' + '{"x":' * 990 + "1" + "}" * 990 + "}",
    '{"name": "a", "metadata": ' + '{"x":' * 50_000,
    '{"name": "a", "metadata": {"x": ' + "[" * 900 + "]" * 900 + "}}",
    "{" + ",".join(f'"field{number}": 1' for number in range(10_000)) + "}",
    '{"name": 1e999}',
    '{"name": ' + "[" * 500 + "]" * 500 + "}",
    "\ufeff{}",
    '{"name": "' + "\u202e" * 50 + '"}',
    "null",
    "NaN",
    "",
]


@pytest.mark.parametrize("path", ["/api/v1/persons", "/api/v1/collections/team/persons", "/api/v1/collections"])
async def test_json_of_all_kinds(listening: Listening, path: str) -> None:
    await listening.client.post("/api/v1/collections", json={"id": "team"})
    for text in TEXTS:
        sent = text.replace('"name": "a"', '"id": "a"') if path == "/api/v1/collections" else text
        response = await listening.client.post(path, content=sent.encode(), headers={"Content-Type": "application/json"})
        assert response.status_code in (201, 400, 413, 422, *((409,) if path.endswith("collections") else ())), text[:200]
        if response.status_code == 201:
            # What was taken can be read again, by every reader of JSON.
            json.loads(response.text, parse_constant=pytest.fail)
            assert (await listening.client.get(path)).status_code == 200, text[:200]


PATHS = [
    "%00",
    "%ff",
    "%ed%a0%80",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e",
    "a%2fb",
    "%",
    "%zz",
    "a" * 60_000,
    "%f0%9f%98%80",
    "a%0d%0aSet-Cookie:%20x=1",
    "%25%30%30",
    "team%20",
    "TEAM",
    "%74eam",
]
BEFORE = ["/api/v1/collections/", "/api/v1/storage/", "/api/v1/objects/", "/api/v1/photos/", "/assets/", "/docs/assets/"]


async def test_paths(listening: Listening) -> None:
    for before in BEFORE:
        for path in PATHS:
            found = await listening.send(f"GET {before}{path}".encode())
            assert found.status in (400, 404, 414, 422, 431), (before, path[:100], found)
            assert "set-cookie" not in found.headers


HEADERS = [
    b"Range: bytes=-",
    b"Range: bytes=5-1",
    b"Range: bytes=0-0,2-2",
    b"Range: bytes=99999999999999999999-",
    b"Range: lines=1-2",
    b"Range: bytes=-0",
    b"Range: bytes=" + b"0-1," * 1000,
    b"Range: bytes=\xb2-",
    b"If-None-Match: *",
    b'If-None-Match: "',
    b"If-None-Match: " + b'"a",' * 5000,
    b"If-Modified-Since: yesterday",
    b"If-Range: \xff",
    b"Accept: */*;q=nan",
    b"Accept: " + b"image/*," * 3000,
    b"Accept: \xff\xfe",
    b"traceparent: 00-00000000000000000000000000000000-0000000000000000-00",
    b"traceparent: ff-" + b"f" * 200,
    b"traceparent: 00-\xff",
    b"tracestate: " + b"a=b," * 2000,
    b"baggage: " + b"a=%zz," * 500,
    b"X-Request-ID: " + b"a" * 5000,
    b"X-Request-ID: a\tb",
    b"Cookie: \xff=\xff",
    b"Origin: \xff",
    b"Host: y",
    b"Expect: 100-continue",
    b"Upgrade: websocket",
    b"X-Forwarded-For: " + b"1.1.1.1," * 2000,
    b"X-Forwarded-For: \xff",
    b'Forwarded: for="["',
    b"Content-Encoding: gzip",
]


async def test_headers(listening: Listening) -> None:
    """On an answer with everything: a stored picture, with an ETag and ranges."""
    path = await stored_picture(listening)
    for header in HEADERS:
        found = await listening.send(b"GET " + path, header)
        assert found.status in (200, 206, 304, 400, 431), (header[:100], found.status, found.body)


async def stored_picture(listening: Listening) -> bytes:
    uploaded = await listening.client.post("/api/v1/photos/upload", files={"files": ("a.jpg", image(), "image/jpeg")})
    (item,) = uploaded.json()["results"]
    return f"/api/v1/photos/{item['photo']['id']}/image".encode()


async def test_idempotency_keys(listening: Listening) -> None:
    body = b'{"name": "a"}'
    for key in (b"\xff", b"a b", b"", b"a" * 256, b"\x7f", b"\t", b'"', b"a" * 60_000):
        found = await listening.send(b"POST /api/v1/persons", b"Idempotency-Key: " + key, JSON, length(body), body=body)
        assert found.status in (201, 400, 422, 431), (key[:100], found)


LENGTHS: list[tuple[bytes, ...]] = [
    (b"Content-Length: -1",),
    (b"Content-Length: 1e3",),
    (b"Content-Length: 99999999999999999999999",),
    (b"Content-Length: 4", b"Content-Length: 5"),
    (b"Content-Length: 4", b"Transfer-Encoding: chunked"),
    (b"Transfer-Encoding: chunked, gzip",),
    (b"Transfer-Encoding: gzip",),
    (b"Transfer-Encoding: \x0bchunked",),
]


async def test_lengths_that_make_no_sense(listening: Listening) -> None:
    for headers in LENGTHS:
        found = await listening.send(VERIFY, b"Content-Type: image/jpeg", *headers, body=b"zz\r\nabcd\r\n0\r\n\r\n")
        assert 400 <= found.status < 500 or found.status == 501, (headers, found)
    await is_well(listening)


def part(name: str, content: bytes, *, filename: str | None = None, more: str = "") -> bytes:
    named = "" if filename is None else f'; filename="{filename}"'
    return (
        f'--x\r\nContent-Disposition: form-data; name="{name}"{named}\r\n{more}\r\n'.encode("utf-8", "surrogateescape")
        + content
        + b"\r\n"
    )


END = b"--x--\r\n"
FORMS = {
    "no parts": END,
    "empty": b"",
    "only a boundary": b"--x\r\n",
    "many fields": part("a", b"b") * 5000 + END,
    "many files": part("file", b"b", filename="a") * 5000 + END,
    "long name": part("a" * 100_000, b"b") + END,
    "long file name": part("file", image(), filename="a" * 5000) + END,
    "traversal": part("file", image(), filename="../../../etc/passwd") + END,
    "windows": part("file", image(), filename="C:\\\\a\\\\b.jpg") + END,
    "nul in the name": part("fi\0le", image()) + END,
    "nul in the file name": part("file", image(), filename="a\0.jpg") + END,
    "not utf-8": part("file", image(), filename="\udcff\udcfe") + END,
    "charset": b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename*=utf-16''%ff%fe\r\n\r\n"
    + image()
    + b"\r\n"
    + END,
    "unknown charset": b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename*=nobody''a\r\n\r\n"
    + image()
    + b"\r\n"
    + END,
    "open quotation": b'--x\r\nContent-Disposition: form-data; name="file\r\n\r\n' + image() + b"\r\n" + END,
    "base64": part("file", b"/9j/", filename="a", more="Content-Transfer-Encoding: base64\r\n") + END,
    "nested": part("file", b"--x\r\n\r\n", filename="a") + part("file", b"--x--", filename="b") + END,
    "no end": part("file", image(), filename="a"),
    "bare line feeds": part("file", image(), filename="a").replace(b"\r\n", b"\n") + b"--x--\n",
    "long header": b"--x\r\nX: " + b"y" * 100_000 + b"\r\n\r\n\r\n" + END,
    "many headers": b"--x\r\n" + b"X: y\r\n" * 20_000 + b"\r\n\r\n" + END,
    "no colon": b"--x\r\nContent-Disposition\r\n\r\n\r\n" + END,
    "preamble": b"p" * 5000 + b"\r\n" + part("file", image(), filename="a") + END + b"epilogue" * 1000,
    "long field": part("detection_threshold", b"1" * 150_000) + END,
    "number": part("detection_threshold", b"nan") + part("file", image(), filename="a") + END,
    "infinite": part("max_faces", b"1e999") + part("file", image(), filename="a") + END,
    "digits": part("max_faces", b"9" * 5000) + part("file", image(), filename="a") + END,
    "other digits": part("max_faces", "\u0663".encode()) + part("file", image(), filename="a") + END,
}


@pytest.mark.parametrize("path", ["/api/v1/face/verify-face", "/api/v1/photos/upload"])
async def test_forms(listening: Listening, path: str) -> None:
    for name, form in FORMS.items():
        body = form.replace(b'"file"', b'"files"') if path.endswith("upload") else form
        kind = b"Content-Type: multipart/form-data; boundary=x"
        try:
            found = await listening.send(f"POST {path}".encode(), kind, length(body), b"Connection: close", body=body)
        except (ConnectionResetError, BrokenPipeError):
            # It was refused before all of it had been sent, and the kernel does not wait for us to read why.
            assert len(body) > 1 << 16, name
            continue
        assert found.status in (200, 400, 413, 415, 422), (name, found)
    await is_well(listening)


BOUNDARIES = [b"", b'""', b"a" * 5000, b"\xff", b'"a b"', b"x\x00y", b"x; boundary=y", b"'", b"*=utf-8''%00"]


async def test_boundaries(listening: Listening) -> None:
    body = part("file", image(), filename="a") + END
    for boundary in BOUNDARIES:
        found = await listening.send(
            VERIFY, b"Content-Type: multipart/form-data; boundary=" + boundary, length(body), body=body
        )
        assert found.status in (200, 400, 413), (boundary[:100], found)


BASE64 = [
    "",
    "=",
    "====",
    "A",
    "AA",
    "AAA",
    "AAAA=",
    "/9j/4AEA=AAA",
    "_9j_-w==",
    " \n\t",
    "\u00a0/9j/4AEA",
    "\uff0f9j/",
    "data:,",
    "data:;base64,",
    "data:image/jpeg;base64;base64,/9j/4AEA",
    "data:" + "a" * 100_000,
    "data:image/svg+xml;base64,PHN2Zy8+",
    "\\ud800",
    "A" * 250_000,
    "=" * 100_000,
    "\n" * 100_000 + "/9j/4AEA",
]


async def test_base64(listening: Listening) -> None:
    for text in BASE64:
        body = b'{"image": "' + json.dumps(text)[1:-1].replace("\\\\ud800", "\\ud800").encode() + b'"}'
        found = await listening.send(VERIFY, JSON, length(body), body=body)
        assert found.status in (200, 413, 415, 422), (text[:100], found)


class TestLimits:
    """On a socket, end to end."""

    @pytest.mark.parametrize("kind", [b"image/jpeg", b"application/json", b"multipart/form-data; boundary=x"])
    async def test_a_body_without_end_is_refused_while_it_comes(self, listening: Listening, kind: bytes) -> None:
        chunk = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
        sent = 0
        async with listening.connection() as (reader, writer):
            writer.write(
                VERIFY
                + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
                + KEY.encode()
                + b"\r\nTransfer-Encoding: chunked\r\n"
                b"Content-Type: " + kind + b"\r\n\r\n"
            )
            if kind.startswith(b"multipart"):
                head = part("file", b"", filename="a")[:-2]
                writer.write(b"%x\r\n" % len(head) + head + b"\r\n")
            answered = asyncio.create_task(answer(reader))
            while not answered.done() and sent < 500:
                writer.write(chunk)
                sent += 1
                # Until the server has taken it, or closed.
                try:
                    await asyncio.wait_for(writer.drain(), 5)
                except (ConnectionError, TimeoutError):
                    break
                await asyncio.sleep(0)
            found = await answered
        assert found.status == 413 and json.loads(found.body)["code"] == "payload_too_large"
        # Limits of 200 kB a picture, and 300 kB of JSON; a form may hold 2 MB beside its files. The rest is in the sockets' buffers.
        assert sent * 0xFFFF < 12 << 20
        await is_well(listening)

    async def test_a_declared_length_is_refused_before_the_body(self, listening: Listening) -> None:
        began = time.monotonic()
        found = await listening.send(VERIFY, b"Content-Type: image/jpeg", b"Content-Length: 99999999")
        assert found.status == 413 and time.monotonic() - began < 5
        await is_well(listening)

    async def test_a_body_that_never_ends_is_given_up(self, make_stored: MakeStoredWorld) -> None:
        async for listening in limited(make_stored, worker_timeout=3):
            found = await listening.send(VERIFY, b"Content-Type: image/jpeg", b"Content-Length: 1000", body=b"\xff\xd8")
            assert found.status == 504 and json.loads(found.body)["code"] == "deadline_exceeded"
            await is_well(listening)

    async def test_work_that_takes_too_long_is_given_up(self, make_stored: MakeStoredWorld) -> None:
        async for listening in limited(make_stored, worker_timeout=3):
            listening.world.detector.delay_s = 30
            found = await listening.send(VERIFY, b"Content-Type: image/jpeg", length(image()), body=image())
            assert found.status == 504 and json.loads(found.body)["code"] == "deadline_exceeded"
            await until(lambda detector=listening.world.detector: detector.cancelled == 1)
            listening.world.detector.delay_s = 0
            await is_well(listening)

    @pytest.mark.parametrize("path", ["/api/v1/face/verify-face", "/api/v1/collections/team/persons/{person}/faces"])
    async def test_a_client_that_leaves_ends_its_work_and_leaves_nothing(self, listening: Listening, path: str) -> None:
        await listening.client.post("/api/v1/collections", json={"id": "team"})
        person = (await listening.client.post("/api/v1/collections/team/persons", json={"name": "a"})).json()["id"]
        detector = listening.world.detector
        detector.delay_s = 30
        async with listening.connection() as (_, writer):
            writer.write(
                f"POST {path.format(person=person)} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
                + b"Content-Type: image/jpeg\r\n"
                + length(image())
                + b"\r\n\r\n"
                + image()
            )
            await until(lambda: detector.running == 1)
        await until(lambda: detector.cancelled == 1 and listening.world.services.admission.taken == 0)
        detector.delay_s = 0
        await is_well(listening)
        assert await listening.world.rows("SELECT 1 FROM faces") == []
        assert await listening.world.object_keys() == set()

    async def test_a_client_that_leaves_in_the_middle_of_its_body(self, listening: Listening) -> None:
        async with listening.connection() as (_, writer):
            writer.write(
                VERIFY + b" HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode() + b"\r\nContent-Type: image/jpeg\r\n"
                b"Content-Length: 1000\r\n\r\n\xff\xd8"
            )
            await until(lambda: listening.world.services.admission.taken == 1)
        await until(lambda: listening.world.services.admission.taken == 0)
        await is_well(listening)

    async def test_more_at_once_than_a_key_may(self, make_stored: MakeStoredWorld) -> None:
        async with listening_to(make_stored(max_concurrent_requests=2)) as listening:
            detector = listening.world.detector
            # The two that are let in are at work until the others have their answers.
            refused = asyncio.Event()
            detect = detector.detect

            async def held(image: bytes, options: DetectionOptions) -> Detections:
                await refused.wait()
                return await detect(image, options)

            detector.detect = held  # type: ignore[method-assign]
            sent = [
                asyncio.create_task(listening.send(VERIFY, b"Content-Type: image/jpeg", length(image()), body=image()))
                for _ in range(6)
            ]
            await until(lambda: sum(one.done() for one in sent) == 4)
            refused.set()
            found = await asyncio.gather(*sent)
            assert sorted(one.status for one in found) == [200, 200, 429, 429, 429, 429]
            assert all(int(one.headers["retry-after"]) >= 1 for one in found if one.status == 429)
            await is_well(listening)

    async def test_more_pictures_than_a_batch_may_have(self, make_stored: MakeStoredWorld) -> None:
        async for listening in limited(make_stored, max_batch_images=3):
            body = part("files", image(), filename="a") * 5 + END
            found = await listening.send(
                b"POST /api/v1/face/batch-extract", b"Content-Type: multipart/form-data; boundary=x", length(body), body=body
            )
            assert found.status == 413, found
            await is_well(listening)


async def limited(make_stored: MakeStoredWorld, **settings: object) -> AsyncIterator[Listening]:
    async with listening_to(make_stored(**settings)) as found:
        yield found


async def until(condition: object, timeout_s: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to this"
        await asyncio.sleep(0.01)

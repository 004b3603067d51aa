"""API keys on a real Postgres: made, used, rotated, revoked; what each may, on every route of the application."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import product

import httpx
import pytest

from serve_app.access import Scope
from serve_app.api.deps import FORMER_PREFIX, PREFIX
from serve_app.api.rules import RULES, Rule, Subject
from serve_app.services import api_keys
from tests.api.conftest import JPEG
from tests.storage.conftest import MakeStoredWorld, StoredWorld

KEYS = "/api/v1/keys"
INCLUDED = {"read": {"read"}, "enrol": {"enrol"}, "write": {"write", "enrol"}, "admin": {"read", "enrol", "write", "admin"}}


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is asked for in vain when the database takes longer than two seconds, as it may where all else runs beside it."""
    monkeypatch.setattr(api_keys, "_LOOK_TIMEOUT_S", 60.0)


async def key(world: StoredWorld, *scopes: str, **fields: object) -> dict[str, str]:
    """The header of a new key."""
    response = await world.client.post(KEYS, json={"name": "tests", "scopes": scopes or ["read"], **fields})
    assert response.status_code == 201, response.text
    return bearer(response.json()["key"])


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def pass_time(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """For whoever decides whether a key is still good."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + by

    monkeypatch.setattr(api_keys, "datetime", Later)


async def test_a_key_is_told_once_and_kept_as_a_hash(stored: StoredWorld) -> None:
    response = await stored.client.post(KEYS, json={"name": "Reception", "scopes": ["read"], "collections": ["a"]})
    assert response.status_code == 201 and response.headers["cache-control"] == "no-store"
    made = response.json()
    assert re.fullmatch(r"kl_[0-9a-f]{12}_[A-Za-z0-9_-]{43}", made["key"]) and made["key"].split("_")[1] == made["id"]
    me = await stored.client.get("/api/v1/me", headers=bearer(made["key"]))
    assert me.json() == {"key_id": made["id"], "name": "Reception", "scopes": ["read"], "collections": ["a"], "library": False}
    listed = (await stored.client.get(KEYS)).json()["items"]
    assert [one["id"] for one in listed] == [made["id"]] and "key" not in listed[0]
    for row in await stored.rows("SELECT k::text AS row FROM api_keys k"):
        assert made["key"].split("_", 2)[2] not in row["row"]
    assert (await stored.client.get("/api/v1/me")).json()["key_id"] == "bootstrap"


@pytest.mark.parametrize(
    "wrong", ["", "x", "kl_", "kl_000000000000_" + "A" * 43, "kl_é00000000000_" + "A" * 43, "kl_\x00" + "A" * 50]
)
async def test_what_is_no_key_is_refused(stored: StoredWorld, wrong: str) -> None:
    response = await stored.client.get("/api/v1/me", headers={b"Authorization": f"Bearer {wrong}".encode("latin-1")})
    assert response.status_code == 401 and response.json()["code"] == "unauthorized"
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_another_secret_of_a_key_that_is_there_is_refused(stored: StoredWorld) -> None:
    header = await key(stored)
    token = header["Authorization"]
    other = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert (await stored.client.get("/api/v1/me", headers={"Authorization": other})).status_code == 401


async def test_a_rotation_overlaps_and_the_secret_before_ends(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    old = await key(stored, "read")
    key_id = old["Authorization"].split("_")[1]
    rotated = await stored.client.post(f"{KEYS}/{key_id}/rotate", json={"overlap_s": 3600})
    assert rotated.status_code == 200 and rotated.json()["id"] == key_id
    new = bearer(rotated.json()["key"])
    assert [(await stored.client.get("/api/v1/me", headers=one)).status_code for one in (old, new)] == [200, 200]
    pass_time(monkeypatch, timedelta(seconds=3601))
    assert [(await stored.client.get("/api/v1/me", headers=one)).status_code for one in (old, new)] == [401, 200]
    at_once = await stored.client.post(f"{KEYS}/{key_id}/rotate", json={"overlap_s": 0})
    newest = bearer(at_once.json()["key"])
    assert (await stored.client.get("/api/v1/me", headers=newest)).status_code == 200
    assert [(await stored.client.get("/api/v1/me", headers=one)).status_code for one in (old, new)] == [401, 401]


async def test_a_rotation_whose_answer_was_lost_can_be_repeated(stored: StoredWorld) -> None:
    used = await key(stored, "read")
    path = f"{KEYS}/{used['Authorization'].split('_')[1]}/rotate"

    async def good(header: dict[str, str]) -> bool:
        return (await stored.client.get("/api/v1/me", headers=header)).status_code == 200

    lost, new = [bearer((await stored.client.post(path)).json()["key"]) for _ in range(2)]
    assert [await good(header) for header in (new, used, lost)] == [True, True, False]
    last = bearer((await stored.client.post(path, json={"overlap_s": 0})).json()["key"])
    # The new one first: the replica looks again for a secret it does not know.
    assert [await good(header) for header in (last, used, lost, new)] == [True, False, False, False]


async def test_an_idempotency_key_outlives_a_rotation_and_is_nobody_elses(stored: StoredWorld) -> None:
    await stored.collection("a")
    first, other = await key(stored, "enrol"), await key(stored, "enrol")
    once = {"Idempotency-Key": "the-same"}
    made = await stored.client.post("/api/v1/collections/a/persons", json={"name": "Ada"}, headers=first | once)
    rotated = await stored.client.post(f"{KEYS}/{first['Authorization'].split('_')[1]}/rotate")
    again = await stored.client.post(
        "/api/v1/collections/a/persons", json={"name": "Ada"}, headers=bearer(rotated.json()["key"]) | once
    )
    assert again.json() == made.json() and again.headers["idempotent-replayed"] == "true"
    others = await stored.client.post("/api/v1/collections/a/persons", json={"name": "Ada"}, headers=other | once)
    assert others.status_code == 201 and others.json()["id"] != made.json()["id"]


async def test_a_revocation_is_seen_by_other_replicas_within_seconds(make_stored: MakeStoredWorld) -> None:
    here, there = make_stored(), make_stored()
    header = await key(here)
    # Made a moment ago, and good everywhere at once.
    assert (await there.client.get("/api/v1/me", headers=header)).status_code == 200
    assert (await here.client.delete(f"{KEYS}/{header['Authorization'].split('_')[1]}")).json()["state"] == "revoked"
    revoked = asked = time.monotonic()
    while (await there.client.get("/api/v1/me", headers=header)).status_code == 200:
        # However long it took to answer: whoever comes so late is refused.
        assert asked - revoked <= api_keys.FRESH_S
        await asyncio.sleep(0.05)
        asked = time.monotonic()


async def test_an_expired_key_is_refused(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    await key(stored)
    soon = datetime.now(UTC) + timedelta(hours=1)
    header = await key(stored, "read", expires_at=soon.isoformat())
    assert (await stored.client.get("/api/v1/me", headers=header)).status_code == 200
    pass_time(monkeypatch, timedelta(hours=1))
    assert (await stored.client.get("/api/v1/me", headers=header)).status_code == 401
    past = await stored.client.post(KEYS, json={"name": "x", "scopes": ["read"], "expires_at": "2020-01-01T00:00:00Z"})
    assert past.status_code == 422


@pytest.mark.parametrize("fields", [{"name": ""}, {"name": "a\nb"}, {"scopes": []}, {"scopes": ["root"]}, {"collections": []},
                                    {"collections": ["../x"]}, {"rate_limit": 0}, {"id": "x"}, {"name": "x" * 101},
                                    {"expires_at": "2030-01-01T00:00:00"}])  # fmt: skip
async def test_a_key_that_makes_no_sense_is_not_made(stored: StoredWorld, fields: dict[str, object]) -> None:
    response = await stored.client.post(KEYS, json={"name": "x", "scopes": ["read"], **fields})
    assert response.status_code == 422 and response.json()["code"] == "invalid_request"


@pytest.mark.parametrize("key_id", ["%00", "%ed%a0%80", "x" * 500, "0" * 12, "..", "%0a"])
async def test_a_key_that_is_not_there(stored: StoredWorld, key_id: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rotate")):
        response = await stored.client.request(method, f"{KEYS}/{key_id}{path}")
        assert response.status_code in (404, 405) and response.headers["content-type"] == "application/problem+json"


async def test_last_use_is_written_beside_the_requests_and_once_a_minute(stored: StoredWorld) -> None:
    header, begun = await key(stored), datetime.now(UTC)
    for _ in range(3):
        await stored.client.get("/api/v1/me", headers=header)
    assert (await stored.rows("SELECT last_used_at FROM api_keys"))[0][0] is None
    await stored.services.access.once()
    (first,) = await stored.rows("SELECT last_used_at FROM api_keys")
    assert begun < first[0] < datetime.now(UTC)
    await stored.client.get("/api/v1/me", headers=header)
    await stored.services.access.once()
    assert (await stored.rows("SELECT last_used_at FROM api_keys"))[0][0] == first[0]


async def test_without_the_database_the_bootstrap_key_works_and_others_say_why(make_stored: MakeStoredWorld) -> None:
    up = make_stored()
    header = await key(up)
    down = make_stored(dsn=lambda: "postgresql://nobody:x@127.0.0.1:1/none")
    files = {"file": ("a.jpg", JPEG + b"\x01\x00", "image/jpeg")}
    assert (await down.client.post("/api/v1/face/verify-face", files=files)).status_code == 200
    refused = await down.client.post("/api/v1/face/verify-face", files=files, headers=header)
    assert refused.status_code == 503 and refused.json()["code"] == "database_unavailable"
    # What is no key needs no database to be told so.
    assert (await down.client.get("/api/v1/me", headers=bearer("nonsense"))).status_code == 401


async def test_a_key_that_was_good_stays_so_for_a_while_without_the_database(
    make_stored: MakeStoredWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    dsn = [""]
    world = make_stored()
    dsn[0] = world.dsn
    failing = make_stored(dsn=lambda: dsn[0])
    header = await key(world)
    assert (await failing.client.get("/api/v1/me", headers=header)).status_code == 200
    dsn[0] = "postgresql://nobody:x@127.0.0.1:1/none"
    await failing.services.access.database.close()
    monkeypatch.setattr(api_keys, "FRESH_S", 0.0)
    assert (await failing.client.get("/api/v1/me", headers=header)).status_code == 200
    monkeypatch.setattr(api_keys, "STALE_S", 0.0)
    assert (await failing.client.get("/api/v1/me", headers=header)).status_code == 503


async def test_a_key_is_told_apart_in_well_under_a_millisecond(stored: StoredWorld) -> None:
    header = await key(stored)
    ring, token = stored.services.access.ring, header["Authorization"].removeprefix("Bearer ")
    await ring.caller(token)
    times = []
    for _ in range(1000):
        begun = time.perf_counter()
        await ring.caller(token)
        times.append(time.perf_counter() - begun)
    assert sorted(times)[500] < 0.001


async def test_unknown_keys_do_not_load_the_database(stored: StoredWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come at once: few looks."""
    # So that few are few as well where the hundred take seconds.
    monkeypatch.setattr(api_keys, "_BETWEEN_LOOKS_S", 1.0)
    await key(stored)
    calls = 0
    ring = stored.services.access.ring
    refresh = ring._refresh

    async def counted() -> None:
        nonlocal calls
        calls += 1
        await refresh()

    ring._refresh = counted  # type: ignore[method-assign]
    headers = [bearer(f"kl_{uuid.uuid4().hex[:12]}_{'A' * 43}") for _ in range(100)]
    found = await asyncio.gather(*(stored.client.get("/api/v1/me", headers=one) for one in headers))
    assert {one.status_code for one in found} <= {401, 429} and calls < 20


async def test_signed_addresses_and_cursors_do_not_depend_on_the_api_key(make_stored: MakeStoredWorld) -> None:
    world = make_stored()
    first, second = await world.services.access.server_secret(), await make_stored().services.access.server_secret()
    assert first == second and len(first) == 32


async def test_an_erased_collection_is_not_opened_again_by_its_name(stored: StoredWorld) -> None:
    await stored.collection("a")
    header = await key(stored, "read", "write", collections=["a"])
    assert (await stored.client.get("/api/v1/collections/a", headers=header)).status_code == 200
    assert (await stored.client.delete("/api/v1/collections/a")).status_code == 200
    await stored.collection("a")
    await asyncio.sleep(api_keys.FRESH_S + 0.1)
    assert (await stored.client.get("/api/v1/collections/a", headers=header)).status_code == 404
    assert (await stored.client.get("/api/v1/me", headers=header)).json()["collections"] == []


async def test_collections_are_listed_as_far_as_the_key_is_for_them(stored: StoredWorld) -> None:
    for name in ("a", "b", "c"):
        await stored.collection(name)
    header = await key(stored, "admin", collections=["a", "c", "d"])
    first = (await stored.client.get("/api/v1/collections?limit=1", headers=header)).json()
    rest = await stored.client.get("/api/v1/collections", params={"cursor": first["next_cursor"]}, headers=header)
    assert [one["id"] for one in first["items"] + rest.json()["items"]] == ["a", "c"]
    # A cursor of somebody else opens nothing.
    others = (await stored.client.get("/api/v1/collections?limit=1")).json()["next_cursor"]
    found = await stored.client.get("/api/v1/collections", params={"cursor": others}, headers=header)
    assert [one["id"] for one in found.json()["items"]] == ["c"]
    assert (await stored.client.post("/api/v1/collections", json={"id": "e"}, headers=header)).status_code == 403
    assert (await stored.client.post("/api/v1/collections", json={"id": "d"}, headers=header)).status_code == 201


def address(prefix: str, path: str, collection: str, ids: dict[str, str]) -> str:
    filled = path.replace("{collection_id}", collection)
    return prefix + re.sub(r"\{(\w+)\}", lambda found: ids.get(found[1], str(uuid.UUID(int=1))), filled)


def expected(rule: Rule, scope: str, limit: str | None, collection: str) -> tuple[int, str] | None:
    """The refusal, or None for what the rules allow."""
    if rule.scope is not None and rule.scope.value not in INCLUDED[scope]:
        return 403, "forbidden"
    if limit is None:
        return None
    if rule.subject is Subject.COLLECTION and limit != collection:
        return 404, "not_found"
    if (rule.subject is Subject.LIBRARY and limit != "library") or rule.subject is Subject.EVERYTHING:
        return 403, "forbidden"
    return None


async def test_the_authorisation_matrix(stored: StoredWorld) -> None:
    """Every route, at both its prefixes, by every scope, of keys for everything, for tenant A, and for the library alone."""
    a, b = await stored.collection("tenant-a"), await stored.collection("tenant-b")
    ids = {}
    for name, collection in (("a", a), ("b", b)):
        ids[name] = {"person_id": await stored.person(collection, name=name)}
        (ids[name]["face_id"],) = await stored.enrol_vector(collection, ids[name]["person_id"], [1.0, 0.0, 0.0, 0.0])
    headers = {
        (scope.value, limit): await key(stored, scope.value, **({} if limit is None else {"collections": [limit]}))
        for scope, limit in product(Scope, (None, "tenant-a", "library"))
    }
    before = await contents(stored)
    known = {(method, PREFIX, path) for method, path in RULES}
    known |= {(method, FORMER_PREFIX, path) for (method, path), rule in RULES.items() if rule.subject is Subject.LIBRARY}
    tried = 0
    # What erases the collections themselves comes last.
    for method, prefix, path in sorted(known, key=lambda one: (one[0] == "DELETE", one)):
        rule = RULES[method, path]
        for (scope, limit), header in headers.items():
            # Tenant B's own ids, in B's collection.
            refusal = expected(rule, scope, limit, "tenant-b")
            if (method, path) == ("POST", "/collections") and limit is not None:
                # Of an id that is not its own.
                refusal = 403, "forbidden"
            if refusal is None and limit is None and method != "GET":
                continue
            url = address(prefix, path, "tenant-b", ids["b"])
            response = await asked(stored, method, url, header)
            tried += 1
            told = f"{method} {url} by {scope} for {limit}: {response.status_code} {response.text[:200]}"
            if refusal is None:
                allowed = response.status_code < 500 or response.json()["code"] == "model_unavailable"
                assert response.status_code not in (401, 403) and allowed, told
            else:
                assert (response.status_code, response.json()["code"]) == refusal, told
    assert tried > 1000
    assert await contents(stored) == before


async def asked(world: StoredWorld, method: str, url: str, header: dict[str, str]) -> httpx.Response:
    return await world.client.request(method, url, headers=header, json={} if method in ("POST", "PUT", "PATCH") else None)


async def contents(world: StoredWorld) -> list[tuple[object, ...]]:
    """What the tenants have, and the keys. Not of the library: there some of the requests are allowed."""
    rows = await world.rows(
        "WITH tenants AS (SELECT key, id FROM collections WHERE id LIKE 'tenant-%')"
        " SELECT 'c' AS kind, id FROM tenants"
        " UNION ALL SELECT 'p', p.id::text FROM persons p JOIN tenants t ON t.key = p.collection_key"
        " UNION ALL SELECT 'f', f.id::text FROM faces f JOIN tenants t ON t.key = f.collection_key"
        " UNION ALL SELECT 'k', id FROM api_keys WHERE revoked_at IS NULL ORDER BY 1, 2"
    )
    return [tuple(row) for row in rows]


async def test_ids_of_another_collection_lead_nowhere_through_ones_own(stored: StoredWorld) -> None:
    """A key for A, with all scopes, that names B's persons and faces below A's address and in bodies."""
    a, b = await stored.collection("tenant-a"), await stored.collection("tenant-b")
    own, person = await stored.person(a, name="Own"), await stored.person(b, name="Secret")
    (face,) = await stored.enrol_vector(b, person, [1.0, 0.0, 0.0, 0.0])
    header = await key(stored, "read", "admin", collections=["tenant-a"])
    vector: list[float] = [1.0, 0.0, 0.0, 0.0]
    probe = {"embedding": vector, "model": "fake-model"}
    for method, path, rule in ((method, path, rule) for (method, path), rule in RULES.items()):
        if rule.subject is Subject.COLLECTION and ("{person_id}" in path or "{face_id}" in path):
            url = address(PREFIX, path, "tenant-a", {"person_id": person, "face_id": face})
            body: dict[str, object] = {"json": {**probe} if path.endswith("verify") else {"name": "x"}}
            if path.endswith("move"):
                body = {"json": {"person_id": own}}
            elif path.endswith("/faces") and method == "POST":
                body = {"json": {"embeddings": [vector], "model": "fake-model", "review": False}}
            if method in ("GET", "DELETE"):
                body = {}
            response = await stored.client.request(method, url, headers=header, **body)  # type: ignore[arg-type]
            assert response.status_code == 404, f"{method} {url}: {response.status_code} {response.text}"
    for body_of in ({"person_ids": [person]}, {}, {"filter": {"person_ids": [person]}}):
        for route in ("search", "identify"):
            found = await stored.client.post(f"{a}/{route}", json={**probe, **body_of}, headers=header)
            assert person not in found.text and "Secret" not in found.text, found.text
    erased = await stored.client.post(f"{a}/persons:delete", json={"ids": [person]}, headers=header)
    assert erased.status_code < 500
    gone = await stored.client.post(f"{a}/faces:delete", json={"ids": [face]}, headers=header)
    assert gone.status_code < 500
    moved = await stored.client.post(
        f"{a}/persons/{own}/faces", json={"embeddings": [vector], "model": "fake-model", "review": False}, headers=header
    )
    assert moved.status_code == 201
    (mine,) = (one["id"] for one in moved.json()["faces"])
    into_b = await stored.client.post(f"{a}/faces/{mine}/move", json={"person_id": person}, headers=header)
    assert into_b.status_code == 404
    assert (await stored.client.get(f"{b}/persons/{person}")).json()["face_count"] == 1


async def test_a_collection_of_others_looks_like_one_that_is_not_there(stored: StoredWorld) -> None:
    await stored.collection("theirs")
    header = await key(stored, "read", collections=["mine"])
    answers = []
    for name in ("theirs", "nowhere"):
        response = await stored.client.get(f"/api/v1/collections/{name}/persons", headers=header)
        answers.append({**response.json(), "request_id": "", "status": response.status_code})
    assert str(answers[0]).replace("theirs", "?") == str(answers[1]).replace("nowhere", "?")
    unlimited = (await stored.client.get("/api/v1/collections/nowhere/persons")).json()
    assert {**unlimited, "request_id": ""} == {**answers[1]}


async def test_a_batch_of_a_key_that_may_not_is_refused_before_its_body_is_read(stored: StoredWorld) -> None:
    await stored.collection("b")
    header = await key(stored, "enrol", collections=["a"])

    async def body() -> AsyncIterator[bytes]:
        yield b"["
        raise AssertionError("more of the body was read")

    url = "/api/v1/collections/b/faces:batch"
    response = await stored.client.post(url, content=body(), headers=header | {"Content-Type": "application/json"})
    assert response.status_code == 404


async def test_the_key_stands_in_no_log_and_no_answer(stored: StoredWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    header = await key(stored, "read")
    token = header["Authorization"].removeprefix("Bearer ")
    told = []
    for path in ("/api/v1/me", "/api/v1/keys", "/api/v1/collections/none", "/api/v1/photos?x=1"):
        told.append((await stored.client.get(path, headers=header)).text)
    response = await stored.client.get(f"/api/v1/me?key={token}", headers={"Authorization": ""})
    assert response.status_code == 401
    secret = token.split("_", 2)[2]
    assert not [
        text
        for text in (*told, *(record.getMessage() for record in caplog.records))
        if secret in text and "HTTP Request" not in text
    ]
    assert secret not in repr(stored.services.access.ring._known)


async def test_the_journal_names_the_key(stored: StoredWorld) -> None:
    header = await key(stored, "read", "write")
    await stored.collection("library")
    person = await stored.client.post("/api/v1/persons", json={"name": "Ada"}, headers=header)
    assert person.status_code == 201, person.text
    entries = (await stored.client.get("/api/v1/journal", headers=header)).json()["items"]
    assert entries[0]["actor"] == f"tests ({header['Authorization'].split('_')[1]})"


async def test_whoever_may_not_search_does_not_learn_by_enrolling_whose_a_face_is(stored: StoredWorld) -> None:
    collection = await stored.collection()
    anna, bob = await stored.person(collection), await stored.person(collection)
    x, y = [1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]
    await stored.enrol_vector(collection, anna, x)
    path, body = f"{collection}/persons/{bob}/faces", {"embeddings": [x], "model": "fake-model"}
    warned = await stored.client.post(path, json=body, headers=await key(stored, "enrol"))
    (warning,) = warned.json()["faces"][0]["warnings"]
    assert warning["code"] == "resembles_another" and set(warning["details"]) == {"metric", "value", "limit"}
    carl = await stored.person(collection)
    await stored.enrol_vector(collection, carl, y)
    path, probe = f"{collection}/persons/{carl}/faces", [0.8, 0.6, 0.0, 0.0]
    batch = {"items": [{"person_id": carl, "embedding": probe}], "model": "fake-model"}
    for url, sent in ((path, {**body, "embeddings": [probe]}), (f"{collection}/faces:batch", batch)):
        without = await stored.client.post(url, json=sent, headers=await key(stored, "enrol"))
        assert "resembles_another" in without.text and "person_id" not in without.text.partition("resembles_another")[2]
        told = await stored.client.post(url, json=sent, headers=await key(stored, "enrol", "read"))
        assert "person_id" in told.text.partition("resembles_another")[2], told.text

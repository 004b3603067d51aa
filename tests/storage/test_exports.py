"""A person as a zip."""

from __future__ import annotations

import io
import json
import uuid
import zipfile

from tests.api.conftest import image
from tests.storage.conftest import StoredWorld


async def test_a_person_is_exported_whole(stored_everywhere: StoredWorld) -> None:
    world = stored_everywhere
    people = await world.collection()
    ada, bob = await world.person(people, name="Ada", metadata={"x": "ü"}), await world.person(people, name="Bob")
    picture = image(1, 0) + b"\x00" * 700_000
    enrolled = await world.client.post(
        f"{people}/persons/{ada}/faces", files={"files": ("a.jpg", picture, "image/jpeg")}, data={"review": "false"}
    )
    assert enrolled.status_code == 201, enrolled.text
    await world.enrol_vector(people, ada, [0.0, 1.0, 0.0, 0.0])
    await world.enrol_vector(people, bob, [0.0, 0.0, 1.0, 0.0])
    response = await world.client.get(f"{people}/persons/{ada}/export")
    assert response.status_code == 200 and response.headers["content-type"] == "application/zip"
    assert "attachment" in response.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        told = json.loads(archive.read("person.json"))
        names = sorted(archive.namelist())
        (original,) = [name for name in names if name.startswith("images/")]
        assert archive.read(original) == picture and original.endswith(".jpeg")
        assert len([name for name in names if name.startswith("crops/")]) == 1 and len(names) == 3
    assert told["person"]["name"] == "Ada" and told["person"]["metadata"] == {"x": "ü"} and told["missing"] == []
    assert len(told["faces"]) == 2 and bob not in str(told) and "embedding" not in str(told["faces"])
    lines = (await world.client.get("/api/v1/audit?action=person.export")).json()["items"]
    assert [(one["collection_id"], one["results"]) for one in lines] == [("people", 2)]


async def test_what_is_lost_is_said(stored: StoredWorld) -> None:
    people = await stored.collection()
    ada = await stored.person(people, name="Ada")
    await stored.client.post(
        f"{people}/persons/{ada}/faces", files={"files": ("a.jpg", image(1, 0), "image/jpeg")}, data={"review": "false"}
    )
    for key in await stored.object_keys():
        await stored.gallery.objects.delete(key)
    response = await stored.client.get(f"{people}/persons/{ada}/export")
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.namelist() == ["person.json"]
        assert len(json.loads(archive.read("person.json"))["missing"]) == 2


async def test_nobody_is_a_404(stored: StoredWorld) -> None:
    people = await stored.collection()
    assert (await stored.client.get(f"{people}/persons/{uuid.uuid4()}/export")).status_code == 404
    assert (await stored.client.get(f"/api/v1/collections/none/persons/{uuid.uuid4()}/export")).status_code == 404

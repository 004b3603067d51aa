"""A library of some 300 photos, with the persons in them, as a family's may look; and what people ask it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from serve_app.photos import PictureInfo, PictureTexts
from tests.api.conftest import JPEG
from tests.storage.conftest import StoredWorld

PERSONS = ("Stefanie Müller", "Anna Müller", "Bob Marley", "आदित्य शर्मा", "Priya Sharma", "Jürgen Groß", "Anna Schmidt",
           "Łukasz Nowak", "August Meier", "Deepak Verma")  # fmt: skip

NO_TEXTS = PictureTexts()


@dataclass(frozen=True, slots=True)
class Shot:
    """A photo as it is uploaded. `number`: makes its bytes."""

    number: int
    file_name: str
    folder: str
    tags: tuple[str, ...]
    info: PictureInfo
    persons: tuple[str, ...]

    @property
    def data(self) -> bytes:
        return JPEG + b"shot" + self.number.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class Album:
    folder: str
    tags: tuple[str, ...]
    begin: str
    count: int
    persons: tuple[tuple[str, ...], ...]
    camera: str = "Canon EOS R5"
    texts: PictureTexts = NO_TEXTS
    name: str = "IMG_{:04d}.JPG"
    dated: bool = True


ALBUMS = (
    Album("Reisen/Rom", ("urlaub", "italien"), "2024-08-14", 30, (("Anna Müller",), ("Anna Müller", "Bob Marley"), ()),
          texts=PictureTexts(city="Rom", country="Italien")),
    Album("Reisen/München", ("oktoberfest",), "2023-09-20", 24, (("Stefanie Müller",), ("Jürgen Groß",), ()),
          "Nikon Z6", PictureTexts(city="München", state="Bayern", country="Deutschland")),
    Album("Familie/Hochzeit", ("hochzeit", "feier"), "2019-06-15", 36,
          (("Stefanie Müller", "Jürgen Groß"), ("Anna Schmidt",), ("Priya Sharma",), ()), "SONY ILCE-7M3",
          PictureTexts(caption="Die Hochzeit von Stefanie und Jürgen in der Kirche")),
    Album("India/Mumbai", ("holiday", "beach"), "2022-12-27", 30, (("आदित्य शर्मा",), ("Priya Sharma", "आदित्य शर्मा"), ("Deepak Verma",)),
          "Apple iPhone 13", PictureTexts(city="मुंबई", country="India")),
    Album("India/Taj Mahal", ("holiday",), "2023-01-02", 18, (("Priya Sharma",), ()), "Apple iPhone 13",
          PictureTexts(title="Taj Mahal at sunrise", city="Agra", country="India")),
    Album("Kinder/Geburtstag", ("geburtstag", "kuchen"), "2021-03-03", 24, (("Anna Müller",), ("Łukasz Nowak",), ()), "Google Pixel 6"),
    Album("2020/Garten", ("garten",), "2020-05-09", 30, (("August Meier",), ()), "FUJIFILM X-T4"),
    Album("Scans", (), "1987-07-01", 20, ((),), "EPSON Perfection V600", PictureTexts(keywords=("Großmutter", "Straßenbahn"))),
    Album("Work/New York", ("conference",), "2018-04-10", 24, (("Bob Marley",), ()), "Apple iPhone 8",
          PictureTexts(city="New York", state="NY", country="USA")),
    Album("Work/York", ("museum",), "2018-05-10", 12, ((),), "Apple iPhone 8", PictureTexts(city="York", country="England")),
    Album("WhatsApp", (), "2020-01-01", 20, (("Łukasz Nowak",), ()), "", name="IMG-202408{:02d}-WA0007.jpg", dated=False),
    Album("Łódź", ("Straße", "Ausflug"), "2017-10-03", 16, (("Łukasz Nowak",), ()), "Canon EOS 80D"),
    Album("Sommerfest 2022", ("sommerfest", "grillen"), "2022-07-16", 22, (("Anna Müller", "Anna Schmidt"), ("Bob Marley",)), "Panasonic DC-G9"),
)  # fmt: skip


def shots() -> list[Shot]:
    found: list[Shot] = []
    for album in ALBUMS:
        begin = datetime.fromisoformat(album.begin)
        for index in range(album.count):
            taken = begin + timedelta(hours=7 * index) if album.dated else None
            info = PictureInfo(
                "JPEG",
                640,
                480,
                taken_local=taken,
                camera=album.camera or None,
                texts=replace(album.texts, title=album.texts.title if index % 3 == 0 else None),
            )
            number = len(found)
            name = album.name.format(number if album.dated else index % 28 + 1)
            persons = album.persons[index % len(album.persons)]
            found.append(Shot(number, name, album.folder, album.tags, info, persons))
    return found


Relevant = Callable[[Shot], bool]


def _with(*persons: str) -> Relevant:
    return lambda shot: set(persons) <= set(shot.persons)


def _tag(tag: str) -> Relevant:
    return lambda shot: tag in shot.tags


def _folder(folder: str) -> Relevant:
    return lambda shot: shot.folder == folder


def _month(year: int, month: int) -> Relevant:
    def relevant(shot: Shot) -> bool:
        taken = shot.info.taken_local
        named = f"-{year:04d}{month:02d}" in shot.file_name
        return named if taken is None else (taken.year, taken.month) == (year, month)

    return relevant


def _day(day: str) -> Relevant:
    def relevant(shot: Shot) -> bool:
        taken = shot.info.taken_local
        return day.replace("-", "") in shot.file_name if taken is None else taken.date().isoformat() == day

    return relevant


def _both(*relevant: Relevant) -> Relevant:
    return lambda shot: all(one(shot) for one in relevant)


QUERIES: tuple[tuple[str, Relevant], ...] = (
    # Names, as they are and as they are typed.
    ("stefanie", _with("Stefanie Müller")),
    ("steffani", _with("Stefanie Müller")),
    ("Stephanie", _with("Stefanie Müller")),
    ("stefnie", _with("Stefanie Müller")),
    ("anna müller", _with("Anna Müller")),
    ("anna mueller", _with("Anna Müller")),
    ("anna muller", _with("Anna Müller")),
    ("müller anna", _with("Anna Müller")),
    ("anna und bob", lambda shot: "Bob Marley" in shot.persons and any(p.startswith("Anna") for p in shot.persons)),
    ("stefanie and jürgen", _with("Stefanie Müller", "Jürgen Groß")),
    ("juergen gross", _with("Jürgen Groß")),
    ("jurgen", _with("Jürgen Groß")),
    ("jürgn", _with("Jürgen Groß")),
    ("lukasz", _with("Łukasz Nowak")),
    ("lukas", _with("Łukasz Nowak")),
    ("आदित्य", _with("आदित्य शर्मा")),
    ("Āditya", _with("आदित्य शर्मा")),
    ("aditya", _with("आदित्य शर्मा")),
    ("aaditya sharma", _with("आदित्य शर्मा")),
    ("प्रिया", _with("Priya Sharma")),
    ("दीपक", _with("Deepak Verma")),
    ("dipak", _with("Deepak Verma")),
    ("sharma", lambda shot: any("Sharma" in p or "शर्मा" in p for p in shot.persons)),
    ("maier", _with("August Meier")),
    # Places.
    ("münchen", _folder("Reisen/München")),
    ("munchen", _folder("Reisen/München")),
    ("muenchen", _folder("Reisen/München")),
    ("munchn", _folder("Reisen/München")),
    ("mumbai", _folder("India/Mumbai")),
    ("मुंबई", _folder("India/Mumbai")),
    ("lodz", _folder("Łódź")),
    ("new york", _folder("Work/New York")),
    ('"new york"', _folder("Work/New York")),
    ("taj mahal", _folder("India/Taj Mahal")),
    ("taj mahl", _folder("India/Taj Mahal")),
    ("deutschland", _folder("Reisen/München")),
    # Tags, folders, captions.
    ("hochzeit", _tag("hochzeit")),
    ("hochziet", _tag("hochzeit")),
    ("geburts", _tag("geburtstag")),
    ("strasse", _tag("Straße")),
    ("oktoberfst", _tag("oktoberfest")),
    ("kirche", _folder("Familie/Hochzeit")),
    ("grossmutter", _folder("Scans")),
    ("reisen rom", _folder("Reisen/Rom")),
    ("sommerfest", _folder("Sommerfest 2022")),
    # Dates.
    ("august 2024", _month(2024, 8)),
    ("aug 2024", _month(2024, 8)),
    ("2024-08", _month(2024, 8)),
    ("16.8.2024", _day("2024-08-16")),
    ("16 august 2024", _day("2024-08-16")),
    ("dezember 2022", _month(2022, 12)),
    ("december 2022", _month(2022, 12)),
    ("märz 2021", _month(2021, 3)),
    ("1987", lambda shot: shot.info.taken_local is not None and shot.info.taken_local.year == 1987),
    # Cameras and file names.
    ("canon r5", lambda shot: shot.info.camera == "Canon EOS R5"),
    ("iphone 13", lambda shot: shot.info.camera == "Apple iPhone 13"),
    ("iPhone13", lambda shot: shot.info.camera == "Apple iPhone 13"),
    ("nikon", lambda shot: shot.info.camera == "Nikon Z6"),
    ("IMG_0042", lambda shot: shot.file_name == "IMG_0042.JPG"),
    ("img_0042.jpg", lambda shot: shot.file_name == "IMG_0042.JPG"),
    # Together.
    ("anna rom august 2024", _both(_with("Anna Müller"), _folder("Reisen/Rom"))),
    ("anna müller urlaub", _both(_with("Anna Müller"), _tag("urlaub"))),
    ("priya beach", _both(_with("Priya Sharma"), _tag("beach"))),
    ("hochzeit stefanie 2019", _both(_with("Stefanie Müller"), _tag("hochzeit"))),
    ("fotos von bob in new york", _both(_with("Bob Marley"), _folder("Work/New York"))),
    ("garten mai 2020", _both(_tag("garten"), _month(2020, 5))),
    ("urlaub xqzzy italien", _folder("Reisen/Rom")),
    # Hard ones.
    ("hochzeitsfeier", _tag("hochzeit")),
    ("indien", lambda shot: shot.folder.startswith("India")),
    ("sommer fest", _tag("sommerfest")),
    ("stefani müler", _with("Stefanie Müller")),
    ("novak", _with("Łukasz Nowak")),
    ("prya mumbay", _both(_with("Priya Sharma"), _folder("India/Mumbai"))),
    ("agust 2024", _month(2024, 8)),
    ("anna beach", lambda shot: "beach" in shot.tags or any(one.startswith("Anna") for one in shot.persons)),
    ("stefanie ohne jürgen", lambda shot: shot.persons == ("Stefanie Müller",)),
)  # fmt: skip


async def build(world: StoredWorld) -> dict[str, Shot]:
    """Uploads all of it through the API, and puts the persons into the photos; the shot of each photo's id."""
    found: dict[str, Shot] = {}
    # Always in the same order: what is found alike comes in that of the uploads.
    for album in dict.fromkeys((shot.folder, shot.tags) for shot in shots()):
        batch = [shot for shot in shots() if (shot.folder, shot.tags) == album]
        world.pictures.infos.update({shot.data: shot.info for shot in batch})
        response = await world.client.post(
            "/api/v1/photos/upload",
            params={"folder": album[0], "tags": json.dumps(album[1])},
            files=[("files", (shot.file_name, shot.data, "image/jpeg")) for shot in batch],
        )
        assert response.status_code == 200, response.text
        results = response.json()["results"]
        assert [one["status"] for one in results] == ["created"] * len(batch), results
        found |= {one["photo"]["id"]: shot for one, shot in zip(results, batch, strict=True)}
    persons = {name: await world.person("/api/v1/collections/library", name=name) for name in PERSONS}
    for photo_id, shot in found.items():
        for name in shot.persons:
            await put_face(world, photo_id, persons[name])
    return found


async def put_face(world: StoredWorld, photo_id: str, person_id: str | None, vector: str = "[1,0,0,0]") -> str:
    """A face that indexing found."""
    face_id = str(uuid.uuid4())
    await world.rows(
        "INSERT INTO faces (id, collection_key, person_id, image_id, taken_at, found_by, decided_by, bbox)"
        " SELECT $1, collection_key, $2, image_id, taken_at, 'indexing', 'machine', '{0,0,50,50}' FROM photos WHERE id = $3",
        uuid.UUID(face_id),
        None if person_id is None else uuid.UUID(person_id),
        uuid.UUID(photo_id),
    )
    await world.rows(
        f"INSERT INTO embeddings (face_id, person_id, embedding) VALUES ($1, $2, '{vector}')",
        uuid.UUID(face_id),
        None if person_id is None else uuid.UUID(person_id),
    )
    return face_id

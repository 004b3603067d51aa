"""The commands of docs/api.md, in order, in one shell: what an example sets, those below it use."""

from __future__ import annotations

import shutil

import pytest

from tests.docs.blocks import Block, Command, blocks_of
from tests.docs.elsewhere import Fails, NotRun, Serves
from tests.docs.world import ROOT, World

BLOCKS = blocks_of(ROOT / "docs/api.md")
_ID = "jq -r '.items[0].id'"
_ASK = 'curl -s "${auth[@]}"'
_MAKE = f'{_ASK} "${{json[@]}}" -d'

BEFORE: dict[str, str] = {
    "Faces": f"OTHER=$({_MAKE} '{{}}' $COLLECTION/persons | jq -r .id); FACE=$({_ASK} $COLLECTION/persons/$PERSON/faces | {_ID})",
    "Listing photos": f"""ANNA=$({_MAKE} '{{"name": "Anna"}}' $KINLENS/api/v1/persons | jq -r .id)
        BOB=$({_MAKE} '{{"name": "Bob"}}' $KINLENS/api/v1/persons | jq -r .id)
        for _ in $(seq 120); do FACE=$({_ASK} "$KINLENS/api/v1/faces?limit=1" | {_ID}); [ $FACE = null ] || break; sleep 0.5; done""",
    "The picture, and smaller copies": f"PHOTO=$({_ASK} $PHOTOS | {_ID})",
    "Persons of the library": "PERSON=$ANNA",
    "Jobs": f"JOB=$({_ASK} $KINLENS/api/v1/jobs | jq -r .items[0].job_id)",
    "The journal": f"ENTRY=$({_ASK} $KINLENS/api/v1/journal | {_ID})",
}
"""What a reader takes from the answers before, or waits for, before the first block below a heading."""

_THERE = Fails("the chapter began with it", 22, "already_exists")
_DUPLICATE = Fails("the chapter began with it", 22, "duplicate_face")

EXPECTED: dict[str, NotRun | Fails | Serves] = {
    """curl -H "Authorization: Bearer $API_KEY" -H "Content-Type: application/json" -d '{"image_url": "https://photos.example.org/photo.jpg"}' $KINLENS/api/v1/face/verify-face""": Fails(
        "images by URL are off by default", 22, "image_url_refused"
    ),
    """curl "${auth[@]}" "${json[@]}" -d '{"path": "/srv/photos/2024", "tags": ["scan"]}' $PHOTOS/scan-path""": Fails(
        "no folder may be scanned by default", 22, "scan_refused"
    ),
    """Collections: curl "${auth[@]}" "${json[@]}" -d '{"id": "staff", "name": "Staff"}' $KINLENS/api/v1/collections""": _THERE,
    """curl "${auth[@]}" "${json[@]}" -d '{"name": "Anna", "external_id": "e-1042", "metadata": {"team": "research"}}' $COLLECTION/persons""": _THERE,
    """curl "${auth[@]}" -F files=@anna1.jpg -F files=@anna2.jpg -F taken_at=2024-05-01 $COLLECTION/persons/$PERSON/faces""": _DUPLICATE,
    """curl "${auth[@]}" "${json[@]}" -d "{\\"embeddings\\": [$embedding], \\"model\\": \\"sface_2021dec\\"}" $COLLECTION/persons/$PERSON/faces""": _DUPLICATE,
}


@pytest.mark.timeout(600)  # the start is a part of it
@pytest.mark.skipif(shutil.which("jq") is None, reason="the examples need jq")
def test_the_examples(world: World, running: str) -> None:
    blocks, seen = [], set()
    keys = {command.key for block in BLOCKS for command in block.commands}
    for block in BLOCKS:
        if block.heading in BEFORE and block.heading not in seen:
            blocks.append(Block(block.document, block.heading, block.line, (Command(BEFORE[block.heading]),)))
        seen.add(block.heading)
        blocks.append(block)
    assert set(BEFORE) <= seen and {key.removeprefix("Collections: ") for key in EXPECTED} <= keys
    # The other guide makes its own.
    blocks.append(Block("api.md", "the end", 0, (Command('curl "${auth[@]}" -X DELETE $COLLECTION'),)))
    world.run(blocks, EXPECTED)

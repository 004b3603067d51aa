"""What schemathesis loads (SCHEMATHESIS_HOOKS): requests about things that are there, and a line for every answer.

By itself it would ask for persons that nobody made and send pictures that are none: nearly every answer were a 404 or a 422.
"""

from __future__ import annotations

import base64
import io
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import schemathesis
from PIL import Image
from schemathesis import Case, HookContext
from schemathesis.core.failures import Failure
from schemathesis.core.transport import Response
from schemathesis.schemas import APIOperation

from tests import data

ANSWERS = "KINLENS_FUZZ_ANSWERS"
"""The environment's: the file that gets the lines."""
_SHARE = 0.6
"""Of the values that are exchanged for ones that fit."""
_KEPT = 60
_NOT_INSTALLED = "model_unavailable"

Operation = APIOperation[Any, Any, Any, Any]
_chance = random.Random(1)
_known: dict[str, list[str]] = defaultdict(list)
_KIND_OF = {"collections": "collection_id", "persons": "person_id", "faces": "face_id", "photos": "photo_id", "jobs": "job_id",
            "keys": "key_id", "journal": "journal_id"}  # fmt: skip
_KINDS = frozenset(_KIND_OF.values())


def _picture() -> bytes:
    with Image.open(io.BytesIO(data.package_image("t1.jpg"))) as whole:
        side = _chance.choice((200, 320, 480))
        left, top = _chance.randrange(0, whole.width - side), _chance.randrange(0, whole.height - side)
        buffer = io.BytesIO()
        whole.crop((left, top, left + side, top + side)).save(buffer, "JPEG")
        return buffer.getvalue()


@schemathesis.hook
def before_call(context: HookContext, case: Case[Operation], kwargs: dict[str, object]) -> None:
    for name in case.path_parameters or ():
        kind = "person_id" if name.endswith("person_id") else name
        # What is deleted is mostly not what the others ask for.
        if _known[kind] and _chance.random() < (0.1 if case.method == "DELETE" else _SHARE):
            case.path_parameters[name] = _chance.choice(_known[kind])
    if isinstance(case.body, dict):
        body: dict[str, Any] = {name: _fitting(name, value, case.media_type) for name, value in case.body.items()}
        case.body = body
    elif isinstance(case.body, bytes) and (case.media_type or "").startswith("image/") and _chance.random() < _SHARE:
        case.body = _picture()


def _fitting(name: str, value: object, media_type: str | None) -> object:
    """Now and then something that is there, or a picture, in place of a value."""
    if _chance.random() > _SHARE:
        return value
    singular = name.removesuffix("s")
    if singular in _KINDS and _known[singular]:
        return [_chance.choice(_known[singular])] if name.endswith("s") else _chance.choice(_known[singular])
    if name in ("into", "from", "target_person_id", "source_person_id") and _known["person_id"]:
        return _chance.choice(_known["person_id"])
    if isinstance(value, bytes):
        return _picture()
    if isinstance(value, str) and name.startswith(("image", "file")) and not name.endswith("url"):
        return base64.b64encode(_picture()).decode() if media_type == "application/json" else value
    return value


@schemathesis.hook
def after_call(context: HookContext, case: Case[Operation], response: Response) -> None:
    with Path(os.environ[ANSWERS]).open("a") as lines:
        lines.write(f"{response.status_code} {response.elapsed * 1e3:.1f} {case.method} {case.path}\n")
    if response.status_code in (200, 201, 202) and len(response.content) < 200_000:
        try:
            _learn(json.loads(response.content), _kind_of(case.path))
        except ValueError:
            return


def _kind_of(path: str) -> str | None:
    """Of the things whose own `id` an answer at this path tells."""
    for part in reversed(re.split(r"[/:]", path)):
        if part in _KIND_OF:
            return _KIND_OF[part]
    return None


def _learn(value: object, kind: str | None) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            found = kind if name == "id" else name
            if found in _KINDS and isinstance(inner, str) and inner not in _known[found]:
                _known[found] = [*_known[found][-_KEPT:], inner]
            _learn(inner, _KIND_OF.get(name, kind))
    elif isinstance(value, list):
        for inner in value:
            _learn(inner, kind)


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Operation], response: Response) -> bool:
    """A 503 that says which model is not installed is what the document promises."""
    if response.status_code != 503:
        return True
    try:
        return bool(json.loads(response.content)["code"] != _NOT_INSTALLED)
    except (ValueError, KeyError, TypeError):
        return True

from __future__ import annotations

import pickle

import pytest

from serve_app.errors import KinlensError, Overloaded, error_classes

CLASSES = list(error_classes())


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in CLASSES]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_survives_pickling(cls: type[KinlensError]) -> None:
    error = cls("what went wrong", field="x", limit=3)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (copy.detail, copy.details, str(copy)) == ("what went wrong", {"field": "x", "limit": 3}, "what went wrong")


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_error_has_a_client_or_server_status(cls: type[KinlensError]) -> None:
    assert 400 <= cls.status < 600
    assert cls.title and cls.title[0].isupper()


def test_details_are_kept_apart_from_the_sentence() -> None:
    assert Overloaded("full", retry_after_s=2).details == {"retry_after_s": 2}

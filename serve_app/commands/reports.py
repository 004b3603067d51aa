"""What commands say of many things: a line of a report for each, and how it went as a whole."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serve_app.commands.common import console, problems
from serve_app.errors import ConfigurationError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

OutcomeT = TypeVar("OutcomeT", bound="DataclassInstance")

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@contextmanager
def report_to(
    path: Path | None, columns: Sequence[str], otherwise: Callable[[OutcomeT], None]
) -> Iterator[Callable[[OutcomeT], None]]:
    """A CSV that has a line for each outcome as soon as it is known, the fields of which are its `columns`. Without one,
    `otherwise` is told. Raises ConfigurationError where it cannot be written."""
    if path is None:
        yield otherwise
        return
    try:
        stream = path.open("w", encoding="utf-8", newline="", buffering=1)
    except OSError as error:
        raise ConfigurationError(f"--report {path} cannot be written: {error.strerror}.") from error
    with stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        yield lambda outcome: writer.writerow([cell(str(value)) for value in astuple(outcome)]) and None


def cell(text: str) -> str:
    """Nothing that a spreadsheet takes for a formula, whoever gave the file its name: OWASP, "CSV Injection"."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def tell_end(reasons: Iterable[tuple[str, int]], gave_up: str | None, done: str) -> None:
    """How often what happened, and why it ended early if it did. `done`: what stays so."""
    for reason, count in reasons:
        console.print(f"  {reason} {count:,}", markup=False)
    if gave_up is not None:
        problems.print(f"{gave_up} What is {done} stays; run it again for the rest.", markup=False)

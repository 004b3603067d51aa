"""Progress of a command: bars on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from serve_app.commands.common import problems

_LINE_EVERY_S = 10.0


@contextmanager
def progress_of(title: str) -> Iterator[Callable[[int, int], None]]:
    with bars(title) as (bar,):
        yield bar


@contextmanager
def bars(*titles: str) -> Iterator[list[Callable[[int, int], None]]]:
    """A bar for each title, with rate and time left, on a terminal; a line now and then elsewhere."""
    if not problems.is_terminal:
        yield [_lines(title) for title in titles]
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(),
               TextColumn("{task.fields[rate]}"), TimeRemainingColumn())  # fmt: skip
    with Progress(*columns, console=problems, transient=True) as progress:
        yield [_bar(progress, title) for title in titles]


def _bar(progress: Progress, title: str) -> Callable[[int, int], None]:
    begun = time.monotonic()
    task = progress.add_task(title, total=None, visible=False, rate="")

    def update(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - begun, 1e-3)
        progress.update(task, completed=done, total=total, visible=True, rate=f"{rate:,.1f}/s")

    return update


def _lines(title: str) -> Callable[[int, int], None]:
    begun = told = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _LINE_EVERY_S:
            told = now
            problems.print(f"  {title}: {done:,} of {total:,} ({done / (now - begun):,.1f}/s)")

    return line


def tell(title: str, keys: list[str] | tuple[str, ...], count: int) -> None:
    problems.print(title, markup=False)
    for key in keys:
        problems.print(f"  {key}", markup=False)
    if count > len(keys):
        problems.print(f"  and {count - len(keys):,} more")

"""What all commands share: the settings, the consoles, a step with its time, and errors as messages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from dotenv import load_dotenv
from pydantic import ValidationError
from rich.console import Console

from config.settings import Settings
from serve_app.errors import ConfigurationError, KinlensError
from serve_app.storage.maintenance import MaintenanceFailed

console = Console(highlight=False, soft_wrap=True)
problems = Console(stderr=True, highlight=False, soft_wrap=True)


def read_settings() -> Settings:
    """Raises ConfigurationError, naming every setting that is wrong."""
    # Into the environment as well: Ray's workers inherit it, whatever their working directory.
    load_dotenv(".env")
    try:
        return Settings()
    except ValidationError as error:
        lines = [f"{str(entry['loc'][0]).upper()}: {entry['msg']}" for entry in error.errors(include_input=False)]
        raise ConfigurationError("; ".join(lines)) from None


@contextmanager
def step(title: str) -> Iterator[None]:
    """Prints how long a step took."""
    started = time.monotonic()
    console.print(f"  {title} ...", end="\r" if console.is_terminal else "\n")
    yield
    console.print(f"  {title}: [bold]{time.monotonic() - started:.1f} s[/]")


@contextmanager
def as_messages() -> Iterator[None]:
    """What a client of the service would be answered is a message and exit code 2 on the command line."""
    try:
        yield
    except (KinlensError, MaintenanceFailed) as error:
        raise ConfigurationError(str(error)) from error


def shown(text: str) -> str:
    """For a terminal: what would control it, as an escape."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)

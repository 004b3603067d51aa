"""The API key: given by the environment, or made once and kept in the data directory."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from config.settings import Settings
from serve_app.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class ApiKey:
    """`path`: the file it is kept in, None when the environment gave it. `created`: it was made by this very call."""

    value: str
    path: Path | None
    created: bool

    def __repr__(self) -> str:
        return f"ApiKey(path={self.path}, created={self.created})"


def load_or_create_api_key(settings: Settings) -> ApiKey:
    """API_KEY, else the key in DATA_DIR/api_key, else a new one written there with mode 0600.

    Raises ConfigurationError when the file cannot be read or written.
    """
    if settings.api_key is not None:
        return ApiKey(settings.api_key.get_secret_value(), None, created=False)
    path = settings.data_dir / "api_key"
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        value = secrets.token_urlsafe(32)
        # Written aside, then linked into place: of several processes that start at once one wins, and a reader never
        # sees half a key.
        draft = path.with_name(f".api_key.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(value + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            os.link(draft, path)
            return ApiKey(value, path, created=True)
        except FileExistsError:
            stored = path.read_text(encoding="ascii").strip()
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The API key cannot be kept in {path}: {error}. Set API_KEY or DATA_DIR.") from error
    if len(stored) < 16:
        raise ConfigurationError(f"{path} holds no API key of at least 16 characters; delete it to get a new one.")
    return ApiKey(stored, path, created=False)

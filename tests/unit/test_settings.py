from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from config.settings import SECRET_SETTINGS, Settings
from serve_app.errors import ConfigurationError
from serve_app.keys import load_or_create_api_key
from serve_app.service import Address


def test_the_names_of_the_former_service(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "API_KEY": "0123456789abcdef", "HOST": "0.0.0.0", "PORT": "9000", "DEBUG": "true", "FACE_DET_THRESH": "0.7",
        "CORS_ORIGINS": "https://a.example, https://b.example/", "WORKER_TIMEOUT": "30", "MAX_WORKERS": "3",
        "MODEL_PACK": "buffalo_s", "MODEL_ROOT": "~/models", "DATA_DIR": "relative",
    }  # fmt: skip
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = Settings(_env_file=None)
    assert settings.api_key is not None and settings.api_key.get_secret_value() == "0123456789abcdef"
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.debug is True and settings.face_det_thresh == 0.7 and settings.max_workers == 3
    assert settings.model_root.is_absolute() and settings.data_dir.is_absolute()
    assert "0123456789abcdef" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("CORS_ORIGINS", "*"), ("CORS_ORIGINS", "https://*.example"), ("CORS_ORIGINS", "example.org"), ("PORT", "0"), ("DEBUG", "perhaps"),
     ("API_KEY", "short"), ("FACE_DET_THRESH", "2"), ("WORKER_TIMEOUT", "-1"), ("MAX_IMAGE_BYTES", "1000000000")],
)  # fmt: skip
def test_values_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings(_env_file=None)


@pytest.mark.parametrize("name", ["API_KEY", "FACE_DET_THRESH", "MATCH_THRESHOLD"])
def test_empty_means_unset(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "")
    assert getattr(Settings(_env_file=None), name.lower()) is None


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.delenv("API_KEY", raising=False)
    return Settings(_env_file=None, data_dir=tmp_path / "data")


def test_a_key_is_made_once_and_kept_private(settings: Settings) -> None:
    first = load_or_create_api_key(settings)
    assert first.created and first.path is not None and len(first.value) >= 40
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o600
    second = load_or_create_api_key(settings)
    assert second.value == first.value and not second.created
    assert first.value not in repr(first)
    assert [path.name for path in settings.data_dir.iterdir()] == ["api_key"]


def test_many_starts_at_once_agree_on_one_key(settings: Settings) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: load_or_create_api_key(settings), range(32)))
    assert len({key.value for key in keys}) == 1 and sum(key.created for key in keys) == 1


def test_a_given_key_is_not_written_anywhere(settings: Settings) -> None:
    given = Settings(_env_file=None, api_key="0123456789abcdef", data_dir=settings.data_dir)
    assert load_or_create_api_key(given).path is None
    assert not settings.data_dir.exists()


def test_an_unusable_key_file_is_said(settings: Settings) -> None:
    settings.data_dir.mkdir()
    (settings.data_dir / "api_key").write_text("")
    with pytest.raises(ConfigurationError, match="api_key"):
        load_or_create_api_key(settings)
    (settings.data_dir / "api_key").unlink()
    settings.data_dir.rmdir()
    settings.data_dir.write_text("a file where the folder should be")
    with pytest.raises(ConfigurationError, match="DATA_DIR"):
        load_or_create_api_key(settings)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:8000"), ("0.0.0.0", "http://127.0.0.1:8000"), ("::1", "http://[::1]:8000")],
)
def test_addresses_become_urls(host: str, url: str) -> None:
    assert Address(host, 8000).url == url


def test_every_secret_is_kept_from_serves_configuration() -> None:
    secret = {name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
    assert secret == set(SECRET_SETTINGS)

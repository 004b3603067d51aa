"""Settings from the environment and `.env`. Built by the process that needs them, never at import."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from platformdirs import user_data_path
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1 << 20
SECRET_SETTINGS = (
    "api_key",
    "database_url",
    "minio_access_key",
    "minio_secret_key",
    "otel_exporter_otlp_headers",
    "redis_url",
    "sentry_dsn",
)
"""Read by each process from its own environment; never passed on."""


_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_ENCODED_VALUE = re.compile(r"[^\";\\]*")
"""OpenTelemetry reads the variable, too, and logs a header that has one of these, value and all."""


def parse_otlp_headers(secret: SecretStr) -> dict[str, str]:
    """`name=value,name=value`, percent-encoded, as the OpenTelemetry specification has it. Raises ValueError that does not
    tell them."""
    found = {}
    for number, part in enumerate(filter(None, map(str.strip, secret.get_secret_value().split(","))), 1):
        name, equals, value = part.partition("=")
        fits = equals and _HEADER_NAME.fullmatch(name.strip()) and _ENCODED_VALUE.fullmatch(value)
        name, value = unquote(name).strip(), unquote(value).strip()
        if not fits or not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(value):
            raise ValueError(f"header {number} is not name=value, percent-encoded")
        found[name.lower()] = value
    return found


class Settings(BaseSettings):
    """Every setting, by the name of its environment variable (case does not matter)."""

    model_config = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    api_key: SecretStr | None = Field(
        None, min_length=16, description="The Bearer key clients send. Empty: one is made and kept in DATA_DIR/api_key."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 inside the container.")
    port: int = Field(8000, ge=1, le=65_535, description="Port to listen on.")
    log_format: Literal["json", "text"] = Field("json", description="Log lines as JSON objects, or as text for people.")
    log_requests_s: float = Field(
        0, ge=0, le=3600, description="Requests that took less are not logged, unless they failed. 0: all are."
    )
    debug: bool = Field(False, description="Log at DEBUG level. Never changes what a client sees.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Origins that browsers may call from, separated by commas. Empty: none."
    )
    data_dir: Path = Field(
        default_factory=lambda: user_data_path("kinlens"), description="Where Kinlens keeps its state: key, prepared models."
    )

    database_url: SecretStr | None = Field(
        None, description="postgresql://user:password@host/database. Empty: an embedded Postgres in DATA_DIR/postgres."
    )
    database_pool_size: int = Field(10, ge=2, le=200, description="Connections to the database, an ingress replica.")
    minio_endpoint: str | None = Field(
        None, description="host:port of MinIO or another S3 server. Empty: a local object store in DATA_DIR/objects."
    )
    minio_access_key: SecretStr | None = Field(None, description="Access key of MINIO_ENDPOINT.")
    minio_secret_key: SecretStr | None = Field(None, description="Secret key of MINIO_ENDPOINT.")
    minio_secure: bool = Field(False, description="Speak TLS to MINIO_ENDPOINT and MINIO_PUBLIC_ENDPOINT.")
    minio_bucket: str = Field("kinlens", description="Bucket for pictures; made if missing.")
    minio_region: str = Field("us-east-1", description="Region that requests to MINIO_ENDPOINT are signed for.")
    minio_public_endpoint: str | None = Field(
        None, description="host:port under which clients reach MinIO; presigned URLs are signed for it. Empty: MINIO_ENDPOINT."
    )

    otel_exporter_otlp_endpoint: str | None = Field(
        None, description="http://host:4318 of an OpenTelemetry collector that traces are sent to. Empty: no traces."
    )
    otel_exporter_otlp_headers: SecretStr | None = Field(
        None, description="Headers for the collector: name=value, separated by commas, percent-encoded."
    )
    otel_exporter_otlp_protocol: Literal["http/protobuf"] = Field(
        "http/protobuf", description="The only protocol that is spoken to the collector."
    )
    otel_service_name: str = Field("kinlens", min_length=1, max_length=100, description="The name of this service in traces.")
    otel_traces_sampler: Literal[
        "always_on",
        "always_off",
        "traceidratio",
        "parentbased_always_on",
        "parentbased_always_off",
        "parentbased_traceidratio",
    ] = Field("parentbased_always_on", description="Which requests are traced; parentbased: as the client decided, if it did.")
    otel_traces_sampler_arg: float = Field(1, ge=0, le=1, description="The share of traceidratio.")
    sentry_dsn: SecretStr | None = Field(
        None, description="Where unexpected errors are reported to: the DSN of a Sentry project. Empty: nowhere."
    )

    library_collection: str = Field(
        "library",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="The collection that is the photo library; made with the first photo.",
    )
    index_uploads: bool = Field(True, description="Find the faces in photos as soon as they are uploaded.")
    indexing_concurrency: int = Field(
        2, ge=1, le=64, description="Photos that one Indexing replica works on at once; interactive requests wait behind them."
    )
    jobs_retention_days: int = Field(90, ge=1, le=36_500, description="Days for which jobs that ended are remembered.")
    journal_days: int = Field(
        90, ge=30, le=36_500, description="Days for which decisions on persons and faces of the library can be undone."
    )

    rate_limit: int = Field(
        0, ge=0, le=1_000_000, description="Requests a minute of one API key that has no limit of its own. 0: no limit."
    )
    max_concurrent_requests: int = Field(
        0, ge=0, le=10_000, description="Requests of one API key that an ingress replica works on at once. 0: no limit."
    )
    failed_keys_limit: int = Field(
        60, ge=0, le=1_000_000, description="Unknown API keys a minute from one address before the answer is 429. 0: no limit."
    )
    redis_url: SecretStr | None = Field(
        None, description="redis://host:6379/0 or rediss://: rate limits are kept there instead of in Postgres."
    )
    trusted_proxies: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (), description="Addresses or CIDRs of proxies that tell the client's address, separated by commas. Empty: none."
    )
    proxy_header: Literal["x-forwarded-for", "forwarded"] = Field(
        "x-forwarded-for", description="The header in which TRUSTED_PROXIES tell it; the other one is not read."
    )
    audit_days: int = Field(
        365, ge=1, le=36_500, description="Days for which the audit log tells who searched and changed persons."
    )

    scan_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (), description="Folders of this machine that clients may have scanned for photos, separated by commas. Empty: none."
    )

    model_pack: str = Field("opencv", description="A pack of config/models.toml, or a folder of InsightFace models.")
    model_root: Path = Field(
        Path("~/.insightface"), description="Where InsightFace packs lie: MODEL_ROOT/models/NAME or MODEL_ROOT/NAME."
    )
    model_download: bool = Field(True, description="Let insightface download a missing pack, where the network allows.")
    attribute_models: Annotated[dict[Literal["age", "gender", "emotion", "race"], str], NoDecode] = Field(
        {}, description="Other attribute models than the pack's: emotion=deepface_emotion,race=off. Empty: the pack's."
    )
    semantic_model: str = Field(
        "", description="An image-text model of config/semantic.toml, or a folder with one. Empty: no semantic search."
    )
    deepface_home: Path = Field(Path("~"), description="DeepFace's weights lie in DEEPFACE_HOME/.deepface/weights.")
    deepface_engine: Literal["onnx", "tensorflow"] = Field(
        "onnx", description="What runs DeepFace's models; each is an extra of its own."
    )
    face_det_thresh: float | None = Field(
        None, gt=0, lt=1, description="Lowest detection_score reported. Empty: the pack's own."
    )
    match_threshold: float | None = Field(
        None, ge=-1, le=1, description="Cosine at which two faces match. Empty: the pack's measured operating point."
    )

    worker_timeout: float = Field(60, gt=0, le=3600, description="Seconds one request may take before it is a 504.")
    max_workers: int = Field(8, ge=1, le=256, description="Images of one batch request that are worked on at once.")
    max_image_bytes: int = Field(20 * MIB, ge=1024, le=60 * MIB, description="Largest encoded image.")
    max_image_pixels: int = Field(50_000_000, ge=10_000, le=178_000_000, description="Largest decoded image, width x height.")
    max_batch_images: int = Field(256, ge=1, le=10_000, description="Most images in one batch request.")
    max_batch_bytes: int = Field(
        512 * MIB, ge=1024, description="Largest multipart batch body; read as it arrives, never held whole."
    )
    max_json_bytes: int = Field(64 * MIB, ge=1024, description="Largest JSON body; it is held whole.")
    allow_image_urls: bool = Field(False, description="Accept `image_url`. Private addresses stay refused.")
    image_url_timeout: float = Field(10, gt=0, le=300, description="Seconds to fetch one image_url, redirects included.")

    @field_validator(
        "api_key",
        "database_url",
        "face_det_thresh",
        "match_threshold",
        "minio_access_key",
        "minio_endpoint",
        "minio_public_endpoint",
        "minio_secret_key",
        "otel_exporter_otlp_endpoint",
        "otel_exporter_otlp_headers",
        "redis_url",
        "sentry_dsn",
        mode="before",
    )
    @classmethod
    def _empty_is_unset(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("attribute_models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(equals and model.strip() for _, equals, model in pairs):
            raise ValueError("write attribute=model, separated by commas")
        names = [name.strip() for name, _, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError("an attribute is given twice")
        return {name.strip(): model.strip() for name, _, model in pairs}

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip().rstrip("/") for part in value.split(",") if part.strip())
        return value

    @field_validator("scan_roots", "trusted_proxies", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("scan_roots")
    @classmethod
    def _absolute_roots(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        for root in value:
            if not root.is_absolute() or ".." in root.parts or len(root.parts) < 2:
                raise ValueError(f"{str(root)!r} is not an absolute path below /, without ..")
        return value

    @field_validator("redis_url")
    @classmethod
    def _a_redis(cls, value: SecretStr | None) -> SecretStr | None:
        # The value is not told: it may hold a password.
        if value is not None and not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
            raise ValueError("not an address like redis://host:6379/0")
        return value

    @field_validator("cors_origins")
    @classmethod
    def _no_wildcard(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if "*" in origin or not origin.startswith(("http://", "https://")):
                raise ValueError(f"{origin!r} is not an origin like https://photos.example.org")
        return value

    @field_validator("otel_exporter_otlp_endpoint", "sentry_dsn")
    @classmethod
    def _url(cls, value: str | SecretStr | None, info: ValidationInfo) -> str | SecretStr | None:
        if value is None:
            return None
        text = value.get_secret_value() if isinstance(value, SecretStr) else value
        # Not in the message: it may hold a password.
        try:
            parts = urlsplit(text)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fits = False
        if info.field_name == "sentry_dsn":
            if not (fits and parts.username and parts.path.rpartition("/")[2].isdigit()):
                raise ValueError("it is no DSN like https://KEY@host/NUMBER")
        elif not fits or "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("it is no address like http://host:4318; secrets belong into OTEL_EXPORTER_OTLP_HEADERS")
        return value

    @field_validator("otel_exporter_otlp_headers")
    @classmethod
    def _headers(cls, value: SecretStr | None) -> SecretStr | None:
        # OpenTelemetry's own reading would log what it does not understand, with the secret in it.
        if value is not None:
            parse_otlp_headers(value)
        return value

    @field_validator("data_dir", "deepface_home", "model_root")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        # Absolute, because replicas do not share the working directory of the process that started them.
        return value.expanduser().absolute()

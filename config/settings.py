"""Settings from the environment and `.env`. Built by the process that needs them, never at import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from platformdirs import user_data_path
from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1 << 20
SECRET_SETTINGS = ("api_key", "database_url", "minio_access_key", "minio_secret_key")
"""Read by each process from its own environment; never passed on."""


class Settings(BaseSettings):
    """Every setting, by the name of its environment variable (case does not matter)."""

    model_config = SettingsConfigDict(env_file=".env", env_file_encoding="utf-8", extra="ignore", frozen=True)

    api_key: SecretStr | None = Field(
        None, min_length=16, description="The Bearer key clients send. Empty: one is made and kept in DATA_DIR/api_key."
    )
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 inside the container.")
    port: int = Field(8000, ge=1, le=65_535, description="Port to listen on.")
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

    library_collection: str = Field(
        "library",
        pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$",
        description="The collection that is the photo library; made with the first photo.",
    )

    model_pack: str = Field("opencv", description="A pack of config/models.toml, or a folder of InsightFace models.")
    model_root: Path = Field(
        Path("~/.insightface"), description="Where InsightFace packs lie: MODEL_ROOT/models/NAME or MODEL_ROOT/NAME."
    )
    model_download: bool = Field(True, description="Let insightface download a missing pack, where the network allows.")
    attribute_models: Annotated[dict[Literal["age", "gender", "emotion", "race"], str], NoDecode] = Field(
        {}, description="Other attribute models than the pack's: emotion=deepface_emotion,race=off. Empty: the pack's."
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

    @field_validator("cors_origins")
    @classmethod
    def _no_wildcard(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if "*" in origin or not origin.startswith(("http://", "https://")):
                raise ValueError(f"{origin!r} is not an origin like https://photos.example.org")
        return value

    @field_validator("data_dir", "deepface_home", "model_root")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        # Absolute, because replicas do not share the working directory of the process that started them.
        return value.expanduser().absolute()

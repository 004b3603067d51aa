"""API keys and the audit log on the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, field_validator

from serve_app.access import MAX_COLLECTIONS, MAX_NAME_CHARACTERS, OVERLAP, Scope

KeyName = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)]
CollectionId = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]


def _in_utc(value: datetime) -> datetime:
    """Some of the first and the last day of the calendar are outside of it there."""
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is outside of the calendar") from error


Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]


class KeyFields(BaseModel):
    """`collections`: what the key is good for; without it, for all, and those to come."""

    model_config = ConfigDict(extra="forbid")

    name: KeyName = Field(description="Whose it is; the journal and the audit log call it so.")
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope))
    collections: list[CollectionId] | None = Field(None, min_length=1, max_length=MAX_COLLECTIONS)
    expires_at: Moment | None = None
    rate_limit: int | None = Field(None, ge=1, le=1_000_000, description="Requests a minute. Default: RATE_LIMIT.")

    @field_validator("name")
    @classmethod
    def _printable(cls, value: str) -> str:
        if not value.isprintable() or not value.strip():
            raise ValueError("must be of visible characters")
        return value.strip()


class RotateFields(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overlap_s: int = Field(
        int(OVERLAP.total_seconds()),
        ge=0,
        le=30 * 24 * 3600,
        description="Seconds for which the secret until now stays good.",
    )


class MeAnswer(BaseModel):
    """`scopes`: with those that others include. `collections`: null for all."""

    key_id: str
    name: str
    scopes: list[Scope]
    collections: list[str] | None
    library: bool = Field(description="Whether the key is good for the photo library.")


class KeyAnswer(BaseModel):
    """`last_used_at`: to the minute. `previous_until`: until then the secret before the last rotation is good as well."""

    id: str
    name: str
    scopes: list[Scope]
    collections: list[str] | None
    rate_limit: int | None
    state: Literal["active", "expired", "revoked"]
    created_at: datetime
    created_by: str
    rotated_at: datetime | None
    previous_until: datetime | None
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None


class NewKeyAnswer(KeyAnswer):
    """`key`: told this once."""

    key: str


class KeyPage(BaseModel):
    items: list[KeyAnswer]
    next_cursor: str | None


class AuditLineAnswer(BaseModel):
    """`results`: of a search, how many persons or photos it told of. `requests`: for how many requests like it a line stands,
    where one key was refused more than 60 times a minute."""

    id: UUID
    at: datetime
    key_id: str
    key_name: str
    action: str
    collection_id: str | None
    status: int
    results: int | None
    requests: int


class AuditPage(BaseModel):
    items: list[AuditLineAnswer]
    next_cursor: str | None

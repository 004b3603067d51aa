"""Who is in the photos: faces that indexing found, who said whose they are, what must not be; and the journal of it."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = (
    # `decided_by`: who said what `person_id` says; what a user decided, the machine never changes. `unassigned`: why the
    # machine gave the face to nobody (code, metric, value, limit, person_id); null while it has not looked at it yet.
    # `hidden`: not a face, or nobody's business: never grouped, never suggested.
    """
    ALTER TABLE faces
        ADD COLUMN found_by text NOT NULL DEFAULT 'enrolment' CHECK (found_by IN ('enrolment', 'indexing')),
        ADD COLUMN decided_by text NOT NULL DEFAULT 'user' CHECK (decided_by IN ('user', 'machine')),
        ADD COLUMN unassigned jsonb,
        ADD COLUMN hidden boolean NOT NULL DEFAULT false
    """,
    "CREATE INDEX faces_unassigned ON faces (collection_key, id) WHERE person_id IS NULL AND NOT hidden",
    "CREATE INDEX faces_by_reason ON faces (collection_key, (unassigned ->> 'code'), id) WHERE person_id IS NULL",
    # Faces that the machine has not looked at yet: few, and asked for every few seconds.
    """
    CREATE INDEX faces_waiting ON faces (collection_key, id)
        WHERE person_id IS NULL AND unassigned IS NULL AND decided_by = 'machine' AND NOT hidden
    """,
    "CREATE INDEX faces_hidden ON faces (collection_key, id) WHERE hidden",
    # The order of a page by size: see storage/library_faces.py.
    """
    CREATE INDEX faces_by_size ON faces
        (collection_key, (coalesce((quality ->> 'size_px')::double precision, 0)), id)
    """,
    """
    ALTER TABLE persons
        ADD COLUMN founded_by text NOT NULL DEFAULT 'user' CHECK (founded_by IN ('user', 'machine')),
        ADD COLUMN hidden boolean NOT NULL DEFAULT false,
        ADD COLUMN cover_face_id uuid REFERENCES faces (id) ON DELETE SET NULL
    """,
    # How many pictures somebody is in, counted without looking at the faces; the enrolled ones may come from no photo.
    "CREATE INDEX faces_by_person_and_image ON faces (person_id, image_id) INCLUDE (found_by)",
    # The order of a page by name.
    "CREATE INDEX persons_by_name ON persons (collection_key, lower(name), id)",
    "CREATE INDEX persons_by_cover ON persons (cover_face_id) WHERE cover_face_id IS NOT NULL",
    # "Not this person", of a face; and of two persons, that they are not the same. `person_a` < `person_b`.
    """
    CREATE TABLE face_rejections (
        face_id uuid NOT NULL REFERENCES faces (id) ON DELETE CASCADE,
        person_id uuid NOT NULL REFERENCES persons (id) ON DELETE CASCADE,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (face_id, person_id)
    )
    """,
    "CREATE INDEX face_rejections_by_person ON face_rejections (person_id)",
    """
    CREATE TABLE person_distinctions (
        person_a uuid NOT NULL REFERENCES persons (id) ON DELETE CASCADE,
        person_b uuid NOT NULL REFERENCES persons (id) ON DELETE CASCADE,
        created_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (person_a, person_b),
        CHECK (person_a < person_b)
    )
    """,
    "CREATE INDEX person_distinctions_by_b ON person_distinctions (person_b)",
    # `before` and `after`: what the action changed of persons, rejections and distinctions; `faces`: of faces, those together
    # that were alike before and alike after. `subjects`: all persons and faces it names, `person_ids` the persons of them:
    # when one is erased, so is what the journal says of it.
    """
    CREATE TABLE journal (
        id uuid PRIMARY KEY,
        collection_key integer NOT NULL REFERENCES collections (key),
        at timestamptz NOT NULL DEFAULT now(),
        actor text NOT NULL,
        action text NOT NULL,
        subjects uuid[] NOT NULL,
        person_ids uuid[] NOT NULL,
        face_count integer NOT NULL,
        before jsonb NOT NULL,
        after jsonb NOT NULL,
        faces jsonb NOT NULL,
        undoes uuid UNIQUE REFERENCES journal (id) ON DELETE SET NULL,
        undone_by uuid REFERENCES journal (id) ON DELETE SET NULL
    )
    """,
    # Which is looked at when an entry is deleted.
    "CREATE INDEX journal_by_undoing ON journal (undone_by) WHERE undone_by IS NOT NULL",
    "CREATE INDEX journal_by_collection ON journal (collection_key, id)",
    "CREATE INDEX journal_by_subject ON journal USING gin (subjects)",
    "CREATE INDEX journal_by_age ON journal (at)",
    # When the faces of a photo were last looked for, and by what: detector and embedding contract.
    "ALTER TABLE photos ADD COLUMN indexed_at timestamptz, ADD COLUMN indexed_with text",
    "CREATE INDEX photos_not_indexed ON photos (collection_key, id) WHERE indexed_at IS NULL",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("Restore the backup made before the upgrade.")

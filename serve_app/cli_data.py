"""The commands for what is stored: `db`, `gc`, `backup`, `restore`, `import`."""

from __future__ import annotations

import typer

from serve_app.backends import running_database
from serve_app.cli_common import read_settings, step

app = typer.Typer()
db_app = typer.Typer(help="The database: its schema, and whether its indexes and rows are sound.", no_args_is_help=True)
app.add_typer(db_app, name="db")


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest schema version, as every `kinlens up` does."""
    settings = read_settings()
    with step("database: bring to the newest schema"), running_database(settings):
        pass

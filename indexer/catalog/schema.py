"""A database -> this release's tables: made, adopted from the first release, upgraded, or refused as too new.

All of it is one transaction, which SQLite and PostgreSQL roll back for tables too: a process that dies half-way leaves
the old schema whole. There is no downgrade; keep a copy of the database if you may need one.
"""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, func, inspect, select

from indexer.catalog.records import ForeignTables, NewerSchema

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "schema_revision"  # one row: the revision of these tables
FIRST = "0001"
# The first release wrote no revision; a database that holds exactly these is its.
FIRST_TABLES = frozenset({"clock", "stems", "stem_tags", "embeddings", "jobs", "job_items", "generations", "aliases"})
LOCK = 0x5048414C4152  # any number, the same in every release


def bring_up_to_date(connection: Connection) -> None:
    """Give the database this release's schema, in the transaction that the connection is in.

    Several processes may start at once: the first does the work, the others wait and find it done. (On SQLite the
    transaction has begun as a writing one.)

    Raises:
        NewerSchema: a newer release has been here.
        ForeignTables: the database is something else's.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes |= {"connection": connection, "version_table": VERSION_TABLE}
    scripts = ScriptDirectory.from_config(config)
    head = scripts.get_current_head()
    assert head is not None
    found = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if found == head:
        return
    if found is None:
        _adopt(connection, config)
    elif found not in {script.revision for script in scripts.walk_revisions()}:
        raise NewerSchema(found, head)
    command.upgrade(config, "head")


def _adopt(connection: Connection, config: Config) -> None:
    """Write down the revision of a database that the first release made; leave an empty one alone."""
    ours = FIRST_TABLES.intersection(inspect(connection).get_table_names())
    if ours == FIRST_TABLES:
        command.stamp(config, FIRST)
    elif ours:
        raise ForeignTables(tuple(sorted(ours)))

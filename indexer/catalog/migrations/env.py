"""What Alembic runs: the migrations, on the connection and in the transaction of whoever asked for them."""

from alembic import context

from indexer.catalog.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=context.config.attributes["version_table"],
)
with context.begin_transaction():
    context.run_migrations()

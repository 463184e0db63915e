"""Compares the catalogue of a database with what the code believes of it.

The code's belief is `tables.py`. It is built in a schema of its own, PostgreSQL
is asked for the definitions of both, and the two texts are compared: so no rule
about how PostgreSQL writes an expression has to be known here. Everything
happens in one transaction that is rolled back, which works wherever migrations
do and leaves nothing behind.

Alembic's own check looks at tables, columns and indexes, and is blind to
exclusion constraints and CHECKs: with the rule against double booking gone it
finds nothing to say.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from booking.postgres import schema
from booking.postgres.database import parse_url
from booking.postgres.tables import metadata

_BELIEF = "taxi_as_the_code_believes"
"""The schema in which `tables.py` is built. Two checks at once wait for each other on it."""

_DEFINITIONS = text("""
    WITH ours AS (
        SELECT oid, relname AS name, relkind, relpersistence FROM pg_class
        WHERE relnamespace = CAST(:schema AS text)::regnamespace
          AND relname = ANY (CAST(:tables AS text[]))
    )
    SELECT 'table' AS kind, name,
           CASE relpersistence WHEN 'p' THEN 'logged' WHEN 'u' THEN 'unlogged' ELSE 'temporary' END
           || CASE relkind WHEN 'r' THEN '' ELSE ', of kind ' || relkind::text END AS definition
    FROM ours
    UNION ALL
    SELECT 'column', ours.name || '.' || attname,
           concat_ws(' ', format_type(atttypid, atttypmod),
                     CASE WHEN attnotnull THEN 'NOT NULL' END,
                     'DEFAULT ' || pg_get_expr(adbin, adrelid),
                     'IDENTITY ' || nullif(attidentity::text, ''),
                     'GENERATED ' || nullif(attgenerated::text, ''))
    FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
    LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    UNION ALL
    -- PostgreSQL 18 keeps NOT NULL here as well; it was compared with the columns.
    SELECT 'constraint', conname, pg_get_constraintdef(pg_constraint.oid, true)
    FROM ours JOIN pg_constraint ON conrelid = ours.oid AND contype <> 'n'
    UNION ALL
    SELECT 'index', relname, pg_get_indexdef(indexrelid, 0, true)
           || CASE WHEN indisvalid AND indisready THEN '' ELSE ' INVALID' END
    FROM ours JOIN pg_index ON indrelid = ours.oid JOIN pg_class ON pg_class.oid = indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
       OR NOT (indisvalid AND indisready)
    UNION ALL
    SELECT 'trigger', tgname, pg_get_triggerdef(pg_trigger.oid, true)
           || CASE tgenabled WHEN 'O' THEN '' ELSE ' NOT ENABLED' END
    FROM ours JOIN pg_trigger ON tgrelid = ours.oid AND NOT tgisinternal
    UNION ALL
    SELECT DISTINCT 'function', proname, regexp_replace(trim(prosrc), '\\s+', ' ', 'g')
    FROM ours JOIN pg_trigger ON tgrelid = ours.oid AND NOT tgisinternal
    JOIN pg_proc ON pg_proc.oid = tgfoid
""")


class _Thing(NamedTuple):
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def check(
    url: str, prevention: str = schema.SHIPPED, allocator: str = schema.SHIPPED_ALLOCATOR
) -> list[str]:
    """What differs in the database of these strategies, in plain words; empty if nothing does.

    Raises `SchemaError` when the server cannot be reached or does not allow it.
    """
    own_url = schema.url_for(url, prevention, allocator)
    fitting = schema.fitting(prevention, allocator)

    async def look() -> list[str]:
        engine = create_async_engine(parse_url(own_url), poolclass=NullPool)
        try:
            return await differences(engine, fitting)
        finally:
            await engine.dispose()

    with schema.plainly_told(own_url):
        return asyncio.run(look())


async def differences(engine: AsyncEngine, fitting: Sequence[str] = ()) -> list[str]:
    """What differs between the database and `tables.py`, a sentence each, in order.

    `fitting` is what the database's strategies add and take away, as
    `schema.fitting` says; tables that they add are compared as well. Needs the
    right to create a schema, and leaves none.
    """
    async with engine.connect() as connection:
        transaction = await connection.begin()
        try:
            return await _differences(connection, fitting)
        finally:
            await transaction.rollback()


async def _differences(connection: AsyncConnection, fitting: Sequence[str]) -> list[str]:
    extension_schema = await connection.scalar(
        text("SELECT extnamespace::regnamespace FROM pg_extension WHERE extname = 'btree_gist'")
    )
    if extension_schema is None:
        return ["extension btree_gist is missing"]
    own_schema = await connection.scalar(
        text(
            "SELECT coalesce((SELECT relnamespace::regnamespace::text FROM pg_class"
            " WHERE oid = to_regclass('bookings')), quote_ident(current_schema()))"
        )
    )
    await connection.execute(text(f"CREATE SCHEMA {_BELIEF}"))
    await _look_into(connection, _BELIEF, f"{extension_schema}")
    await connection.run_sync(metadata.create_all, checkfirst=False)
    await schema.fit(connection, list(fitting))
    tables = list(
        await connection.scalars(
            text("SELECT tablename FROM pg_tables WHERE schemaname = :schema"), {"schema": _BELIEF}
        )
    )
    believed = await _definitions(connection, _BELIEF, f"{extension_schema}", tables)
    real = await _definitions(connection, f"{own_schema}", f"{extension_schema}", tables)
    return _compare(real, believed)


async def _definitions(
    connection: AsyncConnection, schema_name: str, extension_schema: str, tables: list[str]
) -> dict[_Thing, str]:
    await _look_into(connection, schema_name, extension_schema)
    rows = await connection.execute(_DEFINITIONS, {"schema": schema_name, "tables": tables})
    return {_Thing(kind, name): definition for kind, name, definition in rows}


async def _look_into(connection: AsyncConnection, *schemas: str) -> None:
    # PostgreSQL writes a name without its schema if it is found by this path.
    path = ", ".join(schemas)
    await connection.execute(text("SELECT set_config('search_path', :path, true)"), {"path": path})


def _compare(real: dict[_Thing, str], believed: dict[_Thing, str]) -> list[str]:
    found = []
    for thing in sorted(real.keys() | believed.keys()):
        if thing not in real:
            found.append(f"{thing} is missing")
        elif thing not in believed:
            found.append(f"{thing} is not known to the code: {real[thing]}")
        elif real[thing] != believed[thing]:
            found.append(f"{thing} is {real[thing]}, but should be {believed[thing]}")
    return found

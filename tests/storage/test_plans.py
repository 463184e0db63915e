"""The statements that the code really sends use the indexes meant for them.

Judged by the plan's nodes, never by time, on a table large enough for the
planner to care; with values known (a custom plan) and with values unknown (the
generic plan that a prepared statement ends up with).
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import asyncpg
import pytest
from sqlalchemy import event

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import BookingRequest, BookingState
from booking.errors import TaxiError
from booking.postgres import ledger, reads
from booking.postgres.database import Database
from booking.postgres.embedded import EmbeddedPostgres
from booking.postgres.ledger import GivenBack
from booking.postgres.waiting import WaitingList
from booking.prevention.check_then_insert import CheckThenInsert
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.prevention.row_lock import RowLock
from booking.time_window import TimeWindow
from tests.world import NewDatabase, hours

DRIVERS, DAYS = 1_000, 40

FILL = (
    f"""
    INSERT INTO drivers (name, fleet, zone)
    SELECT 'Ada', CASE WHEN number % 2 = 0 THEN 'even' ELSE 'odd' END, 'UTC'
    FROM generate_series(1, {DRIVERS}) AS number
    """,
    f"INSERT INTO riders (name) SELECT 'Bob' FROM generate_series(1, {DRIVERS})",
    # Every driver has an hour of every day; few have the one at noon.
    f"""
    INSERT INTO bookings (driver_id, rider_id, state, during)
    SELECT drivers.id, drivers.id, 'confirmed', tstzrange(at, at + interval '1 hour')
    FROM drivers, generate_series(0, {DAYS - 1}) AS day,
         LATERAL (SELECT timestamptz '2026-03-08Z' + day * interval '1 day'
                  + (drivers.id + day) % 12 * interval '1 hour' AS at) AS start
    """,
    """
    INSERT INTO waiting_list (rider_id, fleet, during)
    SELECT drivers.id, fleet, tstzrange(at, at + interval '1 hour')
    FROM drivers, generate_series(0, 9) AS day,
         LATERAL (SELECT timestamptz '2100-03-08Z' + day * interval '1 day'
                  + (drivers.id + day) % 12 * interval '1 hour' AS at) AS start
    """,
    "VACUUM ANALYZE waiting_list",
    "VACUUM ANALYZE bookings",
    "VACUUM ANALYZE drivers",
    "VACUUM ANALYZE riders",
)

DRIVER, RIDER = 77, 78
BUSY = BookingRequest(RIDER, hours(0, 12), DRIVER)
FREE = BookingRequest(RIDER, hours(13, 14), DRIVER)
ANYONE = BookingRequest(RIDER, hours(9.5, 10.5), fleet="even")
EVENING = TimeWindow(hours(0, 1).start + timedelta(days=3), hours(0, 1).start + timedelta(days=4))


class Node(NamedTuple):
    """A node of a plan that reads a table."""

    kind: str
    table: str
    index: str
    condition: str
    filter: str


class Sent(NamedTuple):
    """A statement as it went to the driver."""

    statement: str
    parameters: tuple[Any, ...]


@pytest.fixture(scope="module")
def filled_urls(server: EmbeddedPostgres, template_of: NewDatabase) -> Iterator[dict[str, str]]:
    urls = {}

    async def fill() -> None:
        admin = await asyncpg.connect(server.url)
        for recipe, template in templates.items():
            name = f"plans_{recipe}"
            await admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
            urls[recipe] = f"{server.url.rpartition('/')[0]}/{name}"
            connection = await asyncpg.connect(urls[recipe])
            for statement in FILL:
                await connection.execute(statement)
            await connection.close()
        await admin.close()

    async def drop() -> None:
        admin = await asyncpg.connect(server.url)
        for recipe in templates:
            await admin.execute(f"DROP DATABASE plans_{recipe} WITH (FORCE)")
        await admin.close()

    templates = {name: template_of(name) for name in ("exclusion_upsert", "check_then_insert")}
    asyncio.run(fill())
    yield urls
    asyncio.run(drop())


Work = Callable[[reads.AsyncConnection], Awaitable[object]]


def booked_by(kind: type[ledger.PostgresLedger], request: BookingRequest) -> Work:
    return lambda c: kind(None, AskThenOffer()).book_in(c, request)


def listed(after: tuple[datetime, int] | None = None, **wanted: Any) -> Work:
    return lambda c: reads.list_bookings(c, reads.BookingFilter(**wanted), after=after, limit=20)


RULE = "bookings_no_double_booking"
PLAIN = "bookings_by_during"
WAITING = "waiting_list_open"
BY_KEYS = {"drivers": "drivers_pkey", "riders": "riders_pkey"}

CASES = {
    "exclusion_upsert books": (booked_by(ExclusionUpsert, FREE), BY_KEYS),
    "exclusion_upsert refuses": (
        booked_by(ExclusionUpsert, BUSY),
        BY_KEYS | {"bookings": RULE},
    ),
    "row_lock books": (booked_by(RowLock, FREE), BY_KEYS | {"bookings": PLAIN}),
    "check_then_insert refuses": (booked_by(CheckThenInsert, BUSY), BY_KEYS | {"bookings": PLAIN}),
    "any driver": (
        booked_by(ExclusionUpsert, ANYONE),
        {
            "drivers": "drivers_working|drivers_pkey",
            "riders": "riders_pkey",
            "working_hours": "working_hours_pkey",
            "bookings": RULE,
        },
    ),
    "any driver without the rule": (
        booked_by(CheckThenInsert, ANYONE),
        {
            "drivers": "drivers_working|drivers_pkey",
            "riders": "riders_pkey",
            "working_hours": "working_hours_pkey",
            "bookings": PLAIN,
        },
    ),
    "a step": (
        lambda c: ExclusionUpsert(None, AskThenOffer()).change_state_in(
            c, 5, BookingState.CANCELLED
        ),
        {"bookings": "bookings_pkey"},
    ),
    "an agenda": (lambda c: reads.agenda(c, DRIVER, EVENING), {"bookings": RULE}),
    "one booking": (lambda c: reads.booking(c, 5), {"bookings": "bookings_pkey"}),
    "a driver's bookings": (listed(driver_id=DRIVER), {"bookings": "bookings_by_driver"}),
    "a driver's day": (
        listed(driver_id=DRIVER, start=EVENING.start, end=EVENING.end),
        {"bookings": "bookings_by_driver"},
    ),
    "a rider's bookings": (listed(rider_id=RIDER), {"bookings": "bookings_by_rider"}),
    "the next page": (listed(after=(EVENING.start, 9)), {"bookings": "bookings_by_start"}),
    "a driver's next page": (
        listed(after=(EVENING.start, 9), driver_id=DRIVER),
        {"bookings": "bookings_by_driver"},
    ),
    "everybody's day": (
        listed(start=EVENING.start, end=EVENING.end),
        {"bookings": "bookings_by_start"},
    ),
    "the working drivers of a fleet": (
        lambda c: reads.list_drivers(c, fleet="odd", working=True, after=0, limit=20),
        {"drivers": "drivers_working|drivers_pkey"},
    ),
    "riders": (lambda c: reads.list_riders(c, after=5, limit=20), {"riders": "riders_pkey"}),
    "who waits for what was given back": (
        lambda c: WaitingList(ExclusionUpsert(None, AskThenOffer())).offer(
            c, [GivenBack(DRIVER, FREE.window), GivenBack(DRIVER + 1, FREE.window)]
        ),
        {"drivers": "drivers_pkey", "waiting_list": WAITING, "bookings": RULE},
    ),
    "whether a hold is awaited": (
        lambda c: WaitingList(ExclusionUpsert(None, AskThenOffer())).is_awaited(c, 5),
        {"drivers": "drivers_pkey", "waiting_list": WAITING, "bookings": "bookings_pkey"},
    ),
    "who retires": (
        lambda c: ledger.retire_driver(c, DRIVER),
        {"drivers": "drivers_pkey", "bookings": f"{RULE}|bookings_by_driver"},
    ),
}


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("case", CASES)
async def test_the_right_index_is_used(filled_urls: dict[str, str], case: str, mode: str) -> None:
    work, indexes = CASES[case]
    url = filled_urls["check_then_insert" if PLAIN in indexes.values() else "exclusion_upsert"]
    nodes = await plan_nodes(url, await sent_by(url, work), mode)
    assert {node.table for node in nodes} == set(indexes)
    for node in nodes:
        assert node.kind != "Seq Scan", node
        assert node.index in indexes[node.table].split("|"), node
        if node.index in {RULE, PLAIN}:
            # Both, or the rest of every booking of the driver, or of the day, is read as well.
            assert "driver_id =" in node.condition, node
            if "who retires" not in case:
                assert "during &&" in node.condition, node
        if node.index == WAITING:
            assert "fleet =" in node.condition, node
            assert "during &&" in node.condition, node
        if node.index.startswith("bookings_by_") and node.index != PLAIN and "page" in case:
            assert "ROW(lower(during), id) >" in node.condition, node


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
async def test_who_is_free_is_asked_driver_by_driver(
    filled_urls: dict[str, str], mode: str
) -> None:
    url = filled_urls["exclusion_upsert"]
    first, *_ = await sent_by(url, booked_by(ExclusionUpsert, ANYONE))
    kinds = await plan_kinds(url, first, mode)
    assert not any("Join" in kind or "Seq Scan" in kind for kind in kinds), kinds
    assert "Sort" not in kinds, "it must be able to stop at the first few"
    nodes = await plan_nodes(url, [first], mode)
    assert {node.index for node in nodes} == {"drivers_working", "working_hours_pkey", RULE}


@pytest.mark.anyio
async def test_an_integer_of_another_width_would_be_a_filter(filled_urls: dict[str, str]) -> None:
    url = filled_urls["check_then_insert"]
    statement = """
        SELECT id FROM bookings WHERE driver_id = {} AND state IN ('held', 'confirmed',
        'in_progress') AND during && tstzrange('2026-03-08Z', '2026-03-08 01:00Z')
    """
    narrow = await plan_nodes(url, [Sent(statement.format(77), ())], "auto")
    assert not any(node.index == PLAIN and "driver_id" in node.condition for node in narrow)
    (wide,) = await plan_nodes(url, [Sent(statement.format("77::bigint"), ())], "auto")
    assert wide.index == PLAIN
    assert "driver_id" in wide.condition


@pytest.mark.anyio
async def test_as_not_exists_the_whole_fleet_would_be_joined(filled_urls: dict[str, str]) -> None:
    statement = """
        SELECT id FROM drivers WHERE fleet = 'even' AND retired_at IS NULL AND NOT EXISTS (
            SELECT FROM bookings WHERE driver_id = drivers.id
            AND state IN ('held', 'confirmed', 'in_progress')
            AND during && tstzrange('2026-03-08Z', '2026-03-09Z'))
        ORDER BY id LIMIT 8
    """
    kinds = await plan_kinds(filled_urls["exclusion_upsert"], Sent(statement, ()), "auto")
    assert any("Join" in kind for kind in kinds), kinds


async def sent_by(url: str, work: Work) -> list[Sent]:
    """What the work sends to the server; it is rolled back."""
    sent: list[Sent] = []
    database = Database(url)

    @event.listens_for(database.engine.sync_engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        sent.append(Sent(statement, tuple(parameters)))

    try:
        async with database.engine.connect() as connection:
            await database.transact(reads.ping)  # whatever a first connection asks for
            sent.clear()
            transaction = await connection.begin()
            try:
                await work(connection)
            except TaxiError:
                pass
            finally:
                await transaction.rollback()
    finally:
        await database.close()
    return [each for each in sent if "FROM" in each.statement]


async def plan_nodes(url: str, sent: list[Sent], mode: str) -> list[Node]:
    """The nodes that read a table, of the plans of all statements."""
    nodes = []
    for plan, parent in walk(await plans_of(url, sent, mode)):
        kind, table = plan["Node Type"], plan.get("Relation Name") or parent.get("Relation Name")
        if kind in {"Seq Scan", "Index Scan", "Index Only Scan", "Bitmap Index Scan"}:
            condition, filtered = plan.get("Index Cond", ""), plan.get("Filter", "")
            nodes.append(Node(kind, table or "", plan.get("Index Name", ""), condition, filtered))
    return nodes


async def plan_kinds(url: str, sent: Sent, mode: str) -> list[str]:
    return [plan["Node Type"] for plan, _ in walk(await plans_of(url, [sent], mode))]


async def plans_of(url: str, sent: list[Sent], mode: str) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"SET plan_cache_mode = {mode}")
        plans = []
        for number, (statement, parameters) in enumerate(sent):
            await connection.execute(f"PREPARE statement_{number} AS {statement}")
            values = ", ".join(as_literal(value) for value in parameters)
            execute = f"EXECUTE statement_{number}" + (f" ({values})" if values else "")
            explained = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {execute}")
            plans.append(json.loads(explained)[0]["Plan"])
        return plans
    finally:
        await connection.close()


def walk(
    plans: list[dict[str, Any]], parent: dict[str, Any] | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for plan in plans:
        yield plan, parent or {}
        yield from walk(plan.get("Plans", []), plan)


def as_literal(value: object) -> str:
    if isinstance(value, asyncpg.Range):
        return f"'[{value.lower.isoformat()},{value.upper.isoformat()})'"
    if isinstance(value, timedelta):
        return f"'{value.total_seconds()} seconds'"
    if isinstance(value, list):
        listed = ", ".join(f'"{each}"' for each in value)
        return f"'{{{listed}}}'"
    return "NULL" if value is None else f"'{value}'"

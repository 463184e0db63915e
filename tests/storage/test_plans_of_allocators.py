"""The searches of the allocators with a table of their own use its indexes, and stop early."""

import pytest

from booking.bookings import BookingRequest
from booking.postgres.ledger import PostgresLedger
from booking.prevention.exclusion_upsert import ExclusionUpsert
from booking.strategies import Act, find
from tests.storage.test_plans import plan_kinds, plan_nodes, sent_by
from tests.world import Execute, NewDatabase, hours

# So few drivers that they fit on a few pages are best read through.
DRIVERS, HOURS = 2_000, 12
# Every driver has the first half of every hour; every tenth is free at nine o'clock.
FILL = (
    f"""
    INSERT INTO drivers (name, fleet, zone)
    SELECT 'Ada', 'main', 'UTC' FROM generate_series(1, {DRIVERS})
    """,
    "INSERT INTO riders (name) VALUES ('Bob')",
    f"""
    INSERT INTO bookings (driver_id, rider_id, state, during)
    SELECT drivers.id, 1, 'confirmed', tstzrange(at, at + interval '30 minutes')
    FROM generate_series(0, {HOURS - 1}) AS hour, drivers,
         LATERAL (SELECT timestamptz '2026-03-08Z' + hour * interval '1 hour' AS at) AS start
    WHERE hour <> 9 OR drivers.id % 10 > 0
    """,
)
ANYONE = BookingRequest(1, hours(9, 9.5))
SEARCHES = {
    "free_gaps_skip_locked": ("free_gaps", "free_gaps_by_gap"),
    "bitmap_day": ("day_maps", "day_maps_by_day|day_maps_pkey"),
    "random_probing": ("drivers", "drivers_working|drivers_pkey"),
    "anti_join": ("drivers", "drivers_working|drivers_pkey"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", SEARCHES)
async def test_a_search_uses_the_index_and_stops_at_the_first(
    name: str, new_database: NewDatabase, execute: Execute
) -> None:
    url = new_database("exclusion_upsert", name)
    await execute(url, *FILL, "VACUUM ANALYZE")
    ledger: PostgresLedger = ExclusionUpsert(None, find(Act.ALLOCATION, name).load()())
    search = next(
        each
        for each in await sent_by(url, lambda c: ledger.book_in(c, ANYONE))
        if "LIMIT" in each.statement and each.statement.startswith(("SELECT", "WITH"))
    )
    table, index = SEARCHES[name]
    for mode in ("force_custom_plan", "force_generic_plan"):
        nodes = await plan_nodes(url, [search], mode)
        used = {node.index for node in nodes if node.table == table}
        assert used
        assert used <= set(index.split("|")), nodes
        # Nobody has working hours here, and of an empty table there is no better way.
        assert not any(
            node.kind == "Seq Scan" and node.table != "working_hours" for node in nodes
        ), nodes
        kinds = await plan_kinds(url, search, mode)
        assert "Sort" not in kinds, kinds

"""Partitioned exclusion: the exclusion constraint on eight small tables instead of a large one.

Idea
----
Spread the time that is held over eight tables by a hash of the driver, each with
an exclusion constraint of its own. Two windows conflict only if they are one
driver's, and one driver's are all in one table, so the eight rules are one rule.

What happens
------------
As in `without_overlaps`, whose statements it shares: the window goes into
`held_time` with `ON CONFLICT DO NOTHING`, the booking goes in with it, and a
window leaves when its booking ceases to be active. `held_time` is partitioned, so
PostgreSQL hashes the driver and meets the constraint of one partition:

    EXCLUDE USING gist (driver_id WITH =, during WITH &&)

The constraint stands on each partition and not on the whole, which PostgreSQL
knows since 17 only; and in a table of its own, as a table with rows in it cannot
be partitioned where it stands.

Costs
-----
O(log(H/8)) for H windows held. The logarithm gains nothing; what gains is that a
smaller GiST index is less deep, splits its pages less often, and more of what is
written to lies in memory. One round trip when it records.

Breaks when
-----------
The key of the partitions is not in the rule: by day instead of by driver, a
window over midnight would lie in one table and its conflict in another, and no
constraint would see both. A statement that does not name the driver reads all
eight. And as with `without_overlaps`, the time that is held and the bookings are
two tables that only this code keeps together.
"""

from booking.ledgers import Claim
from booking.postgres.tables import WITHOUT_CONSTRAINT
from booking.prevention.without_overlaps import HOLD_WHAT_IS_BOOKED, WithoutOverlaps

PARTITIONS = 8


class PartitionedExclusion(WithoutOverlaps):
    """Holds the window in one of eight tables, each of which has the rule."""

    claim = Claim.ACROSS_PROCESSES
    schema = (
        *WITHOUT_CONSTRAINT,
        """
        CREATE TABLE IF NOT EXISTS held_time (
            driver_id bigint NOT NULL REFERENCES drivers,
            during tstzrange NOT NULL CHECK (NOT isempty(during))
        ) PARTITION BY HASH (driver_id)
        """,
        *(
            f"""
            CREATE TABLE IF NOT EXISTS held_time_{number} PARTITION OF held_time (
                CONSTRAINT held_time_{number}_once
                EXCLUDE USING gist (driver_id WITH =, during WITH &&)
            ) FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})
            """
            for number in range(PARTITIONS)
        ),
        HOLD_WHAT_IS_BOOKED,
    )

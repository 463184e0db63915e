"""Serializable with retry: the bug's own code, and a database that takes back what went wrong.

Idea
----
Look, then insert, as the whiteboard has it, and ask PostgreSQL to behave as if
transactions ran one after the other. Where it cannot keep that up it fails one
of them, and that one is run again.

What happens
------------
The statements are those of `check_then_insert`, and only the level is another.
PostgreSQL notes what each transaction has *read*, gaps in an index included.
Two that each read where the other then writes cannot have run one after the
other, so one of them fails with 40001, at the latest at its COMMIT, and
`Database.transact` runs its closure again, after a short random wait, up to
`ATTEMPTS_MAX` times. Then the answer is `Contended`.

See Ports and Grittner, *Serializable Snapshot Isolation in PostgreSQL*, VLDB
2012, <https://doi.org/10.14778/2367502.2367523>.

Costs
-----
O(log N) for N bookings in the table, in four round trips (driver, rider,
bookings, insert) and a COMMIT, times the attempts a. Nobody waits for anybody;
but a grows with the requests for one driver that are under way at once, and as
reads are noted a page of the index at a time, neighbours collide that have no
booking in common.

Breaks when
-----------
Many ask for one driver: most of the work is done to be thrown away, and some
are told to come back though there was room. One other writer runs at a lower
level: what it does is not looked at. The retry is forgotten, or stands around a
single statement and not around the whole transaction.
"""

from typing import ClassVar

from booking.ledgers import Claim
from booking.postgres.database import Isolation
from booking.prevention.check_then_insert import CheckThenInsert


class SerializableRetry(CheckThenInsert):
    """Looks, then writes, and is run again when that was not as good as alone."""

    claim = Claim.ACROSS_PROCESSES
    isolation: ClassVar[Isolation] = "SERIALIZABLE"
    may_give_up = True

"""Lock and check in one statement: a round trip saved, and the lock is worth nothing. A trap.

Idea
----
Do all of `row_lock` in one statement: lock the driver's row, look, and insert,
without a round trip between them. It double-books, because the whole statement
reads a snapshot from before it waited for the lock.

What happens
------------
1. `WITH driver AS (SELECT … FOR NO KEY UPDATE) INSERT … SELECT … FROM driver
   WHERE NOT EXISTS (an overlapping booking)`. The lock is taken first, and the
   look comes after it: in that the statement reads as it runs.
2. But its snapshot was taken when it began. Whoever waited for the lock looks
   at what was there *before* the last holder's COMMIT, and finds the driver free.
3. No row came back: further statements find out why, as in
   `insert_where_not_exists`, whose statements these are, but for the lock.

Under READ COMMITTED it is each *statement* that sees the present. `row_lock`
looks in a second one, and that second round trip is the price of the answer. (A
function does with one: each statement in it has a snapshot of its own.)

PostgreSQL does look at the *locked row* again after the wait, so a driver who
retired meanwhile is noticed. A version or a calendar kept in that row would
be as well; bookings that others inserted are not.

Costs
-----
O(log N) for N bookings in the table, in one round trip when it records and four
when it refuses. The driver's row is held until the COMMIT. When any driver
would do, each offer stands in a savepoint, which is two round trips more.

Breaks when
-----------
A request waits for the row of a driver while another books that driver: that
is, whenever the lock is needed.
"""

from booking.ledgers import Claim
from booking.prevention.insert_where_not_exists import InsertWhereNotExists, statements


class LockAndCheckInOneStatement(InsertWhereNotExists):
    """Locks, looks and writes in one statement, whose picture is older than its lock."""

    claim = Claim.NOTHING
    holds_the_refused = True
    statements = statements(alone=True)

"""Advisory lock under REPEATABLE READ: the right lock, held over an old picture. A trap, kept.

Idea
----
Take `advisory_lock` and raise the isolation level, to be on the safe side. It
double-books again: what is looked at under the lock is older than the lock.

What happens
------------
The statements are those of `advisory_lock`. But under REPEATABLE READ the whole
transaction reads one snapshot, and that is taken when its *first* statement
begins: the one that waits for the lock.

1. Ada's transaction holds the lock. Bob's begins, takes its snapshot, and waits.
2. Ada's inserts and commits; Bob's has the lock now.
3. Bob's looks, in its snapshot from before Ada's COMMIT: free. It inserts.

The rows do not collide, as each is new, so the level has nothing to complain of
either: it protects the rows that a transaction changes, not the absence of rows
that it saw.

Costs
-----
As `advisory_lock`, and it double-books. What waited for a row that somebody
changed meanwhile fails with 40001 and is run again.

Breaks when
-----------
A request waits for the lock of a driver while another books that driver: that
is, whenever the lock is needed. A database or a framework whose default is
REPEATABLE READ makes this of an `advisory_lock`, or of a `row_lock`, that does
not set its own level.
"""

from typing import ClassVar

from booking.ledgers import Claim
from booking.postgres.database import Isolation
from booking.prevention.advisory_lock import AdvisoryLock


class AdvisoryLockRepeatableRead(AdvisoryLock):
    """Locks first, and then looks at what was before."""

    claim = Claim.NOTHING
    isolation: ClassVar[Isolation] = "REPEATABLE READ"

"""A PostgreSQL of a benchmark's own, which is gone afterwards."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from booking.postgres.embedded import EmbeddedPostgres

# Not where temporary files usually lie: that may be memory, where a COMMIT waits for no disk.
PLACE = Path("/var/tmp")  # noqa: S108  # a new folder there is ours alone


@contextmanager
def own_server() -> Iterator[str]:
    """The address of a server with durable defaults, in a new folder of `PLACE`."""
    with tempfile.TemporaryDirectory(dir=PLACE) as directory:
        # The server may run as another user, and would otherwise have its data elsewhere.
        Path(directory).chmod(0o755)
        with EmbeddedPostgres(Path(directory)) as server:
            yield server.url

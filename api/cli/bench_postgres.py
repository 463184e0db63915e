"""`taxi bench allocators` and `ledger`: without HTTP, on a PostgreSQL of their own."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from booking.errors import InvalidInput
from booking.postgres.embedded import EmbeddedPostgres
from loadtest import bench, bench_allocators, bench_ledger


class AllocatorsBench:
    """The comparison of the allocators."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        return bench_allocators.contestants()

    def measure(self, extent: str, only: list[str], tell: bench.Tell) -> bench_allocators.Result:
        """Measure everybody, or `only` some; quick, or as it is recorded."""
        plan = bench_allocators.quick() if extent == "quick" else bench_allocators.Plan()
        chosen = [name for name in self.names() if not only or name in only]
        with _server() as url:
            return bench_allocators.measure(url, plan, tell, chosen)

    def show(self, result: bench_allocators.Result, console: Console) -> None:
        """Print a table."""
        less, more = (f"{busy:.0%} busy" for busy in result.plan.busy)
        table = Table(title="any driver, bookings/s", title_justify="left", box=None)
        table.add_column("")
        for heading in bench_allocators.HEADINGS:
            table.add_column({"less busy": less, "busier": more}.get(heading, heading))
        for pair in result.pairs():
            table.add_row(pair[0].allocator, *bench_allocators.cells_of(*pair))
        console.print(table)


class LedgerBench:
    """The ledger alone, against what it would do without the rule."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        return [each.name for each in bench_ledger.contenders()]

    def measure(self, extent: str, only: list[str], tell: bench.Tell) -> bench_ledger.Result:
        """Measure everybody; quick, or as it is recorded."""
        if only:
            raise InvalidInput("The ledger is measured whole, or not at all.", field="--strategies")
        plan = bench_ledger.quick() if extent == "quick" else bench_ledger.full()
        with _server() as url:
            return bench_ledger.measure(url, plan, tell)

    def show(self, result: bench_ledger.Result, console: Console) -> None:
        """Print a table."""
        table = Table(*bench_ledger.HEADINGS, title="the ledger alone", title_justify="left")
        for cell in result.cells:
            table.add_row(*bench_ledger.row(cell))
        console.print(table)


@contextmanager
def _server() -> Iterator[str]:
    # Not where temporary files usually lie: that may be memory, where a COMMIT waits for no disk.
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:  # ours alone
        Path(directory).chmod(0o755)  # the server may run as another user
        with EmbeddedPostgres(Path(directory)) as server:
            yield server.url

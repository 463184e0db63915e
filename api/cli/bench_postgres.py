"""`taxi bench allocators` and `ledger`: without HTTP, on a PostgreSQL of their own."""

from rich.console import Console
from rich.table import Table

from booking.errors import InvalidInput
from loadtest.bench import allocators, ledger, method
from loadtest.bench.own_server import PLACE, own_server


class AllocatorsBench:
    """The comparison of the allocators."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        return allocators.contestants()

    def check(self, extent: str, only: list[str]) -> None:
        """Nothing stands in the way."""

    def measure(self, extent: str, only: list[str], tell: method.Tell) -> allocators.Result:
        """Measure everybody, or `only` some; quick, or as it is recorded."""
        plan = allocators.quick() if extent == "quick" else allocators.Plan()
        chosen = [name for name in self.names() if not only or name in only]
        with own_server() as url:
            return allocators.measure(url, plan, tell, chosen)

    def show(self, result: allocators.Result, console: Console) -> None:
        """Print a table."""
        less, more = (f"{busy:.0%} busy" for busy in result.plan.busy)
        table = Table(title="any driver, bookings/s", title_justify="left", box=None)
        table.add_column("")
        for heading in allocators.HEADINGS:
            table.add_column({"less busy": less, "busier": more}.get(heading, heading))
        for pair in result.pairs():
            table.add_row(pair[0].allocator, *allocators.cells_of(*pair))
        console.print(table)


class LedgerBench:
    """The ledger alone, against what it would do without the rule."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        return [each.name for each in ledger.contenders()]

    def check(self, extent: str, only: list[str]) -> None:
        """Raise `InvalidInput` for a part of it, and `NoRoom` if its tables do not fit."""
        if only:
            raise InvalidInput("The ledger is measured whole, or not at all.", field="--strategies")
        ledger.check_room(self._plan(extent), PLACE)

    def measure(
        self,
        extent: str,
        only: list[str],  # noqa: ARG002  # there is none, as `check` saw
        tell: method.Tell,
    ) -> ledger.Result:
        """Measure everybody; quick, or as it is recorded."""
        with own_server() as url:
            return ledger.measure(url, self._plan(extent), tell)

    def show(self, result: ledger.Result, console: Console) -> None:
        """Print a table."""
        table = Table(*ledger.HEADINGS, title="the ledger alone", title_justify="left")
        for cell in result.cells:
            table.add_row(*ledger.row(cell))
        console.print(table)

    def _plan(self, extent: str) -> ledger.Plan:
        return ledger.quick() if extent == "quick" else ledger.full()

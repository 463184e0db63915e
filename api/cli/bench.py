"""`taxi bench`: how fast the strategies are, and how well they choose, without a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from api.cli.bench_postgres import AllocatorsBench, LedgerBench
from booking.errors import InvalidInput
from booking.policies import POLICIES
from loadtest import bench, bench_allocation, bench_detection, bench_docs, bench_policies, figures

_DIRECTORY = click.Path(file_okay=False, path_type=Path)


class Bench(Protocol):
    """Something to measure, under one name of `BENCHES`."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        ...

    def measure(self, extent: str, only: list[str], tell: bench.Tell) -> Any:
        """Measure everybody, or `only` some, to an extent: quick, ordinary or full."""
        ...

    def show(self, result: Any, console: Console) -> None:
        """Print tables."""
        ...


class TimedBench:
    """A benchmark with a clock."""

    def __init__(
        self, contest: bench.Contest[Any, Any], plans: dict[str, Callable[[], bench.Plan]]
    ) -> None:
        self.contest, self.plans = contest, plans

    def names(self) -> list[str]:
        """Everybody who takes part."""
        contestants, _ = self.contest.contestants()
        return list(contestants)

    def measure(self, extent: str, only: list[str], tell: bench.Tell) -> bench.Result:
        """Measure everybody, or `only` some, to an extent: quick, ordinary or full."""
        everybody, _ = self.contest.contestants()
        # Whatever is chosen, ratios are taken to the baseline, so it takes part.
        chosen = {
            name: each
            for name, each in everybody.items()
            if not only or name in (*only, self.contest.baseline)
        }
        return bench.measure(self.contest, self.plans[extent](), tell, chosen)

    def show(self, result: bench.Result, console: Console) -> None:
        """Print tables."""
        for measure, said in result.measures.items():
            rows = {name: bench_docs.row(result, name, measure) for name in result.names()}
            _print(console, f"{said}, µs", bench_docs.headings(result), rows)
        memory = {name: bench_docs.memory_row(result, name) for name in result.names()}
        if any(memory.values()):
            _print(console, "memory, bytes a booking", list(bench_docs.MEMORY_HEADINGS), memory)
        for each in result.left_out:
            console.print(Text(f"left out: {bench_docs.left_out(each)}", style="dim"))
        for package in result.missing:
            console.print(Text(f"left out: {package}, which is not installed", style="dim"))


class PolicyBench:
    """The experiment with policies."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        return list(POLICIES)

    def measure(self, extent: str, only: list[str], tell: bench.Tell) -> bench_policies.Result:
        """As `TimedBench.measure`."""
        plan = bench_policies.Plan.quick() if extent == "quick" else bench_policies.Plan()
        chosen = {name: each for name, each in POLICIES.items() if not only or name in only}
        return bench_policies.measure(plan, tell, chosen)

    def show(self, result: bench_policies.Result, console: Console) -> None:
        """Print tables."""
        for world, said in bench_policies.WORLDS.items():
            rows = {each.policy: bench_docs.policy_cells(each) for each in result.of(world)}
            _print(console, f"accepted, {said}", list(bench_docs.POLICY_HEADINGS), rows)


BENCHES: dict[str, Bench] = {
    "detection": TimedBench(
        bench_detection.Detection(),
        {
            "quick": bench_detection.quick,
            "ordinary": bench_detection.full,
            "full": bench_detection.full,
        },
    ),
    "allocation": TimedBench(
        bench_allocation.Allocation(),
        {
            "quick": bench_allocation.quick,
            "ordinary": bench_allocation.ordinary,
            "full": bench_allocation.full,
        },
    ),
    "policies": PolicyBench(),
    "allocators": AllocatorsBench(),
    "ledger": LedgerBench(),
}
WITHOUT_A_SERVER = ("detection", "allocation", "policies")
"""What is measured when nothing is named."""


@click.command("bench")
@click.argument("what", nargs=-1, type=click.Choice(list(BENCHES)))
@click.option("--quick", is_flag=True, help="About a minute, to see the shape; not to quote.")
@click.option("--full", is_flag=True, help="Also a fleet of a hundred thousand drivers.")
@click.option("--strategies", help="Only these, with commas between them; and whom they race.")
@click.option("--out", type=_DIRECTORY, help="Write results as JSON, and plots as SVG, there.")
@click.option(
    "--record", is_flag=True, help="Write them to docs/results, and the figures in the documents."
)
def command(
    what: tuple[str, ...],
    quick: bool,
    full: bool,
    strategies: str | None,
    out: Path | None,
    record: bool,
) -> None:
    """Measure detection, allocation and policies, or WHAT is named, without HTTP.

    The allocators and the ledger need a PostgreSQL, and bring one of their own.

    Nothing is written before everything has been measured, so Ctrl-C leaves
    what was recorded before as it was.
    """
    if quick and full:
        raise click.UsageError("--quick and --full exclude each other.")
    if record and strategies:
        raise click.UsageError("--record needs all strategies: leave out --strategies.")
    benches = {name: BENCHES[name] for name in what or WITHOUT_A_SERVER}
    only = _known(strategies, benches)
    extent = "quick" if quick else "full" if full else "ordinary"
    console = Console(highlight=False)
    results: dict[str, Any] = {}
    for name, each in benches.items():
        if not only or set(only) & set(each.names()):
            results[name] = _measure(name, each, extent, only)
            each.show(results[name], console)
    _print_bars(results, console)
    if out:
        _write(results, out, "--out")
    if record:
        _write(results, figures.ROOT / figures.RESULTS, "--record")
        figures.write()


def _known(strategies: str | None, benches: dict[str, Bench]) -> list[str]:
    """The names in `--strategies`; `InvalidInput` if nobody is called so."""
    only = [name.strip() for name in (strategies or "").split(",") if name.strip()]
    known = dict.fromkeys(name for each in benches.values() for name in each.names())
    for name in only:
        if name not in known:
            raise InvalidInput(
                f"There is nothing called {name!r} to measure; there are {', '.join(known)}.",
                field="--strategies",
            )
    return only


def _measure(name: str, each: Bench, extent: str, only: list[str]) -> Any:
    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task(name, total=1.0)

        def tell(share: float, text: str) -> None:
            progress.update(task, completed=share, description=f"{name}: {text}")

        return each.measure(extent, only, tell)


def _write(results: dict[str, Any], directory: Path, option: str) -> None:
    try:
        for name, result in results.items():
            figures.record(name, result, directory)
    except OSError as error:
        raise InvalidInput(
            f"{directory} cannot be written to: {error.strerror or error}.", field=option
        ) from None


def _print(console: Console, title: str, headings: list[str], rows: dict[str, list[str]]) -> None:
    table = Table(title=title, title_justify="left", box=None)
    table.add_column("")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, cells in rows.items():
        if cells:
            table.add_row(name, *cells)
    console.print(table)


def _print_bars(results: dict[str, Any], console: Console) -> None:
    reached = [bar for result in results.values() for bar in getattr(result, "bars", ())]
    if reached:
        table = Table(*bench_docs.BAR_HEADINGS, title="figures to reach", title_justify="left")
        for bar in reached:
            table.add_row(*bench_docs.bar_cells(bar))
        console.print(table)

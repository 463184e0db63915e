"""`taxi bench`: how fast the strategies are, and how well they choose, without a server."""

from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, Protocol

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from api.cli import names
from api.cli.bench_postgres import AllocatorsBench, LedgerBench
from booking.policies import POLICIES
from loadtest import bars, figures
from loadtest.bench import allocation, detection, method, policies, tables
from loadtest.outputs import writing

_DIRECTORY = click.Path(file_okay=False, path_type=Path)


class Bench(Protocol):
    """Something to measure, under one name of `BENCHES`."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        ...

    def check(self, extent: str, only: list[str]) -> None:
        """Raise what would keep it from being measured, as far as that can be foreseen."""
        ...

    def measure(self, extent: str, only: list[str], tell: method.Tell) -> Any:
        """Measure everybody, or `only` some, to an extent: quick, ordinary or full."""
        ...

    def show(self, result: Any, console: Console) -> None:
        """Print tables."""
        ...


class TimedBench:
    """A benchmark with a clock."""

    def __init__(
        self, contest: method.Contest[Any, Any], plans: dict[str, Callable[[], method.Plan]]
    ) -> None:
        self.contest, self.plans = contest, plans

    def names(self) -> list[str]:
        """Everybody who takes part."""
        contestants, _ = self.contest.contestants()
        return list(contestants)

    def check(self, extent: str, only: list[str]) -> None:
        """Nothing stands in the way."""

    def measure(self, extent: str, only: list[str], tell: method.Tell) -> method.Result:
        """Measure everybody, or `only` some, to an extent: quick, ordinary or full."""
        everybody, _ = self.contest.contestants()
        # Whatever is chosen, ratios are taken to the baseline, so it takes part.
        chosen = {
            name: each
            for name, each in everybody.items()
            if not only or name in (*only, self.contest.baseline)
        }
        return method.measure(self.contest, self.plans[extent](), tell, chosen)

    def show(self, result: method.Result, console: Console) -> None:
        """Print tables."""
        for measure, said in result.measures.items():
            rows = {name: tables.row(result, name, measure) for name in result.names()}
            _print(console, f"{said}, µs", tables.headings(result), rows)
        memory = {name: tables.memory_row(result, name) for name in result.names()}
        if any(memory.values()):
            _print(console, "memory, bytes a booking", list(tables.MEMORY_HEADINGS), memory)
        for each in result.left_out:
            console.print(Text(f"left out: {tables.left_out(each)}", style="dim"))
        for package in result.missing:
            console.print(Text(f"left out: {package}, which is not installed", style="dim"))


class PolicyBench:
    """The experiment with policies."""

    def names(self) -> list[str]:
        """Everybody who takes part."""
        return list(POLICIES)

    def check(self, extent: str, only: list[str]) -> None:
        """Nothing stands in the way."""

    def measure(self, extent: str, only: list[str], tell: method.Tell) -> policies.Result:
        """As `TimedBench.measure`."""
        plan = policies.Plan.quick() if extent == "quick" else policies.Plan()
        chosen = {name: each for name, each in POLICIES.items() if not only or name in only}
        return policies.measure(plan, tell, chosen)

    def show(self, result: policies.Result, console: Console) -> None:
        """Print tables."""
        for world, said in policies.WORLDS.items():
            rows = {each.policy: tables.policy_cells(each) for each in result.of(world)}
            _print(console, f"accepted, {said}", list(tables.POLICY_HEADINGS), rows)


BENCHES: dict[str, Bench] = {
    "detection": TimedBench(
        detection.Detection(),
        {
            "quick": detection.quick,
            "ordinary": detection.full,
            "full": detection.full,
        },
    ),
    "allocation": TimedBench(
        allocation.Allocation(),
        {
            "quick": allocation.quick,
            "ordinary": allocation.ordinary,
            "full": allocation.full,
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
    if record and strategies is not None:
        raise click.UsageError("--record needs all strategies: leave out --strategies.")
    if record and quick:
        raise click.UsageError("--quick is not to quote, so there is nothing to --record.")
    named = {name: BENCHES[name] for name in what or WITHOUT_A_SERVER}
    only = names.chosen(
        "--strategies", strategies, [n for each in named.values() for n in each.names()]
    )
    benches = {
        name: each for name, each in named.items() if not only or set(only) & set(each.names())
    }
    extent = "quick" if quick else "full" if full else "ordinary"
    targets = {"--out": out, "--record": figures.ROOT / figures.RESULTS if record else None}
    directories = {option: each for option, each in targets.items() if each is not None}
    _check(benches, extent, only, directories)
    console = Console(highlight=False)
    results: dict[str, Any] = {}
    for name, each in benches.items():
        results[name] = _measure(name, each, extent, only)
        each.show(results[name], console)
    _print_bars(results, console)
    if quick:
        console.print("quick: not to quote", style="dim")
    for option, directory in directories.items():
        with writing(directory, option):
            figures.record_all(results, directory)
    if record:
        figures.write()


def _check(
    benches: dict[str, Bench], extent: str, only: list[str], directories: dict[str, Path]
) -> None:
    """Raise before an hour of measuring whatever would spoil it at the end."""
    for name, each in benches.items():
        each.check(extent, only)
        if directories and name in figures.PLOTS:
            tables.need_plots()
    for option, directory in directories.items():
        with writing(directory, option):
            place = directory.absolute()
            there = next(each for each in (place, *place.parents) if each.exists())
            NamedTemporaryFile(dir=there).close()


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
        table = Table(*bars.HEADINGS, title="figures to reach", title_justify="left")
        for bar in reached:
            table.add_row(*bars.cells(bar))
        console.print(table)

"""`taxi compare`: every strategy under load, by speed and by correctness at once."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import rich_click as click
from click.core import ParameterSource
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from api.cli.home import home, server_url
from booking.errors import InvalidInput, TaxiError
from loadtest.comparison.files import Files, Started
from loadtest.comparison.report import brief_figures, in_order
from loadtest.comparison.results import Cell, Comparison, Key, Plan, compare, keys_of
from loadtest.comparison.run import (
    Comparer,
    about,
    allocator_names,
    contenders_of,
    plan_of,
    recipe_names,
    scenario_names,
    seconds_of,
)

_INTERRUPTED = 130
_KEPT_CONNECTIONS = 5  # for superusers, and for our own looks at the server
_ESTIMATE_S = 900.0  # how far back the time that is left is judged from: some dozens of cells
_NOT_FOR_RESUME = ("strategies", "scenarios", "quick", "full", "repeats", "duration_s", "clients")

console = Console(stderr=True, highlight=False, soft_wrap=True)


class NoTools(TaxiError):
    """A comparison needs the development tools, such as Locust and matplotlib: `make compare`."""


def _names(known: Callable[[], Sequence[str]]) -> Callable[..., tuple[str, ...] | None]:
    """A parser of names with commas between them, each of which must be known."""

    def parse(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
        if value is None:
            return None
        names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
        there = known()
        if not names:
            raise click.BadParameter(f"name at least one of {', '.join(there)}.")
        for name in names:
            if name not in there:
                raise click.BadParameter(f"there is no {name!r}; there are {', '.join(there)}.")
        return names

    return parse


@click.command("compare")
@click.option(
    "--strategies",
    metavar="A,B",
    callback=_names(lambda: [*recipe_names(), *allocator_names()]),
    help="Prevention recipes, and allocators in SQL.  [default: all]",
)
@click.option(
    "--scenarios",
    metavar="X,Y",
    callback=_names(scenario_names),
    help="Of loadtest/scenarios; `overload` is the ramp of arrival rates.",
)
@click.option(
    "--quick", is_flag=True, help="Some minutes: each strategy once, in the race for one window."
)
@click.option(
    "--full", is_flag=True, help="Every scenario, three times, and every recipe on the ramp."
)
@click.option("--repeats", type=click.IntRange(1, 100), help="How often each is measured.")
@click.option("--duration-s", type=click.IntRange(1, 3_600), help="How long each is measured.")
@click.option("--clients", type=click.IntRange(1, 1_000), help="Clients at once.  [default: 32]")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the results.  [default: .taxi/comparison]",
)
@click.option("--resume", is_flag=True, help="Go on with the comparison that was stopped there.")
@click.pass_context
def command(
    context: click.Context,
    strategies: tuple[str, ...] | None,
    scenarios: tuple[str, ...] | None,
    quick: bool,
    full: bool,
    repeats: int | None,
    duration_s: int | None,
    clients: int | None,
    output: Path | None,
    resume: bool,
) -> int:
    """Measure the strategies under load, and audit what each of them wrote.

    Each runs on a fresh database and a fresh server. Afterwards the ledger is
    swept for double bookings, every acknowledged booking is looked up, and every
    refusal must be explained by a booking that held the time. Writes JSON, a
    Markdown table and an HTML report. Ctrl-C keeps what was measured.

    Exits with 1 if a strategy broke what it claims.
    """
    if quick and full:
        raise click.UsageError("--quick and --full exclude each other.")
    if resume:
        _refuse_besides_resume(context)
    for tool in ("locust", "matplotlib", "jinja2", "psutil"):
        if importlib.util.find_spec(tool) is None:
            raise NoTools
    files = Files(output or home() / "comparison")
    plan = plan_of(full=full, quick=quick, names=strategies, scenarios=scenarios)
    given = {"repeats": repeats, "duration_s": duration_s, "clients": clients}
    chosen = {name: value for name, value in given.items() if value is not None}
    with files.ours(new=not resume):
        plan = msgspec.structs.replace(plan, **chosen)
        comparison, interrupted = _run(files, plan, resume=resume)
        files.write(comparison)
    _print(comparison, files)
    if interrupted:
        return _INTERRUPTED
    return 1 if comparison.broken else 0


def _refuse_besides_resume(context: click.Context) -> None:
    given = [
        f"--{name.replace('_', '-')}"
        for name in _NOT_FOR_RESUME
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--resume goes on as the comparison began: leave out {given[0]}.")


def _run(files: Files, plan: Plan, *, resume: bool) -> tuple[Comparison, bool]:
    """What there is in the end, and whether it was interrupted."""
    started, cells = files.resume() if resume else (None, [])
    interrupted = False
    with server_url() as url:
        now = about(url)
        if started is None:
            _check_clients(plan.clients, now["postgres"])
            started = Started(plan, tuple(contenders_of(plan.strategies)), **now)
            files.begin(started)
        else:
            started.check(now)
        comparer = Comparer(started.plan, started.contenders, url, files.evidence)
        keys = keys_of(started.plan, started.contenders)
        try:
            with _progress(started.plan, keys) as done:
                _measure(comparer, keys, cells, files, done)
        except KeyboardInterrupt:
            interrupted = True
    return compare(started.about, started.plan, started.contenders, cells), interrupted


def _check_clients(clients: int, settings: Mapping[str, str]) -> None:
    """`pgbench` takes a connection for each client, of those that the server has for users."""
    most = int(settings["max_connections"]) - _KEPT_CONNECTIONS
    if clients > most:
        raise InvalidInput(
            f"The server takes {most} at most, as its max_connections is"
            f" {settings['max_connections']}.",
            field="--clients",
        )


def _measure(
    comparer: Comparer,
    keys: Sequence[Key],
    cells: list[Cell],
    files: Files,
    done: Callable[[Key, Cell | None], None],
) -> None:
    there = {cell.key: cell for cell in cells}
    for key in keys:
        if key in there:
            done(key, there[key])
            continue
        done(key, None)
        cell = comparer.measure(key, cells)
        cells.append(cell)
        files.keep(cell)
        done(key, cell)


@contextmanager
def _progress(plan: Plan, keys: Sequence[Key]) -> Iterator[Callable[[Key, Cell | None], None]]:
    """Shows what is measured and how long it will go on; a line a cell where nobody watches."""
    columns = (
        TextColumn("{task.fields[cell]} of {task.fields[cells]}"),
        BarColumn(bar_width=None),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    quiet = not console.is_terminal
    with Progress(
        *columns,
        console=console,
        disable=quiet,
        transient=True,
        speed_estimate_period=_ESTIMATE_S,
    ) as progress:
        total_s = sum(seconds_of(plan, key) for key in keys)
        task = progress.add_task("", total=total_s, cell=0, cells=len(keys))
        numbers = {key: number for number, key in enumerate(keys, 1)}

        def done(key: Key, cell: Cell | None) -> None:
            number = numbers[key]
            progress.update(task, description=_told(key), cell=number)
            if cell is None:
                return
            progress.advance(task, seconds_of(plan, key))
            if cell.error:
                console.print(f"[yellow]{_told(key)}: {escape(cell.error)}[/]")
            elif quiet and cell.measured:
                rate = cell.measured.answered_per_s
                console.print(f"{number} of {len(keys)}: {_told(key)}: {rate:,.0f} answers/s")

        yield done


def _told(key: Key) -> str:
    ramp = "" if key.share is None else f" at {key.share:.0%}"
    return f"{key.contender}, {key.scenario}{ramp}"


def _print(comparison: Comparison, files: Files) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy", no_wrap=True)
    table.add_column("the audit")
    for heading in ("answers/s", "of no-op", "p99 ms, closed"):
        table.add_column(heading, justify="right", no_wrap=True)
    for contender in in_order(comparison):
        told = escape(comparison.verdict(contender.name).told)
        table.add_row(contender.name, told, *brief_figures(comparison, contender))
    Console(highlight=False).print(table)
    if comparison.speed_scenario:
        console.print(f"[dim]Figures of {comparison.speed_scenario}; the report has the others.[/]")
    for verdict in comparison.broken:
        console.print(f"[bold red]{verdict.contender}:[/] {escape(verdict.told)}")
    if files.evidence.exists():
        console.print(f"What their clients saw: {files.evidence}")
    if not comparison.complete:
        console.print(f"Not complete; go on by: taxi compare --resume --output {files.folder}")
    console.print(f"The report: {files.html}")

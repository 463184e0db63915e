"""`taxi bench`: how fast the strategies are, without a server."""

from pathlib import Path

import rich_click as click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from loadtest import bench_docs
from loadtest.bench import MEASURES, Plan, Result, measure

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("bench")
def command() -> None:
    """Measure the strategies, without a server."""


@command.command()
@click.option("--quick", is_flag=True, help="A few seconds, to see the shape; not to quote.")
@click.option("--json", "json_file", type=_FILE, help="Write every figure to this file.")
@click.option("--plot", "plot_file", type=_FILE, help="Draw a log-log plot, as SVG.")
@click.option(
    "--write-docs",
    is_flag=True,
    help="Measure nothing; write chapter 3's table and plot from the recorded result.",
)
def detection(
    quick: bool, json_file: Path | None, plot_file: Path | None, write_docs: bool
) -> None:
    """Compare the calendars: one driver, does this window overlap?"""
    if write_docs:
        bench_docs.write_docs()
        return
    console = Console()
    result = _measure(Plan.quick() if quick else Plan(), console)
    for measured in MEASURES:
        console.print(_table(result, measured))
    for each in result.left_out:
        console.print(
            f"[dim]{each.strategy} at {each.size:,} left out:"
            f" filling it would take about {each.fill_s:,.0f} s[/]"
        )
    if json_file:
        bench_docs.write_json(result, json_file)
    if plot_file:
        bench_docs.plot(result, plot_file)


def _measure(plan: Plan, console: Console) -> Result:
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)
        return measure(
            plan, lambda share, text: progress.update(task, completed=share, description=text)
        )


def _table(result: Result, measured: str) -> Table:
    table = Table(title=f"{MEASURES[measured]}, µs", title_justify="left", box=None)
    table.add_column("bookings", style="bold")
    for heading in bench_docs.headings(result):
        table.add_column(heading, justify="right")
    for strategy in result.strategies():
        cells = bench_docs.row(result, strategy, measured)
        if cells:
            table.add_row(strategy, *cells)
    return table

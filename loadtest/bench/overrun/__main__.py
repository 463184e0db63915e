"""The command: `python -m loadtest.bench.overrun`."""

import sys
from pathlib import Path
from zoneinfo import ZoneInfo

import rich_click as click
from rich.console import Console
from rich.table import Table

from booking.drivers import check_zone
from booking.errors import InvalidInput, TaxiError
from loadtest import figures
from loadtest.bench.overrun.experiment import measure, measure_file
from loadtest.bench.overrun.results import LEARNT, Plan, Result
from loadtest.bench.overrun.tables import BEST_HEADINGS, HEADINGS, best_cells, cells, conditions
from loadtest.outputs import writing


@click.command()
@click.argument("trips", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--zone",
    callback=lambda _context, _option, value: _zone(value),
    help="The zone of times that carry no offset. The TLC's files need it.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Read only the first rows of the file.")
@click.option("--quick", is_flag=True, help="Less demand: to see the shape, not to quote.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the result as JSON, and the plot as SVG, there.",
)
@click.option(
    "--record", is_flag=True, help="Write them to docs/results, and the figures in the documents."
)
def main(
    trips: Path | None,
    zone: ZoneInfo | None,
    limit: int | None,
    *,
    quick: bool,
    out: Path | None,
    record: bool,
) -> None:
    """Try predicted ends at many quantiles on synthetic trips, or on the file TRIPS."""
    _check_options(trips, zone, limit, quick=quick, record=record)
    console = Console(highlight=False)
    try:
        with console.status("") as status:
            if trips is None:
                result = measure(Plan.quick() if quick else Plan(), status.update)
            else:
                result = measure_file(trips, zone, limit, status.update)
        _show(result, console)
        _write(result, out, record=record)
    except InvalidInput as error:
        raise click.UsageError(f"{error.field or 'TRIPS'}: {error.message}") from None
    except TaxiError as error:
        raise click.ClickException(error.message) from None
    except KeyboardInterrupt:
        sys.exit(130)


def _zone(name: str | None) -> ZoneInfo | None:
    try:
        return None if name is None else ZoneInfo(check_zone(name))
    except InvalidInput as error:
        raise click.BadParameter(error.message) from None


def _check_options(
    trips: Path | None, zone: ZoneInfo | None, limit: int | None, *, quick: bool, record: bool
) -> None:
    if trips is None and (zone or limit):
        raise click.UsageError("--zone and --limit are about a file: name TRIPS.")
    if trips is not None and (quick or record):
        raise click.UsageError("--quick and --record are about synthetic demand: leave out TRIPS.")


def _show(result: Result, console: Console) -> None:
    rows = [cells(result, each) for each in result.of(LEARNT)]
    for headings, some in ((HEADINGS, rows), (BEST_HEADINGS, best_cells(result))):
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for heading in headings:
            table.add_column(heading, min_width=max(map(len, heading.split())))
        for row in some:
            table.add_row(*(cell.replace("*", "") for cell in row))
        console.print(table)
    console.print(conditions(result), markup=False)


def _write(result: Result, out: Path | None, *, record: bool) -> None:
    places = {"--out": out, "--record": figures.ROOT / figures.RESULTS if record else None}
    for option, directory in places.items():
        if directory:
            with writing(directory, option):
                figures.record("overrun", result, directory)
    if record:
        figures.write()


if __name__ == "__main__":
    main()

"""`taxi demand`: synthetic trips, in the form in which the TLC publishes real ones."""

import sys
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import rich_click as click

from booking.drivers import check_zone
from booking.errors import InvalidInput
from loadtest.trips.demand import Demand, at_rate, exactly, write, write_csv


@click.command("demand")
@click.option("--trips", type=click.IntRange(min=0), help="Make exactly this many trips.")
@click.option(
    "--rate",
    "trips_an_hour",
    type=click.FloatRange(min=0, min_open=True),
    help="Make trips at this rate instead: trips in the mean hour of a week.",
)
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    default="2026-03-02",
    show_default=True,
    help="First local day.",
)
@click.option("--days", default=7, show_default=True, help="How many local days to fill.")
@click.option(
    "--zone", default="America/New_York", show_default=True, help="The zone of the local times."
)
@click.option(
    "--median-minutes", default=11.0, show_default=True, help="Half of the trips are longer."
)
@click.option(
    "--sigma",
    default=0.77,
    show_default=True,
    help="Spread of the durations: standard deviation of their natural logarithm.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Same seed, same options, same version: the same file.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path, allow_dash=True),
    help="File to write: Parquet if it ends in .parquet, else CSV; - writes CSV to the output.",
)
def command(
    trips: int | None,
    trips_an_hour: float | None,
    start: datetime,
    days: int,
    zone: str,
    median_minutes: float,
    sigma: float,
    seed: int,
    output: Path,
) -> None:
    """Make synthetic demand: rush hours, quiet nights, mostly short trips and a few long ones.

    The file has the columns of a yellow cab's trips and is read by `taxi replay`.
    """
    demand = Demand(
        zone=ZoneInfo(check_zone(zone)),
        start=start.date(),
        days=days,
        seed=seed,
        median_minutes=median_minutes,
        sigma=sigma,
    )
    if trips is not None and trips_an_hour is None:
        made = exactly(trips, demand)
    elif trips is None and trips_an_hour is not None:
        made = at_rate(trips_an_hour, demand)
    else:
        raise InvalidInput("Give one of them: a number, or a rate.", field="--trips, --rate")
    if str(output) == "-":
        write_csv(made, sys.stdout)
        return
    written = write(made, output)
    click.echo(f"Wrote {written:,} trips to {output}.", err=True)

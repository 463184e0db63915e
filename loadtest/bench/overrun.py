"""How much buffer is right? Trips booked with predicted ends, which then last as they did.

    python -m loadtest.bench.overrun [TRIPS]

The trips are synthetic (`loadtest.trips.demand`), or those of a file of the TLC. From
the first half of them, in time, it is learnt how long trips take; the second half is
booked ahead, each trip with an end predicted at some quantile of that, and packed on
drivers by first fit. Then the trips last as long as they really did. A driver who is
late starts the next trip late, and nothing is done about it. What is counted, against
the quantile: who is late and how much, what was held and not used, and how many
drivers it took. No clock is involved: the same seed gives the same result.

What can be known
-----------------
A service knows the way before it knows the time: from where to where, and when. A
trip of a file has its distance and its hour; see `loadtest.trips.distances`. The
durations of the synthetic demand come from no distance, so one is drawn for each that
it may have come from. If the logarithm of the duration is normal with variance s², and
the distance explains a share r of that, then the logarithm of the distance, given the
duration, is normal as well, with r times the duration's deviation as its mean and
r (1 - r) s² as its variance (in units in which the median trip has distance 1). r is
`Plan.known`; on the trips to which the demand was fitted it is 0.72.

The two ways to predict
-----------------------
- `learnt`: from trips of about that distance at that hour, or coarser where too few
  were seen (`booking.predictions`);
- `alike`: from all trips alike, as if nothing were known of a trip. The control for
  what knowing is worth.

Trips of more than `LONGEST_MIN` minutes are left out, and counted. In the TLC's files
nearly all of them last 23 to 24 hours: somebody forgot to stop the taximeter.
"""

import heapq
import math
import platform
import random
import statistics
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import rich_click as click
from rich.console import Console
from rich.table import Table

from booking.drivers import check_zone
from booking.errors import InvalidInput, TaxiError
from booking.overrun import Policy
from booking.predictions import EndPredictor, critical_fractile
from loadtest.bench.tables import NoPlot
from loadtest.trips.demand import Demand, exactly
from loadtest.trips.distances import distances
from loadtest.trips.files import Order, TripFile, in_order

LEARNT, ALIKE = "learnt", "alike"
LONGEST_MIN = 180
COSTS = ((1, 1), (5, 1))
"""What a minute too late costs, and what a minute costs that was held and not used."""

_QUANTILES = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
_FIRST_DAY = date(2026, 3, 2)
_DISTANCE_STEPS = (1.25, 2.0)
"""Trips are of one class of distance if they differ by less than about such a factor."""
_SATURDAY = 5
_MINUTE_S = 60
_TOLERANCE_S = Policy().tolerance_s
_TRIPS_MIN = 100
_INK = "#808080"  # readable on white and on black
_COLOURS = ("#d9722b", "#3b8fd6", "#0f9d76")

Tell = Callable[[str], None]


class TooFewTrips(InvalidInput):
    """A hundred trips are needed: half of them to learn from, half to try it on."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """How much synthetic demand there is, and how much of a duration can be known."""

    trips: int = 20_000
    days: int = 28
    seeds: int = 5
    known: float = 0.72
    quantiles: tuple[float, ...] = _QUANTILES
    is_quick: bool = False

    @classmethod
    def quick(cls) -> "Plan":
        """A second or two: enough to see the shape, not to quote."""
        return cls(trips=4_000, days=14, seeds=2, is_quick=True)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the second half with one way to predict, at one quantile.

    One figure for each seed; a file of trips has one.
    """

    predictor: str
    quantile: float
    kept: list[int]
    """Trips that lasted no longer than predicted: of all, a share of about the quantile."""
    drivers: list[int]
    late: list[int]
    """Trips that started late: they were at risk, and came so."""
    handed_on: list[int]
    """Those of them whose driver was late already when the trip before began."""
    too_late: list[int]
    """Those that were later than a rider is left waiting for without being asked."""
    late_min: list[float]
    """Minutes by which trips started too late, in all."""
    idle_min: list[float]
    """Minutes from an early end to the predicted one, in all."""
    alone_late_min: list[float]
    """Minutes by which trips would end too late, if each had a driver to itself."""
    alone_idle_min: list[float]

    def lost_min(self, late_cost: float, idle_cost: float) -> list[float]:
        """What was lost, in minutes of idle time times their cost, by seed."""
        return _weighted(self.late_min, self.idle_min, late_cost, idle_cost)

    def alone_lost_min(self, late_cost: float, idle_cost: float) -> list[float]:
        """The same for trips that stand in nobody's way: the newsvendor's costs."""
        return _weighted(self.alone_late_min, self.alone_idle_min, late_cost, idle_cost)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the experiment."""

    source: str
    """`synthetic`, or the name of the file."""
    plan: Plan | None
    """None for a file."""
    python: str
    learnt_from: int
    tried: int
    """Trips of each seed."""
    left_out: int
    """Trips that were malformed, empty or longer than `LONGEST_MIN`, in all seeds."""
    tolerance_s: float
    outcomes: list[Outcome]

    def of(self, predictor: str) -> list[Outcome]:
        """The outcomes of one way to predict, by quantile."""
        return [each for each in self.outcomes if each.predictor == predictor]

    def best(self, predictor: str, late_cost: float, idle_cost: float) -> Outcome:
        """Where least is lost, on the mean of the seeds."""
        return min(
            self.of(predictor),
            key=lambda each: statistics.mean(each.lost_min(late_cost, idle_cost)),
        )

    def best_alone(self, predictor: str, late_cost: float, idle_cost: float) -> Outcome:
        """Where least would be lost if each trip had a driver to itself."""
        return min(
            self.of(predictor),
            key=lambda each: statistics.mean(each.alone_lost_min(late_cost, idle_cost)),
        )


class Ride(NamedTuple):
    """One trip as it was, and the classes by which its duration is predicted."""

    start_s: int
    duration_s: int
    classes: tuple[Hashable, ...]


class Tally(NamedTuple):
    """What became of all rides, once they lasted as they did."""

    late: int = 0
    handed_on: int = 0
    too_late: int = 0
    late_s: float = 0
    idle_s: float = 0


# The experiment ------------------------------------------------------------------


def measure(plan: Plan, tell: Tell = lambda _: None) -> Result:
    """Run the experiment on synthetic demand."""
    runs = []
    for seed in range(plan.seeds):
        tell(f"making the demand of seed {seed}")
        runs.append(list(make(plan, seed)))
    left_out = plan.trips * plan.seeds - sum(map(len, runs))
    return _try_out("synthetic", plan, runs, left_out, tell)


def measure_file(
    path: Path, zone: ZoneInfo | None, rows_max: int | None = None, tell: Tell = lambda _: None
) -> Result:
    """Run the experiment on a file of trips. `zone` and `rows_max` are those of `TripFile`.

    Raises `TooFewTrips`, and as `TripFile` does.
    """
    tell(f"reading {path.name}")
    file = TripFile(path, zone, rows_max)
    _, trips = in_order(file, Order.START)
    how_far = distances(path, rows_max)
    rides = [
        Ride(
            int(trip.start.timestamp()),
            int(duration_s),
            classes_of(trip.start.astimezone(zone or UTC), how_far.get(trip.line)),
        )
        for trip in trips
        if _is_believed(duration_s := (trip.end - trip.start).total_seconds())
    ]
    return _try_out(path.name, None, [rides], file.rows - len(rides), tell)


def make(plan: Plan, seed: int) -> Iterator[Ride]:
    """Synthetic rides in order of start, each with a distance that it may have come from."""
    demand = Demand(zone=ZoneInfo("UTC"), start=_FIRST_DAY, days=plan.days, seed=seed)
    dice = random.Random(seed)
    spread = demand.sigma * math.sqrt(plan.known * (1 - plan.known))
    for trip in exactly(plan.trips, demand):
        duration_s = (trip.end - trip.start).total_seconds()
        deviation = math.log(duration_s / _MINUTE_S / demand.median_minutes)
        distance = math.exp(dice.gauss(plan.known * deviation, spread))
        if _is_believed(duration_s):
            start = trip.start.replace(tzinfo=UTC)
            yield Ride(int(start.timestamp()), int(duration_s), classes_of(start, distance))


def classes_of(local: datetime, distance: float | None) -> tuple[Hashable, ...]:
    """What a trip has in common with others, from the finest to the coarsest."""
    hour = ("hour", local.weekday() >= _SATURDAY, local.hour)
    if distance is None:
        return (hour,)
    fine, coarse = (
        ("distance", step, round(math.log(distance) / math.log(step))) for step in _DISTANCE_STEPS
    )
    return (*fine, *hour), fine, coarse, hour


def pack(rides: Sequence[Ride], held_s: Sequence[float]) -> list[list[int]]:
    """The rides of each driver, by their place in `rides`, which is in order of start.

    Each goes to the first driver on the list who is free. O(n log n) for n rides.
    """
    agendas: list[list[int]] = []
    free: list[int] = []
    busy: list[tuple[float, int]] = []  # until when, and who
    for place, (ride, seconds) in enumerate(zip(rides, held_s, strict=True)):
        while busy and busy[0][0] <= ride.start_s:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if not free:
            heapq.heappush(free, len(agendas))
            agendas.append([])
        driver = heapq.heappop(free)
        agendas[driver].append(place)
        heapq.heappush(busy, (ride.start_s + seconds, driver))
    return agendas


def drive(
    rides: Sequence[Ride], held_s: Sequence[float], agenda: Sequence[int], tolerance_s: float
) -> Tally:
    """What becomes of one driver's rides: each lasts as it did, and starts when it can."""
    tally = Tally()
    free_from_s, was_late = -math.inf, False
    for place in agenda:
        ride = rides[place]
        late_s = max(0, free_from_s - ride.start_s)
        free_from_s = ride.start_s + late_s + ride.duration_s
        tally = Tally(
            tally.late + (late_s > 0),
            tally.handed_on + (late_s > 0 and was_late),
            tally.too_late + (late_s > tolerance_s),
            tally.late_s + late_s,
            tally.idle_s + max(0, ride.start_s + held_s[place] - free_from_s),
        )
        was_late = late_s > 0
    return tally


def _try_out(
    source: str, plan: Plan | None, runs: Sequence[Sequence[Ride]], left_out: int, tell: Tell
) -> Result:
    halves = [(rides[: len(rides) // 2], rides[len(rides) // 2 :]) for rides in runs]
    if min(len(before) for before, _ in halves) < _TRIPS_MIN // 2:
        raise TooFewTrips(field="TRIPS")
    outcomes = []
    for predictor in (LEARNT, ALIKE):
        knows = predictor == LEARNT
        learnt = [
            EndPredictor((ride.classes if knows else (), ride.duration_s) for ride in before)
            for before, _ in halves
        ]
        for quantile in plan.quantiles if plan else _QUANTILES:
            tell(f"{predictor}, {quantile:g}")
            tried = [
                _book_and_drive(
                    after, [by.seconds(ride.classes if knows else (), quantile) for ride in after]
                )
                for by, (_, after) in zip(learnt, halves, strict=True)
            ]
            outcomes.append(_outcome(predictor, quantile, tried))
    return Result(
        source=source,
        plan=plan,
        python=f"{platform.python_implementation()} {platform.python_version()}",
        learnt_from=len(halves[0][0]),
        tried=len(halves[0][1]),
        left_out=left_out,
        tolerance_s=_TOLERANCE_S,
        outcomes=outcomes,
    )


class _Tried(NamedTuple):
    kept: int
    drivers: int
    tally: Tally
    alone_late_s: float
    alone_idle_s: float


def _book_and_drive(rides: Sequence[Ride], held_s: Sequence[float]) -> _Tried:
    agendas = pack(rides, held_s)
    tallies = [drive(rides, held_s, agenda, _TOLERANCE_S) for agenda in agendas]
    over_s = [ride.duration_s - seconds for ride, seconds in zip(rides, held_s, strict=True)]
    return _Tried(
        sum(each <= 0 for each in over_s),
        len(agendas),
        Tally(*map(sum, zip(*tallies, strict=True))),
        sum(each for each in over_s if each > 0),
        -sum(each for each in over_s if each < 0),
    )


def _outcome(predictor: str, quantile: float, tried: Sequence[_Tried]) -> Outcome:
    return Outcome(
        predictor=predictor,
        quantile=quantile,
        kept=[each.kept for each in tried],
        drivers=[each.drivers for each in tried],
        late=[each.tally.late for each in tried],
        handed_on=[each.tally.handed_on for each in tried],
        too_late=[each.tally.too_late for each in tried],
        late_min=[_minutes(each.tally.late_s) for each in tried],
        idle_min=[_minutes(each.tally.idle_s) for each in tried],
        alone_late_min=[_minutes(each.alone_late_s) for each in tried],
        alone_idle_min=[_minutes(each.alone_idle_s) for each in tried],
    )


def _is_believed(duration_s: float) -> bool:
    return 0 < duration_s <= LONGEST_MIN * _MINUTE_S


def _minutes(seconds: float) -> float:
    return round(seconds / _MINUTE_S, 1)


def _weighted(
    late_min: Sequence[float], idle_min: Sequence[float], late_cost: float, idle_cost: float
) -> list[float]:
    both = zip(late_min, idle_min, strict=True)
    return [late_cost * late + idle_cost * idle for late, idle in both]


# What it shows ---------------------------------------------------------------------

HEADINGS = (
    "quantile",
    "ended in time",
    "drivers",
    "late",
    "of these handed on",
    "too late",
    "late min a trip",
    "idle min a trip",
    "late min per min over",
    *(f"lost at {late}:{idle}" for late, idle in COSTS),
)


def cells(result: Result, each: Outcome) -> list[str]:
    """What stands below `HEADINGS`; the least that is lost is bold."""
    tried = result.tried
    late = statistics.mean(each.late)
    lost = [
        f"**{text}**" if each is result.best(each.predictor, *costs) else text
        for costs in COSTS
        for text in (f"{statistics.mean(each.lost_min(*costs)) / tried:.2f}",)
    ]
    return [
        f"{each.quantile:g}",
        f"{statistics.mean(each.kept) / tried:.1%}",
        f"{statistics.mean(each.drivers):.1f}",
        f"{late / tried:.1%}",
        f"{statistics.mean(each.handed_on) / late:.0%}" if late else "-",
        f"{statistics.mean(each.too_late) / tried:.1%}",
        f"{statistics.mean(each.late_min) / tried:.2f}",
        f"{statistics.mean(each.idle_min) / tried:.2f}",
        f"{sum(each.late_min) / overrun:.2f}" if (overrun := sum(each.alone_late_min)) else "-",
        *lost,
    ]


BEST_HEADINGS = (
    "a minute late : idle",
    "the newsvendor's rule",
    "best if each trip were alone",
    "best in the fleet",
    "lost there",
    f"best in the fleet, {ALIKE}",
    "lost there",
)


def best_cells(result: Result) -> Iterator[list[str]]:
    """A row below `BEST_HEADINGS` for each of the `COSTS`."""
    for costs in COSTS:
        row = [f"{costs[0]} : {costs[1]}", f"{critical_fractile(*costs):.2f}"]
        row.append(f"{result.best_alone(LEARNT, *costs).quantile:g}")
        for predictor in (LEARNT, ALIKE):
            best = result.best(predictor, *costs)
            lost = [each / result.tried for each in best.lost_min(*costs)]
            spread = f" ({min(lost):.2f} to {max(lost):.2f})" if len(lost) > 1 else ""
            row += [f"{best.quantile:g}", f"{statistics.mean(lost):.2f}{spread}"]
        yield row


def markdown(recorded: dict[str, Any]) -> str:
    """A recorded result as two tables, and what must be known to read them."""
    result = msgspec.convert(recorded, Result)
    lines = [f"| {' | '.join(HEADINGS)} |", "|--:" * len(HEADINGS) + "|"]
    lines += [f"| {' | '.join(cells(result, each))} |" for each in result.of(LEARNT)]
    lines += ["", f"| {' | '.join(BEST_HEADINGS)} |", "|---" + "|--:" * 6 + "|"]
    lines += [f"| {' | '.join(row)} |" for row in best_cells(result)]
    return "\n".join((*lines, "", _conditions(result), ""))


def _conditions(result: Result) -> str:
    origin = f"The trips are those of {result.source}"
    if result.plan:
        seeds = result.plan.seeds
        origin = f"Synthetic demand over {result.plan.days} days; mean of {seeds} seeds"
        origin += ", in brackets the least and the greatest" if seeds > 1 else ""
    return (
        f"{origin}. Ends were learnt from {result.learnt_from:,} trips and tried on the"
        f" {result.tried:,} after them; {result.left_out:,} were left out as longer than"
        f" {LONGEST_MIN} minutes, empty or malformed. Lost: minutes a trip, late and idle,"
        f" by what they cost. Too late: by more than {result.tolerance_s / _MINUTE_S:g} minutes."
        f" Counted, not timed, so the machine has no part in it; {result.python}."
    )


def plot(recorded: dict[str, Any], path: Path, told: str) -> None:
    """Two plots by the quantile, one SVG for light and dark pages; `told` is kept in it.

    Raises `NoPlot` where matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415  # a second to load, and not in every environment
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError:
        raise NoPlot from None
    result = msgspec.convert(recorded, Result)
    # The same result gives the same bytes: no date, and names that do not change.
    with mpl.rc_context({"svg.hashsalt": "overrun", "font.size": 10, "text.color": _INK}):
        figure = Figure(figsize=(9, 4.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_late(left, result)
        _draw_lost(right, result)
        for axes in (left, right):
            _dress(axes)
        figure.savefig(
            path, format="svg", transparent=True, metadata={"Date": None, "Description": told}
        )


def _draw_late(axes: Any, result: Result) -> None:
    outcomes = result.of(LEARNT)
    quantiles = [each.quantile for each in outcomes]
    kinds = {
        "late": [each.late for each in outcomes],
        "handed on": [each.handed_on for each in outcomes],
        f"late by more than {result.tolerance_s / _MINUTE_S:g} min": [
            each.too_late for each in outcomes
        ],
    }
    for (label, counts), marker, colour in zip(kinds.items(), "osD", _COLOURS, strict=True):
        shares = [100 * statistics.mean(each) / result.tried for each in counts]
        axes.plot(quantiles, shares, marker=marker, markersize=4, color=colour, label=label)
    axes.set_title("trips at risk, % of all", color=_INK, fontsize=10)
    axes.set_ylim(bottom=0)


def _draw_lost(axes: Any, result: Result) -> None:
    for (late, idle), colour in zip(COSTS, _COLOURS, strict=False):
        for predictor, line in ((LEARNT, "-"), (ALIKE, ":")):
            outcomes = result.of(predictor)
            lost = [statistics.mean(each.lost_min(late, idle)) / result.tried for each in outcomes]
            quantiles = [each.quantile for each in outcomes]
            axes.plot(quantiles, lost, line, color=colour, label=f"{late}:{idle}, {predictor}")
            least = lost.index(min(lost))
            axes.plot(quantiles[least], lost[least], "o", color=colour)
    if all(min(line.get_ydata()) > 0 for line in axes.get_lines()):
        axes.set_yscale("log")
    axes.set_title("minutes lost a trip, and where least", color=_INK, fontsize=10)


def _dress(axes: Any) -> None:
    axes.set_xlabel("quantile of the predicted end", color=_INK)
    axes.legend(frameon=False, fontsize=9)
    axes.tick_params(which="both", colors=_INK)
    axes.grid(visible=True, color=_INK, alpha=0.25)
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(_INK)


# The command -----------------------------------------------------------------------


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
    console.print(_conditions(result), markup=False)


def _write(result: Result, out: Path | None, *, record: bool) -> None:
    from loadtest import figures  # noqa: PLC0415  # which draws with this file

    places = {"--out": out, "--record": figures.ROOT / figures.RESULTS if record else None}
    for option, directory in places.items():
        try:
            if directory:
                figures.record("overrun", result, directory)
        except OSError as error:
            raise InvalidInput(
                f"{directory} cannot be written to: {error.strerror or error}.", field=option
            ) from None
    if record:
        figures.write()


if __name__ == "__main__":
    main()

"""What a comparison is made of: its plan, its contenders, a cell a run, and what they add up to.

A *cell* is one run: one contender under one scenario, once. A *summary* is what
the cells of one contender and scenario say together. Cells are what is kept
while a comparison runs; all else is worked out from them.
"""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import msgspec

from booking.errors import TaxiError
from booking.ledgers import Claim
from loadtest.history import NOBODY_FREE, Request, percentiles_ms

CALM, HOT, RACE = "spread_out", "hot_driver", "hot_window"
MIXED, ANY, OVERLOAD = "mixed_day", "any_driver", "overload"
"""Scenarios that the comparison knows by name; it takes any others as they come."""

BOOKED = "booked"

NO_OP, BARE_INSERT, ORM_RIVAL = "no_op", "bare_insert", "orm_session"

IN_TIME_S = 1.0
"""An answer later than this after its request was due helps nobody: it is not goodput."""

EXAMPLES_MAX = 5
"""How many findings of each kind a cell keeps; all are counted."""


class CellFailed(TaxiError):
    """The cell could not be measured."""


class Kind(StrEnum):
    """What a contender is."""

    RECIPE = "recipe"
    ALLOCATOR = "allocator"
    RIVAL = "rival"
    CEILING = "ceiling"


class Contender(msgspec.Struct, frozen=True):
    """Something that is measured: a recipe, an allocator on the shipped recipe, or a rival."""

    name: str
    kind: Kind
    prevention: str
    allocator: str
    claim: Claim
    isolation: str
    idea: str

    @property
    def claims_safety(self) -> bool:
        """Whether it promises anything; one server process is all that it meets here."""
        return self.claim is not Claim.NOTHING


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is compared, and for how long (s). `ramped` names who is asked at rising rates.

    `shares` are the arrival rates of that ramp, as shares of what the first of
    them answers when its clients wait for it.
    """

    strategies: tuple[str, ...]
    scenarios: tuple[str, ...]
    repeats: int
    duration_s: int
    warmup_s: int
    clients: int
    ramped: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    load_processes: int = 2
    seed: int = 1


class Key(msgspec.Struct, frozen=True):
    """Which cell: `share` is that of the ramp, or None where clients wait for their answers."""

    contender: str
    scenario: str
    repeat: int = 1
    share: float | None = None


class Example(msgspec.Struct, frozen=True):
    """One finding of the audit, with what it takes to look it up."""

    kind: str
    driver_id: int | None
    booking_ids: tuple[int, ...]
    windows: tuple[tuple[datetime, datetime], ...]
    told: str = ""


class Audited(msgspec.Struct, frozen=True):
    """What the audit of one cell judged, and what it found."""

    bookings: int
    """Active bookings swept."""
    acknowledged: int
    """Acknowledged bookings looked up."""
    refusals: int
    """Refusals judged."""
    double_bookings: int = 0
    """Bookings in the ledger that begin in time which another of the driver holds."""
    passing: int = 0
    """Pairs that held the same time at once, of which one has been given back since."""
    lost: int = 0
    """Acknowledgements that the ledger does not bear out."""
    unjustified: int = 0
    unexpected: int | None = None
    """Answers that are none to what was asked, such as a server's error; None of an audit
    that did not look for them."""
    examples: tuple[Example, ...] = ()

    @property
    def faults(self) -> int:
        """Everything that is wrong."""
        known = self.double_bookings + self.passing + self.lost + self.unjustified
        return known + (self.unexpected or 0)


class Measured(msgspec.Struct, frozen=True):
    """What the requests of the measured window were answered, and how fast.

    `answered_per_s` counts what was done or rightly refused, `booked_per_s` the
    bookings made, `in_time_per_s` answers within `IN_TIME_S` of when they were
    due. Latencies (ms) count from when a request was due, not from its sending, and
    are those of all requests, whatever they were answered; one without an answer
    has waited at least until the end of the load.
    """

    answered_per_s: float
    booked_per_s: float
    in_time_per_s: float
    latency_ms: dict[str, float] = {}
    answers: dict[str, int] = {}
    """Requests by outcome, most frequent first."""
    cpu_us: dict[str, float] = {}
    """Processor time an answer (µs) of the service, the database and the load."""


class Cell(msgspec.Struct, frozen=True):
    """One run. With an `error` there is nothing else: it could not be measured."""

    key: Key
    measured: Measured | None = None
    audited: Audited | None = None
    rate: float | None = None
    """Requests sent a second, where they were sent at a rate."""
    error: str | None = None


class Spread(msgspec.Struct, frozen=True):
    """A figure that was measured several times."""

    median: float
    least: float
    most: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What the cells of one contender under one scenario say together."""

    contender: str
    scenario: str
    repeats: int
    answered_per_s: Spread
    booked_per_s: Spread
    latency_ms: dict[str, float]
    """The medians of the repeats, and the worst of all as `max`."""
    answers: dict[str, int]
    of_no_op: float | None
    of_bare_insert: float | None
    audited: Audited | None


class Verdict(msgspec.Struct, frozen=True):
    """What all of a contender's audits say together, and whether its claim stands."""

    contender: str
    audited: Audited | None
    stands: bool
    told: str


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """All of it, as `comparison.json` holds it."""

    machine: dict[str, Any]
    postgres: dict[str, str]
    environment: dict[str, str]
    plan: Plan
    complete: bool
    contenders: tuple[Contender, ...]
    summaries: tuple[Summary, ...]
    verdicts: tuple[Verdict, ...]
    cells: tuple[Cell, ...]

    def contender(self, name: str) -> Contender:
        """The contender of that name."""
        return next(each for each in self.contenders if each.name == name)

    def summary(self, contender: str, scenario: str) -> Summary | None:
        """What was measured of it under that scenario, if it was."""
        wanted = (contender, scenario)
        return next((e for e in self.summaries if (e.contender, e.scenario) == wanted), None)

    def cpu_us(self, contender: str, scenario: str) -> dict[str, float]:
        """Processor time an answer (µs), by who used it: medians of the closed runs."""
        found = [
            cell.measured.cpu_us
            for cell in self.cells
            if (cell.key.contender, cell.key.scenario) == (contender, scenario)
            and cell.key.share is None
            and cell.measured is not None
            and cell.measured.cpu_us
        ]
        if not found:
            return {}
        everybody = set[str]().union(*found)
        return {who: statistics.median(each.get(who, 0.0) for each in found) for who in everybody}

    def verdict(self, contender: str) -> Verdict:
        """What its audits say."""
        return next(each for each in self.verdicts if each.contender == contender)

    @property
    def scenarios(self) -> list[str]:
        """Those that have summaries, in the plan's order."""
        seen = {each.scenario for each in self.summaries}
        return [*(each for each in self.plan.scenarios if each in seen)]

    @property
    def speed_scenario(self) -> str | None:
        """The one whose throughput speaks for a recipe: the calm one, if it was measured."""
        recipes = {each.name for each in self.contenders if each.kind is Kind.RECIPE}
        measured = [each.scenario for each in self.summaries if each.contender in recipes]
        return CALM if CALM in measured else next(iter(measured), None)

    @property
    def broken(self) -> list[Verdict]:
        """The claims that did not stand."""
        return [each for each in self.verdicts if not each.stands]


def outcome(request: Request) -> str:
    """What became of a request, in a word or three."""
    if request.status == 0:
        return "never sent" if request.sent_s is None else "no answer"
    if request.acknowledged:
        words = {"book": BOOKED, "reschedule": "moved", "cancel": "cancelled", "look": "looked"}
        return words.get(request.action, request.action)
    if request.refused:
        return "nobody free" if request.problem == NOBODY_FREE else "refused"
    if request.status == HTTPStatus.SERVICE_UNAVAILABLE:
        return "turned away"
    return f"{request.status} {request.problem or ''}".strip()


def measure(
    history: Sequence[Request], duration_s: float, used_s: Mapping[str, float] | None = None
) -> Measured:
    """What came of the requests that were due in `duration_s` after the warm-up.

    `used_s` is the processor time that went into them.

    What is answered later counts for the latencies, and not for the rates.
    Raises `CellFailed` if the load did not last as long as that, or if nothing
    at all was booked: then there is nothing to measure.
    """
    if not any(outcome(request) == BOOKED for request in history):
        raise CellFailed(f"Nothing was booked ({_counted(history) or 'nothing was asked'}).")
    begun_s = _window_begins_s(history)
    ended_s, last_s = begun_s + duration_s, max(map(_last_s, history))
    if last_s < ended_s:
        raise CellFailed(f"The load ended {ended_s - last_s:.1f} s too early to be measured.")
    chosen = [request for request in history if begun_s <= request.intended_s < ended_s]
    done = [each for each in chosen if each.acknowledged or each.refused]
    by_then = [each for each in done if _answered_by(each, ended_s)]
    in_time = [each for each in done if _answered_by(each, each.intended_s + IN_TIME_S)]
    waits_s = [(each.answered_s or last_s) - each.intended_s for each in chosen]
    return Measured(
        answered_per_s=round(len(by_then) / duration_s, 1),
        booked_per_s=round(sum(outcome(each) == BOOKED for each in by_then) / duration_s, 1),
        in_time_per_s=round(len(in_time) / duration_s, 1),
        latency_ms=percentiles_ms(waits_s),
        answers=dict(Counter(outcome(request) for request in chosen).most_common()),
        cpu_us={
            who: round(1e6 * seconds / max(len(by_then), 1))
            for who, seconds in (used_s or {}).items()
        },
    )


def _window_begins_s(history: Sequence[Request]) -> float:
    """When the warm-ups are over: each process has one of its own, from when it began."""
    warm_s = max((each.intended_s for each in history if not each.measured), default=-math.inf)
    after_s = [each.intended_s for each in history if each.measured and each.intended_s > warm_s]
    if not after_s:
        raise CellFailed("Nothing was asked after the warm-up.")
    return min(after_s)


def _answered_by(request: Request, moment_s: float) -> bool:
    return request.answered_s is not None and request.answered_s <= moment_s


def _last_s(request: Request) -> float:
    """The last moment of which the request tells."""
    return request.answered_s or request.sent_s or request.intended_s


def _counted(history: Iterable[Request]) -> str:
    counts = Counter(outcome(request) for request in history).most_common()
    return ", ".join(f"{count:,} {what}" for what, count in counts)


def added_up(audits: Iterable[Audited | None]) -> Audited | None:
    """Several audits as one; None if there was none."""
    there = [each for each in audits if each is not None]
    if not there:
        return None
    counts = {
        name: sum(found)
        for name in Audited.__struct_fields__
        if name != "examples" and None not in (found := [getattr(each, name) for each in there])
    }
    examples = [example for each in there for example in each.examples]
    kept = [
        example
        for kind in dict.fromkeys(each.kind for each in examples)
        for example in [each for each in examples if each.kind == kind][:EXAMPLES_MAX]
    ]
    return Audited(**counts, examples=tuple(kept))


def summarize(cells: Sequence[Cell]) -> list[Summary]:
    """What the cells say, by contender and scenario; those of a ramp speak for themselves."""
    no_op = _ceiling(cells, NO_OP)
    bare_insert = _ceiling(cells, BARE_INSERT)
    groups: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        if cell.measured is not None and cell.key.scenario != OVERLOAD:
            groups.setdefault((cell.key.contender, cell.key.scenario), []).append(cell)
    summaries = []
    for (contender, scenario), group in groups.items():
        measured = [cell.measured for cell in group if cell.measured is not None]
        answered = _spread([each.answered_per_s for each in measured])
        summaries.append(
            Summary(
                contender=contender,
                scenario=scenario,
                repeats=len(measured),
                answered_per_s=answered,
                booked_per_s=_spread([each.booked_per_s for each in measured]),
                latency_ms=_latencies(measured),
                answers=_answers(measured),
                of_no_op=_ratio(answered.median, no_op),
                of_bare_insert=_ratio(answered.median, bare_insert),
                audited=added_up(cell.audited for cell in group),
            )
        )
    return summaries


def _ceiling(cells: Sequence[Cell], name: str) -> float | None:
    rates = [c.measured.answered_per_s for c in cells if c.measured and c.key.contender == name]
    return statistics.median(rates) if rates else None


def _ratio(figure: float, ceiling: float | None) -> float | None:
    return round(figure / ceiling, 3) if ceiling else None


def _spread(figures: Sequence[float]) -> Spread:
    return Spread(round(statistics.median(figures), 1), min(figures), max(figures))


def _latencies(measured: Sequence[Measured]) -> dict[str, float]:
    there = [each.latency_ms for each in measured if each.latency_ms]
    if not there:
        return {}
    medians = {
        name: round(statistics.median(each[name] for each in there), 2)
        for name in there[0]
        if name != "max"
    }
    worst = [each["max"] for each in there if "max" in each]
    return medians | ({"max": max(worst)} if worst else {})


def _answers(measured: Sequence[Measured]) -> dict[str, int]:
    together: Counter[str] = Counter()
    for each in measured:
        together.update(each.answers)
    return dict(together.most_common())


def judge(contender: Contender, cells: Iterable[Cell]) -> Verdict:
    """Whether the contender's claim stands after its audits.

    What claims nothing cannot break its claim, and a ceiling has none. What could
    not be measured has not stood.
    """
    own = [cell for cell in cells if cell.key.contender == contender.name]
    errors = [cell.error for cell in own if cell.error is not None]
    audited = added_up(cell.audited for cell in own)
    wrong = _whats_wrong(audited)
    if contender.kind is Kind.CEILING:
        told = f"not measured: {errors[0]}" if errors else "a ceiling"
        return Verdict(contender.name, None, stands=True, told=told)
    if wrong:
        return Verdict(contender.name, audited, not contender.claims_safety, wrong)
    if errors:
        return Verdict(
            contender.name, audited, stands=False, told=f"not all was measured: {errors[0]}"
        )
    if audited is None:
        return Verdict(contender.name, None, stands=True, told="not measured yet")
    # Load proves presence, never absence: a race that was not met is there all the same.
    clean = "clean" if contender.claims_safety else "not caught this time"
    return Verdict(contender.name, audited, stands=True, told=clean)


def _whats_wrong(audited: Audited | None) -> str:
    if audited is None:
        return ""
    doubles = audited.double_bookings + audited.passing
    counts = (
        (doubles, "double booking"),
        (audited.lost, "lost booking"),
        (audited.unjustified, "unjustified refusal"),
        (audited.unexpected or 0, "unexpected answer"),
    )
    return ", ".join(f"{n:,} {what}{'s' if n > 1 else ''}" for n, what in counts if n)


def compare(
    about: Mapping[str, Any], plan: Plan, contenders: Sequence[Contender], cells: Sequence[Cell]
) -> Comparison:
    """Everything that the cells say. `about` holds `machine`, `postgres` and `environment`."""
    return Comparison(
        **about,
        plan=plan,
        complete={cell.key for cell in cells if not cell.error} >= set(keys_of(plan, contenders)),
        contenders=tuple(contenders),
        summaries=tuple(summarize(cells)),
        verdicts=tuple(judge(each, cells) for each in contenders),
        cells=tuple(cells),
    )


def keys_of(plan: Plan, contenders: Sequence[Contender]) -> list[Key]:
    """Every cell of the plan, in the order of measuring.

    Each repeat takes the contenders the other way round than the one before
    (A B B A), so that a machine that grows slower is not held against the last.
    """
    keys: list[Key] = []
    for scenario in _with_ceilings(plan):
        if scenario == OVERLOAD:
            continue
        those = [each.name for each in contenders if _takes_part(each, scenario, plan)]
        for repeat in range(1, plan.repeats + 1):
            order = those if repeat % 2 else those[::-1]
            keys += [Key(name, scenario, repeat) for name in order]
    return keys + _ramp(plan)


def _with_ceilings(plan: Plan) -> list[str]:
    """The plan's scenarios, and the calm one first, which the ceilings are measured by."""
    return [CALM, *(each for each in plan.scenarios if each != CALM)]


def _takes_part(contender: Contender, scenario: str, plan: Plan) -> bool:
    match contender.kind:
        case Kind.CEILING:
            return scenario == CALM
        case Kind.RIVAL:
            return scenario in {CALM, HOT, RACE}
        case Kind.ALLOCATOR:
            return scenario == ANY and ANY in plan.scenarios
        case Kind.RECIPE:
            return scenario in plan.scenarios


def _ramp(plan: Plan) -> list[Key]:
    """The first one's clients wait for it first, which sets the rates of all."""
    if OVERLOAD not in plan.scenarios or not plan.ramped:
        return []
    first = Key(plan.ramped[0], OVERLOAD)
    return [
        first,
        *(
            Key(name, OVERLOAD, share=share)
            for number, share in enumerate(plan.shares)
            for name in (plan.ramped if number % 2 == 0 else plan.ramped[::-1])
        ),
    ]

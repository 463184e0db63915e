"""Proof by exhaustion: every interleaving of a few sessions, for each recipe and isolation level.

Load is no proof: spread out, the unsafe recipe double-books not once in thousands of
requests. Here nothing is left to chance. Sessions of book, cancel and reschedule meet
on one driver, and every order of their statements is run on a real PostgreSQL, as
PostgreSQL's own `isolationtester` runs the ones it is told to (src/test/isolation),
and in the form of ept/hermitage: level by anomaly.

What it does not show
---------------------
A step is a statement. What two statements do to each other while both are under way
is the server's affair, and comes in one order here: plain inserts under an exclusion
constraint can deadlock within the statement, and do so under load alone. A proof of
two sessions says nothing of three. And a recipe is judged by the port `Ledger`, for a
driver who is named.
"""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast, get_args

import asyncpg
import msgspec

from booking.allocation.ask_then_offer import AskThenOffer
from booking.bookings import Booking, BookingRequest
from booking.errors import InvalidInput, TaxiError
from booking.ledgers import Claim
from booking.postgres.database import Database, Isolation, dsn
from booking.postgres.ledger import PostgresLedger
from booking.strategies import Act, find, strategies
from loadtest.proof.footprints import Footprint, independent
from loadtest.proof.scenarios import ANOMALIES, SCENARIOS, TOLD, Judge, Row, Scenario, Sign
from loadtest.proof.search import Diverged, Independent, Search, orders
from loadtest.proof.steps import Run, Stage, letter, stage

LEVELS = cast("tuple[Isolation, ...]", get_args(Isolation))
"""The isolation levels of PostgreSQL, weakest first."""

_TRIES_MAX = 20
_DRIVERS_AT_A_TIME = 100

_NO_STATISTICS = """
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT relname FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' LOOP
            EXECUTE format('ALTER TABLE %I SET (autovacuum_enabled = off)', name);
        END LOOP;
    END $$
"""
# Under SERIALIZABLE a plan decides what is taken for read, so plans must not change midway.

Tell = Callable[[str], None]
"""Hears what is being run."""


class NotRepeatable(TaxiError):
    """A schedule went another way each time it was run."""


class Outcome(msgspec.Struct, frozen=True):
    """One scenario, in every order.

    `schedules` were run and stand for `interleavings`, which differ from them by swaps
    that nobody can notice. `signs` counts interleavings that show a thing, and
    `failing` are the numbers of the schedules that show an anomaly, as `3-5,9`.
    """

    scenario: str
    schedules: int
    interleavings: int
    signs: dict[str, int]
    failing: str


def forbidden(tells: Iterable[str], *, own: bool) -> tuple[Sign, ...]:
    """What a recipe that `tells` such signs of itself must not show, at its own level or not."""
    untold = {*TOLD} - {*tells} if own else set()
    return tuple(sign for sign in Sign if sign in ANOMALIES or sign in untold)


class Cell(msgspec.Struct, frozen=True):
    """One recipe at one isolation level. With `ledgers` 1, the sessions share a process."""

    recipe: str
    claim: str
    isolation: str
    own: bool
    """Whether it is the level that the recipe asks for."""
    ledgers: int
    outcomes: list[Outcome]
    tells: list[str] = []
    """The signs that the recipe says of itself it may show."""

    @property
    def interleavings(self) -> int:
        """All that were run, or stood for."""
        return sum(outcome.interleavings for outcome in self.outcomes)

    @property
    def signs(self) -> Counter[str]:
        """How many interleavings show a thing."""
        return sum((Counter(outcome.signs) for outcome in self.outcomes), Counter())

    @property
    def forbidden(self) -> tuple[Sign, ...]:
        """What must not be; at its own level also what the recipe says nothing of."""
        return forbidden(self.tells, own=self.own)

    @property
    def anomalies(self) -> Counter[str]:
        """Of the signs, what must not be."""
        signs = self.signs
        return Counter({str(sign): signs[sign] for sign in self.forbidden if signs[sign]})

    @property
    def safe_by_claim(self) -> bool:
        """Whether the recipe claims that here nothing goes wrong."""
        across = self.claim == Claim.ACROSS_PROCESSES
        return self.own and (across or (self.claim == Claim.ONE_PROCESS and self.ledgers == 1))

    @property
    def keeps_its_claim(self) -> bool:
        """False where something goes wrong that the recipe says does not."""
        return not (self.safe_by_claim and self.anomalies)


class Proof(msgspec.Struct, frozen=True):
    """The matrix: every recipe at every level that was asked for."""

    machine: dict[str, Any]
    server: str
    sessions: int
    cells: list[Cell]


@dataclass(frozen=True)
class Subject:
    """What is put to the proof: a kind of ledger, and what it says of itself."""

    name: str
    kind: Callable[..., PostgresLedger]
    claim: str
    isolation: Isolation
    tells: tuple[Sign, ...]
    """The signs that it says of itself it may show."""

    @classmethod
    def of(cls, name: str, kind: type[PostgresLedger]) -> "Subject":
        """A kind of ledger by that name."""
        # Whoever loses in a deadlock each time gives up in the end.
        gives_up = kind.may_give_up or kind.may_deadlock
        tells = {Sign.DEADLOCK: kind.may_deadlock, Sign.GAVE_UP: gives_up}
        told = tuple(sign for sign in tells if tells[sign])
        return cls(name, kind, kind.claim, kind.isolation, told)

    def ledger(self, database: Database) -> PostgresLedger:
        """A new ledger, as a process has that was just started."""
        return self.kind(database, AskThenOffer())

    def ledgers(self, sessions: int) -> tuple[int, ...]:
        """In how many processes the sessions are run.

        Each in one of its own; and, where the recipe rests on the memory of the
        process, all in one as well.
        """
        return (1, sessions) if self.claim == Claim.ONE_PROCESS else (sessions,)


def recipes(names: Iterable[str] = ()) -> list[Subject]:
    """The recipes of these names, or all. Raises `InvalidInput` for a name that is none."""
    found = [find(Act.PREVENTION, name) for name in names]
    return [Subject.of(each.name, each.load()) for each in found or strategies(Act.PREVENTION)]


@dataclass(frozen=True)
class Played:
    """A schedule, its number within its cell, and what it came to."""

    number: int
    scenario: Scenario
    run: Run
    rows: list[Row]
    signs: set[Sign]
    interleavings: int

    @property
    def name(self) -> str:
        """What it is called: `follow` runs it again by these two."""
        return f"{self.scenario.name}:{self.run.choices}"


@dataclass
class Bench:
    """A subject on a database, at one level, in so many processes: what plays schedules."""

    subject: Subject
    isolation: Isolation
    ledgers: int
    database: Database
    stage: Stage
    connection: Any
    rider: int
    reduce: bool = True
    _drivers: list[int] = field(default_factory=list)

    @property
    def _independent(self) -> Independent:
        return partial(_same_level, self.isolation) if self.reduce else _dependent

    async def schedules(
        self, scenarios: Iterable[Scenario], tell: Tell = lambda _said: None
    ) -> AsyncGenerator[Played]:
        """Every schedule of the scenarios, numbered from 1. Raises `NotRepeatable`."""
        number = 0
        for scenario in scenarios:
            tell(scenario.name)
            await self._clear()
            search, more = Search(self._independent), True
            while more:
                played = await self._play(search, scenario, number + 1)
                if played is not None:
                    number += 1
                    yield played
                more = search.advance()

    async def follow(self, scenario: Scenario, choices: str) -> Played:
        """The one schedule in which the sessions named take the steps, one letter a step.

        When the letters are used up, the first who can goes on. Raises `InvalidInput`
        if somebody cannot.
        """
        left = list(choices)

        def choose(options: Any) -> int:
            if not left:
                return int(min(options))
            wanted = left.pop(0)
            for option in options:
                if letter(option) == wanted:
                    return int(option)
            able = ", ".join(letter(option) for option in options)
            raise InvalidInput(
                f"After {choices[: -len(left) - 1] or 'no steps'} {able} can go on, not {wanted}.",
                field="--schedule",
            )

        await self._clear()
        held, driver = await self._prepare(scenario)
        run = await self.stage.play(self._performances(scenario, driver, held), choose)
        assert run is not None  # noqa: S101  # only `choose` could have ended it
        return await self._judged(run, scenario, held, driver, 0)

    async def _play(self, search: Search, scenario: Scenario, number: int) -> Played | None:
        for _ in range(_TRIES_MAX):
            held, driver = await self._prepare(scenario)
            search.again()
            try:
                run = await self.stage.play(
                    self._performances(scenario, driver, held),
                    search.choose,
                    [booking.id for booking in held],
                )
            except Diverged:
                continue
            return await self._judged(run, scenario, held, driver, number) if run else None
        raise NotRepeatable(f"{self.subject.name}, {self.isolation}, {scenario.name}: {number}")

    def _performances(
        self, scenario: Scenario, driver: int, held: list[Booking]
    ) -> list[Callable[[PostgresLedger], Any]]:
        return [
            partial(command.perform, driver=driver, rider=self.rider, held=held)
            for command in scenario.commands
        ]

    async def _judged(
        self, run: Run, scenario: Scenario, held: list[Booking], driver: int, number: int
    ) -> Played:
        rows = await self.connection.fetch(
            "SELECT id, state, lower(during), upper(during) FROM bookings WHERE driver_id = $1",
            driver,
        )
        early = self.ledgers < len(scenario.commands)
        judge = Judge(scenario, run, held, [Row(*row) for row in rows], early)
        stands_for = orders(run.taken(), self._independent)
        return Played(number, scenario, run, judge.rows, judge.signs(), stands_for)

    async def _prepare(self, scenario: Scenario) -> tuple[list[Booking], int]:
        """A driver whom no schedule has seen, with what the scenario has booked already."""
        if not self._drivers:
            rows = await self.connection.fetch(
                "INSERT INTO drivers (name, fleet, zone)"
                " SELECT 'Ada', 'main', 'UTC' FROM generate_series(1, $1) RETURNING id",
                _DRIVERS_AT_A_TIME,
            )
            self._drivers = [row[0] for row in rows]
        driver = self._drivers.pop()
        ledger = self.subject.ledger(self.database)
        held = [
            await ledger.book(BookingRequest(self.rider, window, driver))
            for window in scenario.held
        ]
        return held, driver

    async def _clear(self) -> None:
        """Empty tables for each scenario: its indexes look the same whatever was run before."""
        self._drivers = []
        await self.connection.execute("TRUNCATE bookings, drivers CASCADE")


def _same_level(isolation: Isolation, one: Footprint, other: Footprint) -> bool:
    return independent(one, other, isolation)


def _dependent(_one: Footprint, _other: Footprint) -> bool:
    return False


@asynccontextmanager
async def bench(
    url: str,
    subject: Subject,
    isolation: Isolation,
    *,
    sessions: int,
    ledgers: int,
    reduce: bool = True,
) -> AsyncIterator[Bench]:
    """Set up on a database that is fitted to the recipe, and whose bookings may go."""
    connection = await asyncpg.connect(dsn(url), server_settings={"synchronous_commit": "off"})
    database = Database(url, pool_size=1)
    try:
        await connection.execute(_NO_STATISTICS)
        rider = await connection.fetchval("INSERT INTO riders (name) VALUES ('Bob') RETURNING id")
        async with stage(
            url, isolation, subject.ledger, sessions=sessions, ledgers=ledgers
        ) as opened:
            # What sessions do to each other in the memory of a process is in no statement.
            reduce = reduce and ledgers == sessions
            yield Bench(subject, isolation, ledgers, database, opened, connection, rider, reduce)
    finally:
        await database.close()
        await connection.close()


async def prove(
    url: str,
    subject: Subject,
    levels: Iterable[Isolation] = LEVELS,
    *,
    sessions: int = 2,
    scenarios: Iterable[Scenario] = (),
    reduce: bool = True,
    tell: Tell = lambda _said: None,
) -> list[Cell]:
    """Run every schedule of the subject at these levels; all scenarios unless some are given.

    `url` is a database that is fitted to it, and whose bookings may go.
    """
    chosen = tuple(scenarios) or SCENARIOS[sessions]
    cells = []
    for isolation in levels:
        for ledgers in subject.ledgers(sessions):
            async with bench(
                url, subject, isolation, sessions=sessions, ledgers=ledgers, reduce=reduce
            ) as ready:
                said = f"{subject.name}, {isolation.lower()}"
                heard = partial(_tell_both, tell, said)
                outcomes = await _outcomes(ready, chosen, heard)
            cells.append(_cell(subject, isolation, ledgers, outcomes))
    return cells


def _cell(subject: Subject, isolation: Isolation, ledgers: int, outcomes: list[Outcome]) -> Cell:
    return Cell(
        subject.name,
        subject.claim,
        isolation,
        own=isolation == subject.isolation,
        ledgers=ledgers,
        outcomes=outcomes,
        tells=[str(sign) for sign in subject.tells],
    )


def _tell_both(tell: Tell, cell: str, said: str) -> None:
    tell(f"{cell}, {said}")


async def _outcomes(ready: Bench, scenarios: Iterable[Scenario], tell: Tell) -> list[Outcome]:
    found: dict[str, list[Played]] = {scenario.name: [] for scenario in scenarios}
    async for played in ready.schedules(scenarios, tell):
        found[played.scenario.name].append(played)
    own = ready.isolation == ready.subject.isolation
    bad = {*forbidden(ready.subject.tells, own=own)}
    return [_outcome(name, all_played, bad) for name, all_played in found.items()]


def _outcome(name: str, all_played: list[Played], bad: set[Sign]) -> Outcome:
    signs = {
        str(sign): sum(each.interleavings for each in all_played if sign in each.signs)
        for sign in Sign
    }
    return Outcome(
        name,
        len(all_played),
        sum(each.interleavings for each in all_played),
        {sign: count for sign, count in signs.items() if count},
        ranges(each.number for each in all_played if each.signs & bad),
    )


def ranges(numbers: Iterable[int]) -> str:
    """Rising numbers, shortened: `3-5,9`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in spans)


async def server_version(url: str) -> str:
    """What the server calls itself."""
    connection = await asyncpg.connect(dsn(url))
    try:
        return f"PostgreSQL {await connection.fetchval('SHOW server_version')}"
    finally:
        await connection.close()

"""What every scenario is: a Locust user who books on a grid, with closed or open arrivals.

A scenario's class says what is wanted next (`next_request`); all else is here.
It is found by Locust as its user class. 409 is an answer, as 200 and 201 are:
that a driver is taken is what the service is asked to find out. Everything
else is a failure.

**Closed.** Locust runs each user's task over and over; the task is one request.

**Open.** A user has `--connections` senders. Each takes the next arrival of the
user's schedule, sleeps until it is due, sends it, and comes back for another.
So arrivals are sent in the order in which they are due; if all senders are
waiting for answers, an arrival waits until one comes back, and is sent then,
however late. Latency counts from when it was due. Each user takes an equal
share of `--rate`, so start one user a process (`-u 2 -r 2 --processes 2`).

**The end.** Nothing more is taken from the line. What is on its way may take Locust's
`--stop-timeout` (here 10 s by default) to be answered. What then has no answer,
and what was due but never sent, is a failure, with the time it had waited so far
as its latency: to leave it out would be to leave out the slowest.
"""

import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count, takewhile
from random import Random
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, urlsplit

from locust import FastHttpUser, constant, events, task
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS
from locust.env import Environment
from locust.event import EventHook
from locust.exception import StopTest
from locust.runners import MasterRunner, WorkerRunner

from loadtest.scenarios import _knobs
from loadtest.scenarios._arrivals import due_s
from loadtest.scenarios._demand import Grid, Wish, any_time, one_of
from loadtest.scenarios._fleet import AUTHORIZATION, NoFleet, fleet_of, riders
from loadtest.scenarios._history import Answer, History, Request, now_s
from loadtest.scenarios._knobs import Knobs, WrongKnob

STOP_S_MAX = 10.0

_JSON = {"Content-Type": "application/json", **AUTHORIZATION}
_ANSWERS = frozenset({200, 201, 409})
_ID = re.compile(rb'"id":\s*(\d+)')
_DRIVER = re.compile(rb'"driver_id":\s*(\d+)')
_PROBLEM = re.compile(rb'"type":\s*"/problems/([a-z-]+)"')
_LOOKS_FOR_THE_END_EVERY_S = 0.05

logger = logging.getLogger(__name__)


class Failure(Exception):
    """Why a request counts as failed, in Locust's figures."""


def _on(hook: EventHook, listener: Callable[..., None]) -> None:
    hook.add_listener(listener)  # type: ignore[no-untyped-call]  # Locust's has no types


@dataclass(slots=True)
class Stage:
    """What the users of this process share: from the start of a test to its end."""

    knobs: Knobs
    grid: Grid
    drivers: list[int]
    riders: list[int]
    history: History
    process: int
    """The number of this process among those of the test."""
    users: int
    """How many users share the rate, in all processes."""
    measured_from_s: float
    numbers: Iterator[int] = field(default_factory=count)
    """The next user's number within the process."""


class _OnItsWay(NamedTuple):
    request: Request
    intended_s: float
    sent_s: float


class Scenario(FastHttpUser):
    """A user of a scenario."""

    abstract = True
    wait_time = constant(0)

    name: ClassVar[str] = ""
    """The scenario's, which is its file's."""
    defaults: ClassVar[Mapping[str, int | str]] = {}
    """Where the scenario's knobs differ from the usual ones."""
    stage: ClassVar[Stage]
    alarm: ClassVar[threading.Timer | None] = None
    """Stops the test, in the process that decides about it."""

    def __init_subclass__(cls) -> None:
        """Add the scenario's knobs to Locust's options."""
        cls.name = cls.__module__.rpartition(".")[2]
        if Scenario.name:
            sys.stderr.write(f"Run one scenario at a time, not {Scenario.name} and {cls.name}.\n")
            sys.exit(2)
        Scenario.name = cls.name
        _on(
            events.init_command_line_parser,
            lambda parser: _knobs.add_options(parser, cls.name, cls.defaults),
        )

    def __init__(self, environment: Environment) -> None:
        stage = self.stage
        self.concurrency = stage.knobs.connections if stage.knobs.is_open else 1
        self.network_timeout = self.connection_timeout = stage.knobs.timeout_s
        super().__init__(environment)
        # One layer below FastHttpUser's own, which is two fifths of a request's cost: redirects,
        # cookies, and events that know no intended start.
        self._http = self.client.client.clientpool.get_client(self.host or "")
        self._prefix = urlsplit(self.host or "").path.rstrip("/")
        self._fleet_in_json = json.dumps(stage.knobs.fleet)
        self._fleet_in_query = quote(stage.knobs.fleet)
        seed = f"{stage.knobs.seed}/{stage.process}/{next(stage.numbers)}"
        self.random = Random(f"demand {seed}")
        self._due = self._schedule(Random(f"arrivals {seed}"))
        self._taken: dict[int, float] = {}
        """When the arrivals are due that senders sleep for, by sender."""
        self._on_their_way: dict[int, _OnItsWay] = {}
        self._ends_s: float | None = None

    # What a scenario says ------------------------------------------------------------------

    def next_request(self) -> Request:
        """What this user asks for next; a booking of what `wish` draws."""
        return Request("book", self.wish())

    def wish(self) -> Wish:
        """The next trip that somebody wants: here, of any driver by name, at any time."""
        driver = one_of(self.stage.drivers, self.random)
        return any_time(self.stage.grid, driver, self.random)

    def hear(self, request: Request, answer: Answer) -> None:
        """Called with every answer, for a scenario that goes on from it."""

    # Arrivals ------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Start the senders of open arrivals."""
        for sender in range(self.stage.knobs.connections if self.stage.knobs.is_open else 0):
            threading.Thread(target=self._send_what_is_due, args=(sender,), daemon=True).start()

    @task
    def go_on(self) -> None:
        """Send one request; or, while the senders do, wait until Locust looks again."""
        if self.stage.knobs.is_open:
            time.sleep(_LOOKS_FOR_THE_END_EVERY_S)
        else:
            self._send(self.next_request())

    def on_stop(self) -> None:
        """Wait for what is on its way, and account for what was due and never sent."""
        self._ends_s = ends_s = now_s()
        try:
            while self._on_their_way or any(due < ends_s for due in self._taken.values()):
                time.sleep(0.01)
        finally:  # Locust's patience may end first
            for key in list(self._on_their_way):
                self._settle(key, Answer(), "no answer when the test was stopped")
            if self.stage.knobs.is_open:
                for intended_s in takewhile(lambda due: due < ends_s, self._due):
                    self._never_sent(intended_s)

    def _schedule(self, random: Random) -> Iterator[float]:
        """When this user's requests are due, in seconds since 1970; it begins when first asked."""
        knobs = self.stage.knobs
        rates = [rate / self.stage.users for rate in knobs.rates]
        begins_s = now_s()
        for after_s in due_s(rates, knobs.step_s, knobs.gaps, random):
            yield begins_s + after_s

    def _send_what_is_due(self, sender: int) -> None:
        try:
            while self._ends_s is None:
                self._taken[sender] = intended_s = next(self._due)
                # Timers may be early by a little.
                while (ahead_s := intended_s - now_s()) > 0:
                    time.sleep(ahead_s)
                del self._taken[sender]
                if self._ends_s is None or intended_s < self._ends_s:
                    self._send(self.next_request(), intended_s)
        except Exception as error:
            self.environment.events.user_error.fire(
                user_instance=self, exception=error, tb=error.__traceback__
            )
            raise

    # One request ---------------------------------------------------------------------------

    def _send(self, request: Request, intended_s: float | None = None) -> None:
        if request.action == "book":
            request = request._replace(rider_id=one_of(self.stage.riders, self.random))
        method, path, body = self._wire(request)
        sent_s = now_s()
        key = id(request)
        self._on_their_way[key] = _OnItsWay(
            request, sent_s if intended_s is None else intended_s, sent_s
        )
        failure: str | None = None
        length = 0
        try:
            response = self._http.request(method, self._prefix + path, body, _JSON)
            text = response.read()
            status = response.get_code()
        except FAILURE_EXCEPTIONS as error:
            answer = Answer()
            failure = f"{type(error).__name__}: {error}"
        except BaseException:  # Locust kills the user
            self._settle(key, Answer(), "no answer when the test was stopped")
            raise
        else:
            answer = _read(status, text, now_s())
            length = len(text)
            if status not in _ANSWERS:
                failure = f"{status} {answer.problem or ''}".rstrip()
        self._settle(key, answer, failure, method, length)
        self.hear(request, answer)

    def _settle(
        self, key: int, answer: Answer, failure: str | None, method: str = "POST", length: int = 0
    ) -> None:
        there = self._on_their_way.pop(key, None)
        if there is None:
            return  # the test has ended without this answer, and the history has it so
        request, intended_s, sent_s = there
        self._note(request, answer, intended_s, sent_s, failure, method, length)

    def _never_sent(self, intended_s: float) -> None:
        why = "never sent: in line when the test was stopped"
        self._note(self.next_request(), Answer(), intended_s, None, why)

    def _note(
        self,
        request: Request,
        answer: Answer,
        intended_s: float,
        sent_s: float | None,
        failure: str | None,
        method: str = "POST",
        length: int = 0,
    ) -> None:
        measured = intended_s >= self.stage.measured_from_s
        self.stage.history.note(request, answer, intended_s, sent_s, measured=measured)
        if measured:
            self.environment.events.request.fire(
                request_type=method,
                name=request.action,
                response_time=((answer.answered_s or now_s()) - intended_s) * 1_000,
                response_length=length,
                exception=None if failure is None else Failure(failure),
                context={},
            )

    def _wire(self, request: Request) -> tuple[str, str, bytes]:
        """Method, path and body."""
        wish, instants = request.wish, self.stage.grid.instants
        start, end = instants[wish.start], instants[wish.end]
        match request.action:
            case "book":
                who = (
                    f'"fleet":{self._fleet_in_json}'
                    if wish.driver_id is None
                    else f'"driver_id":{wish.driver_id}'
                )
                rider = f'"rider_id":{request.rider_id}'
                body = f'{{{rider},{who},"start":"{start}","predicted_end":"{end}"}}'
                return "POST", "/bookings", body.encode()
            case "reschedule":
                body = f'{{"start":"{start}","predicted_end":"{end}"}}'
                return "POST", f"/bookings/{request.booking_id}/reschedule", body.encode()
            case "cancel":
                return "POST", f"/bookings/{request.booking_id}/cancel", b"{}"
            case _ if request.booking_id is None:
                query = f"start={start}&end={end}&fleet={self._fleet_in_query}&limit=10"
                return "GET", f"/availability?{query}", b""
            case _:
                return "GET", f"/bookings/{request.booking_id}", b""


def _read(status: int, text: bytes, answered_s: float) -> Answer:
    """The answer; what is needed of the body is found without reading all of it as JSON."""
    booking = _ID.search(text)
    if status in {200, 201} and booking is not None:
        driver = _DRIVER.search(text)
        driver_id = None if driver is None else int(driver[1])
        return Answer(status, answered_s, int(booking[1]), driver_id)
    problem = _PROBLEM.search(text)
    return Answer(status, answered_s, problem=None if problem is None else problem[1].decode())


# Before and after ------------------------------------------------------------------------------


def _be_patient(environment: Environment, **_: Any) -> None:
    environment.stop_timeout = environment.stop_timeout or STOP_S_MAX


def _stop_at_ctrl_c(**_: Any) -> None:
    """Have Ctrl-C stop the test as a SIGTERM does.

    Python raises it as an error in whichever greenlet runs just then, which may be a
    user's: the test then goes on without that user, or ends as a failure.
    """
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def _begin(environment: Environment, **_: Any) -> None:
    """Make the fleet, once for all processes, and set the stage in each that sends requests."""
    runner = environment.runner
    try:
        if not isinstance(runner, WorkerRunner):
            _make_fleet(environment)
        if not isinstance(runner, MasterRunner):
            _set_stage(environment)
        if not isinstance(runner, WorkerRunner):
            _set_alarm(environment)
    except (WrongKnob, NoFleet, OSError) as error:
        logger.error("%s", error)  # noqa: TRY400  # the message says it all
        if isinstance(runner, MasterRunner) and _options(environment).headless:
            runner.quit()  # or the workers wait for a minute
        if isinstance(runner, WorkerRunner) or _options(environment).headless:
            sys.exit(1)
        raise StopTest(str(error)) from None


def _make_fleet(environment: Environment) -> None:
    options, runner = _options(environment), environment.runner
    knobs = _knobs.read(options, Scenario.name)
    if not environment.host:
        raise WrongKnob("--host is needed: the address of the service.")
    began_s = now_s()
    # What the master's options hold travels to the workers, also to those that join later.
    options.driver_ids = fleet_of(environment.host, knobs.fleet, knobs.drivers)
    options.rider_ids = riders(environment.host)
    options.users_of_all = runner.target_user_count if runner is not None else 1
    options.first_day = f"{knobs.first_day}"  # it must not depend on whose midnight comes first
    logger.info(
        "Fleet %s of %d drivers is there after %.1f s",
        knobs.fleet,
        knobs.drivers,
        now_s() - began_s,
    )
    if knobs.history is not None:
        setup = {
            "scenario": Scenario.name,
            "fleet": knobs.fleet,
            "driver_ids": options.driver_ids,
            "rider_ids": options.rider_ids,
            "seed": knobs.seed,
        }
        knobs.history.mkdir(parents=True, exist_ok=True)
        (knobs.history / "setup.json").write_text(json.dumps(setup) + "\n")


def _set_stage(environment: Environment) -> None:
    options, runner = _options(environment), environment.runner
    knobs = _knobs.read(options, Scenario.name)
    grid = Grid(knobs.first_day, knobs.horizon_days)
    Scenario.stage = Stage(
        knobs=knobs,
        grid=grid,
        drivers=options.driver_ids,
        riders=options.rider_ids,
        history=History(knobs.history, Scenario.name, grid.instants),
        process=getattr(runner, "worker_index", 0),
        users=max(1, options.users_of_all),
        measured_from_s=now_s() + knobs.warmup_s,
    )


def _set_alarm(environment: Environment) -> None:
    options, runner = _options(environment), environment.runner
    seconds = _knobs.read(options, Scenario.name).seconds
    if seconds and runner is not None:
        Scenario.alarm = threading.Timer(seconds, runner.quit if options.headless else runner.stop)
        Scenario.alarm.daemon = True
        Scenario.alarm.start()


def _end(environment: Environment, **_: Any) -> None:
    """Bring the history to disk."""
    if Scenario.alarm is not None:
        Scenario.alarm.cancel()
    if not isinstance(environment.runner, MasterRunner) and hasattr(Scenario, "stage"):
        Scenario.stage.history.flush()


def _options(environment: Environment) -> Any:
    return environment.parsed_options


_on(events.init, _be_patient)
_on(events.init, _stop_at_ctrl_c)
_on(events.test_start, _begin)
_on(events.test_stop, _end)

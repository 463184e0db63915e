"""The knobs of a scenario: options of Locust's command line, and fields of its web page.

Locust answers `--help` before it reads a scenario, so they are listed in
docs/07-measuring.md, with the usual defaults.
"""

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from loadtest.scenarios._arrivals import GAPS

ARRIVALS = ("closed", "open")
_DRIVERS_MAX = 100_000
_DAYS_MAX = 366
_PER_SECOND_MAX = 1_000_000.0
_CONNECTIONS_MAX = 10_000
_SECONDS_MAX = 86_400.0
_YEARS = (1970, 9_990)
"""Those whose days the service takes, with room behind the last for `--horizon-days`."""

# Each has a default that is no None, from which Locust's web page learns the type.
_OPTIONS: Mapping[str, tuple[int | str, str]] = {
    "drivers": (200, "Drivers of the scenario's fleet; those that lack are added."),
    "fleet": ("", "Name of the fleet. Default: load-SCENARIO."),
    "arrivals": (
        "closed",
        "Send the next request when the last is answered (closed), or when due (open).",
    ),
    "rate": (
        "",
        "Open arrivals a second, of all processes; or several, 500,1000, each for --step-s.",
    ),
    "step-s": ("5", "Seconds for which each --rate but the last holds."),
    "gaps": ("poisson", "Gaps between open arrivals: poisson or uniform."),
    "connections": (100, "Open requests of a user on their way at once; the rest wait in line."),
    "timeout-s": ("30", "Seconds to wait for bytes of an answer."),
    "seconds": ("0", "Stop after so many seconds; unlike -t, without the set-up. 0: do not."),
    "warmup-s": ("0", "Seconds at the start that Locust's figures leave out; the history tells."),
    "seed": (0, "Decides all that is drawn, together with the number of the process."),
    "horizon-days": (30, "How many days the wanted trips lie in."),
    "first-day": ("", "The first of these days, as YYYY-MM-DD. Default: tomorrow, in UTC."),
    "history": ("", "Directory to write every request and answer to; without a history so far."),
}


_checked: set[str] = set()
"""Scenarios whose command line was checked: the web page parses it again, when there is a history
and the page has other knobs."""
_CHOICES = {"arrivals": ARRIVALS, "gaps": GAPS}


class WrongKnob(ValueError):
    """The message names the option and the rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """What was asked for, checked."""

    drivers: int
    fleet: str
    rates: tuple[float, ...]
    """Of open arrivals; empty for closed ones."""
    step_s: float
    gaps: str
    connections: int
    timeout_s: float
    seconds: float
    """How long to send, or 0 for as long as Locust says."""
    warmup_s: float
    seed: int
    horizon_days: int
    first_day: date
    history: Path | None

    @property
    def is_open(self) -> bool:
        """Whether requests are due at times of their own."""
        return bool(self.rates)


def add_options(
    parser: argparse.ArgumentParser, scenario: str, defaults: Mapping[str, int | str]
) -> None:
    """Add the knobs to Locust's parser; `defaults` are the scenario's own, by option.

    The first time that it parses a command line, it also checks them, together:
    Locust offers no other moment before it starts its workers, and those would
    outlive a master that finds a mistake later.
    """
    # Not in a group of their own: Locust's web page would not show them.
    for name, (usual, told) in _OPTIONS.items():
        parser.add_argument(
            f"--{name}",
            type=type(usual),
            default=defaults.get(name, usual),
            choices=_CHOICES.get(name),
            help=told,
        )
    parse = parser.parse_known_args

    def parse_and_check(*given: Any, **named: Any) -> Any:
        options, rest = parse(*given, **named)
        if scenario not in _checked:
            _checked.add(scenario)
            try:
                knobs = read(options, scenario)
                if knobs.history is not None and not getattr(options, "worker", False):
                    check_history(knobs.history)
            except WrongKnob as error:
                parser.error(f"{error}")
        return options, rest

    parser.parse_known_args = parse_and_check  # type: ignore[method-assign]


def read(options: argparse.Namespace, scenario: str) -> Knobs:
    """The knobs as Locust has them, from its command line or its page. Raises `WrongKnob`."""
    given = {name: getattr(options, name.replace("-", "_")) for name in _OPTIONS}
    is_open = _choice(given, "arrivals") == "open"
    if is_open and not given["rate"]:
        raise WrongKnob("--rate is needed with --arrivals open: requests a second.")
    if not is_open and given["rate"]:
        raise WrongKnob("--rate is for --arrivals open; closed arrivals send as fast as answered.")
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    return Knobs(
        drivers=_whole(given, "drivers", 1, _DRIVERS_MAX),
        fleet=given["fleet"] or f"load-{scenario}",
        rates=_rates(given["rate"]) if is_open else (),
        step_s=_seconds(given, "step-s", at_least=0.001),
        gaps=_choice(given, "gaps"),
        connections=_whole(given, "connections", 1, _CONNECTIONS_MAX),
        timeout_s=_seconds(given, "timeout-s", at_least=0.001),
        seconds=_seconds(given, "seconds", at_least=0),
        warmup_s=_seconds(given, "warmup-s", at_least=0),
        seed=given["seed"],
        horizon_days=_whole(given, "horizon-days", 1, _DAYS_MAX),
        first_day=_day(given["first-day"]) if given["first-day"] else tomorrow,
        history=Path(given["history"]) if given["history"] else None,
    )


def check_history(directory: Path) -> None:
    """Raise `WrongKnob` unless a history can be written there, and none is there yet."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        earlier = sorted(directory.glob("*.jsonl"))
    except OSError as error:
        raise WrongKnob(f"--history: {directory} cannot be used: {error.strerror}.") from error
    if earlier:
        # Whoever reads the directory would take two tests for one.
        raise WrongKnob(f"--history: {directory} holds the history of an earlier test already.")


def _choice(given: Mapping[str, Any], name: str) -> str:
    value: str = given[name]
    if value not in _CHOICES[name]:
        raise WrongKnob(f"--{name} must be {' or '.join(_CHOICES[name])}, not {value!r}.")
    return value


def _whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int:
    value: int = given[name]
    if not least <= value <= most:
        raise WrongKnob(f"--{name} must be from {least} to {most:,}, not {value}.")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds(given: Mapping[str, Any], name: str, at_least: float) -> float:
    value = _number(given[name])
    if not at_least <= value <= _SECONDS_MAX:
        raise WrongKnob(
            f"--{name} must be seconds from {at_least} to {_SECONDS_MAX:,.0f}, not {given[name]!r}."
        )
    return value


def _rates(text: str) -> tuple[float, ...]:
    rates = tuple(_number(each) for each in text.split(","))
    if not all(0 < rate <= _PER_SECOND_MAX for rate in rates):
        raise WrongKnob(
            "--rate must be requests a second, above 0 and at most"
            f" {_PER_SECOND_MAX:,.0f}, or several with commas between them, not {text!r}."
        )
    return rates


def _day(text: str) -> date:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise WrongKnob(f"--first-day must be a day as YYYY-MM-DD, not {text!r}.") from None
    if not _YEARS[0] <= day.year <= _YEARS[1]:
        raise WrongKnob(
            f"--first-day must lie in the years {_YEARS[0]} to {_YEARS[1]}, not {text!r}."
        )
    return day

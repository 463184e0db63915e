"""What the contracts of calendars and rosters share: random histories, lived through by two."""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from booking.errors import BookingConflict, UnknownDriver
from tests.world import hours

CALM = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,  # a busy machine is not a failure
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

SEARCH_ONLY = (Phase.generate,)
"""Where a failure is expected, nobody reads the smallest one."""

SLOTS = 20
windows = st.builds(
    lambda start, length: hours(start / 2, (start + length) / 2),
    st.integers(0, SLOTS - 5),
    st.integers(1, 5),
)
"""Windows of whole half hours, `SLOTS` in all, so that many touch and many collide."""


def outcome(action: Callable[[], Any]) -> object:
    """What a call comes to: what it returns, or how it refuses."""
    try:
        return action()
    except BookingConflict as refused:
        return (BookingConflict, refused.conflicts)
    except (UnknownDriver, KeyError, ValueError) as error:
        return type(error)


def live_through(
    machine: Callable[[], RuleBasedStateMachine], phases: Sequence[Phase] = tuple(Phase)
) -> None:
    """Run `machine` through many histories; `AssertionError` at the first disagreement."""
    run_state_machine_as_test(machine, settings=settings(CALM, phases=phases))

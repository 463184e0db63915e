"""The benchmarks measure everything there is, check it first, and fit what they say they fit."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any, override

import pytest
from click.testing import CliRunner

from api.cli import bench as cli
from booking.allocation.gap_index import GapIndex
from booking.calendars import Held
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.detection.linear_scan import LinearScan
from booking.errors import InvalidInput
from booking.policies import POLICIES, Opening, first_fit, longest_gap
from booking.strategies import Act, strategies
from booking.time_window import TimeWindow
from loadtest import machine
from loadtest.bench import allocation as bench_allocation
from loadtest.bench import allocators, ledger, method, tables
from loadtest.bench import detection as bench_detection
from loadtest.bench import policies as bench_policies
from loadtest.bench.allocation import Allocation
from loadtest.bench.detection import Detection
from loadtest.bench.method import (
    Contest,
    Contestant,
    Disagreement,
    Plan,
    Result,
    Sample,
    Shape,
    measure,
)
from loadtest.bench.rivals import RIVALS

TINY = Plan(
    shapes=(Shape(1, 10), Shape(1, 100), Shape(1, 200)),
    repeats=2,
    repeat_s=0.0005,
    questions=50,
    memory_bookings=0,
)
TINY_FLEET = Plan(
    shapes=(Shape(3, 20), Shape(12, 20)),
    repeats=2,
    repeat_s=0.0005,
    questions=30,
    memory_bookings=0,
)
TINY_POLICIES = bench_policies.Plan(drivers=6, seeds=2)


@pytest.fixture(scope="module")
def detection() -> Result:
    return measure(Detection(), TINY)


@pytest.fixture(scope="module")
def allocation() -> Result:
    return measure(Allocation(), TINY_FLEET)


def test_every_calendar_and_every_rival_is_measured_at_every_size(detection: Result) -> None:
    names = {each.name for each in strategies(Act.DETECTION)}
    assert set(detection.strategies) == names
    assert set(detection.names()) == names | set(RIVALS)
    for name in detection.names():
        for measured in Detection.measures:
            assert list(detection.of(name, measured)) == list(TINY.shapes)
    assert detection.left_out == []
    assert detection.missing == []


def test_every_roster_is_measured_at_every_size(allocation: Result) -> None:
    rosters = {each.name for each in strategies(Act.ALLOCATION) if hasattr(each.load(), "any_free")}
    assert set(allocation.names()) == rosters
    for name in rosters:
        for measured in Allocation.measures:
            assert list(allocation.of(name, measured)) == list(TINY_FLEET.shapes)


def test_figures_are_positive_and_in_order(detection: Result, allocation: Result) -> None:
    for result in (detection, allocation):
        for sample in result.samples:
            assert 0 < sample.min_ns <= sample.median_ns <= sample.max_ns
            assert sample.speedup is not None
            assert sample.speedup > 0
        mine = {each.speedup for each in result.samples if each.name == result.baseline}
        assert mine == {1.0}


def test_without_the_baseline_there_is_no_ratio() -> None:
    measured = measure(Detection(), TINY, contestants={"alone": Contestant(BisectNeighbours)})
    assert {sample.speedup for sample in measured.samples} == {None}
    assert "`alone`" in tables.detection(_plain(measured))


def _plain(result: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(method.msgspec.json.encode(result))
    return plain


def test_the_windows_asked_for_are_what_they_are_called() -> None:
    for size in (1, 2, 50):
        work = bench_detection.make_work(size, 200, Random(3))
        assert len(work.held) == size
        for window in (*work.free, *work.extras):
            assert not any(window.overlaps(held) for held in work.held)
        for window in work.taken:
            assert any(window.overlaps(held) for held in work.held)
        for number, extra in enumerate(work.extras):
            assert not any(extra.overlaps(other) for other in work.extras[:number])


def test_a_third_of_the_fleet_is_free_or_nobody() -> None:
    shape = Shape(300, 30)
    work = bench_allocation.make_work(shape, Plan(shapes=(shape,), questions=40))
    for window in work.nobody:
        assert bench_allocation.who_is_free(window, shape, work.held) == frozenset()
    shares = [
        len(bench_allocation.who_is_free(window, shape, work.held)) / shape.drivers
        for window in work.third
    ]
    assert sum(shares) / len(shares) == pytest.approx(1 / 3, abs=0.03)


class AlwaysFree(BisectNeighbours):
    @override
    def is_free(self, window: TimeWindow) -> bool:
        return True


class NeverFree(LinearScan):
    @override
    def is_free(self, window: TimeWindow) -> bool:
        return False

    @override
    def conflicts(self, window: TimeWindow) -> Sequence[Held]:
        return []


class ForgetsToHold(LinearScan):
    """Right as long as nothing is added that was not there from the start."""

    @override
    def hold(self, booking_id: int, window: TimeWindow) -> None:
        if len(self) < TINY.shapes[0].bookings_each:
            super().hold(booking_id, window)

    @override
    def release(self, booking_id: int) -> None:
        pass


@pytest.mark.parametrize("wrong", [AlwaysFree, NeverFree, ForgetsToHold])
def test_a_calendar_that_answers_wrongly_is_not_timed(wrong: Callable[[], Any]) -> None:
    with pytest.raises(Disagreement, match="wrong"):
        measure(Detection(), TINY, contestants={"wrong": Contestant(wrong)})


class NamesOneWhoIsBusy(GapIndex):
    @override
    def any_free(self, window: TimeWindow) -> int | None:
        return 0


class FindsNobody(GapIndex):
    @override
    def any_free(self, window: TimeWindow) -> int | None:
        return None


class ListsTooFew(GapIndex):
    @override
    def free(self, window: TimeWindow, limit: int) -> Sequence[int]:
        return super().free(window, min(limit, 1))


@pytest.mark.parametrize("wrong", [NamesOneWhoIsBusy, FindsNobody, ListsTooFew])
def test_a_roster_that_answers_wrongly_is_not_timed(wrong: Callable[[], Any]) -> None:
    with pytest.raises(Disagreement, match="wrong"):
        measure(Allocation(), TINY_FLEET, contestants={"wrong": Contestant(wrong)})


class Sluggish(BisectNeighbours):
    """Takes a millisecond of the processor for each question, and two to record."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        _work_for_ms(1)
        return super().is_free(window)

    @override
    def hold(self, booking_id: int, window: TimeWindow) -> None:
        _work_for_ms(2)
        super().hold(booking_id, window)


def _work_for_ms(wanted_ms: int) -> None:
    until_ns = time.thread_time_ns() + wanted_ms * 1_000_000
    while time.thread_time_ns() < until_ns:
        pass


def test_what_takes_too_long_to_fill_is_left_out_and_named() -> None:
    plan = Plan(
        shapes=(Shape(1, 10), Shape(1, 300), Shape(1, 1_000)),
        repeats=1,
        repeat_s=0.0001,
        fill_s_max=0.1,
        questions=10,
        memory_bookings=0,
    )
    measured = measure(Detection(), plan, contestants={"sluggish": Contestant(Sluggish)})
    assert [(each.shape, each.measure) for each in measured.left_out] == [
        (Shape(1, 300), None),
        (Shape(1, 1_000), None),
    ]
    assert all(each.expected_s >= plan.fill_s_max for each in measured.left_out)
    assert list(measured.of("sluggish", "free")) == [Shape(1, 10)]
    assert "`sluggish` at 1,000 (filling" in tables.detection(_plain(measured))


def test_a_measure_that_takes_too_long_is_left_out_and_named() -> None:
    plan = Plan(
        shapes=(Shape(1, 10),),
        repeats=20,
        repeat_s=0.0001,
        measure_s_max=0.05,
        questions=10,
        memory_bookings=0,
    )
    measured = measure(Detection(), plan, contestants={"sluggish": Contestant(Sluggish)})
    assert "free" in {each.measure for each in measured.left_out}
    assert measured.of("sluggish", "free") == {}


def test_what_comes_next_is_foreseen_by_the_last_two_sizes() -> None:
    for least in (0.0, 1.0):
        assert method.forecast({}, 10, exponent_min=least) == 0
        square = method.forecast({10: 1.0, 100: 100.0}, 1_000, exponent_min=least)
        assert square == pytest.approx(10_000)
    assert method.forecast({10: 2.0}, 100, exponent_min=1.0) == pytest.approx(20)
    assert method.forecast({10: 2.0, 100: 2.0}, 1_000, exponent_min=0.0) == pytest.approx(2)


class SlowToAsk(BisectNeighbours):
    """A millisecond for each question, however many bookings there are."""

    @override
    def is_free(self, window: TimeWindow) -> bool:
        _work_for_ms(1)
        return super().is_free(window)


def test_a_call_that_takes_no_longer_than_before_is_not_left_out() -> None:
    plan = Plan(
        shapes=(Shape(1, 10), Shape(1, 20), Shape(1, 2_000)),
        repeats=5,
        repeat_s=0.0001,
        measure_s_max=0.5,  # a hundred times what is needed at twenty would be too long
        questions=10,
        memory_bookings=0,
    )
    measured = measure(Detection(), plan, contestants={"slow": Contestant(SlowToAsk)})
    assert list(measured.of("slow", "free")) == list(plan.shapes)


def test_the_machine_is_described_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[str] = []
    describe = machine.describe

    def described(packages: Iterable[str]) -> dict[str, Any]:
        came.append("described")
        return describe(packages)

    def tell(_share: float, text: str) -> None:
        came.append(text)

    monkeypatch.setattr(machine, "describe", described)
    measure(Detection(), TINY, tell, {"linear_scan": Contestant(LinearScan)})
    assert came[0] == "described"
    assert came.count("described") == 1


def test_a_result_says_when_its_load_was_taken_if_it_knows() -> None:
    about = machine.describe(["taxi-booking"])
    settings = {"server_version": "18.6", "fsync": "on"}
    said = machine.measured_on(about, settings)
    assert f"load {about['load_1_min']} at the start; {about['python']}, " in said
    assert "PostgreSQL 18.6 (fsync on), taxi-booking " in said
    older = {name: value for name, value in about.items() if name != "load_taken"}
    assert f"load {about['load_1_min']}; {about['python']}, " in machine.measured_on(older)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_growth_is_fitted_as_the_slope_on_log_log_paper(exponent: float) -> None:
    samples = [
        Sample("made_up", "free", Shape(1, size), 1.0, 7.0 * size**exponent, 1.0, 1.0)
        for size in (10, 100, 1_000, 10_000)
    ]
    (growth,) = method.fit_growth(Detection(), samples)
    assert growth.exponent == pytest.approx(exponent, abs=0.001)
    assert growth.to_size == 10_000


@pytest.mark.parametrize(
    ("contest", "shapes"),
    [
        (Detection(), [Shape(1, 1), Shape(1, 10), Shape(1, 100)]),
        (Allocation(), [Shape(1_000, 100), Shape(100_000, 20)]),
    ],
    ids=["too small", "with fewer bookings each"],
)
def test_what_would_spoil_the_fit_is_not_fitted(
    contest: Contest[Any, Any], shapes: list[Shape]
) -> None:
    samples = [Sample("made_up", "free", shape, 1, 1, 1, 1) for shape in shapes]
    assert method.fit_growth(contest, samples) == []


def test_a_bar_is_reached_or_missed_by_what_was_measured(detection: Result) -> None:
    def with_speedup(speedup: float) -> Result:
        sample = Sample("bisect_neighbours", "free", Shape(1, 100), 1, 1, 1, speedup)
        return method.msgspec.structs.replace(detection, samples=[sample])

    for speedup, reached in ((19.9, False), (20.0, True)):
        (bar,) = Detection().bars(with_speedup(speedup))
        assert bar.reached is reached
    (unknown,) = Detection().bars(method.msgspec.structs.replace(detection, samples=[]))
    assert unknown.reached is None


def test_the_bars_of_allocation_look_at_what_they_name(allocation: Result) -> None:
    sample = Sample("gap_index", "nobody", Shape(10_000, 100), 1, 1, 1, 4_999.0)
    growth = method.Growth("gap_index", "nobody", 0.11, 10_000)
    memory = method.Memory("gap_index", Shape(10_000, 100), 50.0, 40.1)
    missed = method.msgspec.structs.replace(
        allocation, samples=[sample], growth=[growth], memory=[memory]
    )
    assert [bar.reached for bar in Allocation().bars(missed)] == [False] * 3
    reached = method.msgspec.structs.replace(
        allocation,
        samples=[method.msgspec.structs.replace(sample, speedup=5_000.0)],
        growth=[method.msgspec.structs.replace(growth, exponent=0.1)],
        memory=[method.msgspec.structs.replace(memory, in_use_bytes=40.0)],
    )
    assert [bar.reached for bar in Allocation().bars(reached)] == [True] * 3


def test_memory_is_what_is_kept_for_a_booking() -> None:
    plan = Plan(shapes=(Shape(1, 10), Shape(1, 50_000)), repeats=1, repeat_s=0.0001, questions=10)
    measured = measure(
        Detection(), plan, contestants={"bisect_neighbours": Contestant(BisectNeighbours)}
    )
    (memory,) = measured.memory
    assert memory.shape == Shape(1, 50_000)
    # A window is three objects, and there are four places that know of it.
    assert 100 < memory.in_use_bytes < 1_000
    assert 100 < memory.grown_bytes < 2_000


# Policies ----------------------------------------------------------------------


def test_policies_choose_as_they_are_called() -> None:
    openings = [Opening(1, 50, 50, 9), Opening(2, 5, 60, 1), Opening(3, 20, 20, 5)]
    expected = {
        "first_fit": 1,
        "best_fit": 3,
        "snug_fit": 2,
        "latest_gap": 2,
        "least_busy": 2,
        "longest_gap": 1,
    }
    chosen = {name: POLICIES[name](openings, Random(1)).driver_id for name in expected}
    assert chosen == expected
    drawn = {POLICIES["anybody"](openings, Random(seed)).driver_id for seed in range(20)}
    assert drawn == {1, 2, 3}


def test_the_order_of_the_gap_index_is_the_policy_that_says_so() -> None:
    roster = GapIndex()
    rng = Random(4)
    ends: dict[int, TimeWindow] = {}
    work = bench_allocation.make_work(Shape(40, 20), Plan(shapes=(Shape(40, 20),), questions=30))
    for driver_id in range(40):
        roster.enrol(driver_id)
    for driver_id, window in sorted(work.held, key=lambda _: rng.random()):
        roster.hold(driver_id, window)
    for window in work.third:
        for driver_id in bench_allocation.who_is_free(window, Shape(40, 20), work.held):
            before = (held for own, held in work.held if own == driver_id)
            ends[driver_id] = max(
                (held for held in before if held.end <= window.start), key=lambda held: held.end
            )
        free = bench_allocation.who_is_free(window, Shape(40, 20), work.held)
        chosen = roster.any_free(window)
        assert chosen is not None
        assert ends[chosen].end == max(ends[driver_id].end for driver_id in free)


@pytest.fixture(scope="module")
def policies() -> bench_policies.Result:
    return bench_policies.measure(TINY_POLICIES)


def test_policies_differ_ahead_of_time_and_never_for_now(policies: bench_policies.Result) -> None:
    for world, alike in (("ahead", False), ("steady", False), ("now", True)):
        outcomes = policies.of(world)
        assert {each.policy for each in outcomes} == set(POLICIES)
        assert all(len(each.of_time) == TINY_POLICIES.seeds for each in outcomes)
        assert (len({tuple(each.of_time) for each in outcomes}) == 1) is alike


def test_a_control_that_shows_a_difference_stops_the_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = bench_policies.ask

    def never_now(plan: bench_policies.Plan, _world: str, seed: int) -> Iterable[Any]:
        return real(plan, "ahead", seed)

    monkeypatch.setattr(bench_policies, "ask", never_now)
    with pytest.raises(bench_policies.NotAllAlike):
        bench_policies.measure(
            TINY_POLICIES, policies={"first_fit": first_fit, "longest_gap": longest_gap}
        )


def test_the_time_asked_for_is_what_the_fleet_has() -> None:
    plan = bench_policies.Plan(drivers=40)
    for world in bench_policies.WORLDS:
        asked_s = sum(each.end_s - each.start_s for each in bench_policies.ask(plan, world, 1))
        assert asked_s / (40 * 24 * 3_600) == pytest.approx(plan.load, rel=0.1)


# What is shown, and the command --------------------------------------------------


def test_the_tables_name_everybody_and_the_machine(detection: Result, allocation: Result) -> None:
    for result, render in ((detection, tables.detection), (allocation, tables.allocation)):
        table = render(_plain(result))
        for name in result.names():
            assert (f"`{name}`" if name in result.strategies else f"*{name}*") in table
        assert result.machine["python"] in table
        assert result.machine["cpu"] in table


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {"detection": TINY, "allocation": TINY_FLEET}
    for name, plan in plans.items():
        benches = cli.BENCHES[name]
        assert isinstance(benches, cli.TimedBench)
        monkeypatch.setattr(benches, "plans", {"quick": lambda plan=plan: plan})


@pytest.mark.usefixtures("tiny")
def test_the_command_measures_what_is_named_and_writes_it(tmp_path: Path) -> None:
    ran = CliRunner().invoke(
        cli.command,
        ["detection", "--quick", "--strategies", "linear_scan", "--out", str(tmp_path / "new")],
        catch_exceptions=False,
    )
    assert ran.exit_code == 0
    written = json.loads((tmp_path / "new" / "detection.json").read_text())
    assert {sample["name"] for sample in written["samples"]} == {
        "linear_scan",
        "intervaltree.overlap",
    }
    assert written["bars"][0]["reached"] is None
    assert "not to quote" in ran.output
    assert "not measured" in ran.output
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "detection.json",
        "detection.svg",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--quick", "--full"], "--quick"),
        (["--strategies", "linear_scan", "--record"], "--record"),
        (["--quick", "--record"], "--record"),
        (["nothing"], "nothing"),
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str], said: str) -> None:
    ran = CliRunner().invoke(cli.command, arguments)
    assert ran.exit_code == 2
    assert said in ran.output


def test_a_name_that_nobody_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(InvalidInput, match=r"'no_such'.*gap_index") as refused:
        CliRunner().invoke(
            cli.command, ["--strategies", "gap_index,no_such"], catch_exceptions=False
        )
    assert refused.value.field == "--strategies"


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured fails the test."""

    def never(*_: Any) -> None:
        pytest.fail("this was to be known before anything was measured")

    monkeypatch.setattr(method, "measure", never)


@pytest.mark.usefixtures("unmeasured")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategies", ","], "--strategies"),
        (["detection", "--out", "{file}/below"], "--out"),
        (["detection", "--out", "/proc/new"], "--out"),
        (["detection", "ledger", "--strategies", "linear_scan,exclusion_upsert"], "--strategies"),
    ],
)
def test_what_would_spoil_the_end_is_refused_at_the_start(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    here = [each.format(file=tmp_path / "file") for each in arguments]
    with pytest.raises(InvalidInput) as refused:
        CliRunner().invoke(cli.command, here, catch_exceptions=False)
    assert refused.value.field == said


@pytest.mark.usefixtures("unmeasured")
def test_without_what_draws_plots_nothing_is_measured_to_be_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "find_spec", lambda _name: None)
    with pytest.raises(tables.NoPlot):
        CliRunner().invoke(
            cli.command, ["detection", "--out", str(tmp_path)], catch_exceptions=False
        )


@pytest.mark.usefixtures("unmeasured")
def test_without_room_for_the_tables_of_the_ledger_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = shutil.disk_usage("/")
    for free, refused in ((10**9, True), (10**14, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        if refused:
            with pytest.raises(ledger.NoRoom, match="1 GB are free"):
                CliRunner().invoke(cli.command, ["detection", "ledger"], catch_exceptions=False)
        else:
            ledger.check_room(ledger.full(), Path("/"))


def test_quick_plans_say_that_they_are() -> None:
    extents = {
        extent: [
            benches.plans[extent]()
            for benches in cli.BENCHES.values()
            if isinstance(benches, cli.TimedBench)
        ]
        for extent in ("quick", "ordinary", "full")
    }
    quick = [
        *extents["quick"],
        bench_policies.Plan.quick(),
        allocators.quick(),
        ledger.quick(),
    ]
    others = [
        *extents["ordinary"],
        *extents["full"],
        bench_policies.Plan(),
        allocators.Plan(),
        ledger.full(),
    ]
    assert [plan.is_quick for plan in quick] == [True] * 5
    assert [plan.is_quick for plan in others] == [False] * 7


UNTIL_INTERRUPTED = """
import sys
from loadtest.bench import detection, method
from api.cli import main

def check(*_):
    print("measuring", flush=True)

detection.check = check
detection.quick = lambda: method.Plan(shapes=(method.Shape(1, 10),), repeats=10**9)
sys.argv = ["taxi", "bench", "detection", "--quick", "--out", sys.argv[1]]
main()
"""


def test_ctrl_c_ends_the_command_and_leaves_nothing_behind(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", UNTIL_INTERRUPTED, str(out)], stdout=subprocess.PIPE
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"measuring\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(60) == 130
    assert not out.exists()


def test_memory_is_left_out_where_the_library_that_weighs_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(method, "find_spec", lambda _name: None)
    plan = Plan(shapes=(Shape(1, 10),), repeats=1, repeat_s=0.0001, questions=10)
    found = measure(Detection(), plan, contestants={"bisect": Contestant(BisectNeighbours)})
    assert (found.memory, found.missing) == ([], ["psutil"])


def test_whoever_needs_a_package_that_is_not_there_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    everybody, missing = Detection().contestants()
    assert missing == []
    monkeypatch.setattr(
        bench_detection, "find_spec", lambda name: None if name in {"numpy", "rtree"} else name
    )
    rest, missing = Detection().contestants()
    assert sorted(missing) == ["numpy", "rtree"]
    assert {each.package for name, each in everybody.items() if name not in rest} == {
        "ncls",
        "pandas",
        "rtree",
        "superintervals",
    }

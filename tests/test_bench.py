"""The benchmark measures everything there is, checks it first, and fits what it says it fits."""

import json
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import override

import pytest
from click.testing import CliRunner

from api.cli.bench import command
from booking.calendars import Held
from booking.detection.bisect_neighbours import BisectNeighbours
from booking.detection.linear_scan import LinearScan
from booking.errors import TaxiError
from booking.strategies import Act, strategies
from booking.time_window import TimeWindow
from loadtest import bench, bench_docs
from loadtest.bench import (
    BASELINE,
    EXHIBIT,
    Disagreement,
    Plan,
    Result,
    Sample,
    TemptingOverlaps,
    make_work,
    measure,
    rivals,
)

TINY = Plan(sizes=(10, 100, 200), repeats=2, repeat_s=0.0005, fill_s_max=60, questions=50)


@pytest.fixture(scope="module")
def result() -> Result:
    return measure(TINY)


def test_every_detection_strategy_is_measured_at_every_size(result: Result) -> None:
    names = {each.name for each in strategies(Act.DETECTION)}
    assert set(result.strategies()) == names | {EXHIBIT}
    for name in names:
        for measured in bench.MEASURES:
            assert list(result.of(name, measured)) == list(TINY.sizes)
    assert result.left_out == []


def test_figures_are_positive_and_in_order(result: Result) -> None:
    for sample in result.samples:
        assert 0 < sample.min_ns <= sample.median_ns <= sample.max_ns
        assert sample.speedup is not None
        assert sample.speedup > 0


def test_the_baseline_is_as_fast_as_itself(result: Result) -> None:
    assert {sample.speedup for sample in result.samples if sample.strategy == BASELINE} == {1.0}


def test_without_the_baseline_there_is_no_ratio() -> None:
    measured = measure(TINY, contestants={"alone": BisectNeighbours})
    assert {sample.speedup for sample in measured.samples} == {None}
    assert "`alone`" in bench_docs.markdown(measured)


def test_the_windows_asked_for_are_what_they_are_called() -> None:
    for size in (1, 2, 50):
        work = make_work(size, 200, Random(3))
        assert len(work.held) == size
        for window in work.free:
            assert not any(window.overlaps(held) for held in work.held)
        for window in work.taken:
            assert any(window.overlaps(held) for held in work.held)


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


@pytest.mark.parametrize("wrong", [AlwaysFree, NeverFree])
def test_a_wrong_answer_is_not_timed(wrong: type[AlwaysFree | NeverFree]) -> None:
    with pytest.raises(Disagreement, match="wrong"):
        measure(TINY, contestants={**rivals(), "wrong": wrong})


def test_a_size_that_would_take_too_long_to_fill_is_left_out_and_named() -> None:
    plan = Plan(sizes=(10, 100, 1_000_000_000), repeats=1, repeat_s=0.0001, questions=10)
    with pytest.MonkeyPatch.context() as patch:
        # A thousand million windows cannot even be listed, so stop before.
        real = bench.make_work
        patch.setattr(bench, "make_work", lambda size, *rest: real(min(size, 100), *rest))
        measured = measure(plan)
    assert {each.size for each in measured.left_out} == {1_000_000_000}
    assert {each.strategy for each in measured.left_out} == set(rivals())
    assert all(each.fill_s > plan.fill_s_max for each in measured.left_out)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 2.0])
def test_growth_is_fitted_as_the_slope_on_log_log_paper(exponent: float) -> None:
    samples = [
        Sample("made_up", "free", size, 1.0, 7.0 * size**exponent, 1.0, 1.0)
        for size in (10, 100, 1_000, 10_000)
    ]
    (growth,) = bench._fit_growth(samples)  # noqa: SLF001  # the arithmetic behind the table
    assert growth.exponent == pytest.approx(exponent, abs=0.001)
    assert growth.to_size == 10_000


def test_what_is_too_small_is_not_fitted() -> None:
    samples = [Sample("made_up", "free", size, 1, 1, 1, 1) for size in (1, 10, 100)]
    assert bench._fit_growth(samples) == []  # noqa: SLF001  # only one point is large enough


def test_the_exhibit_answers_as_the_tree_does() -> None:
    work = make_work(100, 100, Random(5))
    tempting = TemptingOverlaps()
    for booking_id, window in enumerate(work.held):
        tempting.hold(booking_id, window)
    bench.check(EXHIBIT, tempting, work)


def test_a_result_survives_being_written_and_read(result: Result, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "result.json"
    bench_docs.write_json(result, file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_docs, "RECORDED", file)
        assert bench_docs.recorded() == result


def test_without_a_recorded_result_it_says_how_to_make_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_docs, "RECORDED", bench_docs.DOCS / "results" / "no-such.json")
    with pytest.raises(bench_docs.NotRecorded, match=r"taxi bench detection --json"):
        bench_docs.recorded()


def test_the_table_names_every_strategy_and_the_machine(result: Result) -> None:
    table = bench_docs.markdown(result)
    for name in result.strategies():
        assert f"`{name}`" in table
    assert result.machine["python"] in table
    assert result.machine["cpu"] in table


def test_a_chapter_without_markers_is_refused(result: Result) -> None:
    with pytest.raises(TaxiError, match="markers"):
        bench_docs.with_table("# Nothing here\n", result)


def test_the_plot_is_the_same_for_the_same_result(result: Result, tmp_path: Path) -> None:
    for name in ("one.svg", "two.svg"):
        bench_docs.plot(result, tmp_path / name)
    one = (tmp_path / "one.svg").read_text()
    assert one == (tmp_path / "two.svg").read_text()
    assert "<svg" in one


def test_the_command_measures_and_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Plan, "quick", classmethod(lambda _: TINY))
    json_file, plot_file = tmp_path / "result.json", tmp_path / "plot.svg"
    ran = CliRunner().invoke(
        command,
        ["detection", "--quick", "--json", str(json_file), "--plot", str(plot_file)],
        catch_exceptions=False,
    )
    assert ran.exit_code == 0
    assert "bisect_neighbours" in ran.output
    written = json.loads(json_file.read_text())
    assert {sample["size"] for sample in written["samples"]} == set(TINY.sizes)
    assert plot_file.read_text().startswith("<?xml")

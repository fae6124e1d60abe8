"""The end of warm-up and sampling, on a clock that the test sets."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import pytest

from optprof.profiler.measuring import harness as module
from optprof.profiler.measuring.harness import Harness, is_narrow


class Steps:
    """An iteration that takes these seconds in turn, then the last ones, on a fake clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
        self.now, self.count = 0.0, 0
        self._seconds = self._endless(seconds)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        self.harness = Harness("cpu")

    def __call__(self) -> None:
        with self.harness.phase("step"):
            self.count += 1
            self.now += next(self._seconds)

    @staticmethod
    def _endless(seconds: tuple[float, ...]) -> Iterator[float]:
        yield from seconds
        while True:
            yield seconds[-1]


def test_warm_up_takes_a_second_and_ends_when_times_are_stable(
    monkeypatch: pytest.MonkeyPatch,
):
    steps = Steps(monkeypatch, 0.9, 0.5, 0.3, 0.2, 0.2, 0.2, 0.1)
    steps.harness.sample(steps, samples=3, seconds=10)
    # Pairs of medians of three: 0.5 0.2, 0.3 0.2, 0.2 0.1 three times, then 0.1 0.1.
    assert steps.harness.warmup["step"] == pytest.approx([0.9, 0.5, 0.3, 0.2, 0.2, 0.2, *[0.1] * 5])
    assert steps.harness.times["step"] == pytest.approx([0.1] * 3)


def test_warm_up_of_short_iterations_takes_twenty_of_them_and_a_fifth_of_a_second(
    monkeypatch: pytest.MonkeyPatch,
):
    for seconds, count in ((0.015, 20), (0.002, 101), (0.3, 6)):
        steps = Steps(monkeypatch, seconds)
        steps.harness.sample(steps, samples=3, seconds=10)
        assert len(steps.harness.warmup["step"]) == pytest.approx(count, abs=1)


def test_sampling_ends_when_more_samples_do_not_narrow_the_interval(
    monkeypatch: pytest.MonkeyPatch,
):
    # A machine that grows more uneven: each sample is as far from the median as it is old.
    growing = [1 + (-1) ** place * place / 100 for place in range(200)]
    steps = Steps(monkeypatch, *[1.0] * 6, *growing)
    steps.harness.sample(steps, samples=100, seconds=1_000)
    assert len(steps.harness.times["step"]) == 40
    # Steady noise narrows it, so that sampling goes on.
    noise = random.Random(1)
    steady = Steps(monkeypatch, *[1.0] * 6, *(noise.gauss(1, 0.1) for _ in range(200)))
    steady.harness.sample(steady, samples=100, seconds=1_000)
    assert len(steady.harness.times["step"]) > 40


def test_warm_up_that_never_settles_ends_after_ten_seconds_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
):
    steps = Steps(monkeypatch, *(1.3**-place for place in range(80)))
    monkeypatch.setattr(module, "WARM_UP_LIMIT", 4.0)
    steps.harness.sample(steps, samples=2, seconds=1)
    assert any(
        "times still changed by 54% when the warm-up ended" in warning
        for warning in steps.harness.warnings
    )


def test_a_warm_up_of_fewer_than_six_iterations_says_so(monkeypatch: pytest.MonkeyPatch):
    steps = Steps(monkeypatch, 3.0)
    steps.harness.sample(steps, samples=2, seconds=1)
    # Four steps of 3 s fill the ten seconds.
    assert len(steps.harness.warmup["step"]) == 4
    assert (
        "the warm-up ended before 6 iterations, too few to tell whether times had settled"
        in steps.harness.warnings
    )


def test_sampling_ends_when_the_median_is_known_to_two_per_cent(monkeypatch: pytest.MonkeyPatch):
    steps = Steps(monkeypatch, 0.25)
    steps.harness.sample(steps, samples=100, seconds=1_000)
    assert len(steps.harness.times["step"]) == 6


def test_sampling_ends_at_the_time_limit_but_not_before_three_samples(
    monkeypatch: pytest.MonkeyPatch,
):
    steps = Steps(monkeypatch, 50.0)
    steps.harness.sample(steps, samples=100, seconds=1)
    assert len(steps.harness.times["step"]) == 3


def test_noisy_times_are_sampled_up_to_the_limit(monkeypatch: pytest.MonkeyPatch):
    steps = Steps(monkeypatch, *[0.2, 0.21, 0.2, 0.21, 0.2, 0.21] * 20)
    steps.harness.sample(steps, samples=9, seconds=1_000)
    assert len(steps.harness.times["step"]) == 9


def test_a_step_whose_median_is_unknown_runs_alone_until_it_is_known(
    monkeypatch: pytest.MonkeyPatch,
):
    steps = Steps(monkeypatch, *[1.0, 1.2, 1.4] * 4, 1.0)
    opened: list[str] = []

    @contextmanager
    def alone() -> Iterator[Callable[[], None]]:
        opened.append("open")
        with steps.harness.phase("backward"):
            steps.now += 5
        yield steps
        opened.append("closed")

    def iterate() -> None:
        with steps.harness.phase("iteration"):
            steps()
            steps.now += 9

    steps.harness.sample(iterate, samples=100, seconds=25, alone=alone)
    # Three iterations of 10 s and more, then eleven steps in half of 25 s: 1.2, 1.4, 1.0, 1.2, 1.4,
    # 1.0, 1.2, 1.4, 1.0, 1.0, 1.0.
    assert opened == ["open", "closed"]
    assert {phase: len(samples) for phase, samples in steps.harness.times.items()} == {
        "iteration": 3,
        "step": 14,
    }


def test_a_step_whose_median_is_known_does_not_run_alone(monkeypatch: pytest.MonkeyPatch):
    steps = Steps(monkeypatch, 0.25)
    steps.harness.sample(steps, samples=100, seconds=1_000, alone=nullcontext)  # pyright: ignore[reportArgumentType]
    assert len(steps.harness.times["step"]) == 6


@pytest.mark.parametrize(("spread", "narrow"), [(0.019, True), (0.021, False)])
def test_narrow_is_two_per_cent_on_both_sides(spread: float, narrow: bool):
    assert is_narrow([1 - spread, 1, 1, 1, 1, 1]) is narrow
    assert is_narrow([1 + spread, 1, 1, 1, 1, 1]) is narrow

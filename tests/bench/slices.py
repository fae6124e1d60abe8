"""Do slices predict the optimizer's step on the whole model? gpt2 on this CPU, whole and slices in turns. The mark: within 15 %.

Once with the budget that `optprof profile` has, once with less than half of it.
"""

from dataclasses import replace
from statistics import median

from profiler.measurement import SLICE_BUDGET, measure, measure_slices
from scenarios import Scenario

ROUNDS = 3
BUDGETS = (SLICE_BUDGET, 192 << 20)
BYTES_PER_PARAMETER = {"adamw": 16, "sgd-sai": 12, "sm3": 8.01, "lamb16": 10}


def main() -> None:
    """Print medians of the whole and of slices, and how far each slice is off."""
    for optimizer, held in BYTES_PER_PARAMETER.items():
        scenario = Scenario(model="gpt2", optimizer=optimizer, implementation="loop", workload="state", device="cpu", steps=10)
        whole: list[float] = []
        slices: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            whole += (measure(scenario).times or {})["step"]
            for budget in BUDGETS:
                found = measure_slices(replace(scenario, steps=20), budget=budget, bytes_per_parameter=held)
                slices.setdefault(f"{found.measured_share:.0%} of gpt2", []).extend((found.times or {})["step"])
        told = ", ".join(
            f"{share}: {median(found) * 1e3:.1f} ms ({median(found) / median(whole) - 1:+.1%})" for share, found in slices.items()
        )
        print(f"{optimizer:<8} whole {median(whole) * 1e3:.1f} ms; from {told}", flush=True)


if __name__ == "__main__":
    main()

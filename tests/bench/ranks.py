"""Time the simulation of one rank of 64, against the same model on one GPU.

Each simulation runs in a fresh process. The target for Llama-3-70B under FSDP2: at most 60 s and
2 GiB. Run `python tests/bench/ranks.py [MODEL]`.
"""

import subprocess
import sys

SIMULATE = """
import resource, sys, time
from optprof.profiler import simulate
from optprof.scenarios import Scenario

model, optimizer, ranks = sys.argv[1], sys.argv[2], int(sys.argv[3])
start = time.perf_counter()
way = {"ranks": ranks, "parallel": "fsdp2"} if ranks > 1 else {}
record = simulate(Scenario(model=model, optimizer=optimizer, **way))
assert record.memory is not None
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(time.perf_counter() - start, peak, record.memory.peak_allocated)
"""


def simulated(model: str, optimizer: str, ranks: int) -> tuple[float, float, int]:
    """Return the seconds, this machine's GiB, and the simulated peak in bytes."""
    command = [sys.executable, "-c", SIMULATE, model, optimizer, str(ranks)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, gib, peak = done.stdout.split()
    return float(seconds), float(gib), int(peak)


def main() -> None:
    """Print a line for each optimizer."""
    model = sys.argv[1] if len(sys.argv) > 1 else "llama3-70b"
    print(f"{model}, one rank of 64 under fsdp2, against one GPU")
    for optimizer in ("adamw", "sgd-sai", "sm3", "lamb16"):
        alone, _, whole = simulated(model, optimizer, 1)
        seconds, gib, peak = simulated(model, optimizer, 64)
        print(
            f"{optimizer:<10} {seconds:5.1f} s, {gib:.2f} GiB (at most 60 s and 2 GiB)"
            f"   {seconds / alone:4.1f} times one GPU's {alone:.1f} s"
            f"   peak {peak / 2**30:.1f} GiB of {whole / 2**30:.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()

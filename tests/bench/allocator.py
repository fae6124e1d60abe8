"""Events a second of the allocator's model, on the streams of two training steps, on one core. The
mark: 300,000.

Run `python tests/bench/allocator.py [MODEL]`. Seconds are those of the processor, the best of five
runs.
"""

import sys
import time

from optprof.profiler.allocator.blocks import Block
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.allocator.settings import AllocatorSettings
from optprof.profiler.simulating.replay import play
from optprof.profiler.simulating.simulation import Simulation, run_simulation
from optprof.scenarios import Scenario

OPTIMIZERS = ("adamw", "sgd-sai", "lamb16")
SETTINGS = ("", "expandable_segments:True", "max_split_size_mb:64", "roundup_power2_divisions:4")
RUNS = 5


def seconds(found: Simulation, settings: AllocatorSettings) -> float:
    """Processor seconds of one run of all events through a fresh allocator."""
    allocator = CachingAllocator(settings)
    blocks: dict[int, Block] = {}
    start = time.process_time()
    for segment in found.segments:
        for _ in play(segment, found.allocations, allocator, blocks):
            pass
    return time.process_time() - start


def main() -> None:
    """Print a line for each stream and setting."""
    model = sys.argv[1] if len(sys.argv) > 1 else "gpt2-xl"
    print(f"{model}, two training steps through the allocator")
    for optimizer in OPTIMIZERS:
        found = run_simulation(Scenario(model=model, optimizer=optimizer))
        events = sum(len(segment.events) for segment in found.segments)
        for text in SETTINGS:
            best = min(seconds(found, AllocatorSettings.parse(text)) for _ in range(RUNS))
            print(
                f"{optimizer:<8} {events:>8,} events {events / best:>10,.0f} a second  {text}",
                flush=True,
            )


if __name__ == "__main__":
    main()

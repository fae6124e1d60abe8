"""Count events per second of the allocator's model on two training steps, on one core.

The target: 300,000. Run `python tests/bench/allocator.py [MODEL]`. Seconds are the processor's, the
best of five runs.
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


def seconds(simulation: Simulation, settings: AllocatorSettings) -> float:
    """Return the processor seconds of one run of all events through a fresh allocator."""
    allocator = CachingAllocator(settings)
    blocks: dict[int, Block] = {}
    start = time.process_time()
    for segment in simulation.segments:
        for _ in play(segment, simulation.allocations, allocator, blocks):
            pass
    return time.process_time() - start


def main() -> None:
    """Print a line for each stream and setting."""
    model = sys.argv[1] if len(sys.argv) > 1 else "gpt2-xl"
    print(f"{model}, two training steps through the allocator")
    for optimizer in OPTIMIZERS:
        simulation = run_simulation(Scenario(model=model, optimizer=optimizer))
        events = sum(len(segment.events) for segment in simulation.segments)
        for text in SETTINGS:
            best = min(seconds(simulation, AllocatorSettings.parse(text)) for _ in range(RUNS))
            print(
                f"{optimizer:<8} {events:>8,} events {events / best:>10,.0f} a second  {text}",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Write snapshots of a million events and more as torch does, and measure how they are read.

    python tests/bench/snapshot_reading.py [--events 2780000] [--frames 60]

As many events with stacks of 60 frames make 1 GB. Writing them takes four times their size in
memory, as it does in torch. Each file is read in a fresh process; ends with status 1 if one takes
more than 2 GB of memory, or more than 60 s of processor time for 1 GB.
"""

import argparse
import json
import multiprocessing
import pickle
import random
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from optprof.profiler.snapshots.reading import read_snapshot

MOST_MEMORY, MOST_S_A_GB = 2e9, 60
STACKS, DIFFERENT_FRAMES = 4000, 6000
# JSON repeats every frame, so fewer events make a large file.
JSON_PART = 20


def main() -> int:
    """Write and read a pickle with stacks, one without, and JSON; return 1 beyond a target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=2_780_000)
    parser.add_argument("--frames", type=int, default=60)
    options = parser.parse_args()
    kinds = {
        "pickle": (options.events, options.frames),
        "pickle without stacks": (options.events, 0),
        "JSON": (options.events // JSON_PART, options.frames),
    }
    beyond = False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snapshot"
        for kind, (events, frames) in kinds.items():
            _fresh(write, path, kind, events, frames)
            seconds, memory, read = _fresh(measure, path)
            size = path.stat().st_size
            late = seconds > max(1.0, size / 1e9) * MOST_S_A_GB
            beyond |= late or memory > MOST_MEMORY or read != events
            print(
                f"{kind}: {size / 1e6:,.0f} MB, {read:,} events, {seconds:.1f} s,"
                f" {memory / 1e6:,.0f} MB of memory"
            )
    return int(beyond)


def _fresh(work: Any, *arguments: Any) -> Any:
    """Return the result of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(work, arguments)


def write(path: Path, kind: str, count: int, depth: int) -> None:
    """Write a snapshot with so many events; stacks share their frames, as torch's do."""
    chance = random.Random(0)
    frames = [
        {"name": f"forward_{each % 97}", "filename": f"/torch/nn/modules/m{each}.py", "line": each}
        for each in range(DIFFERENT_FRAMES)
    ]
    stacks = [chance.choices(frames, k=depth) for _ in range(STACKS)]
    events, now = list[dict[str, Any]](), 1_782_827_950_507_193
    address = size = 0
    for number in range(count):
        now += chance.randrange(1, 100)
        if number % 3 == 0:
            address = (127 << 40) + 512 * chance.randrange(1 << 24)
            size = 512 * chance.choice((1, 3, chance.randrange(1, 100_000)))
        events.append(
            {
                "action": ("alloc", "free_requested", "free_completed")[number % 3],
                "addr": address,
                "size": size,
                "stream": 0,
                "time_us": now,
                "compile_context": "N/A",
                "user_metadata": "",
                "frames": list(chance.choice(stacks)),
            }
        )
    data = {
        "segments": [],
        "device_traces": [events],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": ""},
        "external_annotations": [],
    }
    if kind == "JSON":
        path.write_text(json.dumps(data))
    else:
        with path.open("wb") as file:
            pickle.dump(data, file)


def measure(path: Path) -> tuple[float, int, int]:
    """Return processor seconds and peak bytes of memory for reading, and the number of events."""
    begin = time.process_time()
    taken = read_snapshot(path)
    seconds = time.process_time() - begin
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return seconds, memory, sum(len(device.events) for device in taken.devices)


if __name__ == "__main__":
    sys.exit(main())

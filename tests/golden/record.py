"""Record what CUDA's caching allocator does while this machine's GPU trains, for the tests in tests/profiler/test_golden.py.

    python tests/golden/record.py                    every scenario that is not recorded yet
    python tests/golden/record.py --only gpt2-xl     those whose name holds the text
    python tests/golden/record.py --list             their names

One child process a scenario; a small file each under tests/data/golden. What does not fit on the GPU is passed over.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recording import SUFFIX, Phase, Recording, cut

from scenarios import Scenario, hardware

FOLDER = Path(__file__).parent.parent / "data" / "golden"
MOST_SECONDS = 1800
DOES_NOT_FIT = 3
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    *({"optimizer": "adamw", "implementation": how} for how in ("loop", "foreach", "fused")),
    *({"optimizer": name} for name in ("sgd-sai", "sm3", "lamb16", "adafactor")),
)
SETUPS: tuple[dict[str, Any], ...] = (
    *({"model": model, **how} for model in ("gpt2", "gpt2-medium") for how in ({}, {"dtype": "bf16"}, {"amp": "bf16"}, {"amp": "fp16"})),
    {"model": "vit-b16", "batch_size": 8},
    {"model": "resnet50", "batch_size": 8},
    {"model": "gpt2-xl", "dtype": "bf16"},
    {"model": "gpt2-xl"},
    # Four layers of Llama2-7B hold 1.07 billion parameters.
    {"model": "llama2-7b", "config": {"num_hidden_layers": 4}, "dtype": "bf16"},
)


def listed() -> dict[str, Scenario]:
    """The scenarios by the names of their files."""
    found = [
        Scenario(device="cuda", checkpointing=checkpointing, **setup, **optimizer)
        for setup in SETUPS
        for checkpointing in (False, True)
        if not (checkpointing and setup["model"] == "resnet50")
        for optimizer in OPTIMIZERS
    ]
    found.append(Scenario(device="cuda", model="gpt2", alloc_conf="expandable_segments:True"))
    return {_name(scenario): scenario for scenario in found}


def _name(scenario: Scenario) -> str:
    parts = [scenario.model, f"amp-{scenario.amp}" if scenario.amp else scenario.dtype, scenario.optimizer, scenario.implementation]
    parts += ["checkpointing"] if scenario.checkpointing else []
    parts += [scenario.alloc_conf.replace(":", "-").replace(",", "-")] if scenario.alloc_conf else []
    return "_".join(parts)


class PhaseRecorder:
    """Notes what torch says at the end of each phase, and leaves a snapshot in the history to cut it by."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, dict[str, int], int]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record what runs inside as one phase."""
        import torch

        yield
        torch.cuda.synchronize()
        statistics = {key: value for key, value in torch.cuda.memory_stats().items() if ".all." in key or key.startswith("num_")}
        torch.cuda.memory._snapshot()
        self.ends.append((name, statistics, torch.cuda.mem_get_info()[0]))


def record(scenario: Scenario) -> Recording:
    """Train the scenario in this process, which must not have used the GPU before."""
    import torch

    from profiler.iteration import Iteration
    from profiler.optimizer import make_optimizer
    from profiler.state import state_bytes
    from scenarios.workpiece import build

    torch.cuda.init()
    free_before, total = torch.cuda.mem_get_info()
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python")
    recorder = PhaseRecorder()
    with recorder.phase("build"):
        workpiece = build(scenario, "cuda")
        batch = {name: value.to("cuda") if isinstance(value, torch.Tensor) else value for name, value in workpiece.batch.items()}
        names = [name for name, _ in workpiece.model.named_parameters()]
        optimizer = make_optimizer(scenario, list(workpiece.model.parameters()), names)
    iteration = Iteration(scenario, workpiece, batch, optimizer, recorder.phase, "cuda")
    for _ in range(scenario.steps):
        iteration.gradients()
        iteration.step()
        with recorder.phase("zero_grad"):
            optimizer.zero_grad(scenario.set_to_none)
    snapshot: dict[str, Any] = dict(torch.cuda.memory._snapshot())
    # The last snapshot may stand in its own history.
    columns = cut(snapshot["device_traces"][torch.cuda.current_device()])[: len(recorder.ends)]
    capability = torch.cuda.get_device_capability()
    properties = torch.cuda.get_device_properties(0)
    return Recording(
        scenario={**asdict(scenario), "gpu": catalogue_name(capability, properties.total_memory)},
        torch=torch.__version__,
        driver=_driver(),
        gpu=properties.name,
        compute_capability=capability,
        total=total,
        free_before=free_before,
        nvml_used=_nvml_used(),
        versions={name: version(name) for name in ("torch", "transformers", "optprof")} | {"cuda": torch.version.cuda or ""},
        state_bytes=state_bytes(optimizer).by_key,
        phases=tuple(
            Phase(name=name, actions=actions, addresses=addresses, sizes=sizes, statistics=statistics, device_free=free)
            for (name, statistics, free), (actions, addresses, sizes) in zip(recorder.ends, columns, strict=True)
        ),
    )


def catalogue_name(capability: tuple[int, int], total_memory: int) -> str | None:
    """The GPU of the catalogue that this one is: the same compute capability, and memory within 5 %."""
    alike = [gpu for gpu in map(hardware.describe, hardware.available()) if gpu.compute_capability == capability]
    near = min(alike, key=lambda gpu: abs(gpu.memory_bytes - total_memory), default=None)
    return near.name if near is not None and abs(near.memory_bytes - total_memory) <= 0.05 * total_memory else None


def _driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _nvml_used() -> int | None:
    """Bytes of the device in use by all processes, as NVML counts them; None without nvidia-ml-py."""
    import torch

    try:
        return torch.cuda.device_memory_used()
    except (ImportError, ModuleNotFoundError, RuntimeError):
        return None


def run_child(asked: str, path: Path) -> int:
    """Record the scenario that the JSON text names, in this process; the exit status."""
    import torch

    try:
        found = record(Scenario(**json.loads(asked)))
    except torch.OutOfMemoryError:
        return DOES_NOT_FIT
    # Written under another name first: a file that is there is whole.
    draft = path.with_suffix(".part")
    found.write(draft)
    draft.rename(path)
    return 0


def record_in_child(name: str, scenario: Scenario) -> str:
    """Record one scenario in a fresh process; one word or line on what came of it."""
    path = FOLDER / f"{name}{SUFFIX}"
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    if scenario.alloc_conf:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = scenario.alloc_conf
    command = [sys.executable, __file__, "--child", json.dumps(asdict(scenario)), "--path", str(path)]
    try:
        done = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=MOST_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"failed: longer than {MOST_SECONDS} seconds"
    if done.returncode == DOES_NOT_FIT:
        return "does not fit"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"failed: {lines[-1] if lines else f'exit status {done.returncode}'}"
    return f"recorded, {path.stat().st_size / 1000:.0f} kB"


def main() -> int:
    """Record what is asked for and is not there yet; 1 when a scenario failed or there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="names that hold this text")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return run_child(asked.child, asked.path)
    wanted = {name: scenario for name, scenario in listed().items() if asked.only in name}
    if asked.list:
        print(*wanted, sep="\n")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device on this machine: recordings are made by a GPU", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, scenario in wanted.items():
        outcome = "there already" if (FOLDER / f"{name}{SUFFIX}").exists() else record_in_child(name, scenario)
        failed += outcome.startswith("failed")
        print(f"{name}: {outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Record the CUDA caching allocator while this machine's GPU trains, for test_golden.py.

    python tests/golden/record.py                    every scenario that is not recorded yet
    python tests/golden/record.py --only gpt2-xl     those whose name holds the text
    python tests/golden/record.py --list             their names

Each scenario runs in its own child process and writes a small file under tests/data/golden. Those
that do not fit on the GPU are skipped. `make gpu` takes the most useful ones in eight minutes
(docs/gpu.md).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from recording import SUFFIX, Phase, Recording, cut

from optprof.scenarios import Scenario, hardware

FOLDER = Path(__file__).parent.parent / "data" / "golden"
MOST_SECONDS = 1800
DOES_NOT_FIT = 3
# The suffix of scenarios that are meant to run out of memory.
RUNS_OUT = "_out-of-memory"
OPTIMIZERS: tuple[dict[str, Any], ...] = (
    *({"optimizer": "adamw", "implementation": how} for how in ("loop", "foreach", "fused")),
    *({"optimizer": name} for name in ("sgd-sai", "sm3", "lamb16", "adafactor")),
)
SETUPS: tuple[dict[str, Any], ...] = (
    *(
        {"model": model, **how}
        for model in ("gpt2", "gpt2-medium")
        for how in ({}, {"dtype": "bf16"}, {"amp": "bf16"}, {"amp": "fp16"})
    ),
    {"model": "vit-b16", "batch_size": 8},
    {"model": "resnet50", "batch_size": 8},
    {"model": "gpt2-xl", "dtype": "bf16"},
    {"model": "gpt2-xl"},
    # Four layers of Llama2-7B hold 1.07 billion parameters.
    {"model": "llama2-7b", "config": {"num_hidden_layers": 4}, "dtype": "bf16"},
)
# Scenarios beyond the setups: settings of the allocator, ways of training, and models that run out
# of memory on every GPU of the catalogue.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2_fp32_adamw_foreach_expandable_segments-True": {
        "model": "gpt2",
        "alloc_conf": "expandable_segments:True",
    },
    "gpt2_fp32_adamw_foreach_two-micro-batches_clipped": {
        "model": "gpt2",
        "micro_batches": 2,
        "max_grad_norm": 1.0,
    },
    "gpt2_amp-fp16_adamw_foreach_clipped": {"model": "gpt2", "amp": "fp16", "max_grad_norm": 1.0},
    "gpt2_fp32_adamw_foreach_gradients-kept": {"model": "gpt2", "set_to_none": False},
    "gpt2_fp32_adamw_foreach_eager": {"model": "gpt2", "attention": "eager"},
    "gpt2_fp32_adamw_foreach_eight-sequences": {"model": "gpt2", "batch_size": 8},
    "llama2-7b_fp32_adamw_foreach": {"model": "llama2-7b", "config": {"num_hidden_layers": 4}},
    # One rank of many, in a fake process group on one GPU.
    "gpt2_fp32_adamw_foreach_fsdp2-rank-3-of-8": {
        "model": "gpt2",
        "ranks": 8,
        "rank": 3,
        "parallel": "fsdp2",
    },
    "gpt2_fp32_adamw_foreach_ddp-rank-3-of-8": {
        "model": "gpt2",
        "ranks": 8,
        "rank": 3,
        "parallel": "ddp",
    },
    "llama2-7b_bf16_sm3_foreach_fsdp2-rank-0-of-64": {
        "model": "llama2-7b",
        "config": {"num_hidden_layers": 4},
        "dtype": "bf16",
        "optimizer": "sm3",
        "ranks": 64,
        "parallel": "fsdp2",
    },
    "gpt2-xl_fp32_sgd_foreach_out-of-memory": {
        "model": "gpt2-xl",
        "optimizer": "sgd",
        "batch_size": 48,
    },
}


def listed() -> dict[str, Scenario]:
    """Return the scenarios by the names of their files."""
    scenarios = [
        Scenario(device="cuda", checkpointing=checkpointing, **setup, **optimizer)
        for setup in SETUPS
        for checkpointing in (False, True)
        if not (checkpointing and setup["model"] == "resnet50")
        for optimizer in OPTIMIZERS
    ]
    return {_name(scenario): scenario for scenario in scenarios} | {
        name: Scenario(device="cuda", **other) for name, other in OTHERS.items()
    }


def _name(scenario: Scenario) -> str:
    parts = [
        scenario.model,
        f"amp-{scenario.amp}" if scenario.amp else scenario.dtype,
        scenario.optimizer,
        scenario.implementation,
    ]
    parts += ["checkpointing"] if scenario.checkpointing else []
    return "_".join(parts)


class PhaseRecorder:
    """Keeps torch's statistics and the length of its history at the end of each phase."""

    def __init__(self) -> None:
        self.ends: list[PhaseEnd] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record what runs inside as one phase, also if it runs out of memory."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError:
            # Not later: now the exception still holds the tensors of the code that raised it.
            self._end(name)
            raise
        self._end(name)

    def _end(self, name: str) -> None:
        import torch

        torch.cuda.synchronize()
        statistics = {
            key: value
            for key, value in torch.cuda.memory_stats().items()
            if ".all." in key or key.startswith("num_")
        }
        length = len(_history(torch.cuda.memory._snapshot()))
        self.ends.append(PhaseEnd(name, statistics, torch.cuda.mem_get_info()[0], length))


class PhaseEnd(NamedTuple):
    """The end of a phase: statistics, the driver's free bytes and the length of the history."""

    name: str
    statistics: dict[str, int]
    device_free: int
    length: int


def _history(snapshot: Mapping[str, Any]) -> list[dict[str, Any]]:
    import torch

    return snapshot["device_traces"][torch.cuda.current_device()]


def record(scenario: Scenario, device: str = "cuda") -> Recording:
    """Train the scenario in this process until it ends or memory runs out.

    The process must not have used the GPU before. `device` is the device of the tensors. Raise
    ValueError if torch's allocator does not have the scenario's settings.
    """
    import torch

    from optprof.profiler.measuring.cuda_memory import apply_alloc_conf

    apply_alloc_conf(scenario.alloc_conf)
    torch.cuda.init()
    free_before, total = torch.cuda.mem_get_info()
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python")
    recorder = PhaseRecorder()
    state: Mapping[str, int] = {}
    with suppress(torch.OutOfMemoryError):
        state = _train(scenario, device, recorder)
    snapshot: dict[str, Any] = dict(torch.cuda.memory._snapshot())
    _require_settings(scenario, snapshot)
    columns = cut(_history(snapshot), [end.length for end in recorder.ends])
    capability = torch.cuda.get_device_capability()
    properties = torch.cuda.get_device_properties(0)
    versions = {
        name: number for name in ("torch", "transformers", "optprof") if (number := _version(name))
    }
    return Recording(
        scenario={**asdict(scenario), "gpu": catalogue_name(capability, properties.total_memory)},
        torch=torch.__version__,
        driver=_driver(),
        gpu=properties.name,
        compute_capability=capability,
        total=total,
        free_before=free_before,
        nvml_used=_nvml_used(),
        versions=versions | {"cuda": torch.version.cuda or ""},
        state_bytes=state,
        phases=tuple(
            Phase(
                name=end.name,
                actions=actions,
                addresses=addresses,
                sizes=sizes,
                streams=streams,
                statistics=end.statistics,
                device_free=end.device_free,
            )
            for end, (actions, addresses, sizes, streams) in zip(
                recorder.ends, columns, strict=True
            )
        ),
    )


def _train(scenario: Scenario, device: str, recorder: PhaseRecorder) -> Mapping[str, int]:
    """Train phase by phase; return the bytes of the optimizer's state by key."""
    import torch

    from optprof.profiler.training.iteration import Iteration
    from optprof.profiler.training.optimizer import make_optimizer
    from optprof.profiler.training.state import state_bytes
    from optprof.scenarios.workpiece import build

    with recorder.phase("build"):
        workpiece = _as_rank(scenario, device) if scenario.parallel else build(scenario, device)
        batch = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in workpiece.batch.items()
        }
        names = [name for name, _ in workpiece.model.named_parameters()]
        optimizer = make_optimizer(scenario, list(workpiece.model.parameters()), names)
    iteration = Iteration(scenario, workpiece, batch, optimizer, recorder.phase, device)
    for _ in range(scenario.steps):
        iteration.gradients()
        iteration.step()
        with recorder.phase("zero_grad"):
            optimizer.zero_grad(scenario.set_to_none)
    return state_bytes(optimizer).by_key


def _as_rank(scenario: Scenario, device: str) -> Any:
    """Return the model as one rank holds it, in a fake process group, and its batch.

    A model that ranks share is split while it has no data, as in a simulation.
    """
    import torch

    from optprof.profiler.simulating.fake_ranks import become, reduce_buckets
    from optprof.profiler.training.parallel import spread
    from optprof.scenarios.workpiece import build

    become(scenario)
    is_split = not str(scenario.parallel).startswith(("ddp", "zero1"))
    workpiece = build(scenario, "meta" if is_split else device)
    model = spread(workpiece.model, scenario, torch.device(device).type)
    reduce_buckets(model)
    if is_split:
        model.to_empty(device=device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    return replace(workpiece, model=model)


def _require_settings(scenario: Scenario, snapshot: Mapping[str, Any]) -> None:
    """Raise ValueError if the allocator ran without the segments of the scenario."""
    expected = "expandable_segments:True" in scenario.alloc_conf
    actual = snapshot.get("allocator_settings", {}).get("expandable_segments", expected)
    if bool(actual) != expected:
        raise ValueError(
            f"alloc_conf is {scenario.alloc_conf!r}, but torch's allocator has"
            f" expandable_segments {actual}"
        )


def catalogue_name(capability: tuple[int, int], total_memory: int) -> str | None:
    """Return the GPU of the catalogue with this compute capability and memory within 5 %."""
    alike = [
        gpu
        for gpu in map(hardware.describe, hardware.available())
        if gpu.compute_capability == capability
    ]
    near = min(alike, key=lambda gpu: abs(gpu.memory_bytes - total_memory), default=None)
    return (
        near.name
        if near is not None and abs(near.memory_bytes - total_memory) <= 0.05 * total_memory
        else None
    )


def _version(package: str) -> str | None:
    """Return the package's version; None if it runs from a folder or is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _driver() -> str | None:
    """Return the driver's version from NVML, or without nvidia-ml-py from the slower nvidia-smi."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:
        return _driver_of_smi()


def _driver_of_smi() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _nvml_used() -> int | None:
    """Bytes in use on the device by all processes, from NVML; None without nvidia-ml-py."""
    import torch

    try:
        return torch.cuda.device_memory_used()
    except Exception:
        # NVML raises its own kinds of errors, and none may cost a recording.
        return None


def run_child(text: str, path: Path) -> int:
    """Record the scenario of a JSON text in this process; return the exit status."""
    recording = record(Scenario(**json.loads(text)))
    if recording.ran_out and not path.name.removesuffix(SUFFIX).endswith(RUNS_OUT):
        return DOES_NOT_FIT
    # It is written under another name first, so that every existing file is complete.
    draft = path.with_suffix(".part")
    recording.write(draft)
    draft.rename(path)
    return 0


def record_in_child(name: str, scenario: Scenario) -> str:
    """Record one scenario in a fresh process; return a word or line on the outcome."""
    path = FOLDER / f"{name}{SUFFIX}"
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    }
    command = [
        sys.executable,
        __file__,
        "--child",
        json.dumps(asdict(scenario)),
        "--path",
        str(path),
    ]
    try:
        done = subprocess.run(
            command,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            timeout=MOST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"failed: longer than {MOST_SECONDS} seconds"
    if done.returncode == DOES_NOT_FIT:
        return "does not fit"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return f"failed: {lines[-1] if lines else f'exit status {done.returncode}'}"
    return f"recorded, {path.stat().st_size / 1000:.0f} kB"


def main() -> int:
    """Record the selected scenarios that are missing; return 1 if one failed or without a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="names that hold this text")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return run_child(arguments.child, arguments.path)
    selected = {name: scenario for name, scenario in listed().items() if arguments.only in name}
    if arguments.list:
        print(*selected, sep="\n")
        return 0
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device on this machine: recordings are made by a GPU", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, scenario in selected.items():
        outcome = (
            "there already"
            if (FOLDER / f"{name}{SUFFIX}").exists()
            else record_in_child(name, scenario)
        )
        failed += outcome.startswith("failed")
        print(f"{name}: {outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Buffers of FSDP2 and DDP in the stream of a rank, against lists worked out by hand."""

# pyright: reportPrivateImportUsage=false

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from optprof.profiler.simulating.simulation import Simulation, run_simulation, simulate
from optprof.scenarios import Scenario

KINDS = ("communication", "gathered", "gradient")


@pytest.fixture(autouse=True)
def without_group() -> Iterator[None]:
    """Leave the fake process group, which other tests must not see."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


class Block(nn.Module):
    """A block of 6 times 6 weights, and 6 weights of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6))
        self.blocks = nn.ModuleList([nn.Linear(6, 6, bias=False)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks[0](x * self.scale).mean()


def one_block() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Block(), {"x": torch.ones(3, 6)}


class Wide(nn.Module):
    """Weights of 25 MiB, 25 MiB, 1,024,000 bytes and 40,000 bytes."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(2560, 2560), (2560, 2560), (2560, 100), (100, 100)]
        self.layers = nn.Sequential(*(nn.Linear(*size, bias=False) for size in sizes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).mean()


def four_layers() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return Wide(), {"x": torch.ones(3, 2560)}


def simulated(factory: Any, way: str, **fields: Any) -> Simulation:
    model = f"{__name__}:{factory.__name__}"
    scenario = Scenario(
        model=model, optimizer="sgd", ranks=4, **{"rank": 1, "parallel": way, **fields}
    )
    return run_simulation(scenario, estimated=False)


def events(run: Simulation, phase: str, step: int = -1) -> list[tuple[int, str, int]]:
    """Bytes, category and stream of each event of a step's phase; frees have negative bytes."""
    segment = [each for each in run.segments if each.phase == phase][step]
    made = run.allocations
    return [
        (
            made.nbytes[number] * (1 if event >= 0 else -1),
            made.categories[number],
            made.streams.get(number, 0),
        )
        for event in segment.events
        if made.categories[number := max(event, ~event)] in KINDS
    ]


# Streams as FSDPCommContext makes them: 1 copies into an all-gather, 3 reduces.
# Of 6 rows each of 4 ranks has 2, padded: 8 rows of 6 float32 are 192 B, 8 numbers are 32 B.
FORWARD = [
    (32, "communication", 1),  # The root's all-gather,
    (32, "gathered", 0),  # copied out into its whole parameter.
    (192, "communication", 1),
    (192, "gathered", 0),
    (-32, "communication", 1),  # wait_for_unshard holds the result before its own until it returns.
    (-192, "gathered", 0),  # The block reshards after its forward.
    (-192, "communication", 1),  # The root does not, and flushes the last result.
]
BACKWARD = [
    (192, "communication", 1),  # The root prefetches the block.
    (192, "gathered", 0),
    (-192, "communication", 1),  # In backward the result goes right after the copy.
    (-192, "gathered", 0),  # post_backward reshards,
    (192, "communication", 0),  # copies the gradient of 8 rows in,
    (48, "gradient", 3),  # and reduces it to this rank's 2 rows.
    (-32, "gathered", 0),
    (-192, "communication", 0),  # The next group drops the input of the last reduce-scatter.
    (32, "communication", 0),
    (8, "gradient", 3),
    (-32, "communication", 0),
]
# The input of a reduce-scatter.
BUFFER = ("communication", 0)


def test_fsdp2_gathers_and_reduces_one_block_as_worked_out_by_hand() -> None:
    run = simulated(one_block, "fsdp2")
    assert events(run, "forward") == FORWARD
    assert events(run, "backward") == BACKWARD


def test_bf16_halves_what_is_gathered_and_reduces_in_float32() -> None:
    run = simulated(one_block, "fsdp2:mixed_precision=bf16")
    halves = {kind: [each for each in FORWARD if each[1] == kind] for kind in KINDS}
    for kind in ("communication", "gathered"):
        own = [each for each in events(run, "forward") if each[1] == kind]
        assert own == [(nbytes // 2, *rest) for nbytes, *rest in halves[kind]]
    reduced = [each for each in events(run, "backward") if each[2] == 3 or each[1:] == BUFFER]
    assert reduced == [each for each in BACKWARD if each[1] == "gradient" or each[1:] == BUFFER]


def test_blocks_that_stay_gathered_are_gathered_once() -> None:
    run = simulated(one_block, "fsdp2:reshard_after_forward=false")
    gathered = [each for each in events(run, "forward") if each[1] == "gathered"]
    assert gathered == [(32, "gathered", 0), (192, "gathered", 0)]
    again = [each for each in events(run, "backward") if each[1] == "gathered"]
    assert again == [(-192, "gathered", 0), (-32, "gathered", 0)]


def test_the_last_rank_of_6_rows_has_none_but_pads() -> None:
    memory = simulated(one_block, "fsdp2", rank=3).record.memory
    assert memory is not None
    # Both parameters are padded to 2 rows, which are no elements of the optimizer.
    assert memory.parameters == 48 + 8
    assert memory.optimizer_state == 0


def test_ddp_rebuilds_one_bucket_as_one_of_1_mib_and_others_of_25() -> None:
    run = simulated(four_layers, "ddp", steps=3)
    large, first = 25 << 20, 1_024_000 + 40_000
    whole = 2 * large + first

    def buckets(phase: str, step: int) -> list[int]:
        return [each for each, kind, _ in events(run, phase, step) if kind == "communication"]

    assert buckets("build", 0) == [whole]
    assert buckets("forward", 0) == []
    # In the order of the gradients: the last two layers reach 1 MiB together.
    assert buckets("forward", 1) == [-whole, first, large, large]
    assert buckets("forward", 2) == []
    assert all(buckets("backward", step) == [] for step in range(3))
    reduced = [each for each in run.segments if each.phase == "backward"][-1].collectives
    assert [call.nbytes for call in reduced] == [first, large, large]
    # The new order is sent once, and is no part of a usual step.
    assert not any(each.collectives for each in run.segments if each.phase == "forward")


FSDP = "torch.distributed.fsdp._fully_shard"


@pytest.mark.parametrize(
    ("module", "name", "arguments"),
    [
        ("_fsdp_collectives", "_get_device_handle", ["device_type"]),
        ("_fsdp_param_group", "_get_device_handle", ["device_type"]),
        ("_fsdp_state", "_get_device_handle", ["device_type"]),
        ("_fully_shard", "_get_device_from_mesh", ["mesh"]),
        ("_fsdp_param_group", "FSDPParamGroup._validate_no_meta_params", ["self"]),
        ("_fsdp_param_group", "FSDPParamGroup._validate_cpu_offload_params", ["self"]),
        ("_fsdp_param", "free_storage", ["tensor"]),
        ("_fsdp_param", "alloc_storage", ["tensor"]),
        ("_fsdp_param_group", "alloc_storage", ["tensor"]),
        ("_fsdp_param", "FSDPParam.all_gather_inputs", ["self"]),
        (
            "_fsdp_param",
            "FSDPParam.init_all_gather_outputs",
            ["self", "all_gather_input_numels", "all_gather_input_dtypes", "world_size", "device"],
        ),
        ("_fsdp_collectives", "DefaultAllocMixin.allocate", ["self", "size", "dtype", "device"]),
    ],
)
def test_torch_has_what_a_simulation_replaces(module: str, name: str, arguments: list[str]) -> None:
    """If this fails, torch has moved a name that fake_ranks.py replaces."""
    found: Any = import_module(f"{FSDP}.{module}")
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = found.fget if isinstance(found, property) else found
    own = list(inspect.signature(found).parameters)
    assert own[: len(arguments)] == arguments


def test_torch_tells_meshes_apart_by_their_thread() -> None:
    """If this fails, one process can no longer simulate one rank after another."""
    from torch.distributed.device_mesh import DeviceMesh

    assert "_thread_id" in inspect.getsource(DeviceMesh.__eq__)
    assert "_thread_id" in inspect.getsource(DeviceMesh._hash_key)


def test_torch_has_the_fake_group_and_its_collectives() -> None:
    tools: Any = import_module("torch.distributed._tools.fake_collectives")
    assert {"collective_ops", "sync_ops", "CollectiveOp"} <= vars(tools).keys()
    assert callable(tools.CollectiveOp.get_process_group)
    assert callable(import_module("torch.testing._internal.distributed.fake_pg").FakeStore)


def test_a_process_of_a_real_group_simulates_no_ranks() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with pytest.raises(RuntimeError, match=r"part of a process group \(gloo\); use optprof"):
        simulate(Scenario(model="tiny", ranks=4, parallel="ddp"))

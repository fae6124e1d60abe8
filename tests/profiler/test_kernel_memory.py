"""Memory that CUDA's kernels take for themselves, compared with sizes from ATen's sources."""

from importlib import import_module
from unittest import mock

import pytest
import torch

from optprof.profiler import simulate
from optprof.profiler.tracing.kernel_memory import KERNEL_MEMORY, sized_for
from optprof.profiler.tracing.matrix_products import WORKSPACE
from optprof.profiler.tracing.requests import device_of
from optprof.profiler.tracing.sharding_memory import kernels
from optprof.profiler.tracing.trace import Recorder
from optprof.scenarios import Scenario

MIB = 1 << 20


def stream(recorder: Recorder) -> list[int]:
    """Return the bytes of each event in order, negative for a free."""
    segments, allocations = sized_for(recorder.segments, recorder.allocations, None)
    nbytes = allocations.nbytes
    return [
        nbytes[event] if event >= 0 else -nbytes[~event]
        for segment in segments
        for event in segment.events
    ]


@pytest.mark.parametrize(
    ("gpu", "nbytes"),
    [
        ("t4", 8_519_680),
        ("v100-16", 8_519_680),
        ("rtx3090", 8_519_680),
        ("l40s", 8_519_680),
        ("h100-80", 32 * MIB),
        ("b200", 32 * MIB),
    ],
)
def test_a_workspace_has_the_size_of_the_gpu_s_generation(gpu: str, nbytes: int):
    assert WORKSPACE.nbytes(device_of(gpu)) == nbytes
    memory = simulate(
        Scenario(model="gpt2", sequence_length=8, config={"n_layer": 1}, gpu=gpu)
    ).memory
    assert memory is not None
    # One for the forward pass and one for autograd's thread. The block of a small one is up to a
    # MiB larger, if its rest is not split off.
    assert 2 * nbytes <= memory.peak_by_category["workspace"] <= 2 * (nbytes + MIB)


def test_a_workspace_is_taken_by_the_first_product_of_a_thread_and_kept():
    layer, x = torch.nn.Linear(64, 64, device="meta"), torch.empty(16, 64, device="meta")
    recorder = Recorder(workspaces=())
    with recorder.phase("build"):
        for tensor in (*layer.parameters(), x):
            recorder.allocate(tensor, "parameter")
    for _ in range(2):
        with recorder.phase("forward"):
            loss = layer(x).sum()
        with recorder.phase("backward"):
            loss.backward()
    places = [
        number
        for number, category in enumerate(recorder.allocations.categories)
        if category == "workspace"
    ]
    taken = [
        segment.phase
        for segment in recorder.segments
        for event in segment.events
        if event in places
    ]
    assert taken == ["forward", "backward"]
    assert not any(~number in segment.events for segment in recorder.segments for number in places)


def test_an_optimizer_s_product_uses_the_forward_pass_s_workspace():
    trained, alone = (
        simulate(
            Scenario(
                model="gpt2",
                sequence_length=8,
                config={"n_layer": 1},
                optimizer="muon",
                workload=workload,
            )
        ).memory
        for workload in ("train", "state")
    )
    assert trained is not None
    assert alone is not None
    assert (trained.peak_by_category["workspace"], alone.peak_by_category["workspace"]) == (
        64 * MIB,
        32 * MIB,
    )


def test_the_norms_of_a_list_take_a_number_for_each_chunk_of_its_longest_tensor():
    gradients = [torch.empty(count, device="meta") for count in (10, 65_536, 200_000)]
    recorder = Recorder(workspaces=())
    with recorder.phase("clip"):
        torch.ops.aten._foreach_norm.Scalar(gradients)
    partial_sums = 3 * 4 * 4  # three tensors, four chunks of 65,536 in the longest, 4 bytes
    assert stream(recorder) == [partial_sums, 4, 4, 4, -partial_sums, -4, -4, -4]


def test_fsdp2_s_copies_take_a_table_with_a_number_for_each_block_of_threads():
    import_module("torch.distributed.fsdp")
    # On two ranks: 3,000 and 10 elements of each, which are 6 blocks of 2,048 bytes and 1.
    gathered = torch.empty(2 * 3_010, device="meta")
    parameters = [torch.empty(6_000, device="meta"), torch.empty(20, device="meta")]
    gradients = [torch.empty(5_999, device="meta"), torch.empty(20, device="meta")]
    flat = torch.empty(2 * 3_010, device="meta")
    recorder = Recorder(workspaces=())
    with mock.patch.dict(KERNEL_MEMORY, kernels()), recorder.phase("forward"):
        torch.ops.fsdp.split_with_sizes_copy(
            gathered.view(2, -1), [3_000, 10], dim=1, out=[p.view(2, -1) for p in parameters]
        )
        torch.ops.fsdp.chunk_cat(gradients, dim=0, num_chunks=2, out=flat.view(2, -1))
    # Two addresses, a size and, cumulative, the blocks of each tensor, one more of the last.
    split = 8 * (3 * 2 + 3 + 7)
    # An address, three sizes and two cumulative ones of each tensor, one more of the last two.
    join = 8 * (4 * 2 + 2 * 3 + 7)
    sizes = [recorder.allocations.nbytes[number] for number in recorder.allocations.requests]
    assert sizes == [split, join]


def test_without_workspaces_a_recording_holds_only_outputs():
    recorder = Recorder()
    with recorder.phase("forward"):
        x = torch.empty(4, 4, device="meta")
        y = x @ x
    assert stream(recorder) == [64, 64]
    del x, y

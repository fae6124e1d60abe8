"""The number of GPUs that a step needs: simulated one by one, and bounds worked out by hand."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch.distributed as dist

from optprof.profiler import simulate
from optprof.profiler.records.fits import needs
from optprof.profiler.simulating.batches import Stream, StreamCache
from optprof.profiler.simulating.fitting_ranks import fit_ranks, least_bytes, on_ranks
from optprof.profiler.tracing.stream import Allocations, Segment
from optprof.scenarios import Scenario, hardware, nccl

# A wide model of few layers is quick to trace.
WIDE = Scenario(
    model="gpt2",
    config={"n_layer": 4, "n_embd": 4096, "n_head": 32, "n_positions": 8, "vocab_size": 999},
    sequence_length=8,
    gpu="rtx3060",
)
# Each block: two norms, queries, keys and values, their projection, and the two layers of the MLP.
WIDTH, LAYERS, WORDS, PLACES = 4096, 4, 999, 8
BLOCK = 12 * WIDTH * WIDTH + 13 * WIDTH
PARAMETERS = WORDS * WIDTH + PLACES * WIDTH + LAYERS * BLOCK + 2 * WIDTH


@pytest.fixture(scope="module", autouse=True)
def _leaves_the_group():
    """Leave the fake group: other tests make real ones."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def search(scenarios: Sequence[Scenario], parallel: str, *counts: int):
    groups = {count: [on_ranks(each, count, parallel) for each in scenarios] for count in counts}
    return fit_ranks(groups, lambda *_: None)


def test_the_fewest_gpus_are_the_first_number_that_a_simulation_fits_on():
    fits = search([WIDE], "fsdp2", 1, 2, 4, 8)
    (need,) = needs(fits)
    assert need.fit is not None
    assert [fit.scenario.ranks for fit in fits] == [1, 2, 4][: len(fits)]
    # AdamW's 16 bytes a parameter: 12.1 GiB plainly, and 6.0 GiB for each of two ranks.
    usable = hardware.describe("rtx3060").usable_bytes
    assert 16 * PARAMETERS > usable > 16 * PARAMETERS / 2
    for fit in fits:
        # A fit repeats the last step until the peak stays the same.
        record = simulate(replace(fit.scenario, steps=4))
        assert record.outcome == ("ok" if fit.fits else "out-of-memory")
        assert record.memory is not None
        if fit.fits:
            assert record.memory.peak_reserved == fit.usable - (fit.left or 0)
    assert fits[0].scenario.parallel is None
    assert not fits[0].fits
    assert need.sure is need.last


def test_a_number_of_ranks_whose_share_is_too_large_is_not_simulated():
    deep = replace(WIDE, config={**WIDE.config, "n_layer": 8})
    fits = search([deep], "fsdp2", 1, 8)
    parameters = PARAMETERS + 4 * BLOCK
    assert [(fit.scenario.ranks, fit.least) for fit in fits] == [(1, 8 * parameters), (8, None)]
    assert fits[0].needed is None
    assert fits[0].spare == fits[0].usable - 8 * parameters
    assert (fits[0].answer, fits[1].fits) == ("fails", True)


@pytest.mark.parametrize(
    ("parallel", "share"),
    [
        ("ddp", 8 * PARAMETERS),
        ("zero1", 8 * PARAMETERS),
        ("fsdp2", 2 * PARAMETERS),
        ("fsdp2+tp:2", 2 * PARAMETERS),
        ("fsdp2:cpu_offload=true", 0),
    ],
)
def test_the_share_of_a_rank_is_a_lower_bound(parallel: str, share: int):
    scenario = on_ranks(WIDE, 4, parallel)
    assert least_bytes(scenario) == share
    memory = simulate(replace(scenario, gpu=None, optimizer="sgd", workload="state")).memory
    assert memory is not None
    assert memory.parameters + memory.gradients >= share


def test_under_zero1_the_rank_with_the_most_state_decides():
    scenario = replace(WIDE, gpu="h200")
    (fit,) = search([scenario], "zero1", 3)
    ranks = simulate(replace(fit.scenario, gpu=None)).ranks
    assert ranks is not None
    assert ranks.elements[fit.scenario.rank] == max(ranks.elements)


def test_blocks_of_different_streams_are_different_streams_of_events():
    events = [Segment("forward", [0, ~0, 1, ~1])]

    def stream(streams: dict[int, int]) -> Stream:
        allocations = Allocations([512, 512], ["gathered"] * 2, streams=streams)
        return Stream(segments=events, last_step=0, allocations=allocations)

    digests = {stream(streams).digest for streams in ({}, {0: 1}, {1: 1}, {0: 1, 1: 1}, {0: 2})}
    assert len(digests) == 5
    assert stream({0: 1}).digest == stream({0: 1}).digest


@pytest.mark.parametrize("parallel", ["fsdp2", "tp:2"])
def test_a_computed_stream_of_a_rank_equals_the_traced_one(parallel: str):
    small = Scenario(model="gpt2", config={"n_layer": 1}, sequence_length=16)
    streams, scenario = StreamCache(), on_ranks(small, 2, parallel)
    for batch in (2, 3, 5):
        streams.of(replace(scenario, batch_size=batch))
    computed = streams.of(replace(scenario, batch_size=23))
    traced = StreamCache().of(replace(scenario, batch_size=23))
    assert [each.events for each in computed.segments] == [each.events for each in traced.segments]
    assert computed.allocations.nbytes == traced.allocations.nbytes
    assert computed.allocations.streams == traced.allocations.streams


def test_nccl_s_range_contains_what_people_measured():
    # The buffers of one connection: 512 KiB, 4.69 MiB and 4 MiB.
    assert nccl.CONNECTION_BYTES == 524_288 + 4_915_200 + 4_194_304
    least, most = nccl.nccl_bytes("fsdp2", 8) or (0, 0)
    assert least == 2 * 9_633_792
    assert most == 32 * 3 * 10 * 2**20
    # 4 A100 with NVLink: 544 and 688 MiB for each group.
    assert least < 544 * 2**20 < 688 * 2**20 < most


@pytest.mark.parametrize(
    ("parallel", "ranks", "groups"),
    [
        (None, 1, 0),
        ("ddp", 8, 1),
        ("fsdp2", 8, 1),
        ("fsdp2", 1, 0),
        ("tp:4", 4, 1),
        ("fsdp2+tp:4", 8, 2),
        ("fsdp2+tp:4", 4, 1),
    ],
)
def test_each_axis_of_the_mesh_is_a_communicator(parallel: str | None, ranks: int, groups: int):
    assert nccl.communicators(parallel, ranks) == groups
    assert (nccl.nccl_bytes(parallel, ranks) is None) == (groups == 0)

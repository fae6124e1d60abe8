"""Timelines, compared with a stream by hand, a second count, and the simulation's record."""

import gzip
import json
import re
from collections import Counter
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch

from optprof.optimizers import available
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.records.store import RunStore, file_name
from optprof.profiler.records.timeline import HeldBlock, Stretch, Timeline, pack, unpack
from optprof.profiler.simulating.replay import play, replay
from optprof.profiler.simulating.sampling import STRETCHES, sample
from optprof.profiler.simulating.simulation import Simulation, run_simulation
from optprof.profiler.tracing.sources import Source
from optprof.profiler.tracing.stream import Allocations, Category, Segment
from optprof.scenarios import Scenario

MIB = 1 << 20


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return run_simulation(Scenario(model="gpt2", optimizer="adamw", sequence_length=64))


@pytest.fixture(scope="module")
def timeline(simulation: Simulation) -> Timeline:
    assert simulation.timeline is not None
    return simulation.timeline


class TwoLayers(torch.nn.Sequential):
    """A model of two layers and their activation, whose forward returns a loss."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input).square().mean()


def two_layers(batch_size: int = 4) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    layers = torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64)
    return TwoLayers(*layers), {"input": torch.zeros(batch_size, 64)}


def by_hand() -> Timeline:
    """Return a step of a 4 MiB parameter, a 3 MiB activation, and 12 and 14 MiB temporaries."""
    allocations = Allocations(
        [4 * MIB, 3 * MIB, 12 * MIB, 14 * MIB],
        ["parameter", "activation", "temporary", "temporary"],
        [Source("w"), Source("layer", "aten::mm", "model.py:3"), Source(), Source()],
    )
    segments = [Segment("build", [0]), Segment("forward", [1]), Segment("step", [2, ~2, 3, ~3, ~1])]
    return sample(segments, [range(1, 3)], allocations, replay(segments, allocations, ()))


def test_a_stream_counted_by_hand():
    timeline = by_hand()
    assert timeline.phases == (
        Stretch(step=1, phase="forward", events=1, samples=2),
        Stretch(step=1, phase="step", events=5, samples=6),
    )
    assert timeline.places == (0, 1, 0, 1, 2, 3, 4, 5)
    assert timeline.categories == {
        "parameter": (4 * MIB,) * 8,
        "activation": (0, *(3 * MIB,) * 6, 0),
        # 12 MiB get the 13 that are left of the segment: a rest of 1 MiB is not split off.
        "temporary": (0, 0, 0, 13 * MIB, 0, 14 * MIB, 0, 0),
    }
    # 4, 3 and 12 MiB lie in one segment of 20; 14 MiB have their own segment.
    assert timeline.reserved == (*(20 * MIB,) * 5, *(34 * MIB,) * 3)
    assert timeline.fragmentation == (
        16 * MIB,
        13 * MIB,
        13 * MIB,
        0,
        13 * MIB,
        13 * MIB,
        27 * MIB,
        30 * MIB,
    )
    assert (timeline.peak, timeline.peak_allocated, timeline.peak_stretch.phase) == (
        5,
        21 * MIB,
        "step",
    )
    assert [
        (block.category, block.block_bytes, block.phase, block.step) for block in timeline.largest
    ] == [
        ("temporary", 14 * MIB, "step", 1),
        ("parameter", 4 * MIB, "build", 0),
        ("activation", 3 * MIB, "forward", 1),
    ]
    assert timeline.largest[2].module == "layer"
    assert timeline.largest[2].op == "aten::mm"


def test_the_groups_of_a_peak_counted_by_hand():
    """Three layers of two tensors and an activation each, an optimizer's state, and a workspace."""
    sources = [
        *(Source(f"layers.{number}.{tensor}") for number in range(3) for tensor in ("w", "b")),
        *(Source(f"layers.{number}", "aten::mm", "model.py:3") for number in range(3)),
        Source("exp_avg of layers.0.w", "aten::zeros_like", "optimizer.py:9"),
        Source("", "aten::mul", "optimizer.py:10"),
    ]
    categories: list[Category] = ["parameter"] * 6
    categories.extend(["activation", "activation", "activation", "optimizer_state", "temporary"])
    sizes = [4 * MIB, 100] * 3 + [2 * MIB] * 3 + [4 * MIB, 12 * MIB]
    classes = {"": "Model", "layers": "ModuleList", **{f"layers.{n}": "Linear" for n in range(3)}}
    allocations = Allocations(sizes, categories, sources, classes=classes)
    segments = [
        Segment("build", [*range(6)]),
        Segment("forward", [6, 7, 8]),
        Segment("backward", [~7]),
        Segment("step", [9, 10, ~10]),
    ]
    timeline = sample(segments, [range(1, 4)], allocations, replay(segments, allocations, ()))
    linear = "Linear", "layers.*"
    assert {
        (*astuple(group.source), group.phase): (group.blocks, group.nbytes)
        for group in timeline.groups
    } == {
        ("parameter", "Linear", "layers.*.w", "", "", "build"): (3, 12 * MIB),
        # A block of 100 bytes is rounded to 512.
        ("parameter", "Linear", "layers.*.b", "", "", "build"): (3, 3 * 512),
        ("activation", *linear, "aten::mm", "model.py:3", "forward"): (2, 4 * MIB),
        (
            *("optimizer_state", "Linear", "exp_avg of layers.*.w", "aten::zeros_like"),
            *("optimizer.py:9", "step"),
        ): (1, 4 * MIB),
        ("temporary", "", "", "aten::mul", "optimizer.py:10", "step"): (1, 12 * MIB),
    }
    assert [group.nbytes for group in timeline.groups] == sorted(
        (group.nbytes for group in timeline.groups), reverse=True
    )
    # The moments of forward, backward and step: each begins without an event.
    assert [(event > 0) - (event < 0) for event in timeline.events] == [
        *(0, 1, 1, 1),
        *(0, -1),
        *(0, 1, 1, -1),
    ]
    modules = [(source and source.module) for source in map(timeline.source_at, range(10))]
    assert modules[1:4] == ["layers.0", "layers.1", "layers.2"]
    assert modules[5] == "layers.1"
    assert modules[6:8] == [None, "exp_avg of layers.0.w"]
    assert unpack(pack(timeline)) == timeline


def test_what_exceeds_the_groups_of_a_timeline_is_one_group_of_its_category(monkeypatch: Any):
    monkeypatch.setattr("optprof.profiler.simulating.explaining.GROUPS", 2)
    categories: list[Category] = ["parameter", "parameter", "parameter", "input", "input"]
    sizes = [(5 - number) * MIB for number in range(5)]
    allocations = Allocations(sizes, categories, [Source(name) for name in "abcde"])
    segments = [Segment("build", [0, 1, 2, 3, 4]), Segment("forward", [])]
    timeline = sample(segments, [range(1, 2)], allocations, replay(segments, allocations, ()))
    assert [
        (group.source.category, group.source.module, group.phase, group.blocks, group.nbytes)
        for group in timeline.groups
    ] == [
        ("parameter", "a", "build", 1, 5 * MIB),
        ("parameter", "b", "build", 1, 4 * MIB),
        ("parameter", "", "", 1, 3 * MIB),
        ("input", "", "", 2, 3 * MIB),
    ]
    assert unpack(pack(timeline)) == timeline


def test_the_groups_of_every_optimizer_add_up_to_its_peak():
    """The sums of each category too, to the byte.

    Those of other packages are left out: their import takes longer than this file's tests.
    """
    for name in available("optprof", "torch"):
        scenario = Scenario(model=f"{__name__}:two_layers", optimizer=name, implementation="loop")
        simulation = run_simulation(scenario)
        timeline, memory = simulation.timeline, simulation.record.memory
        assert timeline is not None, name
        assert memory is not None, name
        assert sum(group.nbytes for group in timeline.groups) == memory.peak_allocated, name
        by_category: Counter[str] = Counter()
        for group in timeline.groups:
            by_category[group.source.category] += group.nbytes
        assert by_category == memory.peak_by_category, name
        assert all(group.blocks and group.nbytes for group in timeline.groups), name


def test_a_sample_names_the_block_of_its_event(simulation: Simulation, timeline: Timeline):
    sources, categories = simulation.allocations.sources, simulation.allocations.categories
    segments = (
        segment
        for segment, stretch in zip(simulation.segments[2:], timeline.phases, strict=True)
        for _ in range(stretch.samples)
    )
    for number, (segment, count) in enumerate(zip(segments, timeline.places, strict=True)):
        source = timeline.source_at(number)
        if not count:
            assert source is None
            continue
        event = segment.events[count - 1]
        allocation = ~event if event < 0 else event
        assert (timeline.events[number] < 0) == (event < 0)
        assert source is not None
        assert (source.category, source.module, source.op, source.line) == (
            categories[allocation],
            *sources[allocation],
        )
    classes = {(source.module, source.module_class) for source in timeline.sources}
    assert ("transformer.h.*.attn.c_attn", "Conv1D") in classes
    assert ("exp_avg of transformer.h.*.ln_1.weight", "LayerNorm") in classes
    # The loss belongs to no module, and neither does the step's arithmetic.
    assert {kind for module, kind in classes if not module} == {""}


def test_the_peak_is_the_record_s(simulation: Simulation, timeline: Timeline):
    memory = simulation.record.memory
    assert memory is not None
    assert timeline.peak_allocated == memory.peak_allocated
    assert timeline.peak_stretch.phase == memory.peak_phase
    assert {
        name: column[timeline.peak]
        for name, column in timeline.categories.items()
        if column[timeline.peak]
    } == memory.peak_by_category
    assert max(timeline.reserved) == memory.peak_reserved
    assert min(timeline.fragmentation) >= 0


def test_every_sample_is_what_the_allocator_holds_at_that_event(
    simulation: Simulation, timeline: Timeline
):
    """Replay every event again and compare with the allocator's own counters."""
    allocator, blocks, course = CachingAllocator(), {}, {}
    for place, segment in enumerate(simulation.segments):
        course[place, 0] = allocator.allocated_bytes, allocator.reserved_bytes
        for count, _ in enumerate(
            play(segment, simulation.allocations, allocator, blocks), start=1
        ):
            course[place, count] = allocator.allocated_bytes, allocator.reserved_bytes
    # The two builds come before the first step; two steps are traced and both are shown.
    segments = [
        place
        for place, stretch in enumerate(timeline.phases, start=2)
        for _ in range(stretch.samples)
    ]
    samples = list(zip(segments, timeline.places, strict=True))
    assert [course[sample] for sample in samples] == list(
        zip(timeline.allocated, timeline.reserved, strict=True)
    )
    for place in dict.fromkeys(segments):
        whole = [allocated for (at, _), (allocated, _) in course.items() if at == place]
        sampled = [
            allocated
            for at, allocated in zip(segments, timeline.allocated, strict=True)
            if at == place
        ]
        assert (max(sampled), min(sampled)) == (max(whole), min(whole))


def test_a_thinned_timeline_keeps_the_summit_and_the_valley_of_every_stretch():
    """100,000 events: teeth of 1 MiB, except one of 7 MiB, and one gap."""
    sizes = [MIB + 512] * 50_000
    sizes[31_234] = 7 * MIB
    categories: list[Category] = ["temporary"] * 50_001
    allocations = Allocations([2 * MIB, *sizes], categories, [Source()] * 50_001)
    teeth = [event for number in range(1, 50_001) for event in (number, ~number)]
    segments = [Segment("build", [0]), Segment("step", teeth)]
    timeline = sample(segments, [range(1, 2)], allocations, replay(segments, allocations, ()))
    assert len(timeline.places) < 3 * STRETCHES
    assert timeline.peak_allocated == 9 * MIB
    assert timeline.places[timeline.peak] == 2 * 31_234 + 1
    assert min(timeline.allocated) == 2 * MIB
    size = 100_001 // STRETCHES + 1
    for first in range(0, 100_001, size):
        levels = {
            nbytes
            for place, nbytes in zip(timeline.places, timeline.allocated, strict=True)
            if first <= place < first + size
        }
        assert len(levels) >= 2 or first + size > 100_000


def test_the_first_and_the_last_step_are_shown_and_the_highest_one():
    sizes = [2 * MIB, 8 * MIB, 2 * MIB, 2 * MIB]
    allocations = Allocations(sizes, ["temporary"] * 4, [Source()] * 4)
    segments = [Segment("build", []), *(Segment("step", [number, ~number]) for number in range(4))]
    steps = [range(place, place + 1) for place in range(1, 5)]
    timeline = sample(segments, steps, allocations, replay(segments, allocations, ()))
    assert [stretch.step for stretch in timeline.phases] == [1, 2, 4]
    assert timeline.peak_stretch.step == 2
    assert timeline.reserved[-1] == 20 * MIB


def test_the_largest_blocks_name_their_sources(timeline: Timeline):
    blocks = timeline.largest
    assert len(blocks) == 10
    assert [block.block_bytes for block in blocks] == sorted(
        (block.block_bytes for block in blocks), reverse=True
    )
    embedding = 50_257 * 768 * 4
    assert {
        (block.category, block.module, block.op)
        for block in blocks
        if block.requested_bytes == embedding
    } == {
        ("parameter", "transformer.wte.weight", ""),
        ("gradient", "transformer.wte", "aten::add"),
        ("optimizer_state", "exp_avg of transformer.wte.weight", "aten::zeros_like"),
        ("optimizer_state", "exp_avg_sq of transformer.wte.weight", "aten::zeros_like"),
        ("temporary", "", "aten::_foreach_sqrt"),
    }


def test_a_file_gives_back_what_was_written_and_is_small(timeline: Timeline):
    file = pack(timeline)
    assert unpack(file) == timeline
    assert pack(timeline) == file
    assert len(file) < 100_000


def test_a_run_folder_keeps_a_timeline_for_each_scenario(
    tmp_path: Any, simulation: Simulation, timeline: Timeline
):
    store, scenario = (
        RunStore.create(tmp_path / "run"),
        Scenario(model="a:b/../c", optimizer="sm3", options={"momentum": 0.9}),
    )
    records = [
        replace(simulation.record, scenario=each) for each in (scenario, replace(scenario, seed=1))
    ]
    assert store.read_timelines(records) == {}
    store.write_timeline(scenario, timeline)
    assert store.read_timelines(records) == {file_name(scenario): timeline}
    assert [path.name for path in store.timelines_path.iterdir()] == [
        f"{file_name(scenario)}.json.gz"
    ]
    # No file name reveals the folders of a factory.
    assert re.match("a-c-[0-9a-f]{4}-sm3-", file_name(scenario))


def test_an_older_file_has_no_groups_and_no_events(timeline: Timeline):
    data = json.loads(gzip.decompress(pack(timeline)))
    for name in ("groups", "sources", "events", "numbers", "layers"):
        del data[name]
    older = unpack(gzip.compress(json.dumps(data).encode()))
    assert older == replace(timeline, groups=(), sources=(), events=(), layers=())
    assert older.source_at(1) is None


def packed(**changes: Any) -> bytes:
    data = json.loads(gzip.decompress(pack(by_hand())))
    return gzip.compress(json.dumps(data | changes).encode())


BROKEN = {
    "no gzip": (b"hello", "not a timeline"),
    "cut off": (pack(by_hand())[:-20], "not a timeline"),
    "no JSON": (gzip.compress(b"{"), "not a timeline"),
    "another kind": (gzip.compress(b"[]"), "schema 1"),
    "another schema": (packed(schema=2), "schema 1"),
    "a bomb": (gzip.compress(b"[" + b" " * (20 << 20) + b"]"), "at most"),
    "a short column": (packed(reserved=[1]), "8 samples"),
    "a column below zero": (packed(places=[0, 1, -1, 1, 1, 1, 1, -5]), "below 0"),
    "a number that is none": (packed(peak=True), "whole number"),
    "a fraction": (packed(reserved=[0.5] * 8), "whole number"),
    "a peak that is not the highest sample": (packed(peak=0), "is not the highest"),
    "a peak out of range": (packed(peak=99), "is not the highest"),
    "phases that are none": (packed(phases=[["forward"]]), "not a timeline"),
    "too many phases": (
        packed(phases=[[1, "forward", 0, 0]] * 30_000 + [[1, "step", 8, 8]]),
        "at most",
    ),
    "blocks of another shape": (packed(largest=[{"module": "x"}]), "not a timeline"),
    "groups that do not add up": (packed(groups=[[0, "build", 1, MIB]]), "groups have .* bytes of"),
    "a group of no source": (packed(groups=[[9, "build", 1, 21 * MIB]]), "names number 9"),
    "a count below zero": (packed(groups=[[0, "build", -1, 21 * MIB]]), ">= 0"),
    "too few events": (packed(events=[0, 1]), "8 samples and 2 events"),
    "an event of no source": (packed(events=[0, 9, 0, 0, 0, 0, 0, 0]), "names none"),
    "layers of no text": (packed(layers=[7, 0, 0, 0, 0, 0, 0, 0]), "names number 7"),
    "a source of four texts": (packed(sources=[["a", "b", "c", "d"]]), "not a timeline"),
    "no categories": (packed(categories={}), "is not the highest"),
    "a name that is none": (packed(phases=[[1, 7, 8, 8]]), "a text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_no_timeline_is_one_clear_line(name: str):
    broken, words = BROKEN[name]
    with pytest.raises(ValueError, match=words) as caught:
        unpack(broken)
    assert "\n" not in str(caught.value)


def test_a_block_that_holds_no_texts_is_refused():
    blocks = [HeldBlock(**{**vars(by_hand().largest[0]), "module": 3})]
    with pytest.raises(ValueError, match="a text"):
        unpack(packed(largest=[vars(block) for block in blocks]))


def test_a_scenario_without_steps_has_no_timeline():
    assert run_simulation(Scenario(model="gpt2", workload="state")).timeline is None

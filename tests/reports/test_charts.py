"""Charts and tables of the page: their numbers, from records whose sums can be checked on paper."""

import json
import math
from dataclasses import replace

import pytest

from optprof.profiler.records.record import Level, StateBlocks, StepOperation, Watched
from optprof.profiler.records.store import file_name
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.provenance import provenance
from optprof.reports.pictures import pareto, peaks, savings, sizes, step_sizes, timelines
from optprof.reports.pictures.charts import Chart
from optprof.reports.pictures.scales import (
    Scale,
    linear_ticks,
    log_ticks,
    round_count_text,
    round_seconds_text,
)
from optprof.reports.tables.capacity import capacity_tables
from optprof.reports.tables.data import data_rows, memory_table, step_table
from optprof.reports.tables.heat_map import heat_map
from optprof.reports.tables.sight import sight_tables
from optprof.reports.tables.table import bytes_cell
from optprof.reports.tables.watched import watched_tables
from optprof.reports.units import DECIMAL, NOTHING, TIMES, Sized, bytes_text, gib_text

GIB = 2**30


def chart_of(module, findings):
    (picture,) = module.describe(findings)
    return Chart.of(picture)


def test_sizes_read_in_powers_of_1000_too():
    assert gib_text(12_460_891_920, DECIMAL) == "12.461"
    assert bytes_text(1_000_000, DECIMAL) == "1.00 MB"
    assert Sized.of(lambda units: bytes_text(1024, units)) == Sized(
        binary="1.00 KiB", decimal="1.02 kB"
    )
    assert bytes_cell(GIB).decimal == "1.074 GB"
    assert bytes_cell(GIB).value == GIB
    assert bytes_cell(None).text == NOTHING


def test_the_batch_of_the_user_s_factory_is_not_named(simulated):
    assert "batch 1" in Findings.of([simulated("adamw")]).context
    own = Findings.of([simulated("adamw", model="module:factory", sequence_length=None)])
    assert "batch" not in own.context
    assert (
        "batch 8" in Findings.of([simulated("adamw", model="module:factory", batch_size=8)]).context
    )


def test_a_step_time_is_compared_with_the_baseline_s(simulated, timed):
    records = [
        simulated("adamw"),
        simulated("sm3"),
        timed("adamw", step=(0.1, 0.2, 0.4)),
        timed("sm3", step=(0.2, 0.4, 0.8)),
    ]
    ((entry, ratio),) = Findings.of(records).paces
    assert (entry.label, ratio.value, ratio.low) == ("sm3", 2.0, None)
    other = [replace(records[3], scenario=replace(records[3].scenario, implementation="foreach"))]
    assert Findings.of(records[:3] + other).paces == []
    ways = [
        simulated(name, implementation=way)
        for name in ("adamw", "sm3")
        for way in ("foreach", "loop")
    ]
    ratios = Findings.of([*ways, *records[2:], *other]).paces
    assert [(entry.label, ratio.value) for entry, ratio in ratios] == [("sm3, loop", 2.0)]
    enough = [
        simulated("adamw"),
        timed("adamw", step=(1.0,) * 6),
        simulated("sm3"),
        timed("sm3", step=(3.0,) * 6),
    ]
    assert (
        step_table(Findings.of(enough), "cpu").rows[1][5].text
        == f"3.00{TIMES} (3.00{TIMES} {NOTHING} 3.00{TIMES})"
    )


def test_the_heat_map_has_factor_and_per_cent(simulated):
    records = [
        simulated("adamw"),
        simulated("sgd-sai"),
        simulated("prodigy", state=16_000),
        simulated("adamw", model="large"),
    ]
    table = heat_map(Findings.of(records))
    assert table.head == ("model", "adamw", "sgd-sai", "prodigy")
    (tiny, *cells), (large, *alone) = table.rows
    assert (tiny.text, large.text) == ("tiny", "large")
    assert [(cell.text, cell.remark, (cell.shade or 0) >= 0) for cell in cells] == [
        (f"1.00{TIMES}", "the baseline", True),
        (f"2.00{TIMES}", "50.0 %", True),
        (f"0.50{TIMES}", "\u2212100 %", False),
    ]
    assert [abs(cell.shade or 0) for cell in cells[1:]] == [pytest.approx(25.17, abs=0.01)] * 2
    assert cells[1].exact == "4,000 bytes, 4,000 bytes less"
    assert [cell.text for cell in alone[1:]] == [NOTHING, NOTHING]
    assert heat_map(Findings.of([simulated("adamw")])).rows == ()


def test_bars_are_shares_of_the_baseline(simulated):
    (group,) = chart_of(savings, Findings.of([simulated("adamw"), simulated("sgd-sai")])).groups
    assert [bar.parts[1].width for bar in group.bars] == [100, 50]
    assert [place for place, _ in group.ticks] == [0, 25, 50, 75, 100]
    small = Findings.of([simulated("adamw"), simulated("sm3")], baseline="sm3")
    (group,) = chart_of(savings, small).groups
    assert [text for _, text in group.ticks] == ["0", f"500{TIMES}", f"1,000{TIMES}"]


def test_a_peak_is_stacked_in_the_scale_of_the_largest(simulated):
    chart = chart_of(peaks, Findings.of([simulated("adamw")]))
    (bar,) = chart.groups[0].bars
    # 2 MiB are reserved, 0.00195 GiB, in rows of 0.002. Parameters, gradients and temporaries take
    # 4,000 bytes each, the state 8,000.
    assert [part.width for part in bar.parts] == pytest.approx(
        [100 * count / (0.002 * GIB) for count in (4_000, 4_000, 8_000, 4_000)]
    )
    assert bar.outline == pytest.approx(97.66, abs=0.01)
    assert [place for place, _ in chart.groups[0].ticks] == pytest.approx([0, 25, 50, 75, 100])
    assert [key.text for key in chart.keys][-3] == "reserved, not allocated"


def test_a_graph_has_exact_bytes_and_is_json(simulated):
    findings = Findings.of(
        [
            simulated("adamw"),
            simulated("sm3"),
            simulated("adamw", model="b", parameter_count=2_000, state=16 * GIB),
        ]
    )
    (graph,) = chart_of(sizes, findings).graphs
    assert json.loads(json.dumps(graph.data, allow_nan=False))
    adamw = next(trace for trace in graph.data["traces"] if trace.get("label") == "adamw")
    assert adamw["x"] == [1_000, 2_000]
    assert adamw["y"] == {"bytes": [8_000, 16 * GIB]}
    named = [trace["text"][0] for trace in graph.data["traces"] if "text" in trace]
    assert named == ["16 GB GPU", "24 GB GPU", "40 GB GPU", "80 GB GPU"]
    # The least of the class, which is the L4.
    (level,) = (each for each in graph.data["traces"] if each.get("text", [""])[0] == "24 GB GPU")
    assert level["y"] == {"bytes": [23_612_293_120] * 2}
    assert "rtx4090" in level["hovertext"]["binary"]


def test_a_timeline_keeps_its_peak_and_its_bands(simulated, timeline):
    record = simulated("adamw")
    findings = Findings.of([record], {file_name(record.scenario): timeline})
    (graph,) = chart_of(timelines, findings).graphs
    traces = graph.data["traces"]
    assert traces[-2]["y"] == {"bytes": [6 * GIB]}
    assert [band["name"] for band in graph.data["bands"]] == ["forward", "backward", "step"]
    areas = [trace for trace in traces if trace.get("stackgroup")]
    assert {len(trace["x"]) for trace in areas} == {len(areas[0]["y"]["bytes"])}
    assert max(map(sum, zip(*(trace["y"]["bytes"] for trace in areas), strict=True))) == 6 * GIB


def test_a_measured_record_has_the_timeline_of_its_simulation(simulated, timeline):
    traced, measured = simulated("adamw"), simulated("adamw", device="cuda", origin="measured")
    findings = Findings.of([traced, measured], {file_name(traced.scenario): timeline})
    assert findings.entries[0].origin == "measured"
    assert [course.record.origin for course in findings.courses] == ["simulated"]


def test_time_is_drawn_against_size_and_memory_if_both_have_two_values(simulated, timed):
    timings = [
        replace(timed("adamw", model=name), parameter_count=count)
        for name, count in (("tiny", 1_000), ("large", 5_000))
    ]
    one = Findings.of([simulated("adamw"), timings[0]])
    assert step_sizes.describe(one) == []
    assert pareto.describe(one) == []
    chart = chart_of(step_sizes, Findings.of([simulated("adamw"), *timings]))
    assert [trace["x"] for trace in chart.graphs[0].data["traces"]] == [[1_000], [5_000]]
    both = [simulated("adamw"), simulated("sm3"), timed("adamw"), timed("sm3", step=(1.0,))]
    front = chart_of(pareto, Findings.of(both)).graphs[0].data["traces"][0]
    assert front["x"] == [0.2, 1.0]
    assert front["y"] == {"bytes": [20_000, 12_008]}


def test_a_state_of_0_bytes_is_in_the_table_and_not_on_the_logarithmic_axis(simulated, timed):
    records = [
        simulated(name, state=state, workload="state")
        for name, state in (("adamw", 8_000), ("sgd", 0))
    ]
    records += [
        replace(timed(name), scenario=replace(timed(name).scenario, workload="state"))
        for name in ("adamw", "sgd")
    ]
    chart = chart_of(pareto, Findings.of(records))
    assert [row[0].text for row in chart.table.rows] == ["adamw", "sgd"]
    assert chart.notes[0] == "Not on the logarithmic axis, because the state has 0 bytes: sgd."
    assert pareto.describe(Findings.of(records[1::2])) == []


def test_a_mark_is_filled_only_if_time_and_bytes_were_measured(simulated, timed):
    def origins(*records):
        return [point.shown_origin for point in Findings.of(records).tradeoffs]

    assert origins(simulated("adamw"), timed("adamw")) == ["simulated"]
    assert origins(simulated("adamw", device="cuda", origin="measured"), timed("adamw")) == [
        "measured"
    ]
    assert origins(
        simulated("adamw", device="cuda", origin="measured"), timed("adamw", share=0.5)
    ) == ["estimated"]


def test_ticks_are_round():
    counts = log_ticks([124_000_000, 1_560_000_000])
    assert list(map(round_count_text, counts)) == [
        "100 M",
        "200 M",
        "500 M",
        "1 B",
        "2 B",
    ]
    assert list(map(round_seconds_text, log_ticks([0.003, 0.09]))) == [
        "2 ms",
        "5 ms",
        "10 ms",
        "20 ms",
        "50 ms",
        "100 ms",
    ]
    assert log_ticks([0.001, 9]) == [0.001, 0.01, 0.1, 1.0, 10.0]
    assert log_ticks([1.0]) == [0.5, 1.0, 2.0]
    assert log_ticks([2.07, 3.0]) == [2.0, 2.2, 2.4, 2.6, 2.8, 3.0]
    assert linear_ticks([0, 0.3]) == [0.0, 0.1, 0.2, 0.3]
    assert linear_ticks([1.9, 7.1]) == [0.0, 2.0, 4.0, 6.0, 8.0]
    # Two runs of a history.
    assert linear_ticks([1, 2]) == [1.0, 2.0]
    assert Scale.of(0.1, 0.3).ticks[1] == (pytest.approx(100 / 3), "100 ms")
    assert [text for _, text in Scale.of(0.01, 2.0).ticks] == [
        "10 ms",
        "20 ms",
        "50 ms",
        "100 ms",
        "200 ms",
        "500 ms",
        "1 s",
        "2 s",
    ]


def test_ticks_enclose_all_values():
    for low, high in ((1e-6, 2e-6), (0.9, 31), (7, 7), (1.23e6, 7e10), (0.3, 0.31)):
        for ticks in (log_ticks([low, high]), linear_ticks([low, high]), linear_ticks([0, high])):
            assert ticks[0] <= low
            assert ticks[-1] >= high
            assert 2 <= len(ticks) <= 12


def test_an_axis_says_its_scale_and_its_ticks_enclose_the_data(simulated):
    records = [
        simulated(name, model=model, parameter_count=count, state=state)
        for model, count in (("small", 1_300), ("large", 77_000))
        for name, state in (("adamw", 3 * GIB), ("sm3", 5_000))
    ]
    (graph,) = chart_of(sizes, Findings.of(records)).graphs
    axes = [graph.data["layout"][name] for name in ("xaxis", "yaxis")]
    x, y = axes
    assert x["title"]["text"] == "parameters of the model, log scale"
    assert y["title"]["text"] == {
        "binary": "GiB of state, log scale",
        "decimal": "GB of state, log scale",
    }
    assert x["linear"]["title"]["text"] == "parameters of the model, linear scale"
    for ticks, low, high in (
        (x["tickvals"], 1_300, 77_000),
        (x["linear"]["tickvals"], 1_300, 77_000),
        (y["tickvals"]["binary"], 5_000 / GIB, 3),
        (y["tickvals"]["decimal"], 5_000 / 1e9, 3 * GIB / 1e9),
        (y["linear"]["tickvals"]["decimal"], 0, 3 * GIB / 1e9),
    ):
        assert ticks[0] <= low < high <= ticks[-1]


def test_data_rows_are_exact_and_drop_nothing(simulated, timed):
    lost = simulated("lamb16", memory=None, outcome="out-of-memory", error="needs more")
    findings = Findings.of([simulated("adamw"), timed("adamw", step=(0.3, 0.1, 0.2)), lost])
    first, last = data_rows(findings)
    assert (first["state_bytes"], first["peak_allocated_bytes"], first["step_seconds"]) == (
        8_000,
        20_000,
        0.2,
    )
    assert (last["optimizer"], last["outcome"], last["error"], last["state_bytes"]) == (
        "lamb16",
        "out-of-memory",
        "needs more",
        None,
    )
    assert list(first) == list(last)
    table = memory_table(findings)
    assert [row[0].text for row in table.rows] == ["adamw", "lamb16"]
    assert {len(row) for row in table.rows} == {len(table.head)}


def test_a_model_whose_scenarios_all_failed_is_named_everywhere(simulated):
    lost = simulated(
        "adamw", model="large", dtype="bf16", memory=None, outcome="failed", error="no"
    )
    findings = Findings.of([simulated("adamw"), lost])
    assert findings.models == ["tiny", "large"]
    assert "fp32" not in findings.context
    table = memory_table(findings)
    assert [row[table.head.index("model")].text for row in table.rows] == ["tiny", "large"]
    assert [row["setting"] for row in data_rows(findings)] == [
        "fp32 · batch 1 · 16 tokens",
        "bf16 · batch 1 · 16 tokens",
    ]
    twice = Findings.of(
        [
            simulated("adamw"),
            simulated("adamw", dtype="bf16", memory=None, outcome="failed", error="no"),
        ]
    )
    assert [row[1].text for row in memory_table(twice).rows] == ["tiny · fp32", "tiny · bf16"]
    assert [group.name for group in chart_of(peaks, findings).groups] == ["tiny"]


def test_models_of_one_name_and_several_sizes_are_all_within_the_axis(simulated):
    parts = [
        simulated("sm3", config={"parameters": count}, parameter_count=count, model_family=None)
        for count in (9_000, 100)
    ]
    other = simulated("sm3", model="other", parameter_count=100, model_family=None)
    (graph,) = chart_of(sizes, Findings.of([*parts, other])).graphs
    low, high = graph.data["layout"]["xaxis"]["range"]
    assert low < 2 < math.log10(9_000) < high
    assert graph.data["columns"] == [(9_000, "tiny"), (100, "tiny, other")]


def test_columns_of_ranges_are_sorted_by_their_first_number(simulated, timed):
    step = (0.9, 1.0, 1.1, 1.2, 1.3, 1.4)
    times = {"step": step, "iteration": (2.0,)}
    long, short = (
        timed("adamw", times=each, watched=Watched(tokens=32))
        for each in (times, {"step": (10.0, 9.0)})
    )
    table = step_table(Findings.of([simulated("adamw"), long]), "cpu")
    first = dict(zip(table.head, table.rows[0], strict=True))
    assert (first["95 % interval"].value, first["quartiles"].value, first["training"].value) == (
        0.9,
        pytest.approx(1.025),
        16.0,
    )
    brief = step_table(Findings.of([simulated("adamw"), short]), "cpu")
    second = dict(zip(table.head, brief.rows[0], strict=False))
    assert (second["95 % interval"].value, second["quartiles"].value) == (None, 9.25)


def test_capacity_tables_show_the_bytes_left_or_short(simulated):
    record = simulated("adamw")
    assert record.memory is not None
    large = replace(
        record, memory=replace(record.memory, peak_allocated=30 * GIB, peak_reserved=31 * GIB)
    )
    table = capacity_tables(Findings.of([large]))["tiny"]
    cells = {row[0].text: row[2] for row in table.rows}
    # The catalogue's memory less 512 MiB and 31 GiB.
    assert cells["a100-40"].text == "\u2713 7.894 GiB"
    assert cells["rtx3090"].text == "\u2717 7.809 GiB"
    assert cells["v100-32"].text == "\u2248 238 MiB"
    assert cells["rtx5090"].text == "? 139 MiB"
    assert cells["rtx5090"].exact.endswith("short")


def test_the_largest_batch_that_fits_or_was_tried_is_named(simulated):
    def largest(**reserved: int):
        records = [simulated("adamw", batch_size=int(batch[1:])) for batch in reserved]
        sizes = zip(records, reserved.values(), strict=True)
        sized = [
            replace(each, memory=replace(each.memory, peak_allocated=size, peak_reserved=size))
            for each, size in sizes
        ]
        table = next(iter(capacity_tables(Findings.of(sized)).values()))
        return next(row[2].text for row in table.rows if row[0].text == "t4").partition(", ")[2]

    assert largest(b1=GIB) == ""
    assert largest(b1=GIB, b4=2 * GIB) == "batch at least 4"
    assert largest(b1=GIB, b4=2 * GIB, b16=16 * GIB) == "batch at least 4, below 16"
    assert largest(b4=2 * GIB, b5=16 * GIB) == "batch 4"
    assert largest(b1=16 * GIB) == ""


def test_counters_are_shown_side_by_side(simulated):
    findings = Findings.of([simulated("adamw"), simulated("sgd-sai")])
    ((sentence, table),) = sight_tables(findings).values()
    assert [(head, cell.value) for head, cell in zip(table.head, table.rows[1], strict=True)] == [
        ("optimizer", None),
        ("state", 4_000),
        ("state as allocated", 4_512),
        ("peak allocated", 16_000),
        ("in", None),
        ("peak reserved", 2**21),
        ("driver, estimated", 2**21 + 2**29),
        ("state saved", 4_000),
        ("peak lower by", 4_000),
        ("reserved lower by", 0),
        ("foreach adds", 4_000),
    ]
    assert isinstance(sentence, Sized)
    assert sentence.binary == (
        "sgd-sai keeps 3.91 KiB less state than adamw: its allocated peak is 3.91 KiB lower, its"
        " reserved peak as high; both peaks lie in step."
    )


def test_the_measurements_of_a_real_run_are_in_tables(simulated):
    watched = Watched(
        memory={
            "forward": {
                "allocated": Level(end=GIB, peak=2 * GIB),
                "reserved": Level(end=3 * GIB, peak=3 * GIB),
            }
        },
        state_blocks=StateBlocks(tensors=8_004, on_host=4, rounding=192, delta=9_216),
        operations=(StepOperation(name="_foreach_mul_", calls=4, seconds=0.002, bytes=None),),
    )
    tables = watched_tables(
        Findings.of(
            [
                simulated("adamw", device="cuda", origin="measured", watched=watched),
                simulated("sm3"),
            ]
        )
    )
    assert list(tables) == [
        "Memory by phase on CUDA",
        "What the first step left allocated",
        "The longest operations of a step",
    ]
    phases, blocks, operations = tables.values()
    assert phases.head[2:] == (
        "phase",
        "allocated at its end",
        "most allocated",
        "most reserved",
    )
    assert [cell.value for cell in phases.rows[0][3:]] == [GIB, 2 * GIB, 3 * GIB]
    assert [cell.value for cell in blocks.rows[0][2:]] == [8_004, 4, 192, 8_192, 1_024, 9_216]
    assert [cell.text for cell in operations.rows[0][2:]] == [
        "_foreach_mul_",
        "4",
        "2.00 ms",
        NOTHING,
    ]
    assert watched_tables(Findings.of([simulated("adamw")])) == {}


def test_noise_ranges_from_the_narrowest_interval_to_the_widest(timed):
    records = [
        timed("adamw", step=(0.9, 1.0, 1.0, 1.0, 1.0, 1.1)),
        timed("sm3", step=(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)),
    ]
    assert (
        dict(provenance(records))["noise"]
        == "95 % intervals of the step's median reach 0 % to 10.0 % to the longer side"
    )
    assert "noise" not in dict(provenance([timed("adamw")]))

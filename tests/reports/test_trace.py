"""Traces of torch.profiler: sums that torch counts itself, and small traces worked out by hand."""

import gzip
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner, Result

from optprof.cli.app import app
from optprof.profiler.records import traces
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore, file_name
from optprof.profiler.records.traces import read_trace
from optprof.reports import print_trace, read_traces, write_trace
from optprof.reports.arithmetic.trace import Trace
from optprof.reports.arithmetic.trace_rules import rules
from optprof.reports.units import TIMES

MILLI = 1e-3
HOST, DEVICE = 1, 7


def event(cat: str, name: str, start: float, end: float, **args: Any) -> dict[str, Any]:
    """An event of a trace whose times are given in milliseconds."""
    tid = DEVICE if cat in ("kernel", "gpu_memcpy") else HOST
    place = {"pid": 1, "tid": tid, "ts": 1000.0 * start, "dur": 1000.0 * (end - start)}
    return {"ph": "X", "cat": cat, "name": name, **place, "args": args}


def launch(number: int, at: float) -> dict[str, Any]:
    return event("cuda_runtime", "cudaLaunchKernel", at, at + 0.1, correlation=number)


def kernel(number: int, name: str, start: float, end: float, **args: Any) -> dict[str, Any]:
    return event("kernel", name, start, end, correlation=number, device=0, **args)


def memory(at: float, allocated: int, reserved: int = 0, kind: int = 1) -> dict[str, Any]:
    counts = {"Total Allocated": allocated, "Total Reserved": reserved}
    where = {"Device Type": kind, "Device Id": 0 if kind else -1}
    return {"ph": "i", "name": "[memory]", "ts": 1000.0 * at, "args": counts | where}


# An iteration of 100 ms on a GPU: forward 0-30, backward 30-60, step 60-90, the rest 90-100.
ON_GPU = [
    event("user_annotation", "ProfilerStep#3", 0, 100),
    event("user_annotation", "forward", 0, 30),
    event("user_annotation", "backward", 30, 60),
    event("user_annotation", "Optimizer.step#adamw", 60, 90),
    event("user_annotation", "Optimizer.step#AdamW.step", 61, 89),
    event("cpu_op", "aten::linear", 2, 12, **{"Input Dims": [[8, 4], [4, 4]]}),
    event("cpu_op", "aten::addmm", 3, 10, **{"Input Dims": [[8, 4], [4, 4]]}),
    launch(1, 4),
    event("cpu_op", "aten::mul_", 62, 64),
    launch(2, 63),
    event("cpu_op", "aten::mul_", 70, 73),
    launch(3, 71),
    kernel(1, "sgemm", 20, 60, grid=[8, 2, 1], block=[128, 1, 1], **{"blocks per SM": 0.5}),
    kernel(2, "mul", 64, 70, **{"est. achieved occupancy %": 50, "blocks per SM": 4}),
    # The second stream works at the same time for 2 ms, and for 4 alone.
    kernel(3, "mul", 68, 74, **{"est. achieved occupancy %": 20, "blocks per SM": 4}),
    memory(1, 4_096, 2**21),
    memory(50, 12_288, 2**21),
    memory(80, 8_192, 2**21),
]


@pytest.fixture
def trace_of(tmp_path: Path) -> Callable[..., Trace]:
    """Write events as a file of torch.profiler, and read it."""

    def trace_of(events: list[dict[str, Any]], **more: Any) -> Trace:
        path = tmp_path / "trace.json"
        path.write_text(json.dumps({"traceEvents": events, **more}))
        return Trace.of(read_trace(path), "mine")

    return trace_of


def test_operators_have_the_sums_that_torch_counts_itself(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    optimizer = torch.optim.AdamW(model.parameters())
    with profile(
        activities=[ProfilerActivity.CPU], record_shapes=True, profile_memory=True
    ) as profiler:
        for _ in range(2):
            model(torch.ones(16, 64)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            profiler.step()
    profiler.export_chrome_trace(str(tmp_path / "own.json.gz"))
    trace = Trace.of(read_trace(tmp_path / "own.json.gz"), "own")
    averages = {each.key: each for each in profiler.key_averages()}
    assert {"aten::addmm", "aten::mm", "aten::relu"} <= {each.name for each in trace.operators}
    for operator in trace.operators:
        judge = averages[operator.name]
        assert operator.calls == judge.count, operator.name
        # The file has times in nanoseconds.
        assert operator.host == pytest.approx(1e-6 * judge.cpu_time_total, abs=1e-7)
        assert operator.host_self == pytest.approx(1e-6 * judge.self_cpu_time_total, abs=1e-7)
    (addmm,) = (each for each in trace.operators if each.name == "aten::addmm")
    assert addmm.shapes is not None
    assert addmm.shapes.startswith("[64] · [16, 64] · [64, 64]")
    # Phases without names of the user's: autograd's functions, and the time before them.
    assert list(trace.phases) == ["forward", "backward", "step", "zero_grad", "other"]
    assert sum(trace.phases.values()) == pytest.approx(trace.seconds)


def test_phases_of_host_and_device_add_up_to_the_iteration(trace_of: Callable[..., Trace]) -> None:
    (iteration,) = trace_of(ON_GPU).iterations
    assert iteration.seconds == pytest.approx(0.1)
    assert iteration.phases == pytest.approx(
        {"forward": 0.03, "backward": 0.03, "step": 0.03, "other": 0.01}
    )
    assert dict(iteration.calls) == {"forward": 1, "step": 2}
    assert dict(iteration.launches) == {"forward": 1, "step": 2}
    (busy,) = iteration.busy
    # 40 ms of the forward pass; 6 + 6 ms of the step's kernels, which overlap for 2.
    assert busy.phases == pytest.approx({"forward": 0.04, "step": 0.01})
    assert busy.idle == pytest.approx(0.05)
    assert trace_of(ON_GPU).step_on_device == pytest.approx(0.2)


def test_a_kernel_belongs_to_the_operator_that_launched_it(trace_of: Callable[..., Trace]) -> None:
    trace = trace_of(ON_GPU)
    operators = {each.name: each for each in trace.operators}
    linear, addmm, mul = (operators[f"aten::{name}"] for name in ("linear", "addmm", "mul_"))
    assert (linear.device, linear.device_self) == pytest.approx((0.04, 0.0))
    assert (addmm.device, addmm.device_self) == pytest.approx((0.04, 0.04))
    assert (linear.host, linear.host_self) == pytest.approx((0.01, 0.003))
    assert (mul.calls, mul.calls_in_step, mul.in_step) == (2, 2, pytest.approx(0.005))
    sgemm, other = trace.kernels
    assert (sgemm.name, sgemm.operator, sgemm.grid) == (
        "sgemm",
        "aten::addmm",
        f"8 {TIMES} 2 {TIMES} 1",
    )
    assert (other.calls, other.seconds) == (2, pytest.approx(0.012))
    # The mean of 50 and 20 % over 6 ms each.
    assert other.occupancy == pytest.approx(35)
    (curve,) = trace.memory
    assert (curve.device, curve.peak, curve.peak_at) == ("CUDA 0", 12_288, pytest.approx(0.05))


def test_the_time_between_two_backward_passes_is_the_next_forward_pass(
    trace_of: Callable[..., Trace],
) -> None:
    autograd = "autograd::engine::evaluate_function: MulBackward0"
    events = [
        event("user_annotation", "ProfilerStep#0", 0, 100),
        event("user_annotation", "enumerate(DataLoader)#_Iter.__next__", 0, 10),
        event("cpu_op", "aten::mul", 12, 15),
        event("cpu_op", autograd, 20, 25),
        # No operator runs in between, so this is autograd's own time.
        event("cpu_op", autograd, 28, 30),
        event("cpu_op", "aten::mul", 35, 40),
        event("cpu_op", autograd, 45, 60),
        event("user_annotation", "Optimizer.step#SGD.step", 70, 90),
    ]
    assert trace_of(events).phases == pytest.approx(
        {"data": 0.01, "forward": 0.025, "backward": 0.025, "step": 0.02, "other": 0.02}
    )


def test_rules_compare_a_number_with_its_limit(trace_of: Callable[..., Trace]) -> None:
    found = {advice.rule: advice for advice in rules(trace_of(ON_GPU))}
    assert {rule: advice.found for rule, advice in found.items() if advice.applies} == {
        "time in which the device is idle": pytest.approx(0.5),
        "float32 products without tensor cores, of the device's time": pytest.approx(40 / 52),
        "kernels with fewer blocks than the GPU has processors, of the device's time": (
            pytest.approx(40 / 52)
        ),
    }
    many = [
        event("user_annotation", "ProfilerStep#0", 0, 100),
        event("user_annotation", "backward", 0, 90),
        event("user_annotation", "Optimizer.step#SGD.step", 90, 100),
        *(event("cpu_op", "aten::add_", 90 + 0.1 * n, 90.05 + 0.1 * n) for n in range(100)),
    ]
    step = rules(trace_of(many))[0]
    assert step.applies
    assert step.finding == (
        "the step takes 10.0 % of the iteration in 100 calls of operators, 100 µs each"
    )
    assert "foreach=True or fused=True" in step.advice
    assert not rules(trace_of(many[:-1]))[0].applies
    grouped = [*many, event("cpu_op", "aten::_foreach_add_", 99.99, 100)]
    assert rules(trace_of(grouped))[0].advice.startswith("fused=True")
    whole = [*many, event("cpu_op", "aten::_fused_sgd_", 99.99, 100)]
    assert not rules(trace_of(whole))[0].applies


def test_a_trace_without_iterations_and_phases_says_so(tmp_path: Path) -> None:
    path = tmp_path / "mine.pt.trace.json"
    path.write_text(json.dumps({"traceEvents": [event("cpu_op", "aten::mul", 0, 1)]}))
    found = read_traces(path)
    page, *pictures = write_trace(found, path)
    assert page == tmp_path / "mine.html"
    assert {each.parent for each in pictures} == {tmp_path / "mine-figures"}
    text = page.read_text()
    assert "mine has no iterations: call profiler.step()" in text
    assert "mine has no phases that can be told apart" in text
    assert "recorded on a CPU alone" in text
    assert "profile_memory=True" in text
    assert math.isclose(found.traces[0].seconds, MILLI)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Input data was truncated"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:-9], "is damaged"),
        (b'{"traceEvents": [', "Input data was truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b'{"traceEvents": [{"name": 3}]}', "Expected `str`, got `int`"),
        (b'{"traceEvents": [{"ph": "X", "cat": "v8", "name": "gc"}]}', "no operator and no kernel"),
        (b'{"traceEvents": ' + b"[" * 5_000, "is not a trace"),
        (b'{"traceEvents": [{"ph": "X", "ts": 1e300, "cat": "cpu_op"}]}', "Expected `float` <="),
        (b"x" * 2_000, "more than 0 MiB"),
    ],
)
def test_a_foreign_or_damaged_trace_is_one_line(
    data: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if data.startswith(b"xx"):
        monkeypatch.setattr(traces, "MOST_BYTES", 1_000)
    path = tmp_path / "trace.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as raised:
        read_trace(path)
    assert len(str(raised.value).splitlines()) == 1
    assert str(path) in str(raised.value)


def test_odd_arguments_of_other_versions_are_left_out(trace_of: Callable[..., Trace]) -> None:
    odd = [
        event("cpu_op", "aten::mul", 0, 1, **{"Input Dims": "none"}),
        kernel(9, "k", 0, 1, grid="8", **{"blocks per SM": "nan"}),
        {"ph": "i", "name": "[memory]", "ts": 0, "args": {"Total Allocated": "many"}},
        {"ph": "M", "name": "process_name", "pid": "Spans"},
    ]
    trace = trace_of(odd, deviceProperties=[{"id": "x", "name": None}], traceName=4)
    (kernel_,) = trace.kernels
    assert (kernel_.grid, kernel_.blocks_per_sm, kernel_.operator) == ("", None, "")
    assert trace.memory == ()
    assert trace.gpus == ()


@pytest.fixture
def run(tmp_path: Path, timed: Callable[..., Record]) -> Path:
    """A run of two optimizers with traces, of which the second is damaged."""
    store = RunStore.create(tmp_path / "runs" / "mine")
    for optimizer in ("adamw", "sm3"):
        record = replace(timed(optimizer), parameter_count=1_000, model_family="tiny")
        store.append(record)
        folder = store.folder / "tensorboard" / file_name(record.scenario)
        folder.mkdir(parents=True)
        data = gzip.compress(json.dumps({"traceEvents": ON_GPU}).encode(), mtime=0)
        whole = data if optimizer == "adamw" else data[:-20]
        (folder / f"{optimizer}.1.pt.trace.json.gz").write_bytes(whole)
    store.close()
    return store.folder


def test_a_run_shows_its_whole_traces_and_names_damaged_ones(run: Path) -> None:
    found = read_traces(run)
    assert [trace.label for trace in found.traces] == ["adamw"]
    page, *pictures = write_trace(found, run)
    assert page == run / "trace.html"
    assert {each.name for each in pictures} == {
        f"trace-{name}.{ending}"
        for name in ("iterations", "operators", "kernels", "memory")
        for ending in ("png", "svg")
    }
    text = page.read_text()
    assert "Left out: tensorboard/tiny-sm3" in text
    assert "sm3.1.pt.trace.json.gz is damaged" in text
    assert str(run) not in text
    output = StringIO()
    print_trace(found, output, width=80)
    assert max(map(len, output.getvalue().splitlines()[:3])) <= 80
    assert "The device is idle 50.0 % of the iteration." in output.getvalue()


def test_no_trace_and_no_link_is_read(run: Path, tmp_path: Path) -> None:
    (folder,) = (path.parent for path in run.rglob("adamw*.gz"))
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        read_traces(run)
    for path in (run / "tensorboard").iterdir():
        path.unlink() if path.is_symlink() else path.rename(tmp_path / path.name)
    with pytest.raises(ValueError, match="has no traces; record them with"):
        read_traces(run)


def test_a_user_s_own_trace_may_be_a_link_but_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps({"traceEvents": ON_GPU}))
    (tmp_path / "latest.json").symlink_to("one.json")
    found = read_traces(tmp_path / "latest.json")
    assert [trace.label for trace in found.traces] == ["latest"]
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match=r"pipe\.json is not a regular file"):
        read_traces(tmp_path / "pipe.json")
    with pytest.raises(FileNotFoundError, match="neither a run nor a file of torch"):
        read_traces(tmp_path / "missing.json")


def test_memory_of_an_unknown_device_has_a_name(tmp_path: Path) -> None:
    events = json.loads(json.dumps(ON_GPU))
    first = next(each for each in events if each["name"] == "[memory]")
    first["args"]["Device Type"] = [0]
    (tmp_path / "one.json").write_text(json.dumps({"traceEvents": events}))
    (trace,) = read_traces(tmp_path / "one.json").traces
    assert "device type [0]" in {curve.device.rpartition(" ")[0] for curve in trace.memory}


def test_the_command_draws_a_run_or_a_file_and_refuses_others(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])

    def report(path: Path | str, *options: str) -> Result:
        return CliRunner().invoke(app, ["report", str(path), *options])

    drawn = report("mine", "--trace")
    assert drawn.exit_code == 0, drawn.stderr
    assert "page: runs/mine/trace.html; pictures: runs/mine/figures" in drawn.stdout
    (file,) = run.rglob("adamw*.gz")
    assert report(file, "--trace").exit_code == 0
    assert file.with_name("adamw.1.html").is_file()
    refused = report(run / "records.jsonl", "--trace")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    both = report("mine", "--trace", "--markdown")
    assert both.exit_code == 2
    assert both.stderr == "optprof: --trace draws a page of its own; leave out --markdown\n"
    without = report(file)
    assert without.exit_code == 2
    assert without.stderr == f"optprof: {file} is a file and no run; --trace draws a trace\n"

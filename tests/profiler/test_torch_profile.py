"""Traces of real iterations: torch.profiler's file, and the record's operations of a step."""

import gzip
import json
import platform
from pathlib import Path
from tempfile import gettempdir

import pytest
from torch.profiler import profile

from optprof.profiler import measure
from optprof.profiler.measuring.files import Files
from optprof.profiler.measuring.harness import Harness
from optprof.profiler.measuring.torch_profile import record_trace
from optprof.profiler.records.record import Record
from optprof.scenarios import Scenario

SCENARIO = Scenario(
    model="resnet18", optimizer="adamw", implementation="loop", device="cpu", steps=3
)
PARAMETERS = 11_689_512


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, Path]:
    """Return a measurement with a trace, and the folder for TensorBoard."""
    folder = tmp_path_factory.mktemp("tensorboard")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optprof.profiler.measuring.harness.WARM_UP_LIMIT", 0.0)
        return measure(SCENARIO, files=Files(trace=folder / "resnet18-adamw")), folder


def test_the_trace_has_two_iterations_with_their_phases(traced: tuple[Record, Path]):
    (path,) = (traced[1] / "resnet18-adamw").glob("*.pt.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    named = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    for phase in ("forward", "backward", "Optimizer.step#adamw", "zero_grad"):
        assert named.count(phase) == 2
    assert sum(name.startswith("ProfilerStep#") for name in named) == 2


def test_the_trace_names_neither_the_machine_nor_its_folders(traced: tuple[Record, Path]):
    (path,) = (traced[1] / "resnet18-adamw").iterdir()
    text = gzip.decompress(path.read_bytes()).decode()
    assert "host_name" not in text
    assert f'"{platform.node()}"' not in text
    assert '"traceName": "trace.json"' in text
    assert gettempdir() not in text
    assert json.loads(text)["schemaVersion"] == 1


def test_a_truncated_trace_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """torch's writer does not report a full disk."""

    def cut(_profiler: profile, path: str) -> None:
        Path(path).write_text('{\n"traceEvents": [\n{"ph": "X"')

    monkeypatch.setattr(profile, "export_chrome_trace", cut)
    files = Files(run=tmp_path, trace=tmp_path / "trace")
    operations = record_trace(
        Harness("cpu"), lambda: None, "adamw", files, tmp_path / "trace", "cpu"
    )
    assert operations == []
    ((path, reason),) = files.lost
    assert path.parent == tmp_path / "trace"
    assert reason.startswith("torch's trace was cut in ")
    assert not list((tmp_path / "trace").iterdir())


def test_the_operations_of_a_step_have_times_and_the_bytes_of_their_tensors(
    traced: tuple[Record, Path],
):
    record, _ = traced
    assert record.watched is not None
    operations = {operation.name: operation for operation in record.watched.operations}
    # AdamW's loop: for each tensor, weight decay and the second moment are multiplied in place;
    # each reads and writes fp32 once.
    assert (operations["mul_"].calls, operations["mul_"].bytes) == (2 * 62, 2 * 8 * PARAMETERS)
    # The square root reads the second moment and makes a tensor.
    assert (operations["sqrt"].calls, operations["sqrt"].bytes) == (62, 8 * PARAMETERS)
    # The second moment is read and written, and the gradient counts once though it is read twice.
    assert operations["addcmul_"].bytes == 3 * 4 * PARAMETERS
    seconds = [operation.seconds for operation in record.watched.operations]
    assert seconds == sorted(seconds, reverse=True)
    assert Record.from_dict(json.loads(record.to_json())) == record

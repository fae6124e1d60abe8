"""A run in TensorBoard, judged by a real server: what its tabs answer is what the records say."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from optprof.profiler import measure
from optprof.profiler.measuring.files import Files
from optprof.profiler.records.record import Watched
from optprof.profiler.records.store import RunStore, file_name
from optprof.reports import write_report
from optprof.reports.pictures.picture import Drawing
from optprof.scenarios import Scenario

pytest.importorskip("tensorboard")

GIVE_UP_SECONDS = 240
OPEN = build_opener(ProxyHandler({}))


class Server:
    """A TensorBoard server, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}/data"

    def ask(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        """The answer as JSON, or bytes where it is none."""
        request = Request(f"{self._root}/{path}{'?' + urlencode(query) if query else ''}")
        if body is not None:
            request.data, request.headers = (
                json.dumps(body).encode(),
                {"Content-type": "application/json"},
            )
        with OPEN.open(request, timeout=60) as answer:
            data = answer.read()
        return json.loads(data) if data[:1] in b'{["' else data

    def wait_for(self, path: str, wanted: Any, **query: str) -> Any:
        """The first answer that `wanted` takes; files are read while the server answers."""
        end = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < end:
            found = self.ask(path, None, **query)
            if wanted(found):
                return found
            time.sleep(0.5)
        raise TimeoutError(f"{path} never answered what was wanted")


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[Server]:
    """A server over the folder on a port that it finds free itself, ended with all its children."""
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        str(folder),
        "--port",
        "0",
        "--host",
        "127.0.0.1",
        "--load_fast=false",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield Server(_port(process, log))
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + GIVE_UP_SECONDS
    while time.monotonic() < end and process.poll() is None:
        _, found, rest = log.read_text(errors="replace").partition("http://127.0.0.1:")
        if found and "/" in rest:
            port = int(rest.partition("/")[0])
            try:
                Server(port).ask("runs")
            except URLError:
                continue
            return port
        time.sleep(0.2)
    raise TimeoutError(log.read_text(errors="replace"))


def test_a_server_shows_scalars_hparams_and_pictures(tmp_path: Path, timed: Any, simulated: Any):
    watched = Watched(tokens=32, samples=2)
    records = [
        timed(
            "adamw",
            times={"step": (0.25, 0.5, 0.125), "iteration": (1.0, 2.0, 0.5)},
            watched=watched,
        ),
        simulated("sm3", options={"momentum": 0.0, "note": "a <b>text</b>"}),
        simulated("lamb16", memory=None, outcome="out-of-memory", error="full"),
    ]
    store = RunStore.create(tmp_path / "run")
    for record in records:
        store.append(record)
    write_report(store.folder, tensorboard=True)
    # Once more: nothing is there twice.
    write_report(store.folder, tensorboard=True)
    adamw, sm3, _ = (file_name(record.scenario) for record in records)
    with serving(store.folder / "tensorboard", tmp_path / "log") as server:
        assert set(server.wait_for("runs", lambda runs: len(runs) == 3)) == {adamw, sm3, "report"}
        tags = server.wait_for("plugin/scalars/tags", lambda tags: {adamw, sm3} <= set(tags))
        assert {
            "seconds/step",
            "seconds/iteration",
            "step/median_seconds",
            "training/tokens_per_second",
        } <= set(tags[adamw])
        steps = server.ask("plugin/scalars/scalars", run=adamw, tag="seconds/step")
        assert [(step, value) for _, step, value in steps] == [(0, 0.25), (1, 0.5), (2, 0.125)]
        ((_, _, state),) = server.ask("plugin/scalars/scalars", run=sm3, tag="state/bytes")
        assert state == 8
        _check_hparams(server)
        _check_pictures(server, store.folder)


def _check_hparams(server: Server) -> None:
    experiment = server.ask("plugin/hparams/experiment", {"experimentName": ""})
    assert {"optimizer", "model", "options.momentum"} <= {
        info["name"] for info in experiment["hparamInfos"]
    }
    asked = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = server.ask("plugin/hparams/session_groups", asked)["sessionGroups"]
    found = {group["hparams"]["optimizer"]: group for group in groups}
    assert set(found) == {"adamw", "sm3"}
    assert found["sm3"]["hparams"]["options.note"] == "a <b>text</b>"
    values = {value["name"]["tag"]: value["value"] for value in found["adamw"]["metricValues"]}
    assert values["step/median_seconds"] == 0.25
    assert values["training/tokens_per_second"] == 32


def _check_pictures(server: Server, folder: Path) -> None:
    tags = server.ask("plugin/images/tags")["report"]
    assert set(tags) == {path.stem for path in (folder / "figures").glob("*.png")}
    (sample,) = server.ask("plugin/images/images", run="report", tag="step-time", sample="0")
    assert (
        server.ask(f"plugin/images/individualImage?{sample['query']}")
        == (folder / "figures" / "step-time.png").read_bytes()
    )


@pytest.mark.skipif(find_spec("torch_tb_profiler") is None, reason="needs torch-tb-profiler")
def test_the_profiler_plugin_shows_the_trace_of_real_iterations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("optprof.profiler.measuring.harness.WARM_UP_LIMIT", 0.0)
    scenario = Scenario(
        model="resnet18", optimizer="adamw", implementation="loop", device="cpu", steps=3
    )
    measure(scenario, files=Files(trace=tmp_path / "tensorboard" / "resnet18-adamw"))
    with serving(tmp_path / "tensorboard", tmp_path / "log") as server:
        found = server.wait_for(
            "plugin/pytorch_profiler/runs", lambda answer: answer["runs"] and not answer["loading"]
        )
        assert found["runs"] == ["resnet18-adamw"]
        (worker,) = server.ask(
            "plugin/pytorch_profiler/workers", run="resnet18-adamw", view="Overview"
        )
        assert worker == "adamw"
        (span,) = server.ask("plugin/pytorch_profiler/spans", run="resnet18-adamw", worker="adamw")
        asked = {"run": "resnet18-adamw", "worker": "adamw", "span": span}
        assert "performance" in server.ask("plugin/pytorch_profiler/overview", **asked)
        operations = server.ask(
            "plugin/pytorch_profiler/operation/table", **asked, group_by="Operation"
        )
        assert {"aten::sqrt", "aten::convolution"} <= {row["name"] for row in operations["data"]}


def test_without_the_package_one_line_says_what_to_install(
    tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
):
    from optprof.reports.tensorboard import write_tensorboard

    monkeypatch.setitem(sys.modules, "tensorboard.plugins.hparams", None)
    drawings: list[Drawing] = []
    with pytest.raises(ValueError, match=r'pip install "optprof\[tensorboard\]"'):
        write_tensorboard([timed("adamw")], drawings, tmp_path)

"""A run in TensorBoard: a real server's answers are those of the records."""

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
    """A TensorBoard server, queried over HTTP."""

    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}/data"

    def get(self, path: str, body: dict[str, Any] | None = None, **query: str) -> Any:
        """Return the answer as JSON, or as bytes if it is not JSON."""
        request = Request(f"{self._root}/{path}{'?' + urlencode(query) if query else ''}")
        if body is not None:
            request.data, request.headers = (
                json.dumps(body).encode(),
                {"Content-type": "application/json"},
            )
        with OPEN.open(request, timeout=60) as answer:
            data = answer.read()
        return json.loads(data) if data[:1] in b'{["' else data

    def wait_for(self, path: str, accept: Any, **query: str) -> Any:
        """Return the first answer that satisfies `accept`; the server reads files meanwhile."""
        end = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < end:
            answer = self.get(path, None, **query)
            if accept(answer):
                return answer
            time.sleep(0.5)
        raise TimeoutError(f"{path} never gave the expected answer")


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[Server]:
    """Run a server over the folder on a free port, and end it with all its children."""
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
        _, address, rest = log.read_text(errors="replace").partition("http://127.0.0.1:")
        if address and "/" in rest:
            port = int(rest.partition("/")[0])
            try:
                Server(port).get("runs")
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
    # Writing again duplicates nothing.
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
        steps = server.get("plugin/scalars/scalars", run=adamw, tag="seconds/step")
        assert [(step, value) for _, step, value in steps] == [(0, 0.25), (1, 0.5), (2, 0.125)]
        ((_, _, state),) = server.get("plugin/scalars/scalars", run=sm3, tag="state/bytes")
        assert state == 8
        _check_hparams(server)
        _check_pictures(server, store.folder)


def _check_hparams(server: Server) -> None:
    experiment = server.get("plugin/hparams/experiment", {"experimentName": ""})
    assert {"optimizer", "model", "options.momentum"} <= {
        info["name"] for info in experiment["hparamInfos"]
    }
    query = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = server.get("plugin/hparams/session_groups", query)["sessionGroups"]
    by_optimizer = {group["hparams"]["optimizer"]: group for group in groups}
    assert set(by_optimizer) == {"adamw", "sm3"}
    assert by_optimizer["sm3"]["hparams"]["options.note"] == "a <b>text</b>"
    values = {
        value["name"]["tag"]: value["value"] for value in by_optimizer["adamw"]["metricValues"]
    }
    assert values["step/median_seconds"] == 0.25
    assert values["training/tokens_per_second"] == 32


def _check_pictures(server: Server, folder: Path) -> None:
    tags = server.get("plugin/images/tags")["report"]
    assert set(tags) == {path.stem for path in (folder / "figures").glob("*.png")}
    (sample,) = server.get("plugin/images/images", run="report", tag="step-time", sample="0")
    assert (
        server.get(f"plugin/images/individualImage?{sample['query']}")
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
        runs = server.wait_for(
            "plugin/pytorch_profiler/runs", lambda answer: answer["runs"] and not answer["loading"]
        )
        assert runs["runs"] == ["resnet18-adamw"]
        (worker,) = server.get(
            "plugin/pytorch_profiler/workers", run="resnet18-adamw", view="Overview"
        )
        assert worker == "adamw"
        (span,) = server.get("plugin/pytorch_profiler/spans", run="resnet18-adamw", worker="adamw")
        query = {"run": "resnet18-adamw", "worker": "adamw", "span": span}
        assert "performance" in server.get("plugin/pytorch_profiler/overview", **query)
        operations = server.get(
            "plugin/pytorch_profiler/operation/table", **query, group_by="Operation"
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

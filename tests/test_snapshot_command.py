"""optprof snapshot: answers, errors and pages, from the shell."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from commands import run

from optprof.reports import SNAPSHOT

MIB = 1 << 20
BASE = 0x7F00_0000_0000


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """Return 10 blocks of 12 MiB, of which five are freed, and then one request of 24 MiB.

    Five segments of 12 MiB cannot serve it; one range of addresses can.
    """
    trace: list[dict[str, Any]] = []
    segments = []
    frames = [{"filename": "/home/me/model.py", "line": 7, "name": "forward"}]

    def note(action: str, address: int, size: int) -> None:
        trace.append(
            {"action": action, "addr": address, "size": size, "stream": 0, "frames": frames}
        )

    for number in range(10):
        address = BASE + number * 12 * MIB
        note("segment_alloc", address, 12 * MIB)
        note("alloc", address, 12 * MIB)
    for number in range(5):
        note("free_requested", BASE + number * 12 * MIB, 12 * MIB)
        note("free_completed", BASE + number * 12 * MIB, 12 * MIB)
    large = BASE + 1024 * MIB
    note("segment_alloc", large, 24 * MIB)
    note("alloc", large, 24 * MIB)
    blocks = [(BASE + number * 12 * MIB, 12 * MIB, number >= 5) for number in range(10)]
    for address, size, used in [*blocks, (large, 24 * MIB, 1)]:
        state = "active_allocated" if used else "inactive"
        block = {"size": size, "requested_size": size, "state": state, "frames": frames}
        segments.append(
            {
                "address": address,
                "total_size": size,
                "stream": 0,
                "segment_type": "large",
                "blocks": [block],
            }
        )
    path = tmp_path / "mem.pickle"
    path.write_bytes(pickle.dumps({"segments": segments, "device_traces": [trace]}))
    return path


def test_it_names_the_setting_that_reserves_less(snapshot: Path):
    done = run(["snapshot", "mem.pickle", "--try", "all"], cwd=snapshot.parent)
    assert done.returncode == 0, done.stderr
    assert "agrees with all 32 events" in done.stdout
    assert "model.py:7 forward" in done.stdout
    # Ten segments of 12 MiB and one of 24; a range of addresses needs six handles of 20 MiB.
    assert "most reserved: 144 MiB" in done.stdout
    assert "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True reserves 24.0 MiB" in done.stdout
    page = snapshot.parent / "runs" / "mem-snapshot" / "report.html"
    assert "expandable_segments:True" in page.read_text()
    again = run(["snapshot", "mem.pickle"], cwd=snapshot.parent)
    assert again.returncode == 0
    assert "other settings" not in again.stdout


def test_json_has_exact_bytes(snapshot: Path):
    conf = "expandable_segments:True"
    done = run(["snapshot", str(snapshot), "--try", conf, "--json"], cwd=snapshot.parent)
    answer = json.loads(done.stdout)
    (device,) = answer["devices"]
    assert device["peak_reserved"] == 144 * MIB
    assert device["peak_used"] == 120 * MIB
    recorded, other_order, trial = device["trials"]
    assert (recorded["conf"], recorded["kept"]["reserved"]) == ("", 144 * MIB)
    assert (other_order["conf"], other_order["torch"]) == ("", "2.11")
    assert trial["afresh"] == trial["kept"]
    assert trial["kept"]["reserved"] == 120 * MIB
    stored = json.loads((snapshot.parent / "runs" / "mem-snapshot" / SNAPSHOT).read_text())
    assert stored == {key: value for key, value in answer.items() if key != "report"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("missing.pickle", "missing.pickle cannot be read: No such file or directory"),
        (".", ". cannot be read: Is a directory"),
        ("text", "text is not a readable snapshot: it begins with"),
        ("mem.pickle --try max_split:3", "alloc_conf has no setting 'max_split'; did you mean"),
        ("mem.pickle --try all --gpu tpu", "no GPU is named 'tpu'"),
        ("mem.pickle --gpu t4", "--gpu t4 needs --try: only a replay has another device"),
        ("mem.pickle --out mine", "mine"),
    ],
)
def test_bad_input_is_one_line(arguments: str, message: str, snapshot: Path):
    (snapshot.parent / "text").write_text("no snapshot")
    mine = snapshot.parent / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("mine")
    done = run(["snapshot", *arguments.split(), "-q"], cwd=snapshot.parent)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert message in line
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]

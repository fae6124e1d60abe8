"""Snapshots are read in every form that torch writes, and nothing in a file is executed."""

import gzip
import io
import json
import os
import pickle
import random
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from snapshot_forms import FRAMES, MIB, as_cpp, event, forms, snapshot

from optprof.profiler.simulating.snapshot import write_snapshot
from optprof.profiler.snapshots import json_stream, pickles, reading
from optprof.profiler.snapshots.reading import UnreadableSnapshotError, read_snapshot
from optprof.profiler.snapshots.snapshot import Device, Event, Frame, Lane, ShownBlock, Snapshot
from optprof.profiler.tracing.sources import Source
from optprof.profiler.tracing.stream import Allocations, Segment
from optprof.scenarios import Scenario

TESTS = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("OPTPROF_SNAPSHOTS", TESTS.parent.parent / "shared" / "gpu-snapshots"))
FILES = sorted(FOLDER.glob("*.pickle.gz"))
BASE, NOW = 0x7F00_0000_0000, 1_782_827_950_507_193
FORMS = forms(snapshot())
Plain = dict[str, Any]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Snapshot]:
    def reads(data: bytes, **limits: Any) -> Snapshot:
        path = tmp_path / "mem.pickle"
        path.write_bytes(data)
        return read_snapshot(path, **limits)

    return reads


@pytest.fixture
def refused(read: Callable[..., Snapshot]) -> Callable[..., str]:
    def refuses(data: bytes, **limits: int) -> str:
        with pytest.raises(UnreadableSnapshotError) as caught:
            read(data, **limits)
        text = str(caught.value)
        assert text.isprintable()
        assert "mem.pickle" in text
        assert len(text) < 400
        return text

    return refuses


def events_of(device: Device) -> list[Event]:
    return [device.events[place] for place in range(len(device.events))]


def plain(taken: Snapshot) -> list[Any]:
    """Return a snapshot's contents, with stacks in the place of their numbers."""
    stacks = taken.stacks
    return [
        taken.conf,
        dict(taken.passed_over),
        [
            (
                device.index,
                [(each._replace(stack=0), stacks[each.stack]) for each in events_of(device)],
                [
                    (
                        part._replace(blocks=()),
                        [(each._replace(stack=0), stacks[each.stack]) for each in part.blocks],
                    )
                    for part in device.segments
                ],
            )
            for device in taken.devices
        ],
    ]


def expected(data: Plain) -> list[Any]:
    """Return the same for a snapshot as torch gives it, whose events are all known."""
    devices = []
    indices = [each.get("device", 0) for each in data["segments"]]
    for index in range(max([len(data["device_traces"]), *(each + 1 for each in indices)])):
        trace = data["device_traces"][index] if index < len(data["device_traces"]) else []
        segments = [each for each in data["segments"] if each.get("device", 0) == index]
        if trace or segments:
            devices.append((index, list(map(_event, trace)), list(map(_segment, segments))))
    conf = data.get("allocator_settings", {}).get("PYTORCH_CUDA_ALLOC_CONF", "")
    return [conf, {}, devices]


def _event(entry: Plain) -> tuple[Event, tuple[Frame, ...]]:
    lane = Lane(entry["stream"], tuple(entry.get("pool_id", (0, 0))))
    when, free = entry.get("time_us", 0), entry.get("device_free", 0)
    shown = Event(entry["action"], entry.get("addr", 0), entry["size"], lane, when, 0, free)
    return shown, _stack(entry)


def _segment(segment: Plain) -> tuple[Any, list[tuple[ShownBlock, tuple[Frame, ...]]]]:
    lane = Lane(segment["stream"], tuple(segment["segment_pool_id"]))
    kind, expandable = segment["segment_type"] == "small", segment["is_expandable"]
    blocks = [
        (
            ShownBlock(each["address"], each["size"], each["requested_size"], each["state"], 0),
            _stack(each),
        )
        for each in segment["blocks"]
    ]
    return (segment["address"], segment["total_size"], lane, kind, expandable, ()), blocks


def _stack(values: Plain) -> tuple[Frame, ...]:
    frames = values.get("frames", [])
    return tuple(Frame(each["filename"], each["line"], each["name"]) for each in frames)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_the_same(form: str, read: Callable[..., Snapshot]):
    taken = read(FORMS[form])
    (device,) = taken.devices
    assert (device.index, taken.conf) == (1, "max_split_size_mb:64")
    assert dict(taken.passed_over) == {"annotate": 1}
    inner, outer, last = [
        tuple(Frame(each["filename"], each["line"], each["name"]) for each in FRAMES[start:])
        for start in range(3)
    ]
    pool = Lane(0, (0, 3))
    assert [(taken.stacks[each.stack], each._replace(stack=0)) for each in events_of(device)] == [
        ((), Event("segment_alloc", BASE, 2 * MIB, pool, NOW, 0)),
        (inner, Event("alloc", BASE, 1000, pool, NOW + 1, 0)),
        (outer, Event("alloc", BASE + 1024, 3, pool, NOW + 2, 0)),
        (last, Event("free_requested", BASE + 1024, 3, pool, NOW + 3, 0)),
        (inner, Event("oom", 0, 2**36, Lane(2**46 + 5), NOW + 5, 0, free=2**40)),
    ]
    (segment,) = device.segments
    assert segment._replace(blocks=()) == (BASE, 2 * MIB, pool, True, False, ())
    assert [(taken.stacks[each.stack], each._replace(stack=0)) for each in segment.blocks] == [
        (inner, ShownBlock(BASE, 1024, 1000, "active_allocated", 0)),
        (outer, ShownBlock(BASE + 1024, 512, 3, "active_awaiting_free", 0)),
        ((), ShownBlock(BASE + 1536, 2 * MIB - 1536, 0, "inactive", 0)),
    ]
    # Equal stacks have one number.
    assert sorted(taken.stacks, key=len) == [(), last, outer, inner]


@pytest.mark.parametrize("form", ["protocol 2", "protocol 4", "C++", "JSON"])
def test_a_file_may_be_read_in_pieces_of_any_size(
    form: str, read: Callable[..., Snapshot], monkeypatch: pytest.MonkeyPatch
):
    whole = plain(read(FORMS[form]))
    for size in (1, 2, 3, 5, 600):
        monkeypatch.setattr(pickles, "_CHUNK", size)
        monkeypatch.setattr(json_stream, "_CHUNK", size)
        assert plain(read(FORMS[form])) == whole


@pytest.mark.parametrize("protocol", [2, 4])
def test_lists_of_more_than_a_thousand_values_come_in_batches(
    protocol: int, read: Callable[..., Snapshot]
):
    frames = [{"filename": "deep.py", "line": line, "name": "f"} for line in range(1001)]
    deep = [frames[place % 1001] for place in range(3001)]
    events = [event("alloc", each, 8, 0, frames=[]) for each in range(1, 2003)]
    for each in events[::500]:
        each["frames"] = list(deep)
    data = {"segments": [], "device_traces": [events]}
    assert plain(read(pickle.dumps(data, protocol))) == expected(data)


def test_events_of_two_devices_stay_apart(read: Callable[..., Snapshot]):
    traces = [[event("alloc", each, 8, each) for each in range(1, 9)] for _ in range(2)]
    traces[1].insert(2, event("oom", 77, 99, 3))
    data = {"segments": [], "device_traces": [traces[0], [], traces[1]]}
    for form in forms(data).values():
        assert plain(read(form)) == expected(data)


@pytest.mark.parametrize(
    "path", FILES or [pytest.param(None, marks=pytest.mark.skip(reason=f"no files in {FOLDER}"))]
)
def test_recorded_snapshots_hold_what_pickle_says(path: Path, read: Callable[..., Snapshot]):
    data = pickle.loads(gzip.decompress(path.read_bytes()))
    assert plain(read_snapshot(path)) == expected(data)
    for trace in data["device_traces"]:
        del trace[500:]
    assert plain(read(as_cpp(data))) == expected(data)


@pytest.mark.parametrize("conf", ["", "expandable_segments:True"])
def test_a_simulation_s_snapshot_is_read(conf: str, tmp_path: Path):
    path = tmp_path / "run.pickle"
    write_snapshot(
        path,
        Scenario(model="gpt2", alloc_conf=conf),
        [Segment("build", [0]), Segment("forward", [1, ~1])],
        Allocations(
            [4 * MIB, 3 * MIB],
            ["parameter", "temporary"],
            [Source("w"), Source("layer", "aten::mm", "model.py:3")],
        ),
    )
    taken = read_snapshot(path)
    assert plain(taken) == expected(pickle.loads(path.read_bytes()))
    assert (Frame("model.py", 3, "forward") in taken.stacks[-1], taken.conf) == (True, conf)


def test_blocks_of_torch_2_0_have_their_request_and_stack_in_a_history(
    read: Callable[..., Snapshot],
):
    data = snapshot()
    (segment,) = data["segments"]
    for name in ("device", "segment_pool_id", "is_expandable"):
        del segment[name]
    for block in segment["blocks"]:
        requested, frames = block.pop("requested_size"), block.pop("frames")
        del block["address"]
        if requested:
            block["history"] = [{"addr": 1, "real_size": requested, "frames": frames}]
    segment["blocks"][1].update(state="active_pending_free", history=[])
    data["device_traces"] = [
        [
            {"action": "alloc", "addr": BASE, "size": 1000, "stream": 0},
            {"action": "snapshot", "addr": 0, "size": 0, "stream": 0},
            {"action": "user_defined"},
        ]
    ]
    taken = read(as_cpp(data))
    (device,) = taken.devices
    assert events_of(device) == [Event("alloc", BASE, 1000, Lane(), 0, 0)]
    assert dict(taken.passed_over) == {"snapshot": 1, "user_defined": 1}
    blocks = device.segments[0].blocks
    assert [(each.address, each.requested) for each in blocks] == [
        (BASE, 1000),
        (BASE + 1024, 512),
        (BASE + 1536, 0),
    ]
    assert len(taken.stacks[blocks[0].stack]) == 3


def test_progress_goes_up_to_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pickles, "_CHUNK", 100)
    for form in ("protocol 4", "JSON", "gzip"):
        path, calls = tmp_path / form, list[tuple[int, int]]()
        path.write_bytes(FORMS[form])
        read_snapshot(path, lambda done, size, calls=calls: calls.append((done, size)))
        assert calls == sorted(calls)
        assert calls[-1] == (path.stat().st_size,) * 2


def test_events_are_not_kept_as_dicts(tmp_path: Path):
    stacks = [[FRAMES[place * row % 3] for place in range(60)] for row in range(50)]
    events = [event("alloc", row, 512, row, frames=list(stacks[row % 50])) for row in range(4000)]
    data = {"segments": [], "device_traces": [events]}
    for number, form in enumerate((pickle.dumps(data), as_cpp(data))):
        path = tmp_path / f"{number}"
        path.write_bytes(form)
        tracemalloc.start()
        taken = read_snapshot(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(taken.devices[0].events) == 4000
        # As dicts and lists they take 4.5 MB; half of this are the pieces of the file.
        assert peak < 2 * MIB


def test_stacks_that_share_no_frames_take_little_memory(read: Callable[..., Snapshot]):
    events = [
        event("alloc", row, 512, row, frames=[dict(FRAMES[place % 3]) for place in range(60)])
        for row in range(300)
    ]
    data = {"segments": [], "device_traces": [events]}
    # 18,000 dicts would take 4 MB.
    assert plain(read(pickle.dumps(data), most_memory=MIB // 2)) == expected(data)


@pytest.mark.parametrize("form", ["protocol 4", "C++", "JSON", "gzip"])
def test_a_file_cut_off_at_any_byte_is_refused(form: str, tmp_path: Path):
    path = tmp_path / "cut.pickle"
    path.write_bytes(FORMS[form])
    for length in reversed(range(len(FORMS[form]))):
        os.truncate(path, length)
        with pytest.raises(UnreadableSnapshotError):
            read_snapshot(path)


class Execution:
    """Pickled, it makes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


def test_nothing_is_executed(tmp_path: Path, refused: Callable[..., str]):
    canary = tmp_path / "executed"
    text = f"touch {canary}".encode()
    command = b"X" + len(text).to_bytes(4, "little") + text
    programs = {
        "GLOBAL": b"cos\nsystem\n(" + command + b"tR.",
        "INST": b"(" + command + b"ios\nsystem\n.",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93" + command + b"\x85R.",
        "REDUCE": b"N)R.",
        "BUILD": b"}}b.",
        "OBJ": b"(No.",
        "NEWOBJ": b"N)\x81.",
        "NEWOBJ_EX": b"N)}\x92.",
        "PERSID": b"Pname\n.",
        "BINPERSID": command + b"Q.",
        "EXT1": b"\x82\x01.",
        "EXT2": b"\x83\x01\x00.",
        "EXT4": b"\x84\x01\x00\x00\x00.",
    }
    for name, program in programs.items():
        assert f"opcode {name} would name or run code" in refused(b"\x80\x04" + program)
    for protocol in range(2, 6):
        refused(pickle.dumps({"segments": Execution(canary), "device_traces": []}, protocol))
    assert not canary.exists()


@pytest.mark.parametrize(
    "value",
    [
        b"bytes",
        bytearray(b"bytes"),
        {1},
        frozenset([1]),
        2j,
        10**700,
        range(3),
        pickle.PickleBuffer,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused(value: Any, refused: Callable[..., str]):
    data = {**snapshot(), "external_annotations": [value]}
    assert "opcode" in refused(pickle.dumps(data, 5))


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"]" * 1000 + b"a" * 999 + b".", "it is a list"),
        (b"]\x94h\x00a.", "it is a list"),
        (b"}\x94X\x08\x00\x00\x00segmentsh\x00s.", "device_traces is missing"),
        (b"](h\x07e.", "a value that it does not have"),
        (b"(" * 1001, "deeper than 1000"),
        (b"}" + b")" + b"\x85" * 100_000 + b"Ns.", "a key that is not a text"),
        (b"X\xff\xff\xff\x7f", "a text of 2147483647 bytes"),
        (b"\x8d" + b"\xff" * 8, "bytes, more than"),
        (b"X\x02\x00\x00\x00\xff\xfe.", "not UTF-8"),
        (b"\x8b\xff\xff\xff\x7f", "LONG4"),
        (b"\x95" + b"\xff" * 8 + b"N.", "it is missing"),
        (b"u.", "a value that it does not have"),
        (b"(.", "a value that it does not have"),
        (b"N.N.", "left over"),
        (b"N(K\x01e.", "not a list"),
        (b"](K\x01u.", "not a dict"),
        (b"j\xff\xff\xff\xff", "a value that it does not have"),
        (b"Nr\xff\xff\xff\xff.", "unexpected place"),
        (b"\xff", "no opcode"),
        (b"", "ends too early"),
    ],
)
def test_strange_pickles_are_refused(program: bytes, words: str, refused: Callable[..., str]):
    assert words in refused(b"\x80\x04" + program)


def nested(levels: int, bottom: Any, width: int) -> Any:
    for _ in range(levels):
        bottom = [bottom] * width
    return bottom


def test_sharing_never_explodes(read: Callable[..., Snapshot], refused: Callable[..., str]):
    data = snapshot()
    bomb = nested(20, [], 10)
    # Unknown parts are not walked.
    assert plain(read(pickle.dumps({**data, "bomb": bomb}))) == plain(read(pickle.dumps(data)))
    trace, segment = [event("alloc", 1, 2, 3)] * 10, data["segments"][0]
    for change in (
        {"device_traces": bomb},
        {"device_traces": [trace] * 1000},
        {"device_traces": [trace]},
        {"segments": [segment] * 1000},
        {"segments": [dict(segment) for _ in range(1000)]},
        {"segments": [{**segment, "blocks": bomb}]},
        {"device_traces": [[event("alloc", 1, 2, 3, frames=bomb)]]},
        {"device_traces": [[event("alloc", 1, 2, 3, pool_id=bomb)]]},
        {"device_traces": [[event("alloc", bomb, 2, 3)]]},  # pyright: ignore[reportArgumentType]
    ):
        refused(pickle.dumps({**data, **change}))


def test_lists_that_hold_themselves_are_refused(refused: Callable[..., str]):
    data, loop = snapshot(), list[Any]()
    loop.append(loop)
    for change in (
        {"device_traces": loop},
        {"segments": loop},
        {"device_traces": [[event("alloc", 1, 2, 3, frames=loop)]]},
        {"segments": [{**data["segments"][0], "blocks": loop}]},
    ):
        refused(pickle.dumps({**data, **change}))
    data["segments"][0]["blocks"] = data["segments"]
    refused(pickle.dumps(data))


NOT_NUMBERS = (None, True, "12", 1.5, float("nan"), -1, 2**64, 10**70, [1])


@pytest.mark.parametrize(
    ("part", "values"),
    [
        ("addr", NOT_NUMBERS),
        ("size", (*NOT_NUMBERS, 2**63)),
        ("time_us", (*NOT_NUMBERS, 2**63)),
        ("stream", ("0", None, 1.0, True, 2**64, -(2**64))),
        ("pool_id", (None, 3, (0,), (0, -1), (0, "x"), (0, 2**64), "ab")),
        ("frames", (None, 1, [1], [{}], [[]], "x", [{"filename": 1, "line": 1, "name": "f"}])),
        ("action", (None, 3, ["alloc"])),
    ],
)
def test_events_with_wrong_values_are_refused(
    part: str, values: tuple[Any, ...], refused: Callable[..., str]
):
    for value in values:
        data = {"segments": [], "device_traces": [[event("alloc", 1, 2, 3) | {part: value}]]}
        for form in (pickle.dumps(data), json.dumps(data).encode()):
            text = refused(form)
            assert "expected" in text or "a frame needs" in text


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("address", -1),
        ("address", None),
        ("address", BASE + 1),
        ("total_size", 2 * MIB - 1),
        ("total_size", 2**63),
        ("segment_type", "medium"),
        ("segment_pool_id", 5),
        ("is_expandable", 1),
        ("device", 5000),
        ("device", "0"),
        ("blocks", None),
        ("blocks", [None]),
        ("blocks", [{"size": 1, "state": "lost"}]),
        ("blocks", [{"size": -1, "state": "inactive"}]),
        ("blocks", [{"size": 8, "state": "inactive", "address": BASE - 8}]),
        (
            "blocks",
            [{"size": 8, "state": "inactive"}, {"size": 8, "state": "inactive", "address": BASE}],
        ),
        ("blocks", [{"size": 8, "state": "inactive", "history": 3}]),
        ("blocks", [{"size": 8, "state": "inactive", "frames": [0]}]),
    ],
)
def test_segments_with_wrong_values_are_refused(part: str, value: Any, refused: Callable[..., str]):
    data = snapshot()
    data["segments"][0][part] = value
    for form in (pickle.dumps(data), json.dumps(data).encode()):
        refused(form)


def test_other_files_are_named_with_what_to_do(tmp_path: Path, refused: Callable[..., str]):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data.pkl", b"")
    old = [{"device": 0, "address": 1, "total_size": 2, "blocks": []}]
    for data, words in (
        (b"", "it is empty"),
        (archive.getvalue(), "zip archive; torch.cuda.memory._dump_snapshot writes a pickle"),
        (b"<!DOCTYPE html>", "a web page; download the snapshot itself"),
        (b"hello", "expected was a pickle, gzip or JSON"),
        (
            pickle.dumps(old),
            "a list of segments without events, as torch.cuda.memory_snapshot returns; write",
        ),
        (
            json.dumps(old).encode(),
            "a list of segments without events, as torch.cuda.memory_snapshot returns; write",
        ),
        (pickle.dumps({"segments": []}), "device_traces is missing, expected was a list"),
        (b'{"segments": []}', "segments or device_traces are missing"),
        (pickle.dumps([]), "it is a list, expected was a dict of segments and events"),
        (b"\x80\x09N.", "protocol 9"),
        (gzip.compress(gzip.compress(b"")), "gzip'd twice"),
        (FORMS["gzip"][:-9], "gzip'd data is damaged; copy or download it again"),
        (FORMS["gzip"][:-8] + bytes(8), "gzip'd data is damaged"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a number of too many digits"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1, "a": 2}', "'a' twice"),
        (b'{"segments": [], "device_traces": [[]]} x', "left over"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"device_traces": [[0, 0', "an event is not a dict"),
        (b'{"device_traces": [' + b"[]," * 5000, "more than 4096 devices"),
        (b'{"segments": [{"blocks": [0, 0', "a block is not a dict"),
        (b"{" + b",".join(b'"%d": []' % each for each in range(2000)), "more than 1000 keys"),
    ):
        assert words in refused(data), data[:40]
    with pytest.raises(UnreadableSnapshotError, match=r"none\.pickle cannot be read: No such file"):
        read_snapshot(tmp_path / "none.pickle")
    with pytest.raises(UnreadableSnapshotError, match="cannot be read: Is a directory"):
        read_snapshot(tmp_path)


def test_size_and_memory_are_limited(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch):
    frames = b"\x80\x04" + (b"\x95" + bytes(8)) * (MIB // 4)
    assert "more than 1 MiB, unpacked" in refused(frames, most_bytes=MIB)
    monkeypatch.setattr(reading, "ALWAYS_READ", MIB)
    assert "MiB, unpacked" in refused(gzip.compress(frames))
    many = {"segments": [], "device_traces": [], "x": dict.fromkeys(map(str, range(50_000)))}
    for program in (
        b"}" * 800_000,
        b"N" + b"\x94" * 800_000,
        b"](" + b"K\x01" * 800_000,
        pickle.dumps(many)[2:],
    ):
        words = refused(b"\x80\x04" + program, most_memory=4 * MIB)
        assert "need more than 4 MiB of memory" in words
    stacks = [[FRAMES[row >> bit & 1] for bit in range(11)] for row in range(1 << 11)]
    events = [event("alloc", 1, 2, 3, stream=row, frames=each) for row, each in enumerate(stacks)]
    data = {"segments": [], "device_traces": [events]}
    for form in (pickle.dumps(data), json.dumps(data).encode()):
        assert "need more than 1 MiB" in refused(form, most_memory=MIB)


def test_a_part_of_the_attack_finds_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(TESTS / "bench")
    try:
        from attacks import snapshots
    finally:
        for name in [each for each in sys.modules if each.split(".")[0] == "attacks"]:
            del sys.modules[name]
    monkeypatch.setattr(snapshots, "RECORDED", TESTS / "nowhere")
    row = snapshots.run(random.Random(21), int(os.environ.get("OPTPROF_ATTACKS", "300")))
    assert not row.faults.total(), row.descriptions
    assert 10 < int(row.notes["still snapshots"]) < row.tried / 2

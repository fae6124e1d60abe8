"""Power loss: the disk is cut off after each logged system call that changes it.

A disk that loses its power keeps synced data. Of later changes, each file keeps any number of the
first ones, and each folder any number of its first names; the last write may be half done or zeros.
In every case the run can be read and has every record that was acknowledged.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest

from optprof.profiler.records.record import Environment, Record
from optprof.profiler.records.store import RunStore
from optprof.profiler.records.timeline import Stretch, Timeline
from optprof.scenarios import Scenario

TIMELINE = Timeline(
    steps=1,
    phases=(Stretch(step=1, phase="step", events=1, samples=1),),
    places=(0,),
    categories={"parameter": (4,)},
    reserved=(4,),
    peak=0,
    largest=(),
)


@dataclass
class Node:
    """A file or a folder: its content at the last sync, and the changes since."""

    synced: Any
    changes: list[Callable[[Any], Any]] = field(default_factory=list)

    def now(self) -> Any:
        """Return the content that a program sees."""
        return self.after(len(self.changes))

    def after(self, count: int) -> Any:
        """Return the content after the first `count` changes."""
        value = self.synced
        for change in self.changes[:count]:
            value = change(value)
        return value

    def remnants(self) -> list[Any]:
        """Return each distinct content that may be left after a power loss."""
        contents = [self.after(count) for count in range(len(self.changes) + 1)]
        if isinstance(self.synced, bytes):
            for before, after in pairwise(tuple(contents)):
                if len(after) > len(before):
                    grown = len(after) - len(before)
                    contents += [
                        after[: len(before) + grown // 2],
                        before + bytes(grown),
                        before + bytes(grown // 2),
                    ]
        return [each for number, each in enumerate(contents) if each not in contents[:number]]


class Disk:
    """A folder's tree as nodes, kept up to date by the calls that change it.

    A moment is a copy of all nodes after a call, with the records that were acknowledged by then.
    """

    def __init__(self, root: Path, acknowledged: int) -> None:
        self.root = root
        self.nodes: list[Node] = []
        self.moments: list[tuple[list[Node], int]] = []
        self.acknowledged = acknowledged
        self.load(root)
        self.note()

    def load(self, path: Path) -> int:
        """Add a file or folder of the real disk as synced; return its number."""
        number = len(self.nodes)
        self.nodes.append(Node(None))
        self.nodes[number].synced = (
            {each.name: self.load(each) for each in path.iterdir()}
            if path.is_dir()
            else path.read_bytes()
        )
        return number

    def has(self, path: Any) -> bool:
        """Return whether a path lies in the tree."""
        return isinstance(path, str | os.PathLike) and Path(path).is_relative_to(self.root)

    def find(self, path: Any) -> int | None:
        """Return the number of the node at a path, or None."""
        number = 0
        for name in Path(path).relative_to(self.root).parts:
            names = self.nodes[number].now()
            if name not in names:
                return None
            number = names[name]
        return number

    def make(self, path: Any, content: Any) -> int:
        """Make a file or a folder; return its number."""
        self.nodes.append(Node(content))
        self.rename(Path(path).parent, {Path(path).name: len(self.nodes) - 1})
        return len(self.nodes) - 1

    def move(self, source: Path, target: Path) -> None:
        """Give a node another name in its folder; a journal has both changes of it or none."""
        assert source.parent == target.parent
        self.rename(source.parent, {target.name: self.find(source), source.name: None})

    def rename(self, folder: Path, names: dict[str, int | None]) -> None:
        """Give names to nodes, or take them away from None, in one change."""
        number = self.find(folder)
        assert number is not None
        self.change(
            number,
            lambda old: {name: node for name, node in (old | names).items() if node is not None},
        )

    def change(self, number: int, change: Callable[[Any], Any]) -> None:
        """Note a change, and the moment after it."""
        self.nodes[number].changes.append(change)
        self.note()

    def sync(self, number: int) -> None:
        """Sync a node to the disk."""
        self.nodes[number] = Node(self.nodes[number].now())
        self.note()

    def note(self) -> None:
        """Remember the disk as it is now."""
        self.moments.append(
            ([Node(node.synced, list(node.changes)) for node in self.nodes], self.acknowledged)
        )

    def acknowledge(self) -> None:
        """Count one more record that is safe."""
        self.acknowledged += 1
        self.note()

    def remnants(self) -> Iterator[tuple[Any, int]]:
        """Yield every tree that a power loss may leave, with the acknowledged records."""
        seen: list[tuple[Any, int]] = []
        for nodes, acknowledged in self.moments:
            for contents in product(*(node.remnants() for node in nodes)):
                remnant = tree(contents), acknowledged
                if remnant not in seen:
                    seen.append(remnant)
                    yield remnant


def tree(contents: Sequence[Any], number: int = 0) -> Any:
    """Return a tree of these contents by number: dictionaries of names, and bytes."""
    content = contents[number]
    return (
        {name: tree(contents, inner) for name, inner in content.items()}
        if isinstance(content, dict)
        else content
    )


class Log:
    """The calls that change a disk, in place of those of `os`; each is done and noted."""

    def __init__(self, disk: Disk, patch: pytest.MonkeyPatch) -> None:
        self.disk = disk
        self.nodes: dict[int, int] = {}
        self.real: dict[str, Callable[..., Any]] = {}
        for name in (
            "open",
            "close",
            "write",
            "fsync",
            "ftruncate",
            "replace",
            "rename",
            "mkdir",
            "unlink",
            "fdopen",
        ):
            self.real[name] = getattr(os, name)
            patch.setattr(os, name, getattr(self, name))

    def open(self, path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        inside = self.disk.has(path)
        number = self.disk.find(path) if inside else None
        descriptor = self.real["open"](path, flags, mode, **more)
        assert not flags & os.O_TRUNC
        if inside:
            self.nodes[descriptor] = self.disk.make(path, b"") if number is None else number
        return descriptor

    def close(self, descriptor: int) -> None:
        self.nodes.pop(descriptor, None)
        self.real["close"](descriptor)

    def write(self, descriptor: int, data: Any) -> int:
        written = self.real["write"](descriptor, data)
        self.change(descriptor, lambda content, added=bytes(data)[:written]: content + added)
        return written

    def fsync(self, descriptor: int) -> None:
        self.real["fsync"](descriptor)
        if descriptor in self.nodes:
            self.disk.sync(self.nodes[descriptor])

    def ftruncate(self, descriptor: int, length: int) -> None:
        self.real["ftruncate"](descriptor, length)
        self.change(descriptor, lambda content: content[:length])

    def replace(self, source: Any, target: Any) -> None:
        self.real["replace"](source, target)
        if self.disk.has(source):
            self.disk.move(Path(source), Path(target))

    rename = replace

    def mkdir(self, path: Any, mode: int = 0o777, **more: Any) -> None:
        self.real["mkdir"](path, mode, **more)
        if self.disk.has(path):
            self.disk.make(path, {})

    def unlink(self, path: Any, **more: Any) -> None:
        self.real["unlink"](path, **more)
        if self.disk.has(path):
            self.disk.rename(Path(path).parent, {Path(path).name: None})

    def fdopen(self, descriptor: int, how: str = "r", **more: Any) -> Any:
        return (
            Written(self, descriptor)
            if how == "wb"
            else self.real["fdopen"](descriptor, how, **more)
        )

    def change(self, descriptor: int, change: Callable[[Any], Any]) -> None:
        if descriptor in self.nodes:
            self.disk.change(self.nodes[descriptor], change)


@dataclass
class Written:
    """A file object whose writes are calls that are logged."""

    log: Log
    descriptor: int

    def __enter__(self) -> "Written":
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close(self.descriptor)

    def fileno(self) -> int:
        return self.descriptor

    def flush(self) -> None:
        """Do nothing: writes are not buffered."""

    def write(self, data: Any) -> int:
        return self.log.write(self.descriptor, data)

    def writelines(self, parts: Any) -> None:
        for part in parts:
            self.write(part)


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Disk]:
    """Return a function that begins to log the calls that change `tmp_path / "disk"`."""

    def begin(acknowledged: int = 0) -> Disk:
        disk = Disk(tmp_path / "disk", acknowledged)
        Log(disk, monkeypatch)
        return disk

    (tmp_path / "disk").mkdir()
    return begin


def record(number: int) -> Record:
    return Record(
        scenario=Scenario(model="gpt2", seed=number),
        origin="simulated",
        environment=Environment(platform="x" * 20),
    )


def on_disk(path: Path) -> Any:
    return (
        {each.name: on_disk(each) for each in path.iterdir()}
        if path.is_dir()
        else path.read_bytes()
    )


def put(content: Any, path: Path) -> None:
    if isinstance(content, dict):
        path.mkdir()
        for name, inner in content.items():
            put(inner, path / name)
    else:
        path.write_bytes(content)


def logged_whole(disk: Disk) -> None:
    """Fail if the log missed a call: its tree must equal the real disk."""
    assert tree([node.now() for node in disk.nodes]) == on_disk(disk.root)


def check_all(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evidence: bytes = b""
) -> int:
    """Check every remnant: records in order, evidence kept, the run resumes. Return the count."""
    monkeypatch.undo()
    count = 0
    for number, (left, acknowledged) in enumerate(disk.remnants()):
        root = tmp_path / f"after-{number}"
        put(left, root)
        run = root / "runs" / "mine"
        try:
            records = RunStore(run).read()
        except FileNotFoundError:
            records = []
        expected = [record(each) for each in range(acknowledged)]
        assert records[:acknowledged] == expected, left
        assert len(records) <= acknowledged + 1
        for name, timeline in RunStore(run).read_timelines(records).items():
            assert timeline == TIMELINE, name
        if evidence:
            kept = b"".join(
                path.read_bytes()
                for path in run.glob("records.*")
                if not path.name.endswith(".part")
            )
            assert evidence in kept, left
        store = RunStore.resume(run)
        store.append(record(99))
        store.close()
        assert store.read() == [*records, record(99)]
        assert not store.torn_bytes or evidence or len(records) == acknowledged
        count = number + 1
    return count


def test_a_record_that_was_acknowledged_outlives_every_power_loss(
    watched: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    disk = watched()
    store = RunStore.create(disk.root / "runs" / "mine")
    for number in range(3):
        store.write_timeline(record(number).scenario, TIMELINE)
        store.append(record(number))
        disk.acknowledge()
    store.close()
    logged_whole(disk)
    # Making two folders and a file, and of each of 3 records a timeline and a line.
    assert check_all(disk, monkeypatch, tmp_path) > 30


def test_a_torn_line_is_copied_before_it_is_cut_off(
    watched: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    torn = b'{"schema": 1, "nobody": {"mo'
    (run := tmp_path / "disk" / "runs" / "mine").mkdir(parents=True)
    (run / "records.jsonl").write_bytes(record(0).to_json().encode() + b"\n" + torn)
    disk = watched(acknowledged=1)
    store = RunStore.resume(run)
    store.append(record(1))
    disk.acknowledge()
    store.close()
    logged_whole(disk)
    assert check_all(disk, monkeypatch, tmp_path, evidence=torn) > 8


def test_a_repair_loses_nothing(
    watched: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    lines = [record(number).to_json().encode() + b"\n" for number in range(3)]
    (run := tmp_path / "disk" / "runs" / "mine").mkdir(parents=True)
    (run / "records.jsonl").write_bytes(
        lines[0] + b"{damaged}\n" + lines[1] + b"\n" + lines[2] + b"{torn"
    )
    disk = watched(acknowledged=3)
    assert len(RunStore.open(run).repair()) == 3
    logged_whole(disk)
    assert check_all(disk, monkeypatch, tmp_path, evidence=b"{damaged}\n") > 10
    assert (run / "records.jsonl").read_bytes() == b"".join(lines)


def test_a_line_that_did_not_fit_costs_no_other(
    watched: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    disk = watched()
    store = RunStore.create(disk.root / "runs" / "mine")
    write, room = os.write, 500

    def small(descriptor: int, data: Any) -> int:
        left = room - os.fstat(descriptor).st_size
        if left <= 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, bytes(data)[:left])

    store.append(record(0))
    disk.acknowledge()
    room = store.records_path.stat().st_size + 100
    monkeypatch.setattr(os, "write", small)
    with pytest.raises(OSError, match=r"No space left on device: .*records\.jsonl"):
        store.append(record(1))
    monkeypatch.setattr(os, "write", write)
    store.append(record(1))
    disk.acknowledge()
    store.close()
    logged_whole(disk)
    check_all(disk, monkeypatch, tmp_path)

"""Read damaged and hostile snapshots: no execution, no traceback, no hang."""

import gzip
import os
import pickle
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from optprof.profiler.snapshots.reading import UnreadableSnapshotError, read_snapshot

from .row import Row

COUNT = 100_000
# All inputs are small; the slowest honest one takes a few milliseconds.
LONGEST_S = 2.0
TESTS = Path(__file__).parents[2]
RECORDED = Path(
    os.environ.get("OPTPROF_SNAPSHOTS", TESTS.parent.parent / "shared" / "gpu-snapshots")
)
# Python reports these for code that is looked up, loaded or run.
EXECUTION = ("exec", "compile", "import", "os.", "subprocess.", "pickle.", "ctypes.", "socket.")
NUMBERS = (-1, 0, 255, 2**31 - 1, -(2**31), 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**70)
OPCODES = b"}])(tuase.hjqr\x94\x85\x86\x87\x95\x8a\x8cXKMJGN012"
JSON_VALUES = (
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"[" * 5000, b'"\xff"', b'"\\ud800"', b"null",
    b"-1", b"true", b"18446744073709551616", b'{"action": "alloc", "size": 1}', b"",
)  # fmt: skip


def run(chance: random.Random, count: int) -> Row:
    """Read so many damaged and hostile snapshots."""
    row = Row(title="damaged and hostile snapshots read")
    row.looks_for("executed", "raised", "not one line", "slow")
    with TemporaryDirectory() as place:
        path, canary = Path(place) / "snapshot.pickle", Path(place) / "executed"
        whole = originals()
        for data in whole:
            # Load every module that reading needs before imports are counted.
            path.write_bytes(data)
            read_snapshot(path)
        programs = hostile_opcodes(canary)
        for _ in range(count):
            row.tried += 1
            _one(row, path, mutated(chance.choice(whole), chance, programs))
            if canary.exists():
                row.fault("executed", f"input {row.tried}")
                canary.unlink()
    return row


def originals() -> list[bytes]:
    """Return small snapshots: made ones in every form, and the beginnings of recorded ones."""
    sys.path.append(str(TESTS / "support"))
    from snapshot_forms import as_cpp, forms, snapshot

    whole = list(forms(snapshot()).values())
    for path in sorted(RECORDED.glob("*.pickle.gz")):
        data: Any = pickle.loads(gzip.decompress(path.read_bytes()))
        data["device_traces"] = [trace[:20] for trace in data["device_traces"]]
        data["segments"] = data["segments"][:4]
        whole += [pickle.dumps(data, 4), as_cpp(data)]
    return whole


def hostile_opcodes(canary: Path) -> list[bytes]:
    """Return pieces of pickles that would make a file, or much of something."""
    command = f"touch {canary}".encode()
    text = b"X" + len(command).to_bytes(4, "little") + command

    class Runs:
        def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
            return os.system, (command.decode(),)

    return [
        b"cos\nsystem\n(" + text + b"tR",
        b"(" + text + b"ios\nsystem\n",
        b"(cos\nsystem\n" + text + b"o",
        b"\x8c\x02os\x8c\x06system\x93" + text + b"\x85R",
        b"cos\nsystem\n" + text + b"\x85\x81",
        pickle.dumps(Runs(), 4)[2:-1],
        b"cbuiltins\nexec\n}b",
        text + b"Q",
        b"Pname\n",
        b"\x82\x01",
        b"](" * 2000,
        b"\x85" * 3000 + b"K\x00s",
        b"]" * 500 + b"a" * 499,
        b"]\x94h\x00a" * 50,
        b"(" * 1200,
        b"\x8d" + b"\xff" * 8,
        b"X\xff\xff\xff\xff",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8a\xff" + b"\xff" * 255,
        b"X\x02\x00\x00\x00\xff\xfe",
        b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
        b"\x96" + b"\xff" * 8,
        b"\x97",
        b"N" * 100,
    ] + [pickle.dumps(number, 2)[2:-1] for number in NUMBERS]


def mutated(data: bytes, chance: random.Random, programs: list[bytes]) -> bytes:
    """Return the snapshot with some bytes or values replaced."""
    packed = data[:2] == b"\x1f\x8b"
    if packed and chance.random() < 0.7:
        # The checksum is right, and the contents are not.
        return gzip.compress(mutated(gzip.decompress(data), chance, programs), 1)
    pieces = programs if data[:1] == b"\x80" else list(JSON_VALUES)
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
        if changed:
            _change(changed, chance, pieces)
    return bytes(changed[: chance.randrange(len(data))] if chance.random() < 0.05 else changed)


def _change(data: bytearray, chance: random.Random, pieces: list[bytes]) -> None:
    at = chance.randrange(len(data))
    end = at + chance.choice((0, 1, 2, 5, 9, 50))
    kind = chance.randrange(6)
    if kind == 0:
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        data[at:end] = chance.choice(pieces)
    elif kind == 2:
        data[at:at] = chance.randbytes(chance.randint(1, 8))
    elif kind == 3:
        del data[at:end]
    elif kind == 4:
        other = chance.randrange(len(data))
        data[other:other] = data[at:end]
    else:
        data[at] = chance.choice(OPCODES)


def _one(row: Row, path: Path, data: bytes) -> None:
    # Some disks write out a file that replaces another's bytes, which takes longer than the rest.
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    begin = time.process_time()
    try:
        with _watched(row):
            read_snapshot(path)
        row.notes["still snapshots"] = int(row.notes.get("still snapshots", 0)) + 1
    except UnreadableSnapshotError as error:
        text = str(error)
        if not text.isprintable() or len(text) > 500:
            row.fault("not one line", text)
    except Exception as error:  # Any exception is the fault.
        row.fault("raised", f"{error!r} for {data!r}")
    if time.process_time() - begin > LONGEST_S:
        row.fault("slow", repr(data))


_row: list[Row] = []
_hooked: list[bool] = []


@contextmanager
def _watched(row: Row) -> Iterator[None]:
    """Count code that is looked up, loaded or run in this block."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_audit)
    _row.append(row)
    try:
        yield
    finally:
        _row.clear()


def _audit(event: str, arguments: tuple[object, ...]) -> None:
    if _row and event.startswith(EXECUTION):
        _row[0].fault("executed", f"{event} {arguments!r}")

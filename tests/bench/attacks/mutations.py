"""Damage runs and timelines at random bytes and lines, and read them as users do."""

import gzip
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from records import records

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import file_name
from optprof.profiler.records.timeline import HeldBlock, Stretch, Timeline, pack, unpack
from optprof.reports import run_markdown
from optprof.reports.arithmetic.courses import thinned
from optprof.reports.run import Run

from .commands import optprof
from .row import Row

COUNT, TIMELINES = 600, 20_000
RECORDS = 12
# The commands, which take seconds, read one of so many mutated runs.
EVERY = 100
HOSTILE_VALUES = (
    b"NaN",
    b"1e999",
    b"-Infinity",
    b"1" * 400,
    b"[" * 5_000,
    b'"' + b"x" * 30_000 + b'"',
    b'"\\ud800"',
    b'"\xff"',
    b"\x00",
    b"null",
    b"{}",
    b"",
)


def run(chance: random.Random, count: int) -> Row:
    """Read so many mutated runs, some of them with the commands too."""
    row = Row(title="mutated runs read").looks_for("raised", "records lost", "commands refused")
    with TemporaryDirectory() as place:
        whole = [record for kind in ("options", "models") for record in records(kind, RECORDS // 2)]
        whole[3] = replace(whole[3], outcome="failed", error="no", memory=None, times=None)
        lines = [record.to_json().encode() + b"\n" for record in whole]
        for number in range(count):
            _one_run(row, chance, Path(place) / "run", whole, lines, commands=number % EVERY == 0)
            row.tried += 1
    return row


def run_timelines(chance: random.Random, count: int) -> Row:
    """Read so many mutated timelines, and compute a report's figures of the readable ones."""
    row = Row(title="mutated timelines read").looks_for("raised")
    packed = pack(timeline())
    text, read = gzip.decompress(packed), 0
    for _ in range(count):
        row.tried += 1
        if chance.random() < 0.3:
            mutated = bytes(_mutated(bytearray(packed), chance))
        else:
            # The file's checksum is right and its contents are not.
            mutated = gzip.compress(_changed(text, chance), compresslevel=1)
        try:
            result = unpack(mutated)
            # A report computes these.
            thinned(result, 200)
            _ = result.peak_stretch, result.fragmentation
            read += 1
        except ValueError as error:
            _require_one_line(row, error)
        except Exception as error:  # Any exception is the fault.
            row.fault("raised", repr(error))
    row.notes["still timelines"] = read
    return row


def _changed(text: bytes, chance: random.Random) -> bytes:
    """Return JSON with damaged bytes, or with a number or a text replaced."""
    if chance.random() < 0.4:
        return bytes(_mutated(bytearray(text), chance))
    places = [match.span() for match in re.finditer(rb'-?\d+|"[a-z]+"', text)]
    start, end = chance.choice(places)
    number = str(chance.choice((-1, 0, 3, 10**6, 2**63, 10**30))).encode()
    return text[:start] + chance.choice((*HOSTILE_VALUES, number, number)) + text[end:]


def _one_run(
    row: Row,
    chance: random.Random,
    folder: Path,
    whole: list[Record],
    lines: list[bytes],
    *,
    commands: bool,
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    change = chance.choice((_in_lines, _in_lines, _in_lines, _as_bytes))
    data, touched = change(lines, chance)
    (folder / "records.jsonl").write_bytes(data)
    untouched = {
        file_name(whole[place].scenario) for place in range(len(whole)) if place not in touched
    }
    try:
        names = {file_name(record.scenario) for record in Run.read(folder).records}
        if names:
            run_markdown(folder)
    except (ValueError, OSError) as error:
        _require_one_line(row, error)
        row.fault("records lost", f"{len(untouched)} untouched, {error}")
        names = untouched
    except Exception as error:  # Any exception is the fault.
        row.fault("raised", repr(error))
        names = untouched
    if missing := untouched - names:
        row.fault("records lost", f"{len(missing)} of {len(untouched)} untouched")
    if commands and untouched:
        _commands(row, folder)


def _commands(row: Row, folder: Path) -> None:
    """Require that every command reads the undamaged records."""
    other = folder.with_name("other")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    for words in (["report", "run", "--markdown"], ["report", "run"], ["compare", "run", "other"]):
        status, _, said = optprof(words, folder.parent)
        if status != 0 or "Traceback" in said:
            row.fault("commands refused", f"{' '.join(words)}: {status} {said[-200:]}")


def _in_lines(lines: list[bytes], chance: random.Random) -> tuple[bytes, set[int]]:
    """Damage one to three lines separately."""
    damaged, touched = list(lines), set[int]()
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(damaged))
        if place not in touched:
            damaged[place] = _damaged(damaged[place], chance)
            touched.add(place)
    if chance.random() < 0.3:
        # Insert a line that is not a record between whole ones.
        place = chance.randrange(len(damaged))
        junk = chance.choice(
            (b"\n", b"\x00" * 64 + b"\n", b"{}\n", b"[]\n", b"torn\n", b"\xff\xfe\n")
        )
        damaged.insert(place, junk)
        touched = {each + (each >= place) for each in touched}
        order = [each for each in range(len(damaged)) if each != place]
        touched = {order.index(each) for each in touched}
    return b"".join(damaged), touched


def _damaged(line: bytes, chance: random.Random) -> bytes:
    """Damage a line; it stays one line, or becomes several that are not records."""
    body = bytearray(line[:-1])
    kind = chance.randrange(4)
    if kind == 0:
        body = _mutated(body, chance)
    elif kind == 1:
        body = body[: chance.randrange(len(body))]
    elif kind == 2:
        value = chance.choice(HOSTILE_VALUES)
        start = body.index(b": ", chance.randrange(len(body) // 2)) + 2
        end = next((at for at in range(start, len(body)) if body[at] in b",}"), len(body))
        body[start:end] = value
    else:
        body = bytearray(b"\x00" * len(body))
    return bytes(body) + b"\n"


def _as_bytes(lines: list[bytes], chance: random.Random) -> tuple[bytes, set[int]]:
    """Truncate the file, or flip a byte anywhere, as a disk does."""
    data = bytearray(b"".join(lines))
    starts = [sum(map(len, lines[:place])) for place in range(len(lines))]
    at = chance.randrange(len(data))
    place = max(number for number, start in enumerate(starts) if start <= at)
    if chance.random() < 0.5:
        return bytes(data[:at]), set(range(place, len(lines)))
    data[at] ^= 1 << chance.randrange(8)
    # A line without its line break spoils the next one too.
    return bytes(data), {place, place + 1} if at == starts[place] + len(lines[place]) - 1 else {
        place
    }


def _mutated(data: bytearray, chance: random.Random) -> bytearray:
    """Flip, insert, delete or repeat a few bytes."""
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        if not data:
            return data
        at, kind = chance.randrange(len(data)), chance.randrange(5)
        if kind == 0:
            data[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        elif kind == 2:
            del data[at : at + chance.randint(1, 50)]
        elif kind == 3:
            data[at:at] = data[at : at + chance.randint(1, 50)]
        else:
            del data[at:]
    return data


def _require_one_line(row: Row, error: Exception) -> None:
    if "\n" in str(error) or len(str(error)) > 2_000:
        row.fault("raised", f"an error of more than a line: {error}")


def timeline() -> Timeline:
    """Return a timeline of three phases."""
    block = HeldBlock(
        block_bytes=512,
        requested_bytes=400,
        category="parameter",
        step=0,
        phase="build",
        module="layer",
        op="aten::empty",
        line="model.py:3",
    )
    phases = tuple(
        Stretch(step=1, phase=name, events=20, samples=20)
        for name in ("forward", "backward", "step")
    )
    places = tuple(number % 20 for number in range(60))
    parameters = tuple(1024 + number for number in range(60))
    return Timeline(
        steps=1,
        phases=phases,
        places=places,
        categories={"parameter": parameters, "temporary": (0,) * 60},
        reserved=(2**21,) * 60,
        peak=59,
        largest=(block,),
    )

"""A run folder: lines are read back, a table goes with them, and nothing is overwritten."""

import csv
import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from time import sleep

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optprof.profiler.records.record import (
    SCHEMA,
    Course,
    Environment,
    GpuReading,
    HeldOut,
    Memory,
    Record,
    Watched,
)
from optprof.profiler.records.store import RunStore, file_name, free_folder, last_folder
from optprof.profiler.records.timeline import Stretch, Timeline, pack
from optprof.profiler.running.resume import pending
from optprof.scenarios import Scenario, schema
from optprof.scenarios.schema import MOST_LINE_BYTES

# 100,000 and more for a long night: OPTPROF_FUZZ=100000 pytest -k malformed
EXAMPLES = int(os.environ.get("OPTPROF_FUZZ", "200"))
TIMELINE = Timeline(
    steps=1,
    phases=(Stretch(step=1, phase="step", events=1, samples=1),),
    places=(0,),
    categories={"parameter": (4,)},
    reserved=(4,),
    peak=0,
    largest=(),
)


MEMORY = Memory(
    parameters=16,
    gradients=16,
    optimizer_state=36,
    state_by_key={"exp_avg": 16, "exp_avg_sq": 16, "step": 4},
    state_by_key_dtype={
        "exp_avg": {"float32": 16},
        "exp_avg_sq": {"float32": 16},
        "step": {"float32": 4},
    },
    peak_by_category={},
    peak_by_phase={},
)


def record(**changes: object) -> Record:
    values = {
        "scenario": Scenario(model="gpt2"),
        "origin": "simulated",
        "memory": MEMORY,
        "environment": Environment(),
    }
    return Record(**(values | changes))  # pyright: ignore[reportArgumentType]


def test_records_are_read_back_as_they_were_written(tmp_path: Path):
    store = RunStore.create(tmp_path / "run")
    written = [
        record(times={"step": (0.1, 0.2)}),
        record(outcome="failed", memory=None, error="no luck"),
    ]
    for each in written:
        store.append(each)
    assert store.read() == written


def test_a_line_has_the_contract_s_names_with_the_schema_first(tmp_path: Path):
    store = RunStore.create(tmp_path / "run")
    store.append(record())
    data = json.loads(store.records_path.read_text())
    assert next(iter(data)) == "schema"
    assert data["schema"] == SCHEMA
    assert {
        "scenario",
        "origin",
        "outcome",
        "parameter_count",
        "memory",
        "times",
        "environment",
    } <= data.keys()
    scenario = (
        "model optimizer options implementation workload dtype batch_size sequence_length device"
        " seed"
    )
    assert set(scenario.split()) <= data["scenario"].keys()
    memory = (
        "parameters gradients optimizer_state optimizer_state_allocated peak_allocated"
        " peak_reserved peak_phase state_by_key"
    )
    assert set(memory.split()) <= data["memory"].keys()


def test_the_table_has_a_column_for_every_field_of_any_record(tmp_path: Path):
    store = RunStore.create(tmp_path)
    store.write_csv([record(), record(times={"step": (0.1, 0.2)})])
    with store.csv_path.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["memory.state_by_key.exp_avg"] for row in rows] == ["16", "16"]
    assert [row["times.step"] for row in rows] == ["", "0.1 0.2"]


def test_a_cell_of_the_table_is_plain(tmp_path: Path):
    reading = GpuReading(
        clock_mhz=1980,
        memory_clock_mhz=None,
        temperature_celsius=61,
        slowed_by=("heat",),
        other_processes=0,
        process_bytes=1,
    )
    watched = Watched(gpu=(reading,), warnings=("slow, and “hot”",))
    course = Course(
        draws=(2, 1),
        losses=(0.5, None, 2.0),
        held_out=(HeldOut(micro_batches=2, loss=None),),
        added_bytes=0,
        dropped=1,
    )
    scenario = Scenario(
        model="gpt2",
        options={
            "betas": (0.9, 0.99),
            "amsgrad": True,
            "sides": ("left", None),
            "deep": [[1, 2], [3]],
        },
    )
    environment = Environment(
        command=("optprof", "profile", "a b"), affinity=(0, 1), keeps_freed_memory=False
    )
    store = RunStore.create(tmp_path)
    store.write_csv(
        [record(scenario=scenario, watched=watched, course=course, environment=environment)]
    )
    with store.csv_path.open(encoding="utf-8", newline="") as table:
        (row,) = csv.DictReader(table)
    assert {
        key.removeprefix("scenario.options."): row[key]
        for key in row
        if key.startswith("scenario.options.")
    } == {
        "betas": "0.9 0.99",
        "amsgrad": "true",
        "sides": '["left", null]',
        "deep": "[[1, 2], [3]]",
    }
    assert json.loads(row["watched.gpu"]) == [{**asdict(reading), "slowed_by": ["heat"]}]
    assert json.loads(row["course.held_out"]) == [{"micro_batches": 2, "loss": None}]
    assert row["watched.warnings"] == '["slow, and “hot”"]'
    assert (row["course.losses"], row["course.draws"], row["course.ended"]) == (
        "0.5 nan 2.0",
        "2 1",
        "",
    )
    assert json.loads(row["environment.command"]) == ["optprof", "profile", "a b"]
    assert (
        row["environment.affinity"],
        row["environment.keeps_freed_memory"],
        row["environment.git_commit"],
    ) == ("0 1", "false", "")
    assert (row["scenario.set_to_none"], row["scenario.gpu"], row["log"]) == ("true", "", "")


def test_a_run_is_never_written_over(tmp_path: Path):
    RunStore.create(tmp_path / "gpt2").append(record())
    with pytest.raises(FileExistsError, match="already holds a run; name another folder"):
        RunStore.create(tmp_path / "gpt2")
    assert free_folder(tmp_path, "gpt2") == tmp_path / "gpt2-2"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: Input data was truncated"),
        ("[]", "line 2: a record is a JSON object, got list"),
        ('{"schema": 9}', "line 2: schema 1 is read here, got 9"),
        ('{"schema": 1, "origin": "measured"}', "line 2: not a record: no scenario"),
        (
            '{"schema": 1, "scenario": {"model": "gpt2"}, "origin": "guessed"}',
            "line 2: not a record: origin must be one of measured, ",
        ),
        (
            '{"schema": 1, "scenario": {"model": 2}}',
            "line 2: not a record: scenario.model must be a text, got 2",
        ),
        (
            '{"schema": 1, "scenario": {"model": "a", "config": {"a": NaN}}}',
            "line 2: JSON is malformed",
        ),
        ("[" * 100_000, "line 2: lists or objects are nested too deep"),
        ("", "line 2: blank"),
        (" \t\r", "line 2: blank"),
        ("\0" * 4096, "line 2: 4096 zero bytes"),
        ("x" * (MOST_LINE_BYTES + 5), "line 2: a record has at most 33554432 bytes, got more"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, message: str):
    store = RunStore.create(tmp_path)
    store.append(record())
    with store.records_path.open("a") as lines:
        lines.write(line + "\n")
    store.append(record(error="after it"))
    assert store.read() == [record(), record(error="after it")]
    (damage,) = store.damage
    assert damage.startswith(f"records.jsonl, {message}")


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no records\.jsonl in"):
        RunStore(tmp_path).read()


def test_a_torn_last_line_is_skipped_by_readers_and_set_aside_on_resume(tmp_path: Path):
    store = RunStore.create(tmp_path)
    store.append(record())
    store.close()
    torn = record().to_json().encode()[:70]
    with store.records_path.open("ab") as lines:
        lines.write(torn)
    reader = RunStore(tmp_path)
    assert reader.read() == [record()]
    assert reader.damage == ("records.jsonl, line 2: torn after 70 bytes, without an end of line",)
    again = RunStore.resume(tmp_path)
    assert again.torn_bytes == 70
    again.append(record(outcome="failed", memory=None, error="no luck"))
    assert [each.outcome for each in again.read()] == ["ok", "failed"]
    assert again.damage == ()
    assert again.torn_path.read_bytes() == torn + b"\n"


def test_two_processes_do_not_write_one_run(tmp_path: Path):
    store = RunStore.create(tmp_path)
    code = (
        "import sys; from pathlib import Path; from optprof.profiler.records.store import RunStore;"
        " RunStore.resume(Path(sys.argv[1]))"
    )
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent / "src")}
    second = [sys.executable, "-c", code, str(tmp_path)]
    refused = subprocess.run(second, capture_output=True, text=True, check=False, env=here)
    assert f"another process is writing the run in {tmp_path}; wait for it" in refused.stderr
    store.close()
    assert subprocess.run(second, check=False, env=here).returncode == 0


def test_a_full_disk_loses_no_record_and_leaves_no_part_of_one(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        store = RunStore.create(disk / "run")
        large = record(error="x" * 9000)
        for _ in range(written := 6):
            store.append(large)
        with pytest.raises(OSError, match=r"No space left on device: .*records.jsonl"):
            store.append(large)
        store.close()
        again = RunStore.resume(disk / "run")
        assert (len(again.read()), again.damage) == (written, ())
        again.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_open_run_is_written_and_a_read_one_is_not(tmp_path: Path):
    RunStore.create(tmp_path).close()
    with pytest.raises(ValueError, match="open for reading"):
        RunStore(tmp_path).append(record())


def test_folders_are_numbered_on_and_the_last_is_found(tmp_path: Path):
    assert last_folder(tmp_path, "gpt2") == tmp_path / "gpt2"
    made = [RunStore.create_free(tmp_path, "gpt2").folder.name for _ in range(11)]
    assert made[:2] + made[-1:] == ["gpt2", "gpt2-2", "gpt2-11"]
    assert last_folder(tmp_path, "gpt2") == tmp_path / "gpt2-11"


LINES = [record(error=f"number {number}").to_json().encode() + b"\n" for number in range(5)]


@st.composite
def mutations(draw: st.DrawFn) -> tuple[int, int, bytes]:
    """A range of a run's bytes, and the bytes that replace it."""
    length = sum(map(len, LINES))
    ends = [sum(map(len, LINES[: number + 1])) for number in range(5)]
    start = draw(st.integers(0, length) | st.sampled_from(ends).map(lambda end: end - 1))
    dropped = draw(st.sampled_from([0, 1, 1, 1, 2, 70]))
    put = st.binary(max_size=3) | st.sampled_from(
        [b"\n", b"\0", b" ", b"\xff", b"\n\n", b"\0" * 512, b'"', b"{", b'{"schema": ']
    )
    return start, min(start + dropped, length), draw(put)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("fuzzed"))


@settings(max_examples=EXAMPLES, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(mutation=mutations())
def test_a_malformed_run_keeps_every_record_whose_line_is_whole(
    fuzzed: RunStore, mutation: tuple[int, int, bytes]
):
    start, end, put = mutation
    whole = b"".join(LINES)
    fuzzed.records_path.write_bytes(whole[:start] + put + whole[end:])
    records = fuzzed.read()
    place = 0
    for number, line in enumerate(LINES):
        touched = place <= start < place + len(line) or start < place < end
        place += len(line)
        assert touched or record(error=f"number {number}") in records, fuzzed.damage
    whole_records = [each for each in records if str(each.error).startswith("number ")]
    assert whole_records == sorted(whole_records, key=lambda each: str(each.error)) or put
    # A repair waits for the disk.
    if fuzzed.damage and start % 4 == 0:
        assert RunStore.open(fuzzed.folder).repair()
        assert (fuzzed.read(), fuzzed.damage) == (records, ())


def test_lines_that_lost_the_newline_between_them_are_separated(tmp_path: Path):
    (tmp_path / "records.jsonl").write_bytes(
        LINES[0][:-1] + LINES[1][:-1] + b"\x0b" + LINES[2] + LINES[3][:70] + LINES[4]
    )
    store = RunStore.open(tmp_path)
    assert [each.error for each in store.read()] == ["number 0", "number 2", "number 4"]
    assert [each.split(":")[0] for each in store.damage] == [
        "records.jsonl, line 1",
        "records.jsonl, line 2",
    ]
    assert len(store.repair()) == 2
    assert store.records_path.read_bytes() == LINES[0] + LINES[2] + LINES[4]
    assert (
        store.damaged_path.read_bytes()
        == LINES[0][:-1] + LINES[1][:-1] + b"\x0b" + LINES[2] + LINES[3][:70] + LINES[4]
    )


def test_an_overlong_line_is_skipped_in_little_memory(tmp_path: Path):
    with (tmp_path / "records.jsonl").open("wb") as lines:
        lines.write(LINES[0])
        # A hole in the file takes no space on the disk.
        lines.seek(300 << 20, os.SEEK_CUR)
        lines.write(b"\n" + LINES[1])
    tracemalloc.start()
    store = RunStore(tmp_path)
    assert [each.error for each in store.read()] == ["number 0", "number 1"]
    assert tracemalloc.get_traced_memory()[1] < 5 * MOST_LINE_BYTES
    tracemalloc.stop()
    assert store.damage == ("records.jsonl, line 2: a record has at most 33554432 bytes, got more",)


def test_a_repair_keeps_the_damaged_bytes_and_the_whole_lines(tmp_path: Path):
    (tmp_path / "records.jsonl").write_bytes(
        LINES[0] + b"\0\0\n" + LINES[1] + b"\xff{\n\n" + LINES[2] + LINES[3][:40]
    )
    (tmp_path / "records.jsonl").chmod(0o600)
    store = RunStore.open(tmp_path)
    store.write_timeline(record().scenario, TIMELINE)
    foreign = store.timelines_path / "other.json.gz"
    foreign.write_bytes(b"\x1f\x8b")
    done = store.repair()
    assert [each.split(";")[0].split(": ")[0] for each in done] == [
        "records.jsonl",
        *(f"records.jsonl, line {number}" for number in (2, 4, 5)),
        "timelines/other.json.gz",
    ]
    assert store.records_path.read_bytes() == b"".join(LINES[:3])
    assert store.records_path.stat().st_mode & 0o777 == 0o600
    assert store.damaged_path.read_bytes() == b"\0\0\n" + b"\xff{\n" + b"\n"
    assert store.torn_path.read_bytes() == LINES[3][:40] + b"\n"
    assert (store.timelines_path / "other.json.gz.damaged").read_bytes() == b"\x1f\x8b"
    assert store.read_timelines([record()]) == {file_name(record().scenario): TIMELINE}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert RunStore.open(tmp_path).repair() == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_repair_keeps_the_lines_of_a_newer_optprof(tmp_path: Path):
    newer = LINES[1].replace(b'{"schema": 1,', b'{"schema": 2,')
    glued = LINES[2][:60] + newer
    (tmp_path / "records.jsonl").write_bytes(LINES[0] + newer + glued + LINES[3])
    store = RunStore.open(tmp_path)
    store.write_timeline(record().scenario, TIMELINE)
    (timeline,) = store.timelines_path.iterdir()
    timeline.write_bytes(
        gzip.compress(gzip.decompress(timeline.read_bytes()).replace(b'"schema":1', b'"schema":2'))
    )
    assert [each.rpartition("; ")[2] for each in store.repair()] == [
        "left as it is",
        "set aside in records.damaged",
        "left as it is",
    ]
    assert store.records_path.read_bytes() == LINES[0] + newer + newer + LINES[3]
    assert store.damaged_path.read_bytes() == glued
    assert list(store.timelines_path.iterdir()) == [timeline]
    # They are named, so that no gate passes what cannot be read.
    store.read()
    assert [each.split(":")[0] for each in store.damaged_lines] == [
        "records.jsonl, line 2",
        "records.jsonl, line 3",
    ]


@pytest.mark.parametrize("by_another", [False, True])
def test_a_record_is_not_written_into_a_file_that_lost_its_name(
    tmp_path: Path, *, by_another: bool
):
    store = RunStore.create(tmp_path / "run")
    store.append(record())
    store.records_path.rename(tmp_path / "moved")
    if by_another:
        store.records_path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="removed or replaced"):
        store.append(record())
    assert (tmp_path / "moved").read_bytes().count(b"\n") == 1


def test_a_repair_waits_for_no_writer_and_makes_no_run(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no records\.jsonl in"):
        RunStore.open(tmp_path)
    assert list(tmp_path.iterdir()) == []
    writer = RunStore.create(tmp_path)
    with pytest.raises(BlockingIOError, match="another process is writing"):
        RunStore.open(tmp_path)
    writer.close()


def test_a_writer_that_waited_for_a_repair_writes_into_the_repaired_file(tmp_path: Path):
    (tmp_path / "records.jsonl").write_bytes(b"\n" + LINES[0])
    store = RunStore.open(tmp_path)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(RunStore.resume, tmp_path, patience=30)
        sleep(0.1)
        assert not waiting.done()
        store.repair()
        writer = waiting.result(30)
    writer.append(record(error="number 1"))
    assert [each.error for each in store.read()] == ["number 0", "number 1"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not a timeline: an empty file"),
        (b"no", "not a timeline: Not a gzipped file"),
        (pack(TIMELINE)[:-9], "not a timeline: "),
        (pack(TIMELINE)[:30] + b"\xff\xff" + pack(TIMELINE)[32:], "not a timeline: "),
        (pack(TIMELINE, "another"), "the timeline of 'another'"),
        # Written by an older optprof, without a name.
        (pack(TIMELINE), "the timeline of a record whose peak is 4 bytes and not 80"),
        (b"\0" * ((16 << 20) + 1), "a timeline has at most 16777216 bytes, got more"),
    ],
)
def test_an_unreadable_timeline_costs_no_record(tmp_path: Path, data: bytes, message: str):
    store = RunStore.create(tmp_path)
    damaged, whole = (
        record(
            scenario=Scenario(model="gpt2", seed=seed), memory=replace(MEMORY, peak_allocated=80)
        )
        for seed in (1, 2)
    )
    for each in (damaged, whole):
        store.write_timeline(each.scenario, TIMELINE)
    name = file_name(damaged.scenario)
    (store.timelines_path / f"{name}.json.gz").write_bytes(data)
    assert store.read_timelines([damaged, whole]) == {file_name(whole.scenario): TIMELINE}
    assert store.damage[0].startswith(f"timelines/{name}.json.gz: {message}")
    assert store.lost_timelines([damaged, whole]) == {name}
    store.set_timeline_aside(name)
    assert (store.read_timelines([damaged, whole]).keys(), store.damage) == (
        {file_name(whole.scenario)},
        (),
    )
    # It is read once it is written again.
    assert store.lost_timelines([damaged, whole]) == {name}
    store.write_timeline(damaged.scenario, TIMELINE)
    assert store.lost_timelines([damaged, whole]) == set()


def test_nothing_of_a_run_is_read_through_a_link_or_from_a_pipe(tmp_path: Path):
    secret = tmp_path / "secret"
    store = RunStore.create(secret)
    store.append(record())
    store.write_timeline(record().scenario, TIMELINE)
    (secret / "logs").mkdir()
    (secret / "logs" / "001.log").write_text("secret")
    (run := tmp_path / "run").mkdir()
    (run / "records.jsonl").symlink_to(secret / "records.jsonl")
    for refused in (
        RunStore(run).read,
        lambda: RunStore.resume(run),
        lambda: RunStore.open(run),
        lambda: RunStore.create(run),
    ):
        with pytest.raises(ValueError, match=r"run/records\.jsonl is a symbolic link"):
            refused()
    assert RunStore.create_free(tmp_path, "run").folder == tmp_path / "run-2"
    (run / "records.jsonl").unlink()
    os.mkfifo(run / "records.jsonl")
    for refused in (RunStore(run).read, lambda: RunStore.resume(run)):
        with pytest.raises(ValueError, match=r"run/records\.jsonl is not a regular file"):
            refused()
    (run / "records.jsonl").unlink()
    for name in ("timelines", "logs", "snapshots", "tensorboard", "figures"):
        (run / name).symlink_to(secret / name)
        for refused in (lambda: RunStore.resume(run), lambda: RunStore.create(run)):
            with pytest.raises(ValueError, match=f"run/{name} is a symbolic link"):
                refused()
        (run / name).unlink()
    RunStore.create(run).append(record())
    (run / "timelines").symlink_to(secret / "timelines")
    reader = RunStore(run)
    assert reader.read_timelines([record(), record(scenario=Scenario(model="gpt2", seed=1))]) == {}
    (damage,) = reader.damage
    assert damage.startswith("timelines is a symbolic link")
    (run / "timelines").unlink()
    name = f"{file_name(record().scenario)}.json.gz"
    (run / "timelines").mkdir()
    os.mkfifo(run / "timelines" / name)
    reader = RunStore(run)
    assert reader.read_timelines([record()]) == {}
    assert reader.damage == (
        f"timelines/{name}: is not a regular file; remove it, or name another",
    )


@pytest.mark.parametrize(
    "log", ["/etc/passwd", "../secret.log", "logs/../../secret.log", "logs/link.log"]
)
def test_a_log_is_read_only_inside_its_run_and_only_its_end(tmp_path: Path, log: str):
    store = RunStore.create(tmp_path / "run")
    (tmp_path / "secret.log").write_text("secret")
    (store.folder / "logs").mkdir()
    (store.folder / "logs" / "link.log").symlink_to(tmp_path / "secret.log")
    (store.folder / "logs" / "001.log").write_bytes(b"x" * (2 << 20) + b"the end \xff")
    with pytest.raises(ValueError, match=r"in its folder|symbolic link"):
        store.read_log(record(log=log))
    text = store.read_log(record(log="logs/001.log"))
    assert (len(text), text[-9:]) == (1 << 20, "the end \ufffd")


def test_log_numbers_continue_whatever_other_files_exist(tmp_path: Path):
    store = RunStore.create(tmp_path)
    assert store.log_path().name == "001.log"
    (tmp_path / "logs").mkdir()
    for name in ("007.log", "mine.log", f"{'9' * 250}.log", "\u0663.log"):
        (tmp_path / "logs" / name).touch()
    assert store.log_path().name == "008.log"


def test_a_file_with_the_name_of_a_run_is_skipped(tmp_path: Path):
    (tmp_path / "gpt2").touch()
    assert RunStore.create_free(tmp_path, "gpt2").folder == tmp_path / "gpt2-2"
    assert last_folder(tmp_path, "gpt2") == tmp_path / "gpt2-2"
    with pytest.raises(NotADirectoryError):
        RunStore.create(tmp_path / "gpt2")


def test_lost_and_damaged_records_are_made_again():
    environment = Environment(versions={"torch": "2"})
    whole, lost, damaged = (
        record(scenario=Scenario(model="gpt2", seed=seed), environment=environment, lost=lost)
        for seed, lost in enumerate(((), ("timelines/a.json.gz: No space left on device",), ()))
    )
    scenarios = [each.scenario for each in (whole, lost, damaged)]
    records = [whole, lost, damaged]
    assert pending(scenarios, records, environment, {file_name(damaged.scenario)}) == scenarios[1:]
    assert pending(scenarios, [*records, replace(lost, lost=())], environment) == []


def test_a_record_that_no_reader_takes_is_not_written(tmp_path: Path):
    store = RunStore.create(tmp_path)
    bad = (
        record(warnings=("x" * 20_001,)),
        record(error="\ud800"),
        record(times={"step": (-1.0,)}),
        record(parameter_count=2**63),
    )
    for each in bad:
        with pytest.raises(ValueError, match=r"^a record of '.*' cannot be kept: "):
            store.append(each)
    assert store.read() == []


def test_writers_and_readers_of_a_run_have_the_same_limit_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(schema, "MOST_RECORDS", 2)
    store = RunStore.create(tmp_path)
    store.append(record())
    store.append(record())
    with pytest.raises(ValueError, match=r"^a run has at most 2 records, and would have 3"):
        store.append(record())
    store.close()
    again = RunStore.resume(tmp_path)
    with pytest.raises(ValueError, match=r"^a run has at most 2 records"):
        again.append(record())
    assert len(again.read()) == 2

"""Take a campaign's folder into the repository, and print simulated against recorded.

    python tests/gpu/absorb.py FOLDER

Recordings that together have each mechanism go to tests/data/golden. Records and their report go to
docs/results/GPU, where GPU is the name in the catalogue, with constants.json, comparison.md,
kernels.md and settings.md. A folder of an interrupted campaign is absorbed too. To look into a
deviation, use the versions of torch and transformers in the journal: both change.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from lzma import LZMAError
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE), str(ROOT / "src"), str(HERE.parent / "golden")]

import against  # noqa: E402
import kernel_marks  # noqa: E402
import settings_marks  # noqa: E402
from comparison import Comparison, compare, marks  # noqa: E402
from derived import catalogue_lines, derive  # noqa: E402
from optprof.profiler.records.record import Record  # noqa: E402
from optprof.scenarios import hardware  # noqa: E402
from plan import CORE, is_rerun  # noqa: E402
from recording import SUFFIX, Recording  # noqa: E402
from result import Result  # noqa: E402


def keep(recordings: Iterable[tuple[str, Recording]], folder: Path, *, everything: bool) -> None:
    """Write the recordings that cover each mechanism, or all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    count = nbytes = 0
    for name, recording in recordings:
        if everything or name in CORE:
            packed = recording.pack(preset=9)
            (folder / f"{name}{SUFFIX}").write_bytes(packed)
            count, nbytes = count + 1, nbytes + len(packed)
    print(f"{count} recordings, {nbytes} bytes, kept in {folder}")


def compare_all(recordings: dict[str, Recording], say: Callable[[str], None]) -> list[Comparison]:
    """Compare each recording with its simulation, one line each, model by model."""
    compared = []
    for name in sorted(recordings):
        try:
            one = compare(name, recordings[name])
        except Exception as error:
            problem = f"not simulated: {type(error).__name__}: {error}".splitlines()[0]
            say(f"| {name} | {problem} | | | |")
            continue
        compared.append(one)
        replayed = one.replay or f"{one.events} events"
        if recordings[name].ran_out:
            end = "ran out in both" if one.same_end else "ran out on the GPU alone"
            say(f"| {name} | {replayed} | | {end} | |")
            continue
        peaks = " | ".join(f"{peak.recorded:,} {peak.off:+.3%}" for peak in one.peaks)
        say(f"| {name} | {replayed} | {'exact' if one.same_state else 'DIFFERS'} | {peaks} |")
    return compared


def compare_records(
    records: Iterable[Record], gpu: str | None, bandwidth: float | None, say: Callable[[str], None]
) -> list[against.Row]:
    """Compare each measured record with its simulation and estimate, one line each."""
    rows = []
    for record in sorted(records, key=against.label):
        row = against.row(record, gpu)
        rows.append(row)
        if row.problem is not None:
            say(f"| {row.name} | {row.outcome}: {row.problem} | | | | | |")
            continue
        state = "exact" if row.same_state else "DIFFERS"
        offs = " | ".join(map(_percent, (row.allocated_off, row.reserved_off)))
        time = f"{1000 * row.seconds:.3f} ms" if row.seconds is not None else ""
        shares = " / ".join(_percent(row.share(bandwidth, moved=moved)) for moved in (False, True))
        say(f"| {row.name} | {state} | {offs} | {time} | {_percent(row.time_off)} | {shares} |")
    return rows


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.2%}"


def write_records(records: list[Record], folder: Path) -> None:
    """Write the records as a run, and their report."""
    from optprof.reports import write_report

    if not records:
        print("no records, so no report")
        return
    lines = "".join(f"{record.to_json()}\n" for record in records)
    (folder / "records.jsonl").write_text(lines, encoding="utf-8")
    try:
        print(f"{len(records)} records: {write_report(folder)}")
    except ImportError as error:
        print(f"{len(records)} records, no report: {error}; optprof report {folder} writes it")
    for again in ("records.csv", "records.json"):
        # Leave these out: `optprof report` can write them at any time.
        (folder / again).unlink(missing_ok=True)


def main() -> int:
    """Absorb a folder; return 1 if a deviation misses its target."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--golden", type=Path, default=ROOT / "tests" / "data" / "golden")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results")
    parser.add_argument(
        "--all", action="store_true", help="keep all recordings, not only the telling ones"
    )
    arguments = parser.parse_args()
    result = Result(arguments.folder)
    try:
        was_rehearsed, constants = result.was_rehearsed, derive(result.constants)
        recordings, records = dict(result.recordings()), result.records
    except FileNotFoundError as error:
        parser.error(str(error))
    except (KeyError, TypeError, ValueError, LZMAError) as error:
        # The line is whole: incomplete lines are skipped.
        reason = f"{type(error).__name__}: {error}"
        parser.error(f"{arguments.folder} has a line that no campaign writes ({reason}); remove it")
    if was_rehearsed and (
        arguments.golden.is_relative_to(ROOT) or arguments.results.is_relative_to(ROOT)
    ):
        print("this is a rehearsal: name folders outside of the repository", file=sys.stderr)
        return 2
    folder = arguments.results / (result.gpu or "unknown-gpu")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "constants.json").write_text(json.dumps(constants, indent=1) + "\n", encoding="utf-8")
    peak = hardware.describe(result.gpu).bandwidth if result.gpu else None
    print(*catalogue_lines(constants, peak), sep="\n")
    own = {name: each for name, each in recordings.items() if not is_rerun(name)}
    keep(own.items(), arguments.golden, everything=arguments.all)
    write_records(records, folder)
    met = write_comparison(result, own, constants.get("copy_bandwidth"), folder / "comparison.md")
    met = write_kernels(result, folder / "kernels.md") and met
    met = write_settings(result, recordings, folder / "settings.md") and met
    return 0 if met else 1


def write_settings(result: Result, recordings: dict[str, Recording], path: Path) -> bool:
    """Print predictions against reruns and write them; return False if a target is missed.

    A campaign without reruns misses none.
    """
    if not any(map(is_rerun, recordings)):
        return True
    lines, met = settings_marks.lines(recordings)
    title = f"# Predicted settings on {result.gpu or 'a GPU that is not in the catalogue'}"
    text = "\n".join([title, "", *lines]) + "\n"
    print(text, flush=True)
    path.write_text(text, encoding="utf-8")
    return met


def write_kernels(result: Result, path: Path) -> bool:
    """Print the optimizers' steps and write them; return False if a target is missed.

    A campaign without the stage "kernels" misses none.
    """
    if not result.kernels:
        return True
    lines, met = kernel_marks.lines(result.kernels)
    title = f"# Optimizer steps on {result.gpu or 'a GPU that is not in the catalogue'}"
    text = "\n".join([title, "", *lines]) + "\n"
    print(text, flush=True)
    path.write_text(text, encoding="utf-8")
    return met


def write_comparison(
    result: Result, recordings: dict[str, Recording], bandwidth: float | None, path: Path
) -> bool:
    """Print all comparisons and write them as Markdown; return whether all targets are met."""
    lines: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        lines.append(line)

    say(f"# Simulated against recorded: {result.gpu or 'a GPU that is not in the catalogue'}\n")
    say("| recording | replayed | state | peak allocated | peak reserved |\n|---|---|---|---|---|")
    compared = compare_all(recordings, say)
    say("\n| measured | state | allocated | reserved | step | estimate | of copy: needed / moved |")
    say("|---|---|---|---|---|---|---|")
    rows = compare_records(result.records, result.gpu, bandwidth, say)
    say("\n## Marks\n")
    # Without comparisons no target is met.
    met = bool(compared) and len(compared) == len(recordings)
    met = met and all(one.is_met for one in compared)
    say(f"- {sum(one.is_met for one in compared)} of {len(recordings)} recordings meet theirs")
    for mark in marks(compared):
        words = (
            f"median {mark['median']:.3%}, worst {mark['worst']:.3%}, lowest {mark['lowest']:+.3%}"
        )
        say(f"- peak {mark['name']}, {mark['count']}: {words}: {_met(mark['met'])}")
        met = met and mark["met"]
    times = against.time_marks(rows)
    met = met and times is not None and times[2]
    if times is None:
        say("- step times: none to judge")
    else:
        say(f"- step times: median {times[0]:.1%}, worst {times[1]:.1%}: {_met(times[2])}")
    say("\n## What failed\n")
    for failure in result.failures():
        say(f"- {failure}")
    for tests in result.of_kind("tests"):
        say(f"- tests marked gpu: status {tests['status']}")
        failed = [line for line in tests["outcomes"] if line.startswith(("FAILED", "ERROR"))]
        for line in failed:
            say(f"  - {line}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return met


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


if __name__ == "__main__":
    sys.exit(main())

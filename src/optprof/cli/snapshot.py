"""optprof snapshot: show what a memory snapshot holds, and what other settings would take."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from optprof.reports.progress import steps
from optprof.reports.streams import results_on_stdout, say

from .names import gpu_names
from .options import Anonymous, AsJson, Replace
from .running import RUNS


def snapshot(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A snapshot of torch.cuda.memory._dump_snapshot or of --snapshot, also gzip'd.",
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--try",
            metavar="SETTINGS",
            help="Replay the requests under `all` settings of a list of ours, or under these, as in"
            " expandable_segments:True. Can be repeated.",
            show_default="no replay",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Replay on the memory of this GPU, a name from `optprof list gpus`.",
            show_default="that of a recorded out-of-memory, else unlimited",
            autocompletion=gpu_names,
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the page.", show_default="runs/FILE-snapshot"),
    ] = None,
    force: Replace = False,
    as_json: AsJson = False,
    anonymous: Anonymous = False,
) -> None:
    """Show what a snapshot of torch.cuda.memory holds, and which settings would reserve less."""
    from optprof.profiler.records.privacy import disclosed_command
    from optprof.profiler.safety.disk import require_own_folder
    from optprof.profiler.snapshots.answer import answer
    from optprof.reports import SNAPSHOT, print_snapshot, write_snapshot_page
    from optprof.scenarios import hardware

    total = hardware.describe(gpu).usable_bytes if gpu else None
    if gpu and not settings:
        raise ValueError(f"--gpu {gpu} needs --try: only a replay has another device")
    with results_on_stdout() as stdout:
        path = file.expanduser()
        folder = out.expanduser() if out else RUNS / f"{path.name.partition('.')[0]}-snapshot"
        require_own_folder(folder, SNAPSHOT, force=force)
        with steps() as progress:
            contents = answer(path, settings, total, progress)
        if anonymous:
            contents = replace(contents, file="snapshot")
        typed = ["FILE" if anonymous and each == str(file) else each for each in sys.argv[1:]]
        words = disclosed_command(["optprof", *typed], anonymous=anonymous)
        page = write_snapshot_page(contents, folder, words, force=force)
        if as_json:
            print(json.dumps({"report": str(page), **contents.to_dict()}, indent=1), file=stdout)
        else:
            print_snapshot(contents, stdout)
    say(f"report: {page}\nalso in {folder}: {SNAPSHOT}")

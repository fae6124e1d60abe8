"""Commands whose standard streams are closed, by a reader that leaves or by the shell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import commands
import pytest


def run_into(writer: int, command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "arguments", [("list", "gpus"), ("explain",), ("--help",), ("list", "datasets")]
)
def test_a_closed_pipe_changes_neither_status_nor_stderr(
    tmp_path: Path, arguments: tuple[str, ...]
):
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    whole = commands.run(arguments, cwd=tmp_path, env=environment)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "optprof", *arguments]
    alone = run_into(writer, command, tmp_path)
    assert (alone.returncode, alone.stderr) == (whole.returncode, whole.stderr)
    both = subprocess.run(
        command, cwd=tmp_path, stdout=writer, stderr=writer, timeout=60, check=False
    )
    assert both.returncode == whole.returncode
    os.close(writer)


def test_a_run_goes_on_after_the_reader_of_its_results_has_left(tmp_path: Path):
    code = """
from optprof.reports.streams import results_on_stdout, guard_streams
guard_streams()
with results_on_stdout() as stdout:
    print("result" * 9_999, file=stdout)
print("behind")
"""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", code]
    done = run_into(writer, command, tmp_path)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_succeeds_if_the_shell_has_closed_a_stream(tmp_path: Path, closed: str):
    code = """
from optprof.reports.streams import results_on_stdout, guard_streams
guard_streams()
with open("file.txt", "w") as file:
    with results_on_stdout() as stdout:
        print("result", file=stdout)
    print("behind")
    file.write("alone")
"""
    command = f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "file.txt").read_text() == "alone"

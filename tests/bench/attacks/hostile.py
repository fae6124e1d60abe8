"""Put hostile strings into records, command lines and suites; none of them may act."""

import csv
import io
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from records import memory, records

from optprof.profiler.records.record import Environment, Machine, Memory, Record
from optprof.profiler.records.store import RunStore

from .commands import optprof
from .mutations import timeline
from .row import Row

# Every string contains this name, by which its output is recognised.
NAME = "zq7"
STRINGS = (
    f"<script>{NAME}()</script>",
    f"</script><script>{NAME}()</script>",
    f"<img src=x onerror={NAME}()>",
    f'"><svg onload={NAME}()>',
    f"' onmouseover='{NAME}()",
    f'<a href="javascript:{NAME}()">click</a>',
    f"javascript:{NAME}()",
    f"<!--{NAME}-->",
    f"]]><{NAME}>",
    f"&lt;{NAME}&gt;",
    f"{{{{ {NAME}.__class__ }}}}",
    f"{{% raw %}}{NAME}",
    f"\x1b[31m{NAME}\x1b[0m",
    f"\x1b]0;{NAME}\x07",
    f"\x9b31m{NAME}",
    f"{NAME}\r\nspoofed: line",
    f"{NAME}\x00\x08\x7f",
    f"=cmd|'/c calc'!{NAME}",
    f"+{NAME}+cmd",
    f"-{NAME}+1",
    f"@SUM({NAME})",
    f"\t={NAME}",
    f"[{NAME}](javascript:{NAME}) ![x](http://example.com/{NAME})",
    f"| {NAME} | @everyone #1 http://example.com/{NAME}",
    f"\u202e{NAME}\u2066\u200f",
    f"../../../{NAME}",
    f"/etc/{NAME}",
    f"$\\input{{{NAME}}}$ $x^$",
    f"{NAME}" + "x" * 2_000,
    f"%s%n{{0}}{NAME}",
)
COUNT = len(STRINGS)
# Optional modules that our dependencies try to import.
TRAPS = ("dill", "pynvml", "nt", "cv2", "pandas", "triton", "tensorflow", "IPython", "colorama")
TRAPS += (
    "sitecustomize",
    "usercustomize",
    "torchvision",
    "xformers",
    "orjson",
    "simplejson",
    "PIL",
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BIDI = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_NUMBER = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?( [-+]?[0-9.]+(e[-+]?[0-9]+)?| nan)*")


def run(chance: random.Random, count: int) -> Row:
    """Put so many strings, each in every field, into every form of output."""
    row = Row(title="hostile strings, each in every field").looks_for(
        "live markup",
        "control characters",
        "live Markdown",
        "formulas",
        "files outside",
        "executions",
        "not one line",
    )
    outputs = 0
    for start in range(0, count, len(STRINGS)):
        strings = STRINGS[: count - start]
        with TemporaryDirectory() as place:
            folder = Path(place) / "work"
            folder.mkdir()
            _set_traps(folder)
            _write_run(folder / "run", strings)
            _write_run(folder / "other", strings, grown=512)
            before = set(_files(Path(place)))
            outputs += _outputs(row, folder)
            outputs += _command_lines(row, folder, strings, chance)
            outside = {
                path for path in set(_files(Path(place))) - before if not _is_ours(path, folder)
            }
            for path in sorted(outside):
                row.fault("files outside", str(path.relative_to(place)))
            _judge_traps(row, folder)
        row.tried += len(strings)
    row.notes["outputs"] = outputs
    return row


def _outputs(row: Row, folder: Path) -> int:
    """Judge each form of output."""
    pages = {"report": folder / "run" / "report.html", "compare": folder / "page.html"}
    commands = (
        ["report", "run", "--tensorboard"],
        ["report", "run", "--markdown"],
        ["compare", "run", "other", "--html", "page.html"],
        ["compare", "run", "other", "--markdown"],
        ["compare", "run", "other", "--json"],
        ["compare", "run", "other", "--fail-on", "peak>0"],
    )
    for words in commands:
        status, printed, said = optprof(words, folder)
        name = " ".join(words)
        if status not in (0, 3) or "Traceback" in said:
            row.fault("not one line", f"{name}: {status}: {said[-250:]}")
        for text in (printed, said):
            _judge_text(row, name, text)
        if "--markdown" in words:
            _judge_markdown(row, name, printed)
    for name, page in pages.items():
        if page.exists():
            _judge_page(row, name, page.read_text(encoding="utf-8"))
    for picture in (folder / "run").rglob("*.svg"):
        _judge_page(row, picture.name, picture.read_text(encoding="utf-8"))
    table = folder / "run" / "records.csv"
    if table.exists():
        _judge_table(row, table.read_text(encoding="utf-8"))
    return len(commands) + len(pages) + 1


def _command_lines(row: Row, folder: Path, strings: Sequence[str], chance: random.Random) -> int:
    """Give each string to a random command, which must refuse it in one line."""
    places = (
        lambda text: ["profile", text, "-d", "sim", "--out", "given"],
        lambda text: ["profile", "gpt2", "-o", text, "-d", "sim", "--out", "given"],
        lambda text: ["report", text],
        lambda text: ["compare", "run", text],
        lambda text: ["sweep", _suite(folder, text), "--dry-run"],
        lambda text: ["explain", text],
        lambda text: ["compare", "run", "other", "--fail-on", text],
    )
    for text in strings:
        # An argument cannot contain NUL, and a first hyphen would make it an option.
        argument = text.replace("\x00", "").lstrip("-")
        words = chance.choice(places)(argument)
        status, printed, said = optprof(words, folder)
        name = f"{words[0]} {argument[:40]!r}"
        if status not in (1, 2) or "Traceback" in said:
            row.fault("not one line", f"{name}: {status}: {said[-250:]}")
        for output in (printed, said):
            _judge_text(row, name, output)
    return len(strings)


def _suite(folder: Path, text: str) -> str:
    quoted = "".join(letter if letter.isalnum() else f"\\u{ord(letter):04x}" for letter in text)
    path = folder / "given.toml"
    table = f'[[scenarios]]\nmodel = ["{quoted}"]\noptimizer = ["adamw", "sm3"]\ndevice = "sim"\n'
    path.write_text(f'description = "{quoted}"\n{table}', encoding="utf-8")
    return path.name


def _judge_text(row: Row, name: str, text: str) -> None:
    if match := _CONTROL.search(text):
        row.fault(
            "control characters", f"{name}: {text[max(0, match.start() - 30) : match.end() + 20]!r}"
        )
    if match := _BIDI.search(text):
        row.fault(
            "control characters", f"{name}: {text[max(0, match.start() - 30) : match.end() + 20]!r}"
        )


def _judge_markdown(row: Row, name: str, text: str) -> None:
    """Require text in which GitHub would draw no link, mention, tag or picture."""
    live = re.search(rf"(?<!\\)<[a-z!/]|(?<!\\)\]\(|(?<![\\\w])@\w|https?://[^\s|]*{NAME}", text)
    if live:
        row.fault("live Markdown", f"{name}: {text[max(0, live.start() - 30) : live.end() + 30]!r}")


class _Tags(HTMLParser):
    """Collect tags and attributes that contain one of our strings."""

    def __init__(self) -> None:
        super().__init__()
        self.live: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            acts = name.startswith("on") or name in ("href", "src", "action", "srcdoc", "style")
            if NAME in name or (acts and NAME in (value or "")):
                self.live.append(f"<{tag} {name}={value}>"[:120])
        if NAME in tag:
            self.live.append(f"<{tag}>")

    def handle_comment(self, data: str) -> None:
        if NAME in data:
            self.live.append(f"<!--{data[:80]}-->")


def _judge_page(row: Row, name: str, page: str) -> None:
    tags = _Tags()
    tags.feed(page)
    for live in tags.live:
        row.fault("live markup", f"{name}: {live}")
    # A script that is our string alone, not a script's text that quotes it.
    for body in re.findall(r"<script[^>]*>(.*?)</script", page, re.DOTALL | re.IGNORECASE):
        if re.fullmatch(rf"\s*{NAME}\(\)\s*", body):
            row.fault("live markup", f"{name}: a script")
    _judge_text(row, name, page)


def _judge_table(row: Row, text: str) -> None:
    for cells in csv.reader(io.StringIO(text)):
        for cell in cells:
            if cell[:1] in tuple("=+-@\t\r") and cell and not _NUMBER.fullmatch(cell):
                row.fault("formulas", cell[:80])


def _write_run(folder: Path, strings: Sequence[str], *, grown: int = 0) -> None:
    """Write a record for each string and field that takes it, and timelines."""
    store = RunStore.create(folder)
    usual = next(records("seeds", 1))
    for text in strings:
        for number, record in enumerate(_filled(usual, text, grown)):
            try:
                Record.from_dict(record.to_dict())
                store.append(record)
            except ValueError:
                # A suite or a command line refuses it in the same way.
                continue
            if number == 0:
                store.write_timeline(record.scenario, replace(timeline(), largest=(_block(text),)))
    store.close()


def _block(text: str) -> Any:
    return replace(
        timeline().largest[0], category=text, phase=text, module=text, op=text, line=text
    )


def _filled(usual: Record, text: str, grown: int) -> Iterator[Record]:
    """Yield records with the text in every place that can hold one."""
    usual_scenario, usual_memory = usual.scenario, memory(1_000, grown)
    splits: Memory = replace(
        usual_memory,
        state_by_key={text: 8},
        state_by_key_dtype={text: {text: 8}},
        peak_by_category={text: usual_memory.peak_allocated or 0},
        peak_by_phase={text: usual_memory.peak_allocated or 0},
        peak_phase=text,
        parameters_by_dtype={text: usual_memory.parameters},
    )
    environment = Environment(
        time=text,
        python=text,
        platform=text,
        git_commit=text,
        command=("optprof", text),
        versions={text: text, "torch": text},
        machine=Machine(cpu=text, gpu=text),
    )
    simulated = replace(
        usual_scenario, device="sim", options={text: text}, config={text: text}, alloc_conf=text
    )
    yield replace(
        usual, scenario=simulated, origin="simulated", memory=splits, times=None, warmup=None
    )
    named = {"warnings": (text,), "lost": (text,), "log": text, "environment": environment}
    for optimizer in ("adamw", text):
        scenario = replace(usual_scenario, model=text, optimizer=optimizer)
        yield replace(usual, scenario=scenario, memory=splits, model_family=text, **named)
    failed = replace(usual_scenario, model=text, optimizer=text, seed=1)
    yield replace(
        usual, scenario=failed, outcome="failed", error=text, memory=None, times=None, **named
    )
    yield replace(
        usual,
        scenario=replace(usual_scenario, accumulate=text, gpu=text, options={"lr": text}),
        **named,
    )


def _set_traps(folder: Path) -> None:
    for name in TRAPS:
        (folder / f"{name}.py").write_text(
            f"import pathlib\npathlib.Path(__file__).with_name('sprung-{name}').touch()\n"
        )


def _judge_traps(row: Row, folder: Path) -> None:
    for sprung in folder.glob("sprung-*"):
        row.fault("executions", sprung.name)


def _files(folder: Path) -> Iterator[Path]:
    for path, _, names in os.walk(folder):
        yield from (Path(path) / name for name in names)


def _is_ours(path: Path, folder: Path) -> bool:
    """Return whether a file is a requested output or a command's captured output."""
    inside = path.relative_to(folder.parent).parts[1:]
    requested = bool(inside) and inside[0] in (
        "run",
        "given",
        "given.toml",
        "page.html",
        "__pycache__",
    )
    return requested or path.name.startswith((".", "sprung-"))

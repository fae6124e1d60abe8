"""Run in a notebook: one line, and a table with pictures."""

import base64
import re
from pathlib import Path
from xml.etree import ElementTree

from optprof.profiler.records.store import RunStore
from optprof.reports.run import Run


def images(html):
    return [base64.b64decode(each) for each in re.findall(r"svg\+xml;base64,([^\"]+)", html)]


def test_a_run_is_a_line_of_what_it_holds(simulated, timed):
    records = [simulated("adamw"), simulated("sm3", model="gpt2"), timed("adamw")]
    run = Run(records=records, folder=Path("runs/gpt2"))
    assert repr(run) == "Run(3 records of tiny, gpt2; adamw, sm3; runs/gpt2)"
    assert repr(Run(records=records[:1])) == "Run(1 record of tiny; adamw)"
    assert repr(Run()) == "Run(no records)"
    assert repr(Run(records=[simulated("m:a\nb\x1b[2J")])).isprintable()


def test_a_notebook_shows_the_pictures_of_a_run(tmp_path, simulated, timeline):
    store = RunStore.create(tmp_path / "run")
    records = [simulated("adamw"), simulated("sm3")]
    for record in records:
        store.append(record)
    store.write_timeline(records[0].scenario, timeline)
    html = Run.read(store.folder)._repr_html_()
    titles = re.findall(r'alt="([^"]+); the report has its numbers"', html)
    assert titles == [
        "State kept, compared with adamw",
        "Optimizer state against model size",
        "What the peak is made of",
        "The peak by module and operation",
        "Memory along the training step",
    ]
    assert all(ElementTree.fromstring(image).tag.endswith("svg") for image in images(html))
    assert "<button" not in html
    # A run that is kept in no folder has no timelines.
    assert len(images(Run(records=records)._repr_html_())) == 3

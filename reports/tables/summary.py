"""Summary: a run as one small table, a row an optimizer, for a pull request or a notebook."""

from ..arithmetic.findings import Findings
from ..arithmetic.savings import BASELINE
from ..units import NOTHING, bytes_text, factor_text, per_parameter_text, seconds_text
from ..words import phase_name
from .table import Cell, Table


def summary_table(findings: Findings) -> Table:
    """State, factor against the baseline, peak with its phase, and the median step of every
    entry.
    """
    savings = {id(saving.entry): saving for saving in findings.savings}
    rows = []
    for entry in findings.entries:
        saving, value, step = savings.get(id(entry)), entry.bytes_per_parameter, entry.step
        factor = (
            NOTHING if saving is None else factor_text(1 if saving.is_baseline else saving.factor)
        )
        phase = (
            phase_name(entry.memory.peak_phase)
            if entry.memory and entry.peak_bytes is not None
            else ""
        )
        texts = (
            NOTHING if entry.state_bytes is None else bytes_text(entry.state_bytes),
            NOTHING if value is None else per_parameter_text(value),
            factor,
            (
                NOTHING
                if entry.peak_bytes is None
                else bytes_text(entry.peak_bytes, upper=entry.peak_upper)
            ),
        )
        timed = Cell(text=seconds_text(step.median) if step else NOTHING, number=True)
        named = Cell(text=entry.label), Cell(text=findings.names[entry.setting])
        rows.append(
            (
                *named,
                *(Cell(text=text, number=True) for text in texts),
                Cell(text=phase or NOTHING),
                timed,
            )
        )
    head = (
        "optimizer",
        "model",
        "state",
        "bytes a parameter",
        f"smaller than {BASELINE}",
        "peak",
        "in",
        "step",
    )
    return Table(head=head, rows=tuple(rows))

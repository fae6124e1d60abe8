"""Tables of GPUs needed: the fewest of each kind on which a training step fits, and why."""

from collections.abc import Sequence

from optprof.profiler.records.fits import Fit, Need

from ..units import BINARY, DECIMAL, NOTHING, Units, bytes_text, exact_text
from ..words import FAILS, UNSURE
from .table import Cell, Table, bytes_cell

# An optimizer's label and its need on one kind of GPU.
Named = tuple[str, Need]


def count_text(need: Need) -> str:
    """The GPUs needed: 8; 2 to 4 where NCCL decides; more than 64."""
    last = need.last
    if last.error is not None:
        return f"{FAILS} not simulated"
    if last.reason is not None:
        return f"{FAILS} {last.reason}"
    if need.fit is None:
        return f"more than {last.scenario.ranks:,}"
    first = f"{need.fit.scenario.ranks:,}"
    if need.sure is need.fit:
        return first
    if need.sure is None:
        return f"{first} or more"
    return f"{first} to {need.sure.scenario.ranks:,}"


def left_text(need: Need, units: Units = BINARY) -> str:
    """The memory left on the fewest GPUs, and whether NCCL may need more; empty for none."""
    if need.fit is None or need.fit.left is None:
        return ""
    left = f"{bytes_text(need.fit.left, units)} left on {_gpus(need.fit)}"
    if need.fit.nccl is None or need.fit.is_sure:
        return left
    least, most = need.fit.nccl
    return f"{left}, where NCCL takes an estimated {bytes_text(least, units, most)}"


def below_text(need: Need, units: Units = BINARY) -> str:
    """The memory missing on the next smaller number that was tried; empty without one."""
    below = need.below
    if below is None or below.spare is None:
        return ""
    if below.spare >= 0:
        return f"{UNSURE} {_gpus(below)} may be enough"
    short = bytes_text(-below.spare, units)
    if below.least is not None:
        return f"{_gpus(below)} short by {short} for parameters and gradients alone"
    return f"{_gpus(below)} short by {short}"


def _gpus(fit: Fit) -> str:
    count = fit.scenario.ranks
    return f"{count:,} GPU{'' if count == 1 else 's'}"


def overview(needs: Sequence[Named], heads: dict[str, str]) -> Table:
    """One row a GPU, one column an optimizer; `heads` has the column's words of each label."""
    cells = {(need.last.scenario.gpu, label): _count_cell(need) for label, need in needs}
    gpus = dict.fromkeys(need.last.scenario.gpu for _, need in needs)
    rows = (
        (Cell(text=gpu or ""), *(cells.get((gpu, label), Cell(text=NOTHING)) for label in heads))
        for gpu in gpus
    )
    return Table(head=("GPU", *heads.values()), rows=tuple(rows), title="GPUs needed")


def _count_cell(need: Need) -> Cell:
    exact = "; ".join(filter(None, (left_text(need), below_text(need))))
    return Cell(text=count_text(need), exact=exact, tone="" if need.fit else "muted")


def needed_table(needs: Sequence[Named]) -> Table:
    """One row a GPU and optimizer: the GPUs needed, what these leave, what fewer lack."""
    head = (
        *("optimizer", "GPU", "GPUs needed", "with room for NCCL", "left on each"),
        "next smaller number",
    )
    rows = (
        (
            Cell(text=label, mark=label, origin="simulated"),
            Cell(text=need.last.scenario.gpu or NOTHING),
            _ranks_cell(need, need.fit),
            _ranks_cell(need, need.sure),
            bytes_cell(need.fit.left if need.fit else None),
            _below_cell(need),
        )
        for label, need in needs
    )
    return Table(head=head, rows=tuple(rows))


def _ranks_cell(need: Need, fit: Fit | None) -> Cell:
    if fit is not None:
        return Cell(text=f"{fit.scenario.ranks:,}", number=True, value=fit.scenario.ranks)
    text = count_text(need) if need.last.error or need.last.reason else ""
    return Cell(text=text or f"more than {need.last.scenario.ranks:,}", number=True)


def _below_cell(need: Need) -> Cell:
    below = need.below
    if below is None or not (text := below_text(need)):
        return Cell(text=NOTHING)
    spare = abs(below.spare or 0)
    return Cell(text=text, exact=exact_text(spare), decimal=below_text(need, DECIMAL))


def tried_table(needs: Sequence[Named]) -> Table:
    """One row for each answer: the reserved peak of a rank, and the memory of the GPU."""
    head = ("optimizer", "GPU", "ranks", "rank", "would reserve", "usable", "left")
    rows = (
        (
            Cell(text=label, mark=label, origin="simulated"),
            Cell(text=fit.scenario.gpu or NOTHING),
            Cell(text=f"{fit.scenario.ranks:,}", number=True, value=fit.scenario.ranks),
            Cell(text=f"{fit.scenario.rank:,}", number=True, value=fit.scenario.rank),
            _needed_cell(fit),
            bytes_cell(fit.usable),
            bytes_cell(fit.left),
        )
        for label, need in needs
        for fit in need.tried
    )
    return Table(head=head, rows=tuple(rows))


def _needed_cell(fit: Fit) -> Cell:
    if fit.least is None:
        return bytes_cell(fit.needed)
    return Cell(
        text=f"≥ {bytes_text(fit.least)}",
        exact=f"{exact_text(fit.least)} of parameters and gradients; not simulated",
        decimal=f"≥ {bytes_text(fit.least, DECIMAL)}",
        number=True,
        value=fit.least,
    )

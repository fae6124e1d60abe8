"""Fits as words and tables: which model runs on which GPU. Reads `profiler.records.fits` alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optprof.profiler.records.fits import Change, Fit
from optprof.scenarios.spec import Scenario

from ..arithmetic.entries import Setting
from ..arithmetic.labels import OptimizerKey, labels, optimizer_key
from ..style import Mark, marks
from ..tables.capacity import fit_cell
from ..tables.table import Cell, Table
from ..units import NOTHING, bytes_text, exact_text, gib_text
from ..words import FAILS, FITS, TIGHT, UNSURE

LEGEND = (
    f"{FITS} GiB left, {TIGHT} the same with less than 2 % to spare, {FAILS} GiB short of what it"
    f" would reserve, {UNSURE} the same, and may fit with less memory for cuDNN; then the largest"
    " batch"
)


_ANSWERS = {
    "fits": "yes",
    "tight": "yes, with less than 2 % to spare",
    "unsure": "perhaps, with less memory for cuDNN",
    "fails": "no",
}


@dataclass(frozen=True, kw_only=True)
class FitFindings:
    """The answers for one model and setting, and the names that their optimizers go by; ValueError
    for none.
    """

    fits: Sequence[Fit]
    labels: dict[OptimizerKey, str]
    marks: dict[str, Mark]

    @classmethod
    def of(cls, fits: Sequence[Fit]) -> "FitFindings":
        """What these answers say."""
        if not fits:
            raise ValueError(
                "there is no GPU or no optimizer to answer for; name one with --gpu or --optimizers"
            )
        names = labels(fits)
        return cls(fits=fits, labels=names, marks=marks(names.values()))

    @property
    def gpus(self) -> list[str]:
        """The GPUs, in the order that they were asked for."""
        return list(dict.fromkeys(fit.scenario.gpu or "" for fit in self.fits))

    @property
    def title(self) -> str:
        """The model and its setting in words."""
        setting = Setting.of(replace(self.fits[0].scenario, gpu=None))
        return " · ".join((setting.model, *setting.traits))

    def label(self, fit: Fit) -> str:
        """What the optimizer of an answer is called."""
        return self.labels[optimizer_key(fit.scenario)]

    @property
    def errors(self) -> dict[str, str]:
        """By label, why an optimizer could not be simulated."""
        return {self.label(fit): fit.error for fit in self.fits if fit.error is not None}

    def at(self, gpu: str) -> list[Fit]:
        """The answers for one GPU, in the order of the optimizers."""
        return [fit for fit in self.fits if fit.scenario.gpu == gpu]


def short_text(fit: Fit) -> str:
    """Return an answer for a cell: the bytes left, or short, and the largest batch."""
    batch = _batch_text(fit)
    return fit_cell(fit, f", {batch}" if batch else "").text


def _batch_text(fit: Fit) -> str:
    """Return the largest batch that the search found, or the one at which it ended."""
    if fit.largest_batch is None:
        return ""
    return f"{'' if fit.is_batch_settled else '≥ '}{fit.largest_batch:,}"


def change_text(change: Change, scenario: Scenario) -> str:
    """A change in words: checkpointing + bf16 weights."""
    words: dict[str, Callable[[], str]] = {
        "alloc_conf": lambda: "expandable segments",
        "implementation": lambda: (
            "" if "optimizer" in change.fields else _run_as(change.fields["implementation"])
        ),
        "batch_size": lambda: (
            f"batch {change.fields['batch_size']}, accumulated {change.fields['micro_batches']}"
            " times"
        ),
        "micro_batches": lambda: "",
        "checkpointing": lambda: "checkpointing",
        "optimizer": lambda: f"{change.fields['optimizer']} for {scenario.optimizer}",
        "options": lambda: "",
        "dtype": lambda: f"{change.fields['dtype']} weights",
    }
    return " + ".join(filter(None, (words[name]() for name in change.fields)))


def _run_as(implementation: str) -> str:
    return (
        "the optimizer as a loop" if implementation == "loop" else f"the optimizer {implementation}"
    )


def fit_table(findings: FitFindings) -> Table:
    """One row a GPU and optimizer: the bytes, the largest batch and what would make it fit."""
    head = (
        "optimizer",
        "GPU",
        "fits",
        "would reserve, GiB",
        "usable, GiB",
        "left, GiB",
        "largest batch",
        "cheapest changes that make it fit",
    )
    return Table(head=head, rows=tuple(_row(findings, fit) for fit in findings.fits))


def overview_table(findings: FitFindings) -> Table:
    """One row a GPU, one column an optimizer."""
    rows = [(gpu, *(short_text(fit) for fit in findings.at(gpu))) for gpu in findings.gpus]
    return Table(
        head=("GPU", *findings.labels.values()),
        rows=tuple(tuple(Cell(text=text) for text in row) for row in rows),
    )


def verdict(findings: FitFindings) -> str:
    """For each optimizer, the smallest GPU that it runs on."""
    said = [f"{label} could not be simulated: {error}" for label, error in findings.errors.items()]
    for label in findings.labels.values():
        if label in findings.errors:
            continue
        fitting = [fit for fit in findings.fits if fit.fits and findings.label(fit) == label]
        smallest = min(fitting, key=lambda fit: fit.usable, default=None)
        said.append(
            f"{label} fits {f'from {smallest.scenario.gpu} on' if smallest else 'none of them'}"
        )
    return f"{'; '.join(said)}."


def _row(findings: FitFindings, fit: Fit) -> tuple[Cell, ...]:
    changes = "; ".join(
        f"{change_text(change, fit.scenario)} (leaves {bytes_text(change.left)})"
        for change in fit.changes
    )
    return (
        Cell(text=findings.label(fit), mark=findings.label(fit), origin="simulated"),
        Cell(text=fit.scenario.gpu or NOTHING),
        Cell(text="not simulated" if fit.error else fit.reason or _ANSWERS[fit.answer]),
        _gib(fit.needed),
        _gib(fit.usable),
        _gib(fit.left),
        Cell(text=_batch_text(fit) or NOTHING, number=True),
        Cell(
            text=changes or (NOTHING if fit.fits or fit.reason or fit.error else "none was found")
        ),
    )


def _gib(count: int | None) -> Cell:
    return (
        Cell(text=NOTHING, number=True)
        if count is None
        else Cell(text=gib_text(count), exact=exact_text(count), number=True)
    )

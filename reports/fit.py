"""Fits: the GPUs that a model's training step runs on, as a page and on a terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optprof.profiler.records.fits import Change, Fit, RankSearch
from optprof.scenarios import hardware
from optprof.scenarios.spec import Scenario

from .arithmetic.entries import Setting
from .arithmetic.labels import OptimizerKey, labels, optimizer_key, shortened
from .arithmetic.provenance import ORIGINS, shell
from .document import Document, Note, Section
from .phrases import nccl_text
from .style import Mark, marks
from .tables.capacity import NCCL_LEGEND, fit_cell
from .tables.table import Cell, Facts, Table, bytes_cell
from .units import NOTHING, bytes_text
from .words import FAILS, FITS, TIGHT, UNSURE

LEGEND = (
    f"{FITS} fits, and the memory left; {TIGHT} fits, less than 2 % left; {FAILS} does not fit, and"
    f" the memory missing; {UNSURE} may fit if cuDNN takes less; then the largest batch"
)

_ANSWERS = {
    "fits": "yes",
    "tight": "yes, with little left",
    "unsure": "perhaps, if cuDNN takes less memory",
    "fails": "no",
}


@dataclass(frozen=True, kw_only=True)
class FitFindings:
    """The answers for one model and setting, with labels and marks; ValueError for none.

    `search` has the numbers of ranks that were tried, None if there was one.
    """

    fits: Sequence[Fit]
    labels: dict[OptimizerKey, str]
    marks: dict[str, Mark]
    search: RankSearch | None = None

    @classmethod
    def of(cls, fits: Sequence[Fit], search: RankSearch | None = None) -> "FitFindings":
        """Name the optimizers of the answers."""
        if not fits:
            raise ValueError(
                "there is no GPU or no optimizer to answer for; name one with --gpu or --optimizers"
            )
        names = labels(fits)
        return cls(fits=fits, labels=names, marks=marks(names.values()), search=search)

    @property
    def gpus(self) -> list[str]:
        """The GPUs, in the order of the answers."""
        return list(dict.fromkeys(fit.scenario.gpu or "" for fit in self.fits))

    @property
    def title(self) -> str:
        """The model and its setting in words."""
        scenario = replace(self.fits[0].scenario, gpu=None)
        if self.search is None:
            setting = Setting.of(scenario)
            return " · ".join((setting.model, *setting.traits))
        setting = Setting.of(replace(scenario, ranks=1, rank=0, parallel=None))
        return " · ".join((setting.model, *setting.traits, self.search.parallel))

    def label(self, fit: Fit) -> str:
        """The name of an answer's optimizer."""
        return self.labels[optimizer_key(fit.scenario)]

    @property
    def errors(self) -> dict[str, str]:
        """The reason why an optimizer could not be simulated, by its label."""
        return {self.label(fit): fit.error for fit in self.fits if fit.error is not None}

    def at(self, gpu: str) -> list[Fit]:
        """The answers for one GPU, in the order of the optimizers."""
        return [fit for fit in self.fits if fit.scenario.gpu == gpu]


def fit_page(fits: Sequence[Fit], command: Sequence[str]) -> Document:
    """The page of the answers that this command line gave; ValueError for none."""
    findings = FitFindings.of(fits)
    return Document(
        title=f"What {fits[0].scenario.model} fits on",
        context=(findings.title, "bytes: simulated, training steps on the memory of each GPU"),
        sections=[
            Section(
                "Verdict",
                [Note(verdict(findings), "verdict")],
                "verdict",
                "The smallest GPU that each optimizer runs on.",
            ),
            Section(
                "By GPU",
                [overview_table(findings), *map(Note, _nccl_notes(findings))],
                "overview",
                f"{LEGEND}.",
            ),
            Section(
                "All numbers",
                [fit_table(findings)],
                "table",
                "One row a GPU and optimizer; a rounded number has its exact bytes behind it"
                " (hover). “Would reserve” is the peak on an unlimited device. On a full device the"
                " allocator gives back what it can, so a step may run although it would reserve"
                " more.",
            ),
            gpu_section(findings.gpus),
            Section(
                "How to repeat it",
                [
                    Note(shell(command), "code"),
                    Facts((("simulated (hollow marks)", ORIGINS["simulated"]),)),
                ],
                "repeat",
                "The command, and what the origin of these numbers means.",
            ),
        ],
        marks=findings.marks,
    )


def fit_summary(fits: Sequence[Fit]) -> Document:
    """The answers for a terminal, and the cheapest change where a step does not fit."""
    findings = FitFindings.of(fits)
    errors = [error_text(label, error) for label, error in findings.errors.items()]
    changes = [
        f"{fit.scenario.gpu} {findings.label(fit)}:"
        f" {change_text(fit.changes[0], fit.scenario)} ({bytes_text(fit.changes[0].left)})"
        for fit in fits
        if fit.changes
    ]
    notes = (
        LEGEND,
        *_nccl_notes(findings),
        "simulated for CUDA, training steps on the memory of each GPU",
    )
    return Document(
        sections=[
            Section(findings.title, [overview_table(findings, letters=24)]),
            Section(blocks=[*map(Note, notes), *(Note(line, "plain") for line in errors)]),
            Section(
                "the cheapest change that makes a step fit, and the memory that it leaves",
                [Note(line, "plain") for line in changes],
            ),
        ]
    )


def _nccl_notes(findings: FitFindings) -> list[str]:
    scenario = findings.fits[0].scenario
    text = nccl_text(scenario.parallel, scenario.ranks)
    return [text, NCCL_LEGEND] if text else []


def error_text(label: str, error: str) -> str:
    """The reason why an optimizer could not be simulated."""
    return f"{label} could not be simulated: {error}"


def short_text(fit: Fit) -> str:
    """The answer in a cell: the memory left or short, and the largest batch."""
    batch = _batch_text(fit)
    return fit_cell(fit, f", {batch}" if batch else "").text


def _batch_text(fit: Fit) -> str:
    """The largest batch that the search found, or the one at which it ended."""
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
        "optimizer": lambda: f"{change.fields['optimizer']} instead of {scenario.optimizer}",
        "options": lambda: "",
        "dtype": lambda: f"{change.fields['dtype']} weights",
    }
    return " + ".join(filter(None, (words[name]() for name in change.fields)))


def _run_as(implementation: str) -> str:
    return (
        "the optimizer as a loop" if implementation == "loop" else f"the optimizer {implementation}"
    )


def fit_table(findings: FitFindings) -> Table:
    """One row a GPU and optimizer: the bytes, the largest batch and the cheapest changes."""
    head = (
        "optimizer",
        "GPU",
        "fits",
        "would reserve",
        "usable",
        "left",
        "largest batch",
        "cheapest changes that make it fit",
    )
    return Table(head=head, rows=tuple(_row(findings, fit) for fit in findings.fits))


def overview_table(findings: FitFindings, *, letters: int | None = None) -> Table:
    """One row a GPU, one column an optimizer; a terminal shows its mark and so many letters."""
    head = [
        f"{findings.marks[label].hollow} {shortened(label, letters)}" if letters else label
        for label in findings.labels.values()
    ]
    rows = (
        (Cell(text=gpu), *(_short_cell(fit) for fit in findings.at(gpu))) for gpu in findings.gpus
    )
    return Table(head=("GPU", *head), rows=tuple(rows))


def _short_cell(fit: Fit) -> Cell:
    return Cell(text=short_text(fit), tone="" if fit.fits else "muted")


def verdict(findings: FitFindings) -> str:
    """The smallest GPU that each optimizer runs on."""
    answers = [error_text(label, error) for label, error in findings.errors.items()]
    for label in findings.labels.values():
        if label in findings.errors:
            continue
        fitting = [fit for fit in findings.fits if fit.fits and findings.label(fit) == label]
        smallest = min(fitting, key=lambda fit: fit.usable, default=None)
        answers.append(
            f"{label} fits {f'on {smallest.scenario.gpu} and larger' if smallest else 'on no GPU'}"
        )
    return f"{'; '.join(answers)}."


def _row(findings: FitFindings, fit: Fit) -> tuple[Cell, ...]:
    changes = "; ".join(
        f"{change_text(change, fit.scenario)} (leaves {bytes_text(change.left)})"
        for change in fit.changes
    )
    return (
        Cell(text=findings.label(fit), mark=findings.label(fit), origin="simulated"),
        Cell(text=fit.scenario.gpu or NOTHING),
        Cell(text="not simulated" if fit.error else fit.reason or _ANSWERS[fit.answer]),
        bytes_cell(fit.needed),
        bytes_cell(fit.usable),
        bytes_cell(fit.left),
        Cell(
            text=_batch_text(fit) or NOTHING,
            number=True,
        ),
        Cell(text=changes or (NOTHING if fit.fits or fit.reason or fit.error else "none known")),
    )


def gpu_section(names: Sequence[str]) -> Section:
    """Return the section with the memory of each GPU, and where its numbers come from."""
    head = ("GPU", "name", "memory", "where that was printed", "bandwidth and rates")
    rows = tuple(_gpu_row(hardware.describe(name)) for name in names)
    return Section(
        "The GPUs",
        [Table(head=head, rows=rows)],
        "gpus",
        "Memory as the driver reports it. The CUDA context takes an estimated"
        f" {bytes_text(hardware.CONTEXT_BYTES)} of it; the rest is usable.",
    )


def _gpu_row(gpu: hardware.Gpu) -> tuple[Cell, ...]:
    return (
        Cell(text=gpu.name),
        Cell(text=gpu.title),
        bytes_cell(gpu.memory_bytes),
        Cell(text=gpu.memory_source),
        Cell(text=gpu.source),
    )

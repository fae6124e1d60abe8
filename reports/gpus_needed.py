"""GPUs needed: the fewest on which ranks run a training step, as a page and on a terminal."""

from collections.abc import Sequence
from dataclasses import replace

from optprof.profiler.records.fits import Fit, RankSearch, needs

from .arithmetic.labels import shortened
from .arithmetic.provenance import ORIGINS, shell
from .document import Document, Note, Section
from .fit import FitFindings, error_text, gpu_section
from .phrases import nccl_text
from .pictures import gpus_needed
from .pictures.charts import Chart
from .pictures.picture import Picture
from .tables.gpus_needed import Named, count_text, needed_table, overview, tried_table
from .tables.table import Facts
from .units import Sized
from .words import listed

ALONE = (
    "One GPU trains without --parallel. Each number of ranks is simulated, from the smallest up,"
    " until one fits with room for the most that NCCL may take. Larger numbers and those between"
    " are not tried. The rank is the first, which holds the most; under zero1 the one with the most"
    " state."
)
LEAST = (
    "A number of ranks is ruled out without a simulation if a rank's parameters and gradients alone"
    " exceed the GPU."
)
RANGE = (
    "“2 to 4” means: the step fits on 2, and NCCL decides; on 4 it fits with the most that NCCL may"
    " take."
)


def needed_page(fits: Sequence[Fit], search: RankSearch, command: Sequence[str]) -> Document:
    """The page of the answers that this command line gave; ValueError for none."""
    findings = FitFindings.of(fits, search)
    named = _named(findings)
    heads = {label: label for label in findings.labels.values()}
    tried = tried_table(named)
    charts = [Chart.of(picture) for picture in needed_pictures(findings)]
    return Document(
        title=f"How many GPUs {fits[0].scenario.model} needs",
        context=(findings.title, "bytes: simulated, training steps on the memory of each GPU"),
        sections=[
            Section(
                "Verdict",
                [Note(verdict(findings), "verdict"), *map(Note, _left_out(search))],
                "verdict",
                "The kind of GPU on which the optimizers differ most.",
            ),
            *(Section(chart.title, [chart], chart.name, chart.sentence) for chart in charts),
            Section(
                "By GPU",
                [overview(named, heads), Note(f"{RANGE} {ALONE}"), *map(Note, _nccl(search))],
                "overview",
                f"The fewest of {listed([f'{count:,}' for count in search.counts], most=12)} GPUs"
                " that a training step fits on.",
            ),
            Section(
                "All numbers",
                [
                    needed_table(named),
                    replace(tried, fold=f"The {len(tried.rows)} answers behind it"),
                    Note(LEAST),
                ],
                "table",
                "What the fewest GPUs leave and the next smaller number is short of, and each"
                " number of ranks that was tried. “Would reserve” is the peak of one rank on an"
                " unlimited device.",
            ),
            gpu_section(findings.gpus),
            Section(
                "How to repeat it",
                [
                    Note(shell(command), "code"),
                    Facts(
                        (
                            ("simulated (hollow marks)", ORIGINS["simulated"]),
                            ("estimated", ORIGINS["estimated"]),
                        )
                    ),
                ],
                "repeat",
                "The command, and what the origin of these numbers means.",
            ),
        ],
        marks=findings.marks,
        rows=[],
    )


def needed_pictures(findings: FitFindings) -> list[Picture]:
    """The picture of the answers."""
    assert findings.search is not None
    named = _named(findings)
    return gpus_needed.describe(
        [need for _, need in named],
        [label for label, _ in named],
        findings.marks,
        findings.search.counts,
        findings.title,
    )


def needed_summary(fits: Sequence[Fit], search: RankSearch) -> Document:
    """The answers for a terminal."""
    findings = FitFindings.of(fits, search)
    heads = {
        label: f"{findings.marks[label].hollow} {shortened(label, 24)}"
        for label in findings.labels.values()
    }
    table = overview(_named(findings), heads)
    errors = [error_text(label, error) for label, error in findings.errors.items()]
    notes = (
        verdict(findings),
        RANGE if any(" to " in count_text(need) for _, need in _named(findings)) else "",
        *(text if isinstance(text, str) else text.binary for text in _nccl(search)),
        "simulated for CUDA, training steps on the memory of each GPU",
        *_left_out(search),
    )
    return Document(
        sections=[
            Section(blocks=[replace(table, title=f"{findings.title}: GPUs needed")]),
            Section(blocks=[*map(Note, notes), *(Note(line, "plain") for line in errors)]),
        ]
    )


def verdict(findings: FitFindings) -> str:
    """The needs on the kind of GPU where they differ most; the first kind if they are equal."""
    groups: dict[str, list[Named]] = {}
    for label, need in _named(findings):
        if not (need.last.error or need.last.reason):
            groups.setdefault(need.last.scenario.gpu or "", []).append((label, need))
    if not groups:
        return "No optimizer could be simulated on a GPU that supports the step."
    gpu = max(groups, key=lambda gpu: _spread(groups[gpu]))
    answers = [f"{label} needs {count_text(need)}" for label, need in groups[gpu]]
    if _spread(groups[gpu]) == 1 and len(answers) > 1:
        count = count_text(groups[gpu][0][1])
        return f"All optimizers need the same number of each GPU: {count} of {gpu}."
    return f"On {gpu} {listed(answers, most=12)}."


def _spread(group: Sequence[Named]) -> float:
    """The largest need as a multiple of the smallest; more than all that was tried is double."""
    counts = [
        need.fit.scenario.ranks if need.fit else 2 * need.last.scenario.ranks for _, need in group
    ]
    return max(counts) / min(counts)


def _named(findings: FitFindings) -> list[Named]:
    return [(findings.label(need.last), need) for need in needs(findings.fits)]


def _nccl(search: RankSearch) -> list[Sized]:
    most = search.counts[-1]
    if not nccl_text(search.parallel, most):
        return []
    return [Sized.of(lambda units: nccl_text(search.parallel, most, units))]


def _left_out(search: RankSearch) -> list[str]:
    if not search.left_out:
        return []
    counts = listed([f"{count:,}" for count in search.left_out], most=12)
    return [f"Left out: {counts}; {next(iter(search.left_out.values()))}."]

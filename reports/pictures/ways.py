"""The picture of ways to share: a rank's memory along a step, one below the other."""

from dataclasses import replace

from ..arithmetic.courses import Course
from ..arithmetic.findings import Findings
from ..arithmetic.labels import optimizer_key, ranks_text
from ..style import marks
from .picture import Picture
from .timelines import Names, picture_of

ALONE = "one GPU"


def describe(findings: Findings) -> list[Picture]:
    """Return the picture if a step is shared in several ways: the baseline's, or the first one."""
    groups: dict[object, dict[str, Course]] = {}
    for course in findings.courses:
        scenario = course.record.scenario
        alone = replace(scenario, ranks=1, rank=0, parallel=None)
        way = ranks_text(scenario) if scenario.parallel else ALONE
        groups.setdefault((alone.key, optimizer_key(scenario)), {}).setdefault(way, course)
    shared = [group for group in groups.values() if len(group) > 1]
    if not shared:
        return []
    baseline = findings.baseline
    group = next((each for each in shared if _optimizer(each) == baseline), shared[0])
    optimizer = _optimizer(group)
    model = next(iter(group.values())).record.scenario.model
    drawn = picture_of(
        findings,
        [replace(course, label=way) for way, course in group.items()],
        Names(
            name="ways",
            title="What a rank holds along a training step",
            context=f"{model} · {optimizer}",
        ),
    )
    return [
        replace(
            drawn,
            sentence=(
                f"One rank's memory with {optimizer} under each way to share the work, on one"
                " scale. Phases are drawn as wide as reads well: events have no duration here."
            ),
            marks=marks(group),
        )
    ]


def _optimizer(group: dict[str, Course]) -> str:
    return next(iter(group.values())).label

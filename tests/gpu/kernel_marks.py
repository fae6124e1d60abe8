"""Kernel marks: a campaign's optimizer steps and checks as tables, and the targets they meet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from plan import KERNEL_MODELS, OURS

# The least share of the copy bandwidth that a fused step reaches on large tensors.
SHARES = {"sm3": 0.90, "sgd-sai": 0.90, "adamw": 0.90, "lamb": 0.80, "lamb16": 0.80}
# Many small tensors: the host and the launches decide, so a fused step is compared with foreach.
SMALL = "resnet101"

_Groups = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of one optimizer and implementation on one model, median seconds."""

    model: str
    optimizer: str
    implementation: str
    seconds: float
    device_seconds: float
    host_seconds: float
    nbytes: int
    copy_bandwidth: float | None
    foreach_seconds: float | None
    temporaries: int | None
    kernels: int | None

    @property
    def share(self) -> float | None:
        """Return the needed bytes per second as a share of the copy bandwidth."""
        return self.copy_bandwidth and self.nbytes / self.seconds / self.copy_bandwidth

    @property
    def device_share(self) -> float | None:
        """Return the share without the host's time."""
        return self.copy_bandwidth and self.nbytes / self.device_seconds / self.copy_bandwidth

    @property
    def target(self) -> tuple[str, bool] | None:
        """Return the target and whether it is met; None if there is none, or nothing to judge."""
        if self.implementation != "fused":
            return None
        if self.model.startswith(SMALL):
            foreach = self.foreach_seconds
            return None if foreach is None else ("foreach's time", self.seconds <= foreach)
        least, share = SHARES.get(self.optimizer), self.share
        if least is None or share is None:
            return None
        return f"{least:.0%} of copy", share >= least


def steps(groups: _Groups) -> Iterator[Step]:
    """Yield the steps of a journal's groups, each the first time that it has samples."""
    seen: set[tuple[str, ...]] = set()
    for job, values in groups.items():
        rate = _rate(values.get("copy"))
        times = {
            tuple(name.removesuffix(": times").split()): value
            for name, value in values.items()
            if name.endswith(": times") and value["step"]
        }
        model = " ".join(job.split()[1:3])
        for (optimizer, implementation), value in times.items():
            # The job of a compiled step times the fused one again.
            if (key := (model, optimizer, implementation)) in seen:
                continue
            seen.add(key)
            label = f"{optimizer} {implementation}"
            foreach = times.get((optimizer, "foreach"))
            yield Step(
                model=model,
                optimizer=optimizer,
                implementation=implementation,
                seconds=median(value["step"]),
                device_seconds=median(value["device"] or value["step"]),
                host_seconds=median(value["host"] or value["step"]),
                nbytes=value["nbytes"],
                copy_bandwidth=rate,
                foreach_seconds=median(foreach["step"]) if foreach else None,
                temporaries=values.get(f"{label}: temporaries"),
                kernels=values.get(f"{label}: launches", {}).get("kernels"),
            )


def _rate(copy: Mapping[str, Any] | None) -> float | None:
    return copy["bytes"] / median(copy["seconds"]) if copy else None


def lines(groups: _Groups) -> tuple[list[str], bool]:
    """Return the tables in Markdown, and whether all of our targets are met.

    A target of ours without a measurement is not met; torch's AdamW is only shown.
    """
    rows = list(steps(groups))
    targets = [row.target for row in rows if row.optimizer in OURS]
    met = sum(target is not None and target[1] for target in targets)
    needed = len(OURS) * len(KERNEL_MODELS)
    count = f"\n{met} of our {needed} targets are met."
    written = [*_step_lines(rows), count, *_check_lines(groups), *_replay_lines(groups)]
    return written, met == needed


def _step_lines(rows: Sequence[Step]) -> Iterator[str]:
    head = "| model | optimizer | implementation | step | of copy | device alone | host |"
    yield f"{head} temporaries | kernels | target |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        target = row.target
        words = "" if target is None else f"{target[0]}: {'met' if target[1] else 'MISSED'}"
        cells = (
            row.model,
            row.optimizer,
            row.implementation,
            f"{1000 * row.seconds:.3f} ms",
            "" if row.share is None else f"{row.share:.1%}",
            "" if row.device_share is None else f"{row.device_share:.1%}",
            f"{1e6 * row.host_seconds:.0f} us",
            "" if row.temporaries is None else f"{row.temporaries:,} B",
            "" if row.kernels is None else str(row.kernels),
            words,
        )
        yield f"| {' | '.join(cells)} |"


def _check_lines(groups: _Groups) -> Iterator[str]:
    """Yield the shape with the largest difference of fused weights from the loop's."""
    yield "\n| options | dtype | largest difference | moved by the loop | shape | finite |"
    yield "|---|---|---|---|---|---|"
    for name, by_shape in _named(groups, ": differences"):
        spec, _, dtype = name.rpartition(" ")
        shape, worst = max(
            by_shape.items(), key=lambda item: (not item[1]["finite"], item[1]["difference"])
        )
        finite = all(value["finite"] for value in by_shape.values())
        yield (
            f"| {spec} | {dtype} | {worst['difference']:.2g} | {worst['moved']:.2g} | {shape}"
            f" | {'all' if finite else 'NOT ALL'} |"
        )


def _replay_lines(groups: _Groups) -> Iterator[str]:
    yield ""
    for name, value in _named(groups, ": replay"):
        words = "equal eager steps" if value["same"] else f"differ by {value['difference']:.2g}"
        yield f"- replays of a CUDA graph, {name}: {words}"


def _named(groups: _Groups, end: str) -> Iterator[tuple[str, Any]]:
    for values in groups.values():
        for name, value in values.items():
            if name.endswith(end):
                yield name.removesuffix(end), value

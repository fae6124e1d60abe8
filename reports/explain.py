"""What each figure means: its unit, how it is obtained, and what it leaves out. docs/metrics.md is these words."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

# One word each that is not said again in every figure.
_STEPS = "Raw samples after a warm-up that is kept apart: a host clock on the CPU, events on the stream on CUDA"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure: its title, what kind of number it is, and what a reader should know of it; `field` is where a record holds it."""

    title: str
    kind: Literal["bytes", "seconds", "micro-batches", "nats"]
    field: str
    meaning: str
    obtained: str
    leaves_out: str


METRICS: Mapping[str, Metric] = {
    "state": Metric(
        title="state",
        kind="bytes",
        field="memory.optimizer_state",
        meaning="Bytes of every tensor that the optimizer keeps from one step to the next. Storage that two tensors share counts once.",
        obtained="Counted on the tensors that the optimizer's own step made, on PyTorch's meta device when simulated, on the device itself "
        "when measured. Exact to the byte, and the same on every machine.",
        leaves_out="What the allocator rounds up (state-allocated), temporaries of the step, and copies of the weights that are kept "
        "outside of the optimizer.",
    ),
    "state-allocated": Metric(
        title="state as allocated",
        kind="bytes",
        field="memory.optimizer_state_allocated",
        meaning="Bytes of the allocator's blocks that hold the state when the last step ends: what torch.cuda.memory_allocated moves by.",
        obtained="Simulated: the blocks that a model of CUDA's caching allocator hands out, multiples of 512 bytes. On CUDA: what the "
        "allocator itself counts.",
        leaves_out="Tensors on the host, such as Adam's step counts, and what the allocator holds beyond its blocks. A CPU tells none.",
    ),
    "peak": Metric(
        title="peak allocated",
        kind="bytes",
        field="memory.peak_allocated",
        meaning="The most bytes in the allocator's blocks at any moment of the training steps: parameters, gradients, state, activations "
        "and temporaries together.",
        obtained="Simulated: the training steps' allocations, traced without data and replayed through a model of CUDA's caching "
        "allocator. On CUDA: max_memory_allocated.",
        leaves_out="What is reserved and not in use (reserved), the CUDA context, and what libraries take past the allocator. A saving of "
        "state shows in the peak only as far as the phase of the peak holds it. A CPU tells none, nor does the workload state.",
    ),
    "reserved": Metric(
        title="peak reserved",
        kind="bytes",
        field="memory.peak_reserved",
        meaning="The most bytes that the allocator held from the driver: the peak and the fragmentation around it. It decides what fits.",
        obtained="Simulated by the same replay; on CUDA: max_memory_reserved.",
        leaves_out="The CUDA context, some 0.5 GiB, and other processes; nvidia-smi shows those too. A CPU tells none.",
    ),
    "step": Metric(
        title="step",
        kind="seconds",
        field="times.step",
        meaning="Time of one call of the optimizer's step.",
        obtained=f"{_STEPS}. Shown is the median. A step that was timed on a part of the model and scaled up says estimated.",
        leaves_out="Forward and backward, clipping, zero_grad, and effects of a lower peak such as a larger batch. Samples of one process "
        "say nothing about how processes differ.",
    ),
    "forward": Metric(
        title="forward",
        kind="seconds",
        field="times.forward",
        meaning="Time of the forward pass and the loss, over all micro-batches of a step.",
        obtained=f"{_STEPS}. Shown is the median.",
        leaves_out="Loading data. The optimizer does not take part in it: where it differs, the machine does.",
    ),
    "backward": Metric(
        title="backward",
        kind="seconds",
        field="times.backward",
        meaning="Time of the backward pass, over all micro-batches of a step.",
        obtained=f"{_STEPS}. Shown is the median.",
        leaves_out="Communication between devices. The optimizer does not take part in it: where it differs, the machine does.",
    ),
    "iteration": Metric(
        title="iteration",
        kind="seconds",
        field="times.iteration",
        meaning="Time of a whole training iteration: forward, backward, the optimizer's step and zero_grad.",
        obtained=f"{_STEPS}. Shown is the median.",
        leaves_out="Loading data, logging, and communication between devices.",
    ),
    "estimate": Metric(
        title="step on the GPU, estimated",
        kind="seconds",
        field="estimate.seconds",
        meaning="What the optimizer's step would take on the GPU that the scenario names.",
        obtained="Worked out from the bytes that the step's kernels read and write, their launches and the host's waits. No clock has seen "
        "it; the same code gives the same figure on every machine.",
        leaves_out="Noise, clocks that fall when the card is hot, and other work on the card.",
    ),
}

_ASKED = "Recorded in a course of training, which --accumulate asks for: real training on the text that comes with optprof"
# What is told of courses of training; `optprof compare` does not set these side by side.
COURSE_METRICS: Mapping[str, Metric] = {
    "draws": Metric(
        title="draws per step",
        kind="micro-batches",
        field="course.draws",
        meaning="The micro-batches whose mean gradient an optimizer's step was taken with.",
        obtained=f"{_ASKED}. Every step's are kept, and the micro-batch after which it was taken (course.ended).",
        leaves_out="Micro-batches that were dropped for not being finite (course.dropped).",
    ),
    "held-out-loss": Metric(
        title="held-out loss",
        kind="nats",
        field="course.held_out",
        meaning="The mean loss a byte on the last tenth of that text, which is never trained on.",
        obtained=f"{_ASKED}. Taken some twenty times in a course, outside of its times. Shown is the mean over seeds, with the extremes.",
        leaves_out="Other text, other lengths of training and other sizes of model: it ranks ways to step on this text alone.",
    ),
}
# Everything that `optprof explain` knows.
FIGURES: Mapping[str, Metric] = {**METRICS, **COURSE_METRICS}


def explain(name: str) -> str:
    """A figure in words, a line each; ValueError for a name that is none."""
    metric = _find(name, FIGURES)
    lines = (
        ("unit", "exact bytes; GiB are 2**30 of them" if metric.kind == "bytes" else metric.kind),
        ("means", metric.meaning),
        ("obtained", metric.obtained),
        ("leaves out", metric.leaves_out),
        ("in a record", metric.field),
    )
    return "\n".join([f"{name}: {metric.title}", *(f"{head}: {text}" for head, text in lines)])


def find(name: str) -> Metric:
    """The figure of that name that runs are compared by; ValueError names those that are there."""
    return _find(name, METRICS)


def _find(name: str, among: Mapping[str, Metric]) -> Metric:
    if name not in among:
        near = get_close_matches(name, among, 1)
        raise ValueError(f"no metric named {name!r}; {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(among)}")
    return among[name]


def metrics_page() -> str:
    """The text of docs/metrics.md."""
    parts = [
        "# What the figures mean",
        "",
        "`optprof explain METRIC` prints the same on the terminal; `optprof compare` and its gates go by",
    ]
    parts += [f"these names, but for {' and '.join(COURSE_METRICS)}."]
    for name in FIGURES:
        _, *lines = explain(name).splitlines()
        parts += ["", f"## {name}", "", f"*{FIGURES[name].title}*", ""]
        parts += [f"- **{head}**: {text}" for head, text in (line.split(": ", 1) for line in lines)]
    return "\n".join(parts) + "\n"

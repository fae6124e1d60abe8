"""Explain: the unit, origin and limits of each figure; docs/metrics.md has the same words."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from optprof.scenarios.hardware import DEFAULT_GPU

# Words that several figures share.
_BYTES = "exact bytes; GiB are 2**30 of them"
_STEPS = (
    "Raw samples after a warm-up that is kept apart: a host clock on the CPU, events on the stream"
    " on CUDA"
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure: its title, its kind of number, and its meaning; `field` is its place in a record.

    A figure without a kind has a `unit` of its own, and is not compared; `field` may name several
    fields that it is computed from.
    """

    title: str
    kind: Literal["bytes", "seconds"] | None = None
    unit: str = ""
    field: str
    meaning: str
    obtained: str
    leaves_out: str


METRICS: Mapping[str, Metric] = {
    "state": Metric(
        title="state",
        kind="bytes",
        field="memory.optimizer_state",
        meaning=(
            "Bytes of every tensor and NumPy array that the optimizer keeps when the last step"
            " ends: in its state, its groups or its attributes, in a wrapped optimizer or module,"
            " or in an attribute of a parameter. Storage that two tensors share counts once."
        ),
        obtained=(
            "Counted on the tensors that the optimizer's own step made, on PyTorch's meta device"
            " when simulated, on the device itself when measured. Exact to the byte, and the same"
            " on every machine."
        ),
        leaves_out=(
            "Parameters, gradients and views of them, the model, the allocator's rounding"
            " (state-allocated), temporaries of the step, and tensors that the optimizer does not"
            " refer to, as in a global table. A watched loop whose model is only a name also leaves"
            " out modules inside the optimizer."
        ),
    ),
    "state-allocated": Metric(
        title="state as allocated",
        kind="bytes",
        field="memory.optimizer_state_allocated",
        meaning=(
            "Bytes of the allocator's blocks that hold the state when the last step ends: the"
            " change of torch.cuda.memory_allocated."
        ),
        obtained=(
            "Simulated: the blocks that a model of CUDA's caching allocator hands out, multiples of"
            " 512 bytes. On CUDA: the allocator's own count."
        ),
        leaves_out=(
            "Tensors on the host, such as Adam's step counts, and memory that the allocator holds"
            " beyond its blocks. A CPU has no such count."
        ),
    ),
    "peak": Metric(
        title="peak allocated",
        kind="bytes",
        field="memory.peak_allocated",
        meaning=(
            "The most bytes in the allocator's blocks at any moment of the training steps:"
            " parameters, gradients, state, activations and temporaries together. If ranks share"
            " the work, it is a rank's, with the parameters that it gathers from others and the"
            " buffers of its exchanges."
        ),
        obtained=(
            "Simulated: the training steps' allocations, traced without data and replayed through a"
            " model of CUDA's caching allocator; for a model with convolutions or recurrent layers"
            " a range, from the least that cuDNN takes to the most (memory.peak_allocated_upper),"
            " whose lower end is compared. On CUDA: max_memory_allocated."
        ),
        leaves_out=(
            "Memory reserved and not in use (reserved), the CUDA context, and memory that libraries"
            " take outside the allocator. A smaller state lowers the peak only if the peak's phase"
            " holds that state. Neither a CPU nor the workload state has such a count."
        ),
    ),
    "reserved": Metric(
        title="peak reserved",
        kind="bytes",
        field="memory.peak_reserved",
        meaning=(
            "The most bytes that the allocator held from the driver: those in use and those kept"
            " for later use. It decides what fits."
        ),
        obtained=(
            "Simulated by the same replay, a range up to memory.peak_reserved_upper; on CUDA:"
            " max_memory_reserved. If a simulated GPU runs out of memory, memory.needed has the"
            " peak that the steps would reach on an unlimited device."
        ),
        leaves_out=(
            "The CUDA context, about 0.5 GiB, and other processes; nvidia-smi shows those too. A"
            " CPU has no such count."
        ),
    ),
    "step": Metric(
        title="step",
        kind="seconds",
        field="times.step",
        meaning="Time of one call of the optimizer's step.",
        obtained=(
            f"{_STEPS}. The median is shown. ± follows a noisy one: its 95 % interval reaches"
            " further than 5 %, it has fewer than six samples, or something disturbed it. A step"
            " that was timed on a part of the model and scaled up is marked as estimated."
        ),
        leaves_out=(
            "Forward and backward, clipping, zero_grad, and effects of a lower peak such as a"
            " larger batch. Samples of one process say nothing about how processes differ."
        ),
    ),
    "forward": Metric(
        title="forward",
        kind="seconds",
        field="times.forward",
        meaning="Time of the forward pass and the loss, over all micro-batches of a step.",
        obtained=f"{_STEPS}. The median is shown.",
        leaves_out=(
            "Loading data. The optimizer has no part in it: a difference between optimizers comes"
            " from the machine."
        ),
    ),
    "backward": Metric(
        title="backward",
        kind="seconds",
        field="times.backward",
        meaning="Time of the backward pass, over all micro-batches of a step.",
        obtained=f"{_STEPS}. The median is shown.",
        leaves_out=(
            "Communication between devices. The optimizer has no part in it: a difference between"
            " optimizers comes from the machine."
        ),
    ),
    "iteration": Metric(
        title="iteration",
        kind="seconds",
        field="times.iteration",
        meaning=(
            "Time of a whole training iteration: forward, backward, the optimizer's step and"
            " zero_grad."
        ),
        obtained=f"{_STEPS}. The median is shown.",
        leaves_out="Loading data, logging, and communication between devices.",
    ),
    "estimate": Metric(
        title="step on the GPU, estimated",
        kind="seconds",
        field="estimate.seconds",
        meaning=(
            f"Time of the optimizer's step on the GPU that --gpu names, {DEFAULT_GPU} by default."
        ),
        obtained=(
            "Computed from the bytes that the step's kernels read and write, their launches and the"
            " host's waits. It is not measured; the same code gives the same figure on every"
            " machine."
        ),
        leaves_out="Noise, clocks that fall when the card is hot, and other work on the card.",
    ),
}


_TRAINING = (
    "Recorded in a training run with --accumulate: real training on the text that comes with"
    " optprof"
)
# All figures of `optprof explain`; reports show those after METRICS, and comparisons do not.
FIGURES: Mapping[str, Metric] = {
    **METRICS,
    "bytes-a-parameter": Metric(
        title="bytes a parameter",
        unit="bytes",
        field="memory.optimizer_state / parameter_count",
        meaning=(
            "Bytes of state for each parameter of the model: 8 for AdamW in fp32, whatever the"
            " model's size."
        ),
        obtained=("The state divided by all parameters of the model, frozen ones included."),
        leaves_out="The parameters themselves and their gradients, 4 bytes each in fp32.",
    ),
    "driver": Metric(
        title="the driver's figure",
        unit=_BYTES,
        field="watched.gpu.process_bytes",
        meaning=(
            "The driver's count for the process, as nvidia-smi shows it: the memory reserved, and"
            " the CUDA context."
        ),
        obtained=(
            "On CUDA: NVML's largest reading during timed iterations. Elsewhere the reserved peak"
            " and 512 MiB for the context, an estimate."
        ),
        leaves_out="Other processes on the card, and memory freed between two readings.",
    ),
    "fragmentation": Metric(
        title="fragmentation",
        unit=_BYTES,
        field="memory.peak_reserved - memory.peak_allocated",
        meaning=(
            "Bytes that the allocator holds from the driver beyond the most that is ever in use."
        ),
        obtained="The reserved peak less the allocated one. Timelines show it event by event.",
        leaves_out=(
            "Rounding inside blocks, which are multiples of 512 bytes (state-allocated). The two"
            " peaks may lie at different moments."
        ),
    ),
    "throughput": Metric(
        title="training",
        unit="tokens a second; sequences or images a second for models that read no tokens",
        field="watched.tokens / times.iteration",
        meaning="The tokens or samples that training processes in a second.",
        obtained=(
            "The tokens of one iteration divided by the median time of an iteration, for records"
            " with timed iterations of the whole model."
        ),
        leaves_out="Loading data, and the larger batch that a lower peak would allow.",
    ),
    "resident": Metric(
        title="resident set",
        unit=_BYTES,
        field="watched.memory.PHASE.resident",
        meaning=(
            "Bytes of the process that are in main memory, at the end of each phase and the most"
            " while it ran."
        ),
        obtained="On the CPU: read from the system by psutil while untimed iterations run.",
        leaves_out=(
            "Memory that the system has swapped out. Python, torch and freed memory that the C"
            " library keeps are in it, so it says less about an optimizer than its state does."
        ),
    ),
    "largest-batch": Metric(
        title="largest batch",
        unit="sequences or images",
        field="memory.peak_reserved and memory.peak_allocated of records of several batch sizes",
        meaning="The largest batch whose training step a GPU has room for.",
        obtained=(
            "The largest of the batches that a run tried and that fit; exact if the next larger"
            " batch is known not to fit, else “at least”. `optprof fit` searches for it on the"
            " GPU's own memory."
        ),
        leaves_out="Batches that were not tried.",
    ),
    "all-ranks": Metric(
        title="state of all ranks",
        unit=_BYTES,
        field="memory.optimizer_state, scenario.ranks, ranks.elements and ranks.each",
        meaning="The state of all processes that share the work (--ranks) together.",
        obtained=(
            "Measured: the sum over all ranks. Simulated: as many times the state of the simulated"
            " rank, exact if each rank keeps the state of as many elements, else an upper bound."
        ),
        leaves_out=(
            "Under ZeRO-1 a simulation of one rank does not tell it: ranks keep whole parameters."
        ),
    ),
    "sent": Metric(
        title="sent a step",
        unit=_BYTES,
        field="ranks.exchanges",
        meaning="The bytes that a rank sends to others in one training step.",
        obtained=(
            "The exchanges that torch's own code requests in the simulated step, each with its"
            " phase, its operation and the bytes of its whole tensor. For a ring of n ranks a rank"
            " sends (n-1)/n of a tensor that is gathered or reduced and scattered, twice that if"
            " all ranks get the sum, and a broadcast tensor whole."
        ),
        leaves_out=(
            "Other algorithms, such as trees, and what the exchange takes in time: no estimate"
            " contains it."
        ),
    ),
    "nccl": Metric(
        title="NCCL's memory",
        unit="estimated bytes, a range",
        field="none; scenarios/nccl.py computes it",
        meaning=(
            "The bytes that NCCL takes of each GPU for its own buffers, outside torch's allocator."
        ),
        obtained=(
            "For each communicator (a group of ranks that exchange data) from 2 channels with one"
            " buffer to 32 channels with three. A buffer has 9.19 MiB, by NCCL 2.30's source."
        ),
        leaves_out=(
            "It is in no other figure. NCCL_BUFFSIZE, NCCL_MAX_NCHANNELS and NVLink SHARP change"
            " it."
        ),
    ),
    "draws": Metric(
        title="draws per step",
        unit="micro-batches",
        field="course.draws",
        meaning="The micro-batches whose mean gradient one optimizer step used.",
        obtained=(
            f"{_TRAINING}. The record keeps them for every step, and the micro-batch that ended it"
            " (course.ended)."
        ),
        leaves_out="Micro-batches that were dropped for not being finite (course.dropped).",
    ),
    "held-out-loss": Metric(
        title="held-out loss",
        unit="nats",
        field="course.held_out",
        meaning="The mean loss a byte on the last tenth of that text, which is not trained on.",
        obtained=(
            f"{_TRAINING}. Taken some twenty times in a training run, outside its times. The mean"
            " over seeds is shown, with the extremes."
        ),
        leaves_out=(
            "Other text, other lengths of training and other sizes of model: it ranks ways to"
            " accumulate on this text alone."
        ),
    ),
}


def explain(name: str) -> str:
    """Return a figure in words, a line each; ValueError for an unknown name."""
    metric = _named(name, FIGURES)
    lines = (
        ("unit", metric.unit or (_BYTES if metric.kind == "bytes" else "seconds")),
        ("means", metric.meaning),
        ("obtained", metric.obtained),
        ("leaves out", metric.leaves_out),
        ("in a record", metric.field),
    )
    return "\n".join([f"{name}: {metric.title}", *(f"{head}: {text}" for head, text in lines)])


def find(name: str) -> Metric:
    """Return the figure of that name; ValueError for one that is not compared."""
    return _named(name, METRICS)


def _named(name: str, figures: Mapping[str, Metric]) -> Metric:
    if name not in figures:
        near = get_close_matches(name.lower(), figures, 1, cutoff=0.66)
        raise ValueError(
            f"no metric named {name!r}; {f'did you mean {near[0]}? ' if near else ''}there are"
            f" {', '.join(figures)}"
        )
    return figures[name]


def metrics_page() -> str:
    """Return the text of docs/metrics.md."""
    parts = [
        "# What the figures mean",
        "",
        (
            "`optprof explain METRIC` prints the same on the terminal; `optprof compare` and its"
            " gates go by"
        ),
        f"the first {len(METRICS)} names.",
    ]
    for name, metric in FIGURES.items():
        _, *lines = explain(name).splitlines()
        parts += ["", f"## {name}", "", f"*{metric.title}*", ""]
        parts += [f"- **{head}**: {text}" for head, text in (line.split(": ", 1) for line in lines)]
    return "\n".join(parts) + "\n"

"""Trace rules: what a trace recommends; each rule compares one number of the trace with a limit."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..units import NOTHING, percent_text, seconds_text, three_digits
from .trace import Trace

# A step of fewer calls gains little from a fused one.
FEW_CALLS = 100
_FULL_FLOAT32 = re.compile(r"sgemm|scudnn|_simt_")


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A rule for one trace: a number, its limit, and what to do from the limit on.

    found is None if the trace does not have the number. finding says it in words.
    """

    rule: str
    found: float | None
    limit: float
    finding: str
    advice: str
    show: Callable[[float], str] = lambda share: percent_text(share, 1)

    @property
    def applies(self) -> bool:
        """Return whether the number reaches the limit."""
        return self.found is not None and self.found >= self.limit

    @property
    def found_text(self) -> str:
        """The number of the trace."""
        return NOTHING if self.found is None else self.show(self.found)


def rules(trace: Trace) -> list[Advice]:
    """Return every rule with the number of this trace."""
    return [_step(trace), _loading(trace), _zero_grad(trace), *_on_device(trace)]


def _step(trace: Trace) -> Advice:
    """Return the rule for a step of many small operators."""
    counts = "launches" if trace.kernels else "calls"
    number = trace.an_iteration(counts, "step")
    seconds = trace.phases.get("step", 0.0) / len(trace.iterations)
    names = {operator.name for operator in trace.operators}
    if any("_foreach_" in name for name in names):
        helps = "fused=True, if the optimizer has it, makes them one for each group of tensors."
    else:
        helps = "foreach=True or fused=True, if the optimizer has it, makes them a few."
    has_many = number >= FEW_CALLS and not any("_fused_" in name for name in names)
    word = "launches" if trace.kernels else "calls of operators"
    return Advice(
        rule=f"the optimizer's step, if it has {FEW_CALLS} launches or calls of operators",
        found=trace.share("step") if has_many else None,
        limit=0.1,
        finding=(
            f"the step takes {_share(trace.share('step'))} of the iteration in {number:,.0f}"
            f" {word}, {seconds_text(seconds / max(number, 1))} each"
        ),
        advice=helps,
    )


def _loading(trace: Trace) -> Advice:
    share = trace.share("data")
    return Advice(
        rule="the loading of data",
        found=share if "data" in trace.phases else None,
        limit=0.1,
        finding=f"the loading of data takes {_share(share)} of the iteration",
        advice="DataLoader(num_workers=...) loads in other processes while the model trains.",
    )


def _zero_grad(trace: Trace) -> Advice:
    share = trace.share("zero_grad")
    return Advice(
        rule="zero_grad",
        found=share if "zero_grad" in trace.phases else None,
        limit=0.05,
        finding=f"zero_grad takes {_share(share)} of the iteration",
        advice="zero_grad(set_to_none=True), torch's default, frees gradients and writes no 0.",
    )


def _on_device(trace: Trace) -> list[Advice]:
    """Return the rules for a GPU."""
    idle, reads, small = idle_share(trace), _reads(trace), _small(trace)
    pageable = _device_share(trace, lambda name: "Pageable" in name)
    float32 = _device_share(trace, _FULL_FLOAT32.search)
    return [
        Advice(
            rule="the device idle",
            found=idle,
            limit=0.2,
            finding=f"the device is idle {_share(idle or 0)} of the iteration",
            advice=(
                "A larger batch, torch.compile or CUDA graphs give it more work for each launch."
            ),
        ),
        Advice(
            rule="values read back from the device in an iteration",
            found=reads,
            limit=2,
            finding=f"the host reads {three_digits(reads or 0)} values back in an iteration",
            advice=(
                ".item() and conditions on a tensor's value wait for the device: keep losses"
                " there, and read them every few iterations."
            ),
            show=three_digits,
        ),
        Advice(
            rule="copies from pageable memory, of the device's time",
            found=pageable,
            limit=0.05,
            finding=f"the device spends {_share(pageable or 0)} of its time on copies from pageable"
            " memory",
            advice="pin_memory=True and .to(..., non_blocking=True) make copies fast.",
        ),
        Advice(
            rule="float32 products without tensor cores, of the device's time",
            found=float32,
            limit=0.2,
            finding=(
                f"the device spends {_share(float32 or 0)} of its time on float32 products without"
                " tensor cores"
            ),
            advice=(
                "Autocast uses tensor cores; from the A100 on so does"
                " torch.set_float32_matmul_precision('high')."
            ),
        ),
        Advice(
            rule="kernels with fewer blocks than the GPU has processors, of the device's time",
            found=small,
            limit=0.5,
            finding=f"the device spends {_share(small or 0)} of its time in kernels with fewer"
            " blocks than it has processors",
            advice="A larger batch gives each processor work.",
        ),
    ]


def _share(value: float) -> str:
    return percent_text(value, 1)


def idle_share(trace: Trace) -> float | None:
    """Return the share of the iterations in which the busiest device was idle."""
    idle: dict[str, float] = {}
    for iteration in trace.iterations:
        for busy in iteration.busy:
            idle[busy.device] = idle.get(busy.device, 0.0) + busy.idle
    return min(idle.values()) / trace.seconds if idle and trace.seconds else None


def _reads(trace: Trace) -> float | None:
    if not trace.kernels:
        return None
    calls = sum(each.calls for each in trace.operators if each.name == "aten::_local_scalar_dense")
    return calls / max(len(trace.iterations), 1)


def _device_share(trace: Trace, is_meant: Callable[[str], object]) -> float | None:
    seconds = sum(each.seconds for each in trace.kernels if is_meant(each.name))
    return seconds / trace.device_seconds if trace.device_seconds else None


def _small(trace: Trace) -> float | None:
    known = [each for each in trace.kernels if each.blocks_per_sm is not None]
    seconds = sum(each.seconds for each in known if (each.blocks_per_sm or 0) < 1)
    return seconds / trace.device_seconds if known and trace.device_seconds else None

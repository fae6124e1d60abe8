"""SGD-SaI: SGD with momentum, each tensor's learning rate scaled once by its first gradient's
signal-to-noise ratio.

"No More Adam: Learning Rate Scaling at Initialization is All You Need",
https://arxiv.org/abs/2412.11768. For a parameter w of n elements with gradients g_t, counted from
the first that is not zero:

    r   = |g_1| / (std(g_1) + eps)                    taken once and kept; sqrt(n) where std(g_1) is
0
    m_1 = g_1,  m_t = momentum m_{t-1} + (1 - momentum) g_t
    w   <- (1 - lr weight_decay) w - lr r m_t
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Collection

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .checks import require_fraction, require_not_negative
from .foreach import average, descend, is_set
from .lasting import lasting
from .loading import Shapes
from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State
from .readback import may_be_zero
from .reductions import deviation, l2_norms, resolution
from .sharded import is_sharded, whole


class SGDSaI(MultiTensorOptimizer):
    """SGD whose step is scaled, tensor by tensor, by the signal-to-noise ratio of the first
    gradient (g-SNR).

    Keeps `gsnr`, a scalar in float32 or wider, and with momentum `momentum_buffer`, like the
    parameter. A parameter's g-SNR is taken at its own first gradient that is not zero, however late
    that comes, and never again; until then `gsnr` is 0 and the parameter only decays. The average
    starts with that same gradient, so that a step with zero gradients before it leaves no trace.
    The standard deviation is unbiased. Where it is 0, as for one element or for equal ones, the
    ratio is sqrt(n): what a gradient of zero mean has, where the quotient would be |g| / eps. A
    step allocates nothing once the ratios are taken. Where torch.compile takes in the whole of
    `step`, the choice stays in the graph, which reads every gradient once more; `compiled=True`
    does not.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        compiled: bool = False,
    ) -> None:
        require_not_negative(
            {"learning rate": lr, "epsilon value": eps, "weight_decay value": weight_decay}
        )
        require_fraction({"momentum value": momentum})
        defaults = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, {**defaults, "maximize": maximize, "foreach": foreach, "compiled": compiled}
        )

    @torch.no_grad()
    def warmup_step(self) -> None:
        """Take the g-SNR from the present gradients where there is none yet, as `step` does by
        itself; any number of times.
        """
        for bucket in self._buckets():
            with lasting():
                _take_ratios(bucket)

    def _initial_state(self, param: Tensor, options: Options) -> State:
        del param, options
        return {}

    def _shapes(self, param: Tensor, options: Options) -> Shapes:
        del options
        return {"gsnr": (), "momentum_buffer": param.shape}

    def _needed(self, param: Tensor, options: Options, held: Collection[str]) -> set[str]:
        del param, held
        return {"gsnr", "momentum_buffer"} if options["momentum"] else {"gsnr"}

    def _prepare(self, bucket: Bucket) -> Bucket:
        if bucket.options["momentum"]:
            for param, grad, state in zip(bucket.params, bucket.grads, bucket.states, strict=True):
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.empty_like(
                        param, memory_format=torch.preserve_format
                    ).copy_(grad)
        _take_ratios(bucket)
        return bucket

    def _update(self, bucket: Bucket) -> None:
        lr, momentum, weight_decay = (
            bucket.options[name] for name in ("lr", "momentum", "weight_decay")
        )
        directions = bucket.grads
        if is_set(momentum):
            directions = bucket.state("momentum_buffer")
            # A new buffer holds this very gradient, which the average leaves as it is.
            average(directions, bucket.grads, 1 - momentum)
        if is_set(weight_decay):
            torch._foreach_mul_(bucket.params, 1 - lr * weight_decay)
        descend(bucket.params, directions, lr, bucket.state("gsnr"))


SGDBoost = SGDSaI


def _take_ratios(bucket: Bucket) -> None:
    """Take the g-SNR of every parameter that has none, and start its average with the gradient that
    it is taken from.
    """
    for grad, state in zip(bucket.grads, bucket.states, strict=True):
        if "gsnr" not in state:
            state["gsnr"] = _signal_to_noise(grad, bucket.options["eps"])
        # Every rank must decide alike for a sharded gradient, whose ratio they work out together.
        elif may_be_zero(state["gsnr"], wait=is_sharded(grad)):
            _take_ratio_if_zero(grad, state, bucket.options["eps"])


def _take_ratio_if_zero(grad: Tensor, state: State, eps: float) -> None:
    """The same, with the choice made on the device."""
    due = state["gsnr"] == 0
    if "momentum_buffer" in state:
        state["momentum_buffer"].copy_(torch.where(due, grad, state["momentum_buffer"]))
    state["gsnr"].copy_(torch.where(due, _signal_to_noise(grad, eps), state["gsnr"]))


def _signal_to_noise(grad: Tensor, eps: float) -> Tensor:
    """The g-SNR as a scalar; 0 for a gradient of zeros."""
    count, dtype = grad.numel(), torch.promote_types(grad.dtype, torch.float32)
    signal = whole(l2_norms([grad], dtype)[0])
    noise = deviation(grad, dtype) if count > 1 else torch.zeros_like(signal)
    # Equal elements show a noise up to this, since their mean is rounded.
    silent = noise <= resolution(grad) / count**0.5 * signal
    return torch.where(silent, count**0.5 * (signal != 0), signal / (noise + eps))

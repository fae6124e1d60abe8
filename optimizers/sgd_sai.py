"""SGD-SaI: SGD with momentum, each tensor's learning rate scaled once by its first gradient.

"No More Adam: Learning Rate Scaling at Initialization is All You Need",
https://arxiv.org/abs/2412.11768. For a parameter w of n elements with gradients g_t, counted from
the first that is not zero:

    r   = |g_1| / (std(g_1) + eps)                    taken once; sqrt(n) if std(g_1) is 0
    m_1 = g_1,  m_t = momentum m_{t-1} + (1 - momentum) g_t
    w   <- (1 - lr weight_decay) w - lr r m_t
"""

# pyright: reportPrivateImportUsage=false

import ctypes
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import ParamsT
from torch.utils.weak import WeakTensorKeyDictionary

from . import fused
from .arguments import require_fraction, require_not_negative
from .bucket import Bucket, Options, State, average, descend, is_nonzero
from .loading import Shapes, lasting
from .multi_tensor import MultiTensorOptimizer
from .reductions import deviation, l2_norms, resolution
from .sharded import is_sharded

_KERNELS = Path(__file__).with_suffix(".cpp")


class _Numbers(ctypes.Structure):
    """The kernel's numbers, by their names in the C++ source."""

    _fields_ = tuple((name, ctypes.c_double) for name in ("taken", "kept", "rate"))


class SGDSaI(MultiTensorOptimizer):
    """SGD whose step is scaled, tensor by tensor, by the first gradient's signal-to-noise ratio.

    The state is `gsnr`, the ratio as a scalar in float32 or wider, and with momentum
    `momentum_buffer`, like the parameter. A parameter's ratio is taken once, at its own first
    gradient that is not zero; until then `gsnr` is 0 and the parameter only decays. The average
    starts with that same gradient, so earlier steps with zero gradients leave no trace. The
    standard deviation is unbiased. If it is 0, as for one element or for equal ones, the ratio is
    sqrt(n), that of a gradient of zero mean; the quotient would be |g| / eps. A step allocates
    nothing once the ratios are taken. If torch.compile compiles the whole of `step`, the choice
    stays in the graph, which then reads every gradient once more; `compiled=True` avoids that.
    """

    kernels = "sgd_sai"

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
        fused: bool = False,
    ) -> None:
        require_not_negative(
            {"learning rate": lr, "epsilon value": eps, "weight_decay value": weight_decay}
        )
        require_fraction({"momentum value": momentum})
        defaults = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params,
            {
                **defaults,
                "maximize": maximize,
                "foreach": foreach,
                "compiled": compiled,
                "fused": fused,
            },
        )

    @torch.no_grad()
    def warmup_step(self) -> None:
        """Take the missing ratios from the present gradients, as `step` does by itself.

        May be called any number of times.
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

    def _required(self, param: Tensor, options: Options, names: Collection[str]) -> set[str]:
        del param, names
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
        if is_nonzero(momentum):
            directions = bucket.state("momentum_buffer")
            # A new buffer is a copy of this gradient, which the average leaves unchanged.
            average(directions, bucket.grads, 1 - momentum)
        if is_nonzero(weight_decay):
            torch._foreach_mul_(bucket.params, 1 - lr * weight_decay)
        descend(bucket.params, directions, lr, bucket.state("gsnr"))

    def _fits_kernel(self, param: Tensor, state: State) -> bool:
        return state["gsnr"].dim() == 0 and state.get("momentum_buffer", param).shape == param.shape

    def _update_fused(self, bucket: Bucket) -> None:
        options, lr = bucket.options, float(bucket.options["lr"])
        momentum, kept = options["momentum"], 1 - lr * options["weight_decay"]
        update = fused.kernel(_KERNELS, "update", bucket.params[0].dtype)
        ratios = torch.stack(bucket.state("gsnr")).tolist()
        for param, grad, state, ratio in zip(
            bucket.params, bucket.grads, bucket.states, ratios, strict=True
        ):
            update(
                *fused.addresses(param, grad, state["momentum_buffer"] if momentum else None),
                ctypes.c_int64(param.numel()),
                ctypes.byref(_Numbers(taken=1 - momentum, kept=kept, rate=lr * ratio)),
                fused.threads(param),
            )


SGDBoost = SGDSaI


def _take_ratios(bucket: Bucket) -> None:
    """Take the missing ratios, and start the averages with the gradients that they come from."""
    for grad, state in zip(bucket.grads, bucket.states, strict=True):
        if "gsnr" not in state:
            state["gsnr"] = signal_to_noise(grad, bucket.options["eps"])
        # All ranks compute the ratio of a sharded gradient together, so all must decide alike.
        elif _may_be_zero(state["gsnr"], wait=is_sharded(grad)):
            _take_ratio_if_zero(grad, state, bucket.options["eps"])


def _take_ratio_if_zero(grad: Tensor, state: State, eps: float) -> None:
    """Take a ratio if it is still 0; the device decides."""
    due = state["gsnr"] == 0
    if "momentum_buffer" in state:
        state["momentum_buffer"].copy_(torch.where(due, grad, state["momentum_buffer"]))
    state["gsnr"].copy_(torch.where(due, signal_to_noise(grad, eps), state["gsnr"]))


def signal_to_noise(grad: Tensor, eps: float) -> Tensor:
    """Return the ratio as a scalar, 0 for a gradient of zeros."""
    count, dtype = grad.numel(), torch.promote_types(grad.dtype, torch.float32)
    signal = l2_norms([grad], dtype)[0]
    noise = deviation(grad, dtype) if count > 1 else torch.zeros_like(signal)
    # Equal elements may show this much noise, because their mean is rounded.
    silent = noise <= resolution(grad) / count**0.5 * signal
    return torch.where(silent, count**0.5 * (signal != 0), signal / (noise + eps))


# Copies of ratios on the host, 0 until they arrive.
_host_copies = WeakTensorKeyDictionary()


def _may_be_zero(ratio: Tensor, *, wait: bool = False) -> bool:
    """Return False once the host has seen a nonzero ratio; it never returns to 0.

    While the value is on its way from the device the answer is True. With `wait` the answer is
    exact, as ranks that must decide alike need it. For a tensor without data it is False.
    """
    if torch.compiler.is_compiling():
        return True
    if ratio.is_meta or isinstance(ratio, FakeTensor):
        return False
    if ratio.is_cpu:
        return ratio.item() == 0
    copy = _host_copies.get(ratio)
    if copy is None or copy.item() == 0:
        copy = torch.zeros_like(ratio, device="cpu", pin_memory=ratio.is_cuda)
        copy.copy_(ratio, non_blocking=not wait and ratio.is_cuda)
        _host_copies[ratio] = copy
    return copy.item() == 0

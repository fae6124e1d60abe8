"""SGD-SaI: SGD with momentum, each tensor's learning rate scaled once by its first gradient's signal-to-noise ratio.

"No More Adam: Learning Rate Scaling at Initialization is All You Need", https://arxiv.org/abs/2412.11768.
For a parameter w with gradients g_t:

    r   = |g_1| / (std(g_1) + eps)                    taken once and kept
    m_1 = g_1,  m_t = momentum m_{t-1} + (1 - momentum) g_t
    w   <- (1 - lr weight_decay) w - lr r m_t
"""

# pyright: reportPrivateImportUsage=false

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State, gradient, require_fraction, require_not_negative


class SGDSaI(MultiTensorOptimizer):
    """SGD whose step is scaled, tensor by tensor, by the signal-to-noise ratio of the first gradient (g-SNR).

    Keeps `gsnr`, a scalar, and with momentum `momentum_buffer`, like the parameter. A parameter's g-SNR is taken at its own first gradient,
    however late that comes. The standard deviation is unbiased, and 0 for a tensor of one element, whose ratio is therefore |g| / eps.
    A step allocates nothing once the state is there.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-2,
        momentum: float = 0.9,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> None:
        require_not_negative({"learning rate": lr, "epsilon value": eps, "weight_decay value": weight_decay})
        require_fraction({"momentum value": momentum})
        defaults = {"lr": lr, "momentum": momentum, "eps": eps, "weight_decay": weight_decay, "maximize": maximize, "foreach": foreach}
        super().__init__(params, defaults)

    def _initial_state(self, param: Tensor, options: Options) -> State:
        grad = gradient(param, options)
        state = {"gsnr": _signal_to_noise(grad, options["eps"])}
        if options["momentum"]:
            state["momentum_buffer"] = torch.clone(grad, memory_format=torch.preserve_format)
        return state

    def _update(self, bucket: Bucket) -> None:
        lr, momentum, weight_decay = (bucket.options[name] for name in ("lr", "momentum", "weight_decay"))
        directions = bucket.grads
        if momentum:
            directions = bucket.state("momentum_buffer")
            # A new buffer holds this very gradient, which the average leaves as it is.
            torch._foreach_lerp_(directions, bucket.grads, 1 - momentum)
        if weight_decay:
            torch._foreach_mul_(bucket.params, 1 - lr * weight_decay)
        torch._foreach_addcmul_(bucket.params, directions, bucket.state("gsnr"), value=-lr)


def _signal_to_noise(grad: Tensor, eps: float) -> Tensor:
    noise = grad.std() if grad.numel() > 1 else grad.new_zeros(())
    return torch.linalg.vector_norm(grad) / (noise + eps)

"""LAMB16: LAMB whose two moments are kept in one byte each.

https://github.com/vxst/LAMB16. For a parameter w of n elements with gradient g, in float32, clips, squares and roots element by element:

    m    = beta1 s_m q_m + (1 - beta1) g              q_m in float8_e4m3fn, s_m one float32 for the tensor
    v    = beta2 s_v q_v + (1 - beta2) g^2            q_v in float8_e5m2, s_v likewise
    r    = m / (sqrt(v) + eps) + weight_decay w
    phi  = clip((size(w) / size(r) * 0.001 / lr)^trust_scale, 0, 2)       size(x) = sqrt(sum(clip(x^2, eps, 1)))
    w   <- w - lr phi r

The moments are stored over a scale of the new ones, by the original ("upstream") with its clips and rounded to nearest:

    s_m <- sqrt(sum(min(m^2, 10))) / n + eps;   q_m <- clip(m / s_m, -15, 15)
    s_v <- sqrt(sum(min(v^2, 10))) / n + eps;   q_v <- min(v, 10) / s_v

That holds for some 200 elements: with more the first moment saturates, and the second overflows at an outlier. By default ("max") the
largest element has a fixed place in the format, and rounding up or down alternates so that the stored moments are right on average:

    s_m <- max(|m|) / 256;    q_m <- m / s_m, dithered
    s_v <- max(v) / 32768;    q_v <- v / s_v, dithered
    r    = m / (sqrt(max(v, least)) + eps) + weight_decay w               least = the smallest float8_e5m2 above 0, over the old s_v
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .float8 import PERIOD, decode_e4m3, decode_e5m2, dither_e4m3, dither_e5m2, encode_e4m3, encode_e5m2
from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State, descend, require_betas, require_not_negative

SCALES = ("max", "upstream")

_USUAL_LR = 1e-3
# The largest elements at powers of 2, which round to themselves, with room above for what rounding adds.
_LARGEST_FIRST, _LARGEST_SECOND = 2.0**8, 2.0**15
_LEAST_SECOND = 2.0**-16
_LEAST_SCALE = 1e-30
# Irrational, so that at no element the roundings ever come back in the same order.
_FIRST_TURN, _SECOND_TURN = 0.5698402909980532, 2.0**0.5 - 1

# Elements worked on at a time: they and their temporaries stay in a processor's cache, and are few beside a parameter.
_MOST_ELEMENTS = 2**17
_LEAST_ELEMENTS = 2**11
_SHARE = 8


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A parameter, or some rows of it, with its gradient and moments, and of its rounding the thresholds."""

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    direction: Tensor
    thresholds: tuple[Tensor, Tensor] | None = None


class LAMB16(MultiTensorOptimizer):
    """LAMB in 2 bytes a parameter; the update is computed in float32 whatever the parameter's dtype.

    `scale` says what the stored moments are divided by: "max", their largest element, at any size of tensor; "upstream" gives the numbers
    of the original.
    Keeps `exp_avg` (float8_e4m3fn) and `exp_avg_sq` (float8_e5m2), shaped like the parameter, and two float32 scalars, `exp_avg_scale` and
    `exp_avg_sq_scale`; a moment is its tensor times its scale. With "max" also `step`, a float32 scalar on the host, from which the rounding
    follows: no random numbers are drawn, and every rank and every resumed run rounds alike.
    The trust phi is the original's in both. It grows as (1 / lr)^trust_scale, so that the step follows lr^(1 - trust_scale) until phi
    reaches 2; the clips let weights that start at 0 move, and keep single large elements out of it.
    A gradient with NaN or infinity spoils its whole tensor, as a norm over it does in LAMB: skip such a step, as GradScaler does.
    A step holds one float32 temporary as large as the largest parameter, and a few as large as a slice of it (an eighth, at most 2^17
    elements). float8 has no multi-tensor operations, so that foreach works tensor by tensor; what is faster is `compiled`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        trust_scale: float = 0.382,
        *,
        scale: str = "max",
        maximize: bool = False,
        foreach: bool | None = None,
        compiled: bool = False,
    ) -> None:
        require_not_negative({"learning rate": lr, "weight_decay value": weight_decay, "trust_scale value": trust_scale})
        require_betas(betas)
        if not eps > 0.0:
            raise ValueError(f"Invalid epsilon value: {eps}, must be > 0, since it keeps sizes and scales from 0")
        if scale not in SCALES:
            raise ValueError(f"Invalid scale: {scale!r}, must be one of {', '.join(SCALES)}")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "trust_scale": trust_scale, "scale": scale}
        super().__init__(params, {**defaults, "maximize": maximize, "foreach": foreach, "compiled": compiled})

    def _initial_state(self, param: Tensor, options: Options) -> State:
        state = {
            "exp_avg": torch.zeros_like(param, dtype=torch.float8_e4m3fn, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(param, dtype=torch.float8_e5m2, memory_format=torch.preserve_format),
            "exp_avg_scale": param.new_zeros((), dtype=torch.float32),
            "exp_avg_sq_scale": param.new_zeros((), dtype=torch.float32),
        }
        if options["scale"] == "max":
            # On the host, as in torch's Adam: its value is read at every step, and that must not wait for the device.
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        return state

    def _prepare(self, bucket: Bucket) -> Bucket:
        if bucket.options["scale"] == "upstream":
            return bucket
        counts = bucket.state("step")
        torch._foreach_add_(counts, 1.0)
        steps = [count.item() for count in counts]
        turns = {"first": _FIRST_TURN, "second": _SECOND_TURN}
        return replace(bucket, numbers={name: [step * turn % 1.0 for step in steps] for name, turn in turns.items()})

    def _update(self, bucket: Bucket) -> None:
        for index, (param, grad, state) in enumerate(zip(bucket.params, bucket.grads, bucket.states, strict=True)):
            phases = [numbers[index] for numbers in bucket.numbers.values()]
            _update(param, grad, state, phases, bucket.options)


def _update(param: Tensor, grad: Tensor, state: State, phases: list[float] | list[Tensor], options: Options) -> None:
    direction = torch.empty_like(param, dtype=torch.float32)
    whole = _Piece(param=param, grad=grad, exp_avg=state["exp_avg"], exp_avg_sq=state["exp_avg_sq"], direction=direction)
    decoding = state["exp_avg_scale"].clone(), state["exp_avg_sq_scale"].clone()
    # The new scales come before the first piece can be stored, and a second decoding costs less than float32 moments in between.
    encoding = _new_scales(whole, decoding, options)
    sums = [_store(piece, decoding, encoding, options) for piece in _pieces(whole, phases)]
    weight, update = torch.stack([torch.stack(pair) for pair in sums]).sum(0).sqrt_().unbind()
    # Tensors to the end: an lr of 0 gives an infinite trust, clipped to 2, where the float would not divide.
    trust = (weight * _USUAL_LR / (update * options["lr"])).pow_(options["trust_scale"]).clamp_(0.0, 2.0)
    descend([param], [direction], options["lr"], [trust])
    state["exp_avg_scale"].copy_(encoding[0])
    state["exp_avg_sq_scale"].copy_(encoding[1])


def _new_scales(whole: _Piece, decoding: tuple[Tensor, Tensor], options: Options) -> tuple[Tensor, Tensor]:
    firsts, seconds = [], []
    for piece in _pieces(whole):
        first, second = _first_moment(piece, decoding[0], options), _second_moment(piece, decoding[1], options)
        if options["scale"] == "max":
            firsts.append(first.abs_().amax())
            seconds.append(second.amax())
        else:
            firsts.append(first.square_().clamp_max_(10.0).sum())
            seconds.append(second.square_().clamp_max_(10.0).sum())
    if options["scale"] == "max":
        largest = torch.stack(firsts).amax() / _LARGEST_FIRST, torch.stack(seconds).amax() / _LARGEST_SECOND
        return largest[0].clamp_min_(_LEAST_SCALE), largest[1].clamp_min_(_LEAST_SCALE)
    count, eps = whole.param.numel(), options["eps"]
    return torch.stack(firsts).sum().sqrt_() / count + eps, torch.stack(seconds).sum().sqrt_() / count + eps


def _store(piece: _Piece, decoding: tuple[Tensor, Tensor], encoding: tuple[Tensor, Tensor], options: Options) -> tuple[Tensor, Tensor]:
    """Write a piece's new moments and its direction; the squared sizes of its weights and of its direction."""
    eps = options["eps"]
    first, second = _first_moment(piece, decoding[0], options), _second_moment(piece, decoding[1], options)
    if piece.thresholds is None:
        piece.exp_avg.copy_((first / encoding[0]).clamp_(-15.0, 15.0))
        piece.exp_avg_sq.copy_(second.clamp_max(10.0).div_(encoding[1]))
    else:
        piece.exp_avg.view(torch.uint8).copy_(encode_e4m3(first / encoding[0], piece.thresholds[0]))
        piece.exp_avg_sq.view(torch.uint8).copy_(encode_e5m2(second / encoding[1], piece.thresholds[1]))
        # What was stored as 0 may have been anything up to the least that could be: without it the quotient would leave all bounds.
        second.clamp_min_(decoding[1] * _LEAST_SECOND)
    direction = torch.div(first, second.sqrt_().add_(eps), out=piece.direction)
    if options["weight_decay"]:
        direction.add_(piece.param, alpha=options["weight_decay"])
    return _squared_size(piece.param, eps), _squared_size(direction, eps)


def _first_moment(piece: _Piece, scale: Tensor, options: Options) -> Tensor:
    beta = options["betas"][0]
    return decode_e4m3(piece.exp_avg).mul_(scale * beta).add_(piece.grad, alpha=1 - beta)


def _second_moment(piece: _Piece, scale: Tensor, options: Options) -> Tensor:
    beta, grad = options["betas"][1], piece.grad.float()
    return decode_e5m2(piece.exp_avg_sq).mul_(scale * beta).addcmul_(grad, grad, value=1 - beta)


def _squared_size(values: Tensor, eps: float) -> Tensor:
    return values.float().square().clamp_(eps, 1.0).sum()


def _pieces(whole: _Piece, phases: list[float] | list[Tensor] | None = None) -> Iterator[_Piece]:
    """A parameter in slices of some rows, or of some elements where it is contiguous; in one where a compiler does without temporaries."""
    tensors = (whole.param, whole.grad, whole.exp_avg, whole.exp_avg_sq, whole.direction)
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(tensor.view(-1) for tensor in tensors)
    count, rows = whole.param.numel(), tensors[0].shape[0]
    wanted = min(max(count // _SHARE, _LEAST_ELEMENTS), _MOST_ELEMENTS)
    length = rows if torch.compiler.is_compiling() else max(1, wanted * rows // count)
    row = count // rows
    thresholds = [
        dither(min(count, PERIOD + length * row), phase, whole.param.device)
        for dither, phase in zip((dither_e4m3, dither_e5m2), phases or (), strict=bool(phases))
    ]
    for start in range(0, rows, length):
        param, grad, exp_avg, exp_avg_sq, direction = (tensor[start : start + length] for tensor in tensors)
        first = start * row % PERIOD
        chosen = tuple(each[first : first + param.numel()].view(param.shape) for each in thresholds)
        yield _Piece(
            param=param,
            grad=grad,
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            direction=direction,
            thresholds=chosen if len(chosen) == 2 else None,
        )

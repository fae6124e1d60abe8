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
largest element has a fixed place in the format, where it is stored exactly, and roundings up and down take turns as the remainder asks
(dither), so that v takes in the thousandths by which it grows; over time it stays within 3 % of its value on average, each element
within some 30 % (tests/bench/lamb16_accuracy.py):

    s_m <- max(|m|) / 256;    q_m <- m / s_m, dithered
    s_v <- max(v) / 32768;    q_v <- v / s_v, dithered
    r    = m / (sqrt(max(v, least)) + eps) + weight_decay w               least = the smallest float8_e5m2 above 0, over the old s_v
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from .checks import require_betas, require_not_negative
from .float8 import PERIOD, decode_e4m3, decode_e5m2, dither_e4m3, dither_e5m2, encode_e4m3, encode_e5m2
from .foreach import add_squares, descend, is_set
from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State
from .sharded import first_element, local, over_ranks

SCALES = ("max", "upstream")

_USUAL_LR = 1e-3
# The largest elements at powers of 2, which round to themselves, with room above for what rounding adds.
_LARGEST_FIRST, _LARGEST_SECOND = 2.0**8, 2.0**15
_LEAST_SECOND = 2.0**-16
_LEAST_SCALE = 1e-30
# Irrational, so that at no element the roundings ever come back in the same order.
FIRST_TURN, SECOND_TURN = 0.5698402909980532, 2.0**0.5 - 1

# Elements worked on at a time: with their temporaries they take less than the parameter, and in a processor's cache they stay.
_SHARE = 4
_LEAST_ELEMENTS = 2**12
_MOST_ON_CPU = 2**17
_MORE_THAN_IT_UNROLLS = 16
_DITHERS = (dither_e4m3, dither_e5m2)
_FORMATS = {"exp_avg": torch.float8_e4m3fn, "exp_avg_sq": torch.float8_e5m2}


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A parameter, or some rows of it, with its gradient and moments, of its rounding the thresholds, and room to work in.

    `room` is float32 of the piece's shape: for both moments and for what is on the way.
    """

    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    thresholds: tuple[Tensor, Tensor] | None
    room: tuple[Tensor, ...]


class _Scales(NamedTuple):
    """What the stored moments are to be multiplied by."""

    first: Tensor
    second: Tensor


class LAMB16(MultiTensorOptimizer):
    """LAMB in 2 bytes a parameter; the update is computed in float32 whatever the parameter's dtype.

    `scale` says what the stored moments are divided by: "max", their largest element, at any size of tensor; "upstream" gives the numbers
    of the original.
    Keeps `exp_avg` (float8_e4m3fn) and `exp_avg_sq` (float8_e5m2), shaped like the parameter, and two float32 scalars, `exp_avg_scale`
    and `exp_avg_sq_scale`; a moment is its tensor times its scale. With "max" also `step`, a float32 scalar on the host, from which the
    rounding follows: no random numbers are drawn, and every rank and every resumed run rounds alike.
    The trust phi is the original's in both. It grows as (1 / lr)^trust_scale, so that the step follows lr^(1 - trust_scale) until phi
    reaches 2; the clips let weights that start at 0 move, and keep single large elements out of it.
    A gradient with NaN or infinity spoils its whole tensor, as a norm over it does in LAMB: skip such a step, as GradScaler does.
    A step works on slices, a quarter of the largest parameter or on a CPU 2^17 elements, with a few float32 temporaries of their size.
    float8 has no multi-tensor operations, so that foreach works tensor by tensor; what is faster is `compiled`.
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
            **{key: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format) for key, dtype in _FORMATS.items()},
            "exp_avg_scale": param.new_zeros((), dtype=torch.float32),
            "exp_avg_sq_scale": param.new_zeros((), dtype=torch.float32),
        }
        if options["scale"] == "max":
            # On the host, as in torch's Adam: its value is read at every step, and that must not wait for the device.
            state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        return state

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        del param
        return _FORMATS.get(name, torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy take, with float8 as bytes: the format in which pickle itself keeps tensors does not know it."""
        given = super().__getstate__()
        states = given["state"].copy()
        for param, state in states.items():
            states[param] = {key: value.view(torch.uint8) if key in _FORMATS else value for key, value in state.items()}
        return {**given, "state": states}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for held in self.state.values():
            held.update({key: held[key].view(dtype) for key, dtype in _FORMATS.items() if key in held})

    def _prepare(self, bucket: Bucket) -> Bucket:
        if bucket.options["scale"] == "upstream":
            return bucket
        counts = bucket.state("step")
        torch._foreach_add_(counts, 1.0)
        # In float64: a product with an irrational has little behind the point in float32.
        steps = [count.double() if torch.compiler.is_compiling() else count.item() for count in counts]
        turns = {"first": FIRST_TURN, "second": SECOND_TURN}
        return replace(bucket, numbers={name: [step * turn % 1.0 for step in steps] for name, turn in turns.items()})

    def _update(self, bucket: Bucket) -> None:
        for index, (param, grad, state) in enumerate(zip(bucket.params, bucket.grads, bucket.states, strict=True)):
            phases = [numbers[index] for numbers in bucket.numbers.values()]
            _update(param, grad, state, phases, bucket)


def _update(param: Tensor, grad: Tensor, state: State, phases: Sequence[float | Tensor], bucket: Bucket) -> None:
    options = bucket.options
    scales = local(state["exp_avg_scale"]), local(state["exp_avg_sq_scale"])
    old = _Scales(scales[0].clone(), scales[1].clone())
    parts = [local(tensor) for tensor in (param, grad, state["exp_avg"], state["exp_avg_sq"])]
    pieces = list(_pieces(parts, phases, first_element(param), max(bucket.largest // _SHARE, _LEAST_ELEMENTS)))
    # What concerns the whole tensor comes before any of it can be stored. The moments of several pieces are then worked out once more:
    # that costs less than to keep them in float32.
    found = [_measure(piece, old, options) for piece in pieces] or [_nothing(scales[0])]
    combine = torch.amax if options["scale"] == "max" else torch.sum
    needed = over_ranks(combine(torch.stack([torch.stack(each[:2]) for each in found]), 0), param, combine)
    weight, direction = over_ranks(torch.stack([torch.stack(each[2:]) for each in found]).sum(0), param, torch.sum).sqrt_().unbind()
    new = _new_scales(needed, param.numel(), options)
    # Tensors to the end: an lr of 0 gives an infinite trust, clipped to 2, where the float would not divide.
    ratio = weight * _USUAL_LR / (direction * options["lr"])
    trust = _settled(ratio.pow_(options["trust_scale"]).clamp_(0.0, 2.0))
    for piece in pieces:
        if len(pieces) > 1:
            _take_in(piece, old, options)
        _advance(piece, old, new, trust, options)
    scales[0].copy_(new.first)
    scales[1].copy_(new.second)


def _measure(piece: _Piece, scales: _Scales, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the new moments what their scales need; of the weights and of the direction the squared size."""
    _take_in(piece, scales, options)
    first, second, spare = piece.room
    if options["scale"] == "max":
        least, largest = torch.aminmax(first)
        needed = torch.maximum(-least, largest), second.amax()
    else:
        needed = tuple(torch.mul(moment, moment, out=spare).clamp_max_(10.0).sum() for moment in (first, second))
    weight = _squared_size(spare.copy_(piece.param), options)
    direction = _squared_size(_direction(piece, scales, options), options)
    return needed[0], needed[1], weight, direction


def _squared_size(values: Tensor, options: Options) -> Tensor:
    """The sum of the clipped squares of values, which are overwritten."""
    return values.square_().clamp_max_(1.0).clamp_min_(options["eps"]).sum()


def _nothing(like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a rank finds that holds no piece."""
    zero = torch.zeros_like(like)
    return zero, zero, zero, zero


def _new_scales(needed: Tensor, count: int, options: Options) -> _Scales:
    first, second = needed.unbind()
    if options["scale"] == "max":
        return _Scales((first / _LARGEST_FIRST).clamp_min_(_LEAST_SCALE), (second / _LARGEST_SECOND).clamp_min_(_LEAST_SCALE))
    return _Scales(first.sqrt() / count + options["eps"], second.sqrt() / count + options["eps"])


def _advance(piece: _Piece, old: _Scales, new: _Scales, trust: Tensor, options: Options) -> None:
    """Store the new moments, which stand in the room, and move the weights."""
    first, second, spare = piece.room
    if piece.thresholds is None:
        piece.exp_avg.copy_(torch.div(first, new.first, out=spare).clamp_(-15.0, 15.0))
        piece.exp_avg_sq.copy_(torch.clamp_max(second, 10.0, out=spare).div_(new.second))
    else:
        encode_e4m3(torch.mul(first, _settled(new.first.reciprocal()), out=spare), piece.thresholds[0], piece.exp_avg)
        encode_e5m2(torch.mul(second, _settled(new.second.reciprocal()), out=spare), piece.thresholds[1], piece.exp_avg_sq)
    descend([piece.param], [_direction(piece, old, options)], options["lr"], [trust])


def _settled(scalar: Tensor) -> Tensor:
    """The scalar itself. A compiler would work it out anew for all that it is applied to, were it not the result of a reduction."""
    return scalar.expand(_MORE_THAN_IT_UNROLLS).amax() if torch.compiler.is_compiling() else scalar


def _take_in(piece: _Piece, scales: _Scales, options: Options) -> None:
    """Put the new m and v into the room, in float32."""
    (beta1, beta2), grad = options["betas"], piece.grad.float()
    first, second, spare = piece.room
    bits = spare.view(-1).view(torch.int16)[: spare.numel()].view(spare.shape)
    descend([decode_e4m3(piece.exp_avg, first, bits).mul_(scales.first * beta1)], [grad], beta1 - 1)
    add_squares([decode_e5m2(piece.exp_avg_sq, second, bits).mul_(scales.second * beta2)], [grad], 1 - beta2)


def _direction(piece: _Piece, scales: _Scales, options: Options) -> Tensor:
    """r, from the m and v in the room, in what is left of it."""
    first, second, spare = piece.room
    if options["scale"] == "max":
        # What was stored as 0 may have been anything up to the least that could be: without it the quotient would leave all bounds.
        torch.clamp_min(second, scales.second * _LEAST_SECOND, out=spare).sqrt_()
    else:
        torch.sqrt(second, out=spare)
    direction = torch.div(first, spare.add_(options["eps"]), out=spare)
    if is_set(options["weight_decay"]):
        descend([direction], [piece.param], -options["weight_decay"])
    return direction


def _pieces(tensors: list[Tensor], phases: Sequence[float | Tensor], first: int, wanted: int) -> Iterator[_Piece]:
    """Slices of about the wanted number of elements, whole rows where not all is contiguous; one where a compiler needs no temporaries.

    They work in the same room, one after the other. `first` is the place of their first element in the whole parameter, by which a shard
    is rounded like the same rows elsewhere.
    """
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = [tensor.view(-1) for tensor in tensors]
    count, rows, device = tensors[0].numel(), tensors[0].shape[0], tensors[0].device
    if not count:
        return
    wanted = min(wanted, _MOST_ON_CPU) if device.type == "cpu" else wanted
    compiling = torch.compiler.is_compiling()
    length, row = rows if compiling else max(1, wanted * rows // count), count // rows
    thresholds = [dither(min(first + count, PERIOD + length * row), phase, device) for dither, phase in zip(_DITHERS, phases, strict=False)]
    room = [tensors[0].new_empty((min(length, rows), *tensors[0].shape[1:]), dtype=torch.float32) for _ in range(3)]
    # Not a range of one, for which a compiler would take the size as a constant.
    for start in (0,) if compiling else range(0, rows, length):
        param, grad, exp_avg, exp_avg_sq = (tensor[start : start + length] for tensor in tensors)
        place = (first + start * row) % PERIOD
        chosen = [each[place : place + param.numel()].view(param.shape) for each in thresholds]
        yield _Piece(
            param=param,
            grad=grad,
            exp_avg=exp_avg,
            exp_avg_sq=exp_avg_sq,
            thresholds=(chosen[0], chosen[1]) if chosen else None,
            room=tuple(each if len(each) == len(param) else each[: len(param)] for each in room),
        )

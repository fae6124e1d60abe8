"""LAMB16: LAMB whose two moments are kept in one byte each.

https://github.com/vxst/LAMB16. For a parameter w of n elements with gradient g, in float32, clips,
squares and roots element by element:

    m    = beta1 s_m q_m + (1 - beta1) g              q_m in float8_e4m3fn, s_m one float32 for the
tensor
    v    = beta2 s_v q_v + (1 - beta2) g^2            q_v in float8_e5m2, s_v likewise
    r    = m / (sqrt(v) + eps) + weight_decay w
    phi  = clip((size(w) / size(r) * 0.001 / lr)^trust_scale, 0, 2)       size(x) =
sqrt(sum(clip(x^2, eps, 1)))
    w   <- w - lr phi r

The moments are stored over a scale of the new ones, by the original ("upstream") with its clips and
rounded to nearest:

    s_m <- sqrt(sum(min(m^2, 10))) / n + eps;   q_m <- clip(m / s_m, -15, 15)
    s_v <- sqrt(sum(min(v^2, 10))) / n + eps;   q_v <- min(v, 10) / s_v

That holds for some 200 elements: with more the first moment saturates, and the second overflows at
an outlier. By default ("max") the largest element has a fixed place in the format, where it is
stored exactly, and roundings up and down take turns as the remainder asks (dither), so that v takes
in the thousandths by which it grows; what rounding still does to the norm of v is taken out of its
scale. Over time v stays within 5 % of its value on average, each element within some 30 %
(tests/bench/lamb16_accuracy.py):

    s_m <- max(|m|) / 256;    q_m <- m / s_m, dithered
    s_v <- max(v) / 32768;    q_v <- v / s_v, dithered;    s_v <- s_v |v / s_v| / |q_v|
    r    = m / (sqrt(max(v, least)) + eps) + weight_decay w               least = the smallest
float8_e5m2 above 0, over the old s_v
"""

# pyright: reportPrivateImportUsage=false

import ctypes
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import fused
from .checks import require_betas, require_not_negative
from .float8 import decode_e4m3, decode_e5m2, encode_e4m3, encode_e5m2
from .foreach import Tensors, add_squares, descend, is_set
from .lamb16_parts import FORMATS, Part, packs, slices, tensors_of, together
from .loading import Shapes
from .multi_tensor import Bucket, MultiTensorOptimizer, Options, State
from .reductions import largest, sums
from .sharded import local, over_ranks

SCALES = ("max", "upstream")

_USUAL_LR = 1e-3
# The largest elements at powers of 2, which round to themselves, with room above for what rounding
# adds.
_LARGEST_FIRST, _LARGEST_SECOND = 2.0**8, 2.0**15
_LEAST_SECOND = 2.0**-16
_LEAST_SCALE = 1e-30
# Irrational, so that at no element the roundings ever come back in the same order.
FIRST_TURN, SECOND_TURN = 0.5698402909980532, 2.0**0.5 - 1

_MORE_THAN_IT_UNROLLS = 16
_SCALE_KEYS = ("exp_avg_scale", "exp_avg_sq_scale")
_KERNELS = Path(__file__).with_suffix(".cpp")


class _Numbers(ctypes.Structure):
    """What both kernels are told, by the names that they have there."""

    _fields_ = tuple(
        (name, ctypes.c_float)
        for name in (
            "first_kept",
            "second_kept",
            "least",
            "first_taken",
            "second_taken",
            "eps",
            "weight_decay",
        )
    )


class _Scales(NamedTuple):
    """What the stored moments are to be multiplied by, one number a parameter."""

    first: Tensor
    second: Tensor


class LAMB16(MultiTensorOptimizer):
    """LAMB in 2 bytes a parameter; the update is computed in float32 whatever the parameter's
    dtype.

    `scale` says what the stored moments are divided by: "max", their largest element, at any size
    of tensor; "upstream" gives the numbers of the original. Keeps `exp_avg` (float8_e4m3fn) and
    `exp_avg_sq` (float8_e5m2), shaped like the parameter, and two float32 scalars, `exp_avg_scale`
    and `exp_avg_sq_scale`; a moment is its tensor times its scale. With "max" also `step`, a
    float32 scalar on the host, from which the rounding follows: no random numbers are drawn, and
    every rank and every resumed run rounds alike. The trust phi is the original's in both. It grows
    as (1 / lr)^trust_scale, so that the step follows lr^(1 - trust_scale) until phi reaches 2; the
    clips let weights that start at 0 move, and keep single large elements out of it. A gradient
    with NaN or infinity spoils its whole tensor, as a norm over it does in LAMB: skip such a step,
    as GradScaler does. A step works on slices, a quarter of the largest parameter or on a CPU 2^17
    elements, with a few float32 temporaries of their size; by foreach, on as many small parameters
    at once. What is several times faster is `fused` on a CPU, which has no temporaries.
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
        fused: bool = False,
    ) -> None:
        require_not_negative(
            {
                "learning rate": lr,
                "weight_decay value": weight_decay,
                "trust_scale value": trust_scale,
            }
        )
        require_betas(betas)
        if not eps > 0.0:
            raise ValueError(
                f"Invalid epsilon value: {eps}, must be > 0, since it keeps sizes and scales from 0"
            )
        if scale not in SCALES:
            raise ValueError(f"Invalid scale: {scale!r}, must be one of {', '.join(SCALES)}")
        if fused and scale != "max":
            raise ValueError(f"fused=True has kernels for scale='max' alone, got scale={scale!r}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "trust_scale": trust_scale,
            "scale": scale,
        }
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

    def _initial_state(self, param: Tensor, options: Options) -> State:
        del options
        return {
            **{
                key: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
                for key, dtype in FORMATS.items()
            },
            **{key: param.new_zeros((), dtype=torch.float32) for key in _SCALE_KEYS},
        }

    def _shapes(self, param: Tensor, options: Options) -> Shapes:
        del options
        return {**dict.fromkeys(FORMATS, param.shape), **dict.fromkeys(_SCALE_KEYS, ()), "step": ()}

    def _needed(self, param: Tensor, options: Options, held: Collection[str]) -> set[str]:
        del param, held
        return {*FORMATS, *_SCALE_KEYS, *(["step"] if options["scale"] == "max" else [])}

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        del param
        return FORMATS.get(name, torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and copy.deepcopy take, with float8 as bytes: the format in which pickle
        itself keeps tensors does not know it.
        """
        given = super().__getstate__()
        states = given["state"].copy()
        for param, state in states.items():
            states[param] = {
                key: value.view(torch.uint8) if key in FORMATS else value
                for key, value in state.items()
            }
        return {**given, "state": states}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for held in self.state.values():
            held.update(
                {key: held[key].view(dtype) for key, dtype in FORMATS.items() if key in held}
            )

    def _prepare(self, bucket: Bucket) -> Bucket:
        if bucket.options["scale"] == "upstream":
            # There is no kernel for it, and a group may have come to it since it was made.
            return replace(bucket, options={**bucket.options, "fused": False})
        for state in bucket.states:
            if "step" not in state:
                # On the host, as in torch's Adam: its value is read at every step, and that must
                # not wait for the device.
                state["step"] = torch.tensor(0.0, dtype=torch.float32, device="cpu")
        counts = bucket.state("step")
        torch._foreach_add_(counts, 1.0)
        # In float64: a product with an irrational has little behind the point in float32.
        steps = [
            count.double() if torch.compiler.is_compiling() else count.item() for count in counts
        ]
        turns = {"first": FIRST_TURN, "second": SECOND_TURN}
        return replace(
            bucket,
            numbers={name: [step * turn % 1.0 for step in steps] for name, turn in turns.items()},
        )

    def _update(self, bucket: Bucket) -> None:
        for pack in packs(bucket):
            _update(pack)

    def _covers(self, param: Tensor, state: State) -> bool:
        return all(state[key].shape == param.shape for key in FORMATS)

    def _update_fused(self, bucket: Bucket) -> None:
        options, (beta1, beta2) = bucket.options, bucket.options["betas"]
        held = [bucket.state(key) for key in _SCALE_KEYS]
        old = _Scales(*map(torch.stack, held))
        measure, advance = (
            fused.kernel(_KERNELS, name, bucket.params[0].dtype) for name in ("measure", "advance")
        )
        given: list[tuple[Any, ...]] = []
        found = old.first.new_empty(len(bucket.params), 4)
        kept = torch.stack(
            [old.first * beta1, old.second * beta2, old.second * _LEAST_SECOND]
        ).T.tolist()
        for tensors, numbers, row in zip(
            zip(*tensors_of(bucket), strict=True), kept, found, strict=True
        ):
            told = ctypes.byref(
                _Numbers(*numbers, 1 - beta1, 1 - beta2, options["eps"], options["weight_decay"])
            )
            given.append(
                (
                    *fused.addresses(*tensors),
                    ctypes.c_int64(tensors[0].numel()),
                    told,
                    fused.threads(tensors[0]),
                )
            )
            measure(*given[-1], *fused.addresses(row))
        new = _new_scales(found[:, :2].T, [param.numel() for param in bucket.params], options)
        factors = torch.stack(
            [new.first.reciprocal(), new.second.reciprocal(), _trust(found[:, 2:].T, options)]
        ).T.tolist()
        phases, lr = zip(*bucket.numbers.values(), strict=True), float(options["lr"])
        squares = torch.empty_like(found[:, :2])
        for arguments, numbers, turns, row in zip(given, factors, phases, squares, strict=True):
            advance(
                *arguments,
                *map(ctypes.c_float, numbers),
                *map(ctypes.c_double, turns),
                ctypes.c_double(lr),
                *fused.addresses(row),
            )
        new = _with_norm_kept(new, squares.T)
        for scales, values in zip(held, new, strict=True):
            torch._foreach_copy_(scales, values.unbind())


def _update(bucket: Bucket) -> None:
    options = bucket.options
    held = [[local(scale) for scale in bucket.state(key)] for key in _SCALE_KEYS]
    old = _Scales(*map(torch.stack, held))
    parts = [together(bucket)] if len(bucket.params) > 1 else list(slices(bucket))
    # What concerns a whole tensor comes before any of it can be stored. The moments of several
    # slices are then worked out once more: that costs less than to keep them in float32.
    found = torch.stack(
        [_measure(part, old, options) for part in parts] or [old.first.new_zeros(4, 1)]
    )
    combine = torch.amax if options["scale"] == "max" else torch.sum
    needed = over_ranks(combine(found[:, :2], 0), bucket.params[0], combine)
    sizes = over_ranks(found[:, 2:].sum(0), bucket.params[0], torch.sum)
    new = _new_scales(needed, [param.numel() for param in bucket.params], options)
    trust = _settled(_trust(sizes, options))
    squares: list[Tensor] = []
    for part in parts:
        if len(parts) > 1:
            _take_in(part, old, options)
        _advance(part, old, trust, options)
        if options["scale"] == "max":
            squares.append(_store(part, new))
        else:
            _store_as_upstream(part, new)
    if options["scale"] == "max":
        found = torch.stack(squares or [old.first.new_zeros(2, 1)])
        new = _with_norm_kept(new, over_ranks(found.sum(0), bucket.params[0], torch.sum))
    if len(bucket.params) > 1:
        for key, codes in zip(FORMATS, parts[0].codes, strict=True):
            homes = [tensor.view(torch.uint8).view(-1) for tensor in bucket.state(key)]
            torch._foreach_copy_(
                homes, codes.view(torch.uint8).split([len(home) for home in homes])
            )
    for scales, values in zip(held, new, strict=True):
        torch._foreach_copy_(scales, values.unbind())


def _trust(sizes: Tensor, options: Options) -> Tensor:
    """phi, from the squared sizes of the weights and of the direction."""
    weight, direction = sizes.sqrt().unbind()
    # Tensors to the end: an lr of 0 gives an infinite trust, clipped to 2, where the float would
    # not divide.
    ratio = weight * _USUAL_LR / (direction * options["lr"])
    return ratio.pow_(options["trust_scale"]).clamp_(0.0, 2.0)


def _measure(part: Part, scales: _Scales, options: Options) -> Tensor:
    """Of the new moments what their scales need; of the weights and of the direction the squared
    size: 4 rows, a column a parameter.
    """
    _take_in(part, scales, options)
    first, second, _ = part.room
    if options["scale"] == "max":
        needed = largest(part.views[0]), largest(part.views[1])
    else:
        needed = tuple(_clipped_sums(part, moment) for moment in (first, second))
    torch._foreach_copy_(part.views[2], part.params)
    weight = _squared_size(part, options)
    _direct(part, scales, options)
    return torch.stack(
        [torch.stack(each) for each in (*needed, weight, _squared_size(part, options))]
    )


def _clipped_sums(part: Part, moment: Tensor) -> Tensors:
    """The sums of a moment's clipped squares; the last of the room is overwritten."""
    torch.mul(moment, moment, out=part.room[2]).clamp_max_(10.0)
    return sums(part.views[2])


def _squared_size(part: Part, options: Options) -> Tensors:
    """The sums of the clipped squares of what is in the last of the room, which is overwritten."""
    part.room[2].square_().clamp_max_(1.0).clamp_min_(options["eps"])
    return sums(part.views[2])


def _new_scales(needed: Tensor, counts: list[int], options: Options) -> _Scales:
    first, second = needed.unbind()
    if options["scale"] == "max":
        return _Scales(
            (first / _LARGEST_FIRST).clamp_min_(_LEAST_SCALE),
            (second / _LARGEST_SECOND).clamp_min_(_LEAST_SCALE),
        )
    first, second = (
        torch.stack(
            [norm / count for norm, count in zip(each.sqrt().unbind(), counts, strict=True)]
        )
        for each in (first, second)
    )
    return _Scales(first + options["eps"], second + options["eps"])


def _with_norm_kept(scales: _Scales, squares: Tensor) -> _Scales:
    """The scales, the second as much larger as the norm that its moment had is than that of what
    was stored; by their squares.
    """
    had, has = squares.unbind()
    # Either is 0, or the largest element's alone beyond 2^29, where 1 does not count.
    return _Scales(scales.first, scales.second * ((had + 1.0) / (has + 1.0)).sqrt_())


def _advance(part: Part, old: _Scales, trust: Tensor, options: Options) -> None:
    """Move the weights."""
    _direct(part, old, options)
    part.room[2].mul_(part.spread(trust))
    descend(part.params, part.views[2], options["lr"])


def _store_as_upstream(part: Part, new: _Scales) -> None:
    """Store the new moments, which stand in the room and are lost."""
    first, second, _ = part.room
    part.codes[0].copy_(first.div_(part.spread(new.first)).clamp_(-15.0, 15.0))
    part.codes[1].copy_(second.clamp_max_(10.0).div_(part.spread(new.second)))


def _store(part: Part, new: _Scales) -> Tensor:
    """The same, dithered; the sums of the squares of the second moment over its scale, as it went
    in and as it comes out.
    """
    assert part.thresholds is not None
    first, second, spare = part.room
    first.mul_(part.spread(_settled(new.first.reciprocal())))
    encode_e4m3(first, part.thresholds[0], part.codes[0])
    second.mul_(part.spread(_settled(new.second.reciprocal())))
    torch.mul(second, second, out=spare)
    had = torch.stack(list(sums(part.views[2])))
    encode_e5m2(second, part.thresholds[1], part.codes[1])
    decode_e5m2(part.codes[1], second, _bits(spare)).square_()
    return torch.stack([had, torch.stack(list(sums(part.views[1])))])


def _settled(numbers: Tensor) -> Tensor:
    """The numbers themselves. Were they no results of a reduction, a compiler would work them out
    anew for all that they are applied to.
    """
    return (
        numbers.expand(_MORE_THAN_IT_UNROLLS, -1).amax(0)
        if torch.compiler.is_compiling()
        else numbers
    )


def _take_in(part: Part, scales: _Scales, options: Options) -> None:
    """Put the new m and v into the room, in float32."""
    (beta1, beta2), grads = options["betas"], [grad.float() for grad in part.grads]
    first, second, spare = part.room
    bits = _bits(spare)
    decode_e4m3(part.codes[0], first, bits).mul_(part.spread(scales.first * beta1))
    descend(part.views[0], grads, beta1 - 1)
    decode_e5m2(part.codes[1], second, bits).mul_(part.spread(scales.second * beta2))
    add_squares(part.views[1], grads, 1 - beta2)


def _bits(spare: Tensor) -> Tensor:
    """Room for decoding, in the memory of another."""
    return spare.view(-1).view(torch.int16)[: spare.numel()].view(spare.shape)


def _direct(part: Part, scales: _Scales, options: Options) -> None:
    """Put r, from the m and v in the room, into what is left of it."""
    first, second, spare = part.room
    if options["scale"] == "max":
        # What was stored as 0 may have been anything up to the least that could be: without it the
        # quotient would leave all bounds.
        torch.clamp_min(second, part.spread(scales.second * _LEAST_SECOND), out=spare).sqrt_()
    else:
        torch.sqrt(second, out=spare)
    torch.div(first, spare.add_(options["eps"]), out=spare)
    if is_set(options["weight_decay"]):
        descend(part.views[2], part.params, -options["weight_decay"])

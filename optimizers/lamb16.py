"""LAMB16: LAMB with each of its two moments in one byte.

https://github.com/vxst/LAMB16. For a parameter w of n elements with gradient g, in float32, clips,
squares and roots taken element by element:

    m    = beta1 s_m q_m + (1 - beta1) g        q_m in float8_e4m3fn, s_m one float32 for the tensor
    v    = beta2 s_v q_v + (1 - beta2) g^2      q_v in float8_e5m2, s_v one float32 for the tensor
    r    = m / (sqrt(v) + eps) + weight_decay w
    phi  = clip((size(w) / size(r) * 0.001 / lr)^trust_scale, 0, 2)
    w   <- w - lr phi r                          size(x) = sqrt(sum(clip(x^2, eps, 1)))

A moment is stored divided by a scale that comes from its new values. The original ("upstream")
clips and rounds to nearest:

    s_m <- sqrt(sum(min(m^2, 10))) / n + eps;   q_m <- clip(m / s_m, -15, 15)
    s_v <- sqrt(sum(min(v^2, 10))) / n + eps;   q_v <- min(v, 10) / s_v

That works for some 200 elements: with more the first moment saturates, and the second overflows at
an outlier. By default ("max") the largest element has a fixed place in the format and is stored
exactly. Dithering rounds up as often as the remainder requires, so that v follows changes of a
thousandth, and its scale corrects the error that rounding still makes in the norm of v. Over time v
stays within 5 % of its value on average, each element within some 30 %
(tests/bench/lamb16_accuracy.py):

    s_m <- max(|m|) / 256;    q_m <- m / s_m, dithered
    s_v <- max(v) / 32768;    q_v <- v / s_v, dithered;    s_v <- s_v |v / s_v| / |q_v|
    r    = m / (sqrt(max(v, least)) + eps) + weight_decay w

where least is the smallest positive float8_e5m2, multiplied by the old s_v.
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
from .arguments import require_betas, require_not_negative
from .bucket import Bucket, Options, State, Tensors, add_squares, descend, is_nonzero
from .float8 import decode_e4m3, decode_e5m2, encode_e4m3, encode_e5m2
from .lamb16_chunks import FORMATS, Chunk, combined, packs, slices, tensors_of
from .loading import Shapes
from .multi_tensor import MultiTensorOptimizer
from .reductions import largest, sums
from .sharded import local, over_ranks

SCALES = ("max", "upstream")

_USUAL_LR = 1e-3
# The places of the largest elements: powers of 2, which are stored exactly, with room above for
# the rounding.
_LARGEST_FIRST, _LARGEST_SECOND = 2.0**8, 2.0**15
LEAST_SECOND = 2.0**-16
_LEAST_SCALE = 1e-30
# Irrational, so that an element's roundings never repeat in the same order.
FIRST_TURN, SECOND_TURN = 0.5698402909980532, 2.0**0.5 - 1

_MORE_THAN_IT_UNROLLS = 16
SCALE_KEYS = ("exp_avg_scale", "exp_avg_sq_scale")
_KERNELS = Path(__file__).with_suffix(".cpp")


class _Numbers(ctypes.Structure):
    """The kernels' numbers, by their names in the C++ source."""

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


class Scales(NamedTuple):
    """The factors of both stored moments, one number a parameter."""

    first: Tensor
    second: Tensor


class LAMB16(MultiTensorOptimizer):
    """LAMB in 2 bytes a parameter; the update is computed in float32 whatever the dtype.

    `scale` chooses the divisor of the stored moments: "max" is their largest element, for tensors
    of any size; "upstream" gives the original's numbers. The state is `exp_avg` (float8_e4m3fn) and
    `exp_avg_sq` (float8_e5m2), shaped like the parameter, and two float32 scalars, `exp_avg_scale`
    and `exp_avg_sq_scale`; a moment is its tensor times its scale. With "max" there is also `step`,
    a float32 scalar on the host that determines the rounding: no random numbers are drawn, and
    every rank and every resumed run rounds alike. With `capturable` it is on the parameter's
    device, and a CUDA graph can hold a step.

    The trust phi is the original's for both scales. It grows as (1 / lr)^trust_scale, so the step
    follows lr^(1 - trust_scale) until phi reaches 2. The clips let weights that start at 0 move,
    and limit the effect of single large elements. A gradient with NaN or infinity spoils its whole
    tensor, as a norm does in LAMB: skip its step, as GradScaler does.

    A step works on slices with a few float32 temporaries of their size: a quarter of the largest
    parameter, or 2^17 elements on a CPU. Foreach works on as many small parameters at once. `fused`
    is several times faster and has no such temporaries.
    """

    kernels = "lamb16"

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
        capturable: bool = False,
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
                "capturable": capturable,
            },
        )

    def _initial_state(self, param: Tensor, options: Options) -> State:
        del options
        return {
            **{
                key: torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
                for key, dtype in FORMATS.items()
            },
            **{key: param.new_zeros((), dtype=torch.float32) for key in SCALE_KEYS},
        }

    def _shapes(self, param: Tensor, options: Options) -> Shapes:
        del options
        return {**dict.fromkeys(FORMATS, param.shape), **dict.fromkeys(SCALE_KEYS, ()), "step": ()}

    def _required(self, param: Tensor, options: Options, names: Collection[str]) -> set[str]:
        del param, names
        return {*FORMATS, *SCALE_KEYS, *(["step"] if options["scale"] == "max" else [])}

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        del param
        return FORMATS.get(name, torch.float32)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for pickle and copy.deepcopy, with float8 tensors as bytes.

        The format in which pickle stores tensors does not support float8.
        """
        attributes = super().__getstate__()
        states = attributes["state"].copy()
        for param, state in states.items():
            states[param] = {
                key: value.view(torch.uint8) if key in FORMATS else value
                for key, value in state.items()
            }
        return {**attributes, "state": states}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for own in self.state.values():
            own.update({key: own[key].view(dtype) for key, dtype in FORMATS.items() if key in own})

    def _prepare(self, bucket: Bucket) -> Bucket:
        if bucket.options["scale"] == "upstream":
            # It has no kernel, and a fused group may have been switched to it later.
            return replace(bucket, options={**bucket.options, "fused": False})
        # In float64: the product with an irrational has few fractional digits in float32.
        return self._counted(
            bucket,
            {
                "first": lambda step: step * FIRST_TURN % 1.0,
                "second": lambda step: step * SECOND_TURN % 1.0,
            },
        )

    def _update(self, bucket: Bucket) -> None:
        for pack in packs(bucket):
            update_pack(pack)

    def _fits_kernel(self, param: Tensor, state: State) -> bool:
        return all(state[key].shape == param.shape for key in FORMATS)

    def _update_fused(self, bucket: Bucket) -> None:
        options, (beta1, beta2) = bucket.options, bucket.options["betas"]
        scales = [bucket.state(key) for key in SCALE_KEYS]
        old = Scales(*map(torch.stack, scales))
        measure, advance = (
            fused.kernel(_KERNELS, name, bucket.params[0].dtype) for name in ("measure", "advance")
        )
        arguments: list[tuple[Any, ...]] = []
        measures = old.first.new_empty(len(bucket.params), 4)
        kept = torch.stack(
            [old.first * beta1, old.second * beta2, old.second * LEAST_SECOND]
        ).T.tolist()
        for tensors, numbers, row in zip(
            zip(*tensors_of(bucket), strict=True), kept, measures, strict=True
        ):
            structure = _Numbers(
                *numbers, 1 - beta1, 1 - beta2, options["eps"], options["weight_decay"]
            )
            arguments.append(
                (
                    *fused.addresses(*tensors),
                    ctypes.c_int64(tensors[0].numel()),
                    ctypes.byref(structure),
                    fused.threads(tensors[0]),
                )
            )
            measure(*arguments[-1], *fused.addresses(row))
        new = new_scales(measures[:, :2].T, [param.numel() for param in bucket.params], options)
        factors = torch.stack(
            [
                new.first.reciprocal(),
                new.second.reciprocal(),
                trust_ratios(measures[:, 2:].T, options),
            ]
        ).T.tolist()
        phases, lr = zip(*bucket.numbers.values(), strict=True), float(options["lr"])
        squares = torch.empty_like(measures[:, :2])
        for each, numbers, turns, row in zip(arguments, factors, phases, squares, strict=True):
            advance(
                *each,
                *map(ctypes.c_float, numbers),
                *(ctypes.c_double(float(turn)) for turn in turns),
                ctypes.c_double(lr),
                *fused.addresses(row),
            )
        new = with_norm_kept(new, squares.T)
        for tensors, values in zip(scales, new, strict=True):
            torch._foreach_copy_(tensors, values.unbind())


def update_pack(bucket: Bucket) -> None:
    """Update the parameters of one of `packs`, whose other packs may be alike."""
    options = bucket.options
    scales = [[local(scale) for scale in bucket.state(key)] for key in SCALE_KEYS]
    old = Scales(*map(torch.stack, scales))
    chunks = [combined(bucket)] if len(bucket.params) > 1 else list(slices(bucket))
    # The scales and the trust need the whole tensor before any slice can be stored. The moments of
    # several slices are then computed again, which costs less than keeping them in float32.
    measures = torch.stack(
        [_measure(chunk, old, options) for chunk in chunks] or [old.first.new_zeros(4, 1)]
    )
    combine = torch.amax if options["scale"] == "max" else torch.sum
    needed = over_ranks(combine(measures[:, :2], 0), bucket.params[0], combine)
    sizes = over_ranks(measures[:, 2:].sum(0), bucket.params[0], torch.sum)
    new = new_scales(needed, [param.numel() for param in bucket.params], options)
    trust = _settled(trust_ratios(sizes, options))
    squares: list[Tensor] = []
    for chunk in chunks:
        if len(chunks) > 1:
            _update_moments(chunk, old, options)
        _advance(chunk, old, trust, options)
        if options["scale"] == "max":
            squares.append(_store(chunk, new))
        else:
            _store_as_upstream(chunk, new)
    if options["scale"] == "max":
        total = torch.stack(squares or [old.first.new_zeros(2, 1)]).sum(0)
        new = with_norm_kept(new, over_ranks(total, bucket.params[0], torch.sum))
    if len(bucket.params) > 1:
        for key, codes in zip(FORMATS, chunks[0].codes, strict=True):
            targets = [tensor.view(torch.uint8).view(-1) for tensor in bucket.state(key)]
            torch._foreach_copy_(
                targets, codes.view(torch.uint8).split([len(target) for target in targets])
            )
    for tensors, values in zip(scales, new, strict=True):
        torch._foreach_copy_(tensors, values.unbind())


def trust_ratios(sizes: Tensor, options: Options) -> Tensor:
    """Return phi from the squared sizes of the weights and of the direction."""
    weight, direction = sizes.sqrt().unbind()
    # On tensors: an lr of 0 gives an infinite trust, which is clipped to 2; a float would raise.
    ratio = weight * _USUAL_LR / (direction * options["lr"])
    return ratio.pow_(options["trust_scale"]).clamp_(0.0, 2.0)


def _measure(chunk: Chunk, scales: Scales, options: Options) -> Tensor:
    """Return 4 rows, a column a parameter: the new scales' inputs of both moments, and the squared
    sizes of the weights and of the direction.
    """
    _update_moments(chunk, scales, options)
    first, second, _ = chunk.room
    if options["scale"] == "max":
        needed = largest(chunk.views[0]), largest(chunk.views[1])
    else:
        needed = tuple(_clipped_sums(chunk, moment) for moment in (first, second))
    torch._foreach_copy_(chunk.views[2], chunk.params)
    weight = _squared_size(chunk, options)
    _direct(chunk, scales, options)
    return torch.stack(
        [torch.stack(each) for each in (*needed, weight, _squared_size(chunk, options))]
    )


def _clipped_sums(chunk: Chunk, moment: Tensor) -> Tensors:
    """Return the sums of a moment's clipped squares; `room[2]` is overwritten."""
    torch.mul(moment, moment, out=chunk.room[2]).clamp_max_(10.0)
    return sums(chunk.views[2])


def _squared_size(chunk: Chunk, options: Options) -> Tensors:
    """Return the sums of the clipped squares of `room[2]`, which is overwritten."""
    chunk.room[2].square_().clamp_max_(1.0).clamp_min_(options["eps"])
    return sums(chunk.views[2])


def new_scales(needed: Tensor, counts: list[int], options: Options) -> Scales:
    """Return the scales from a row for each moment, a column a parameter: the largest elements.

    The scale "upstream" takes sums of clipped squares instead, and each parameter's elements.
    """
    first, second = needed.unbind()
    if options["scale"] == "max":
        return Scales(
            (first / _LARGEST_FIRST).clamp_min_(_LEAST_SCALE),
            (second / _LARGEST_SECOND).clamp_min_(_LEAST_SCALE),
        )
    first, second = (
        torch.stack(
            [norm / count for norm, count in zip(each.sqrt().unbind(), counts, strict=True)]
        )
        for each in (first, second)
    )
    return Scales(first + options["eps"], second + options["eps"])


def with_norm_kept(scales: Scales, squares: Tensor) -> Scales:
    """Return the scales, the second corrected so that its moment keeps its norm.

    `squares` are the squared norms before and after rounding.
    """
    before, after = squares.unbind()
    # Both are 0, or above 2^29 by the largest element alone, so the 1 does not change the ratio.
    return Scales(scales.first, scales.second * ((before + 1.0) / (after + 1.0)).sqrt_())


def _advance(chunk: Chunk, old: Scales, trust: Tensor, options: Options) -> None:
    """Move the weights."""
    _direct(chunk, old, options)
    chunk.room[2].mul_(chunk.spread(trust))
    descend(chunk.params, chunk.views[2], options["lr"])


def _store_as_upstream(chunk: Chunk, new: Scales) -> None:
    """Store the new moments, which are overwritten in `room`."""
    first, second, _ = chunk.room
    chunk.codes[0].copy_(first.div_(chunk.spread(new.first)).clamp_(-15.0, 15.0))
    chunk.codes[1].copy_(second.clamp_max_(10.0).div_(chunk.spread(new.second)))


def _store(chunk: Chunk, new: Scales) -> Tensor:
    """Store the new moments with dithering.

    Returns the sums of the squares of the scaled second moment before and after rounding.
    """
    assert chunk.thresholds is not None
    first, second, spare = chunk.room
    first.mul_(chunk.spread(_settled(new.first.reciprocal())))
    encode_e4m3(first, chunk.thresholds[0], chunk.codes[0])
    second.mul_(chunk.spread(_settled(new.second.reciprocal())))
    torch.mul(second, second, out=spare)
    before = torch.stack(list(sums(chunk.views[2])))
    encode_e5m2(second, chunk.thresholds[1], chunk.codes[1])
    decode_e5m2(chunk.codes[1], second, _bits(spare)).square_()
    return torch.stack([before, torch.stack(list(sums(chunk.views[1])))])


def _settled(numbers: Tensor) -> Tensor:
    """Return the numbers, in compiled code as the result of a reduction.

    Otherwise the compiler would compute them again for every element that they are applied to.
    """
    return (
        numbers.expand(_MORE_THAN_IT_UNROLLS, -1).amax(0)
        if torch.compiler.is_compiling()
        else numbers
    )


def _update_moments(chunk: Chunk, scales: Scales, options: Options) -> None:
    """Compute the new m and v in `room`, in float32."""
    (beta1, beta2), grads = options["betas"], [grad.float() for grad in chunk.grads]
    first, second, spare = chunk.room
    bits = _bits(spare)
    decode_e4m3(chunk.codes[0], first, bits).mul_(chunk.spread(scales.first * beta1))
    descend(chunk.views[0], grads, beta1 - 1)
    decode_e5m2(chunk.codes[1], second, bits).mul_(chunk.spread(scales.second * beta2))
    add_squares(chunk.views[1], grads, 1 - beta2)


def _bits(spare: Tensor) -> Tensor:
    """Return int16 room for decoding, in the memory of a float32 tensor."""
    return spare.view(-1).view(torch.int16)[: spare.numel()].view(spare.shape)


def _direct(chunk: Chunk, scales: Scales, options: Options) -> None:
    """Compute r in `room[2]`, from the m and v in the others."""
    first, second, spare = chunk.room
    if options["scale"] == "max":
        # A value stored as 0 may have been anything below the least positive one. Without this
        # bound the quotient could grow without limit.
        torch.clamp_min(second, chunk.spread(scales.second * LEAST_SECOND), out=spare).sqrt_()
    else:
        torch.sqrt(second, out=spare)
    torch.div(first, spare.add_(options["eps"]), out=spare)
    if is_nonzero(options["weight_decay"]):
        descend(chunk.views[2], chunk.params, -options["weight_decay"])

"""Attention: the kernel that torch chooses on this device, and the bytes that it allocates.

`_fused_sdp_choice` returns a number of torch.nn.attention.SDPBackend.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from footprint import peak
from place import PLACE
from torch.nn.functional import scaled_dot_product_attention

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# torch exports it only under a private name.
_choose: Any = torch._fused_sdp_choice  # pyright: ignore
# Batch, heads, heads of keys and values, queries, keys, width of queries and keys, of values.
SHAPES = (
    (1, 12, 12, 1024, 1024, 64, 64),
    (4, 16, 16, 128, 128, 64, 64),
    (1, 25, 25, 1024, 1024, 64, 64),
    (1, 32, 32, 1024, 1024, 128, 128),
    (1, 32, 8, 1024, 1024, 128, 128),
    (1, 8, 8, 256, 256, 80, 80),
    (1, 8, 8, 256, 256, 96, 96),
    (1, 8, 8, 256, 256, 100, 100),
    (1, 8, 8, 256, 256, 192, 192),
    (1, 8, 8, 256, 256, 256, 256),
    (1, 8, 8, 256, 256, 264, 264),
    (1, 8, 8, 256, 256, 192, 128),
    (1, 8, 8, 1, 256, 64, 64),
    (1, 8, 1, 256, 256, 64, 64),
    (8, 12, 12, 197, 197, 64, 64),
)
MASKS = ("none", "causal", "bool", "float", "float broadcast", "float needs gradient")


def table(say: Any) -> None:
    """Note the choice for each case, and the bytes of forward and backward for some."""
    for shape in SHAPES if PLACE.device == "cuda" else SHAPES[12:14]:
        say.attempt(f"choices {'x'.join(map(str, shape))}", lambda shape=shape: list(_rows(shape)))
    cuda = PLACE.device == "cuda"
    shapes = (SHAPES[0], SHAPES[3], SHAPES[4]) if cuda else (SHAPES[12],)
    for shape, dtype, mask, dropout in product(shapes, DTYPES, MASKS[:4], (0.0, 0.1)):
        name = f"bytes {'x'.join(map(str, shape))} {dtype} {mask} {dropout}"
        say.attempt(name, _bytes, shape, dtype, mask, dropout)


def _rows(shape: tuple[int, ...]) -> Iterator[list[Any]]:
    """Yield the case and its choice, or torch's error in place of the choice."""
    heads = ("as they are", "flag", "expanded") if shape[1] != shape[2] else ("as they are",)
    for case in product(DTYPES, MASKS, (0.0, 0.1), (False, True), heads):
        dtype, mask, dropout, gradients, gqa = case
        query, options = _inputs(shape, dtype, mask, gradients, gqa)
        try:
            chosen = _choose(*query, dropout_p=dropout, **options)
        except RuntimeError as error:
            chosen = str(error).splitlines()[0]
        yield [dtype, mask, dropout, gradients, gqa, chosen]


def _inputs(
    shape: tuple[int, ...], dtype: str, mask: str, gradients: bool, gqa: str
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    batch, heads, few, queries, keys, width, values = shape
    options: dict[str, Any] = {"dtype": DTYPES[dtype], "device": PLACE.device}
    q = torch.zeros(batch, heads, queries, width, requires_grad=gradients, **options)
    k = torch.zeros(batch, few, keys, width, requires_grad=gradients, **options)
    v = torch.zeros(batch, few, keys, values, requires_grad=gradients, **options)
    if gqa == "expanded":
        # Like transformers' repeat_kv: a copy for each head of a group.
        k, v = (x[:, :, None].expand(-1, -1, heads // few, -1, -1).flatten(1, 2) for x in (k, v))
    return [q, k, v], {
        "is_causal": mask == "causal",
        "enable_gqa": gqa == "flag",
        **_mask(shape, mask, options),
    }


def _mask(shape: tuple[int, ...], mask: str, options: dict[str, Any]) -> dict[str, Any]:
    batch, heads, _, queries, keys, _, _ = shape
    if mask == "bool":
        return {
            "attn_mask": torch.ones(batch, 1, queries, keys, dtype=torch.bool, device=PLACE.device)
        }
    if mask == "float":
        return {"attn_mask": torch.zeros(batch, heads, queries, keys, **options)}
    if mask == "float broadcast":
        return {"attn_mask": torch.zeros(batch, 1, 1, keys, **options)}
    if mask == "float needs gradient":
        return {
            "attn_mask": torch.zeros(batch, heads, queries, keys, requires_grad=True, **options)
        }
    return {}


def _bytes(shape: tuple[int, ...], dtype: str, mask: str, dropout: float) -> dict[str, Any]:
    gqa = "flag" if shape[1] != shape[2] else "as they are"
    query, options = _inputs(shape, dtype, mask, True, gqa)
    results: list[torch.Tensor] = []

    def forward() -> None:
        results.append(scaled_dot_product_attention(*query, dropout_p=dropout, **options))

    forward()
    results.clear()
    forward_bytes = peak(forward)
    gradient = torch.ones_like(results[0])
    # The graph frees its saved tensors; the results stay.
    back = peak(lambda: results[0].backward(gradient))
    return {"forward": forward_bytes, "backward": back}

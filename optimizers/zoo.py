"""Optimizers of other packages; none is imported before one of its optimizers is made.

pytorch_optimizer comes with the extra `zoo`. The names that it shares with ours and torch's, such
as SM3, Lamb, SGDSaI and Muon, are ours and torch's here; `pytorch_optimizer:SM3` names its own. The
low-bit Adams of bitsandbytes and torchao are offered if those are installed. The functions here
make optimizers whose constructors need more than a list of parameters.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from .entries import CatalogueEntry

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim.optimizer import Optimizer, ParamsT

    from .arguments import Group

_LOW_RANK = (
    "8 bytes a parameter in float32; for a matrix of m >= n > rank, 8 m rank bytes, and 4 n rank"
    " for the projection, which is renewed every update_proj_gap steps"
)
_HEADS = (
    "q_proj.weight",
    "k_proj.weight",
    "wq.weight",
    "wk.weight",
    "attn.attn.weight",
    "attn.qkv.weight",
)


def _low_rank(name: str) -> Callable[..., Optimizer]:
    """Return a constructor that projects every matrix whose smaller side exceeds `rank`."""

    def make(
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        eps: float = 1e-6,
        rank: int = 128,
        update_proj_gap: int = 200,
        scale: float = 0.25,
        projection_type: str = "std",
        *,
        maximize: bool = False,
        foreach: bool | None = None,
    ) -> Optimizer:
        return getattr(import_module("pytorch_optimizer"), name)(
            _projected(params, rank, update_proj_gap, scale, projection_type),
            lr=lr,
            betas=betas,
            weight_decay=weight_decay,
            eps=eps,
            maximize=maximize,
            foreach=foreach,
        )

    return make


def _apollo(
    params: ParamsT,
    lr: float = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    eps: float = 1e-6,
    rank: int = 256,
    update_proj_gap: int = 200,
    scale: float = 1.0,
    projection_type: str = "std",
    scale_type: Literal["channel", "tensor"] = "channel",
    *,
    maximize: bool = False,
    foreach: bool | None = None,
) -> Optimizer:
    """Make APOLLO with random projections; rank 1 with `tensor` is APOLLO-Mini."""
    return import_module("pytorch_optimizer").APOLLO(
        _projected(params, rank, update_proj_gap, scale, projection_type),
        lr=lr,
        scale_type=scale_type,
        betas=betas,
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
        foreach=foreach,
    )


def _projected(
    params: ParamsT, rank: int, update_proj_gap: int, scale: float, projection_type: str
) -> list[Group]:
    if rank < 1:
        raise ValueError(f"Invalid rank: {rank}, must be >= 1")
    projection = {
        "rank": rank,
        "update_proj_gap": update_proj_gap,
        "scale": scale,
        "projection_type": projection_type,
    }
    from .arguments import groups_of, split

    groups: list[Group] = []
    for group in groups_of(params):
        matrices, others = split(group, lambda param: param.ndim == 2 and min(param.shape) > rank)
        groups += [each for each in ({**projection, **matrices}, others) if each["params"]]
    return groups


def _adam_mini(
    params: ParamsT,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.1,
    eps: float = 1e-8,
    num_embeds: int | None = None,
    num_heads: int | None = None,
    num_query_groups: int | None = None,
    *,
    maximize: bool = False,
    foreach: bool | None = None,
) -> Optimizer:
    """Make Adam-mini over `named_parameters()`; a tensor without a name is one block.

    Embeddings and heads are recognised by their names. ValueError if there are attention heads
    and their number is missing, and for parameter groups.
    """
    named = _named(params)
    heads = [name for name, _ in named if any(known in name for known in _HEADS)]
    if heads and (num_embeds is None or num_heads is None):
        raise ValueError(
            f"adam-mini needs the sizes of {heads[0]}; write"
            " adam-mini:num_embeds=WIDTH,num_heads=HEADS"
        )
    return import_module("pytorch_optimizer").AdamMini(
        # In place of the model, of which Adam-mini calls nothing else.
        SimpleNamespace(named_parameters=lambda: iter(named)),
        lr=lr,
        betas=betas,
        weight_decay=weight_decay,
        eps=eps,
        num_embeds=num_embeds or 1,
        num_heads=num_heads or 1,
        num_query_groups=num_query_groups,
        maximize=maximize,
        foreach=foreach,
    )


def _named(params: ParamsT) -> list[tuple[str, Tensor]]:
    from .arguments import groups_of

    groups = groups_of(params)
    if len(groups) > 1 or any(key != "params" for group in groups for key in group):
        raise ValueError(
            "adam-mini makes its own groups, one a parameter; give it parameters, at best"
            " named_parameters()"
        )
    members = [member for group in groups for member in group["params"]]
    return [
        member if isinstance(member, tuple) else (f"parameter {index}", member)
        for index, member in enumerate(members)
    ]


def _of_pytorch_optimizer(
    factory: str | Callable[..., Optimizer],
    summary: str,
    paper: str,
    state: str,
    decided_by: tuple[str, ...] = (),
    **more: Any,
) -> CatalogueEntry:
    return CatalogueEntry(
        factory=f"pytorch_optimizer:{factory}" if isinstance(factory, str) else factory,
        summary=summary,
        paper=paper if paper.startswith("https:") else f"https://arxiv.org/abs/{paper}",
        state=state,
        decided_by=decided_by,
        package="pytorch_optimizer",
        installed_by="'optprof[zoo]'",
        **more,
    )


def _low_bit(factory: str, summary: str, paper: str, state: str) -> CatalogueEntry:
    package = factory.partition(".")[0]
    return CatalogueEntry(
        factory=factory,
        summary=summary,
        paper=paper,
        state=state,
        package=package,
        installed_by=package,
    )


_PO = _of_pytorch_optimizer
_ONE = "one tensor like the parameter: 4 bytes a parameter in float32"
_THREE = "three tensors like the parameter: 12 bytes a parameter in float32"
_SMALL = "8 a parameter for tensors of less than 4096"
_FOUR = "four tensors like the parameter: 16 bytes a parameter in float32"

ZOO: dict[str, CatalogueEntry] = {
    "adam-mini": _PO(
        _adam_mini,
        "Adam with one second moment a block; the blocks are known by the parameters' names",
        "2406.16793",
        "one float32 tensor like the parameter and 8 bytes: 4 bytes a parameter, 8 for embeddings"
        " and output layers; 4 a head",
        goes_by_names=True,
    ),
    "ademamix": _PO(
        "AdEMAMix", "Adam with a second, slow average of the gradient", "2409.03137", _THREE
    ),
    "adan": _PO(
        "Adan",
        "Adam with Nesterov momentum, taken from the difference of two gradients",
        "2208.06677",
        _FOUR,
    ),
    "apollo": _PO(
        _apollo,
        "AdamW's step, scaled by channel from a random projection",
        "2412.05270",
        _LOW_RANK,
        ("rank", "update_proj_gap"),
    ),
    "came": _PO(
        "CAME",
        "Adafactor with momentum and with confidence in it",
        "2307.02047",
        "one tensor like the parameter, two vectors for its rows and two for its columns: 4 bytes a"
        " parameter in float32; 8 for a vector",
    ),
    "fira": _PO(
        _low_rank("Fira"),
        "GaLore that keeps what the projection leaves out",
        "2410.01623",
        _LOW_RANK,
        ("rank", "update_proj_gap"),
    ),
    "flash-adamw": _PO(
        "FlashAdamW",
        "AdamW whose moments are kept in 8 bits",
        "2602.23349",
        "2 bytes a parameter and 4 for every 32 of them",
        fused_on=(),
        # Its foreach batches tensors that are not quantised, and there are none.
        has_foreach=False,
    ),
    "galore": _PO(
        _low_rank("GaLore"),
        "AdamW on a low-rank projection of the gradient",
        "2403.03507",
        _LOW_RANK,
        ("rank", "update_proj_gap"),
    ),
    "lion": _PO("Lion", "the sign of an average of the gradient", "2302.06675", _ONE),
    "prodigy": _PO("Prodigy", "Adam that finds its own learning rate", "2306.06101", _FOUR),
    "racs": _PO(
        "RACS",
        "SGD scaled by rows and columns",
        "2502.07752",
        "4 bytes for each row and column in float32, and 4 a tensor; a tensor of more dimensions is"
        " flattened to a matrix",
    ),
    "schedule-free-adamw": _PO(
        "ScheduleFreeAdamW",
        "AdamW without a schedule; call its train() and eval() as the model's",
        "2405.15682",
        "two tensors like the parameter: 8 bytes a parameter in float32",
    ),
    "scion": _PO(
        "SCION", "steps of a fixed norm, chosen for the shape of each layer", "2502.07529", _ONE
    ),
    "soap": _PO(
        "SOAP",
        "Adam in the eigenbasis of Shampoo's preconditioner",
        "2409.11321",
        "two tensors like the parameter; unless it is a vector, two d x d more for each axis of"
        " length d <= max_precondition_dim",
        ("max_precondition_dim", "precondition_1d"),
    ),
    "tiger": _PO(
        "Tiger",
        "the sign of one average of the gradient: Lion with one decay rate",
        "https://github.com/bojone/tiger",
        _ONE,
    ),
    "adamw8bit-bnb": _low_bit(
        "bitsandbytes.optim:AdamW8bit",
        "AdamW whose moments are kept in 8 bits, by blocks (bitsandbytes)",
        "https://arxiv.org/abs/2110.02861",
        f"2 bytes a parameter, 8 for every 256 of them and two tables of 1 KiB; {_SMALL}",
    ),
    "adamw4bit-torchao": _low_bit(
        "torchao.optim:AdamW4bit",
        "AdamW whose moments are kept in 4 bits, by blocks (torchao)",
        "https://arxiv.org/abs/2309.01507",
        f"1 byte a parameter, 8 for every 128 of them, 132 a tensor; {_SMALL}",
    ),
    "adamw8bit-torchao": _low_bit(
        "torchao.optim:AdamW8bit",
        "AdamW whose moments are kept in 8 bits, by blocks (torchao)",
        "https://arxiv.org/abs/2110.02861",
        f"2 bytes a parameter, 8 for every 256 of them, 2052 a tensor; {_SMALL}",
    ),
    "adamwfp8-torchao": _low_bit(
        "torchao.optim:AdamWFp8",
        "AdamW whose moments are kept in float8, by blocks (torchao)",
        "https://github.com/pytorch/ao",
        f"2 bytes a parameter, 8 for every 256 of them, 4 a tensor; {_SMALL}",
    ),
}

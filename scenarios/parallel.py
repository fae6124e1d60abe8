"""Ways to spread a training step over ranks, as text and as data; without torch.

A way is written like `ddp`, `zero1`, `fsdp2:mixed_precision=bf16`, `tp:4` or `fsdp2+tp:4`.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from .models import read_config
from .schema import did_you_mean

DataParallel = Literal["ddp", "zero1", "fsdp2"]
WAYS = "ddp, zero1, fsdp2, tp:N or fsdp2+tp:N"


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """A way to spread a training step over ranks.

    `data` spreads the batch: `ddp` keeps all on each rank (DistributedDataParallel), `zero1` splits
    the optimizer's state (ZeroRedundancyOptimizer), `fsdp2` splits parameters, gradients and state
    (fully_shard on each block and the root). `tensor` ranks share each layer's matrices
    (parallelize_module).

    The other fields are options of `fsdp2`. `reshard_after_forward` frees the gathered parameters
    of a block between its forward and its backward; torch leaves those of the root.
    `mixed_precision` is the dtype that parameters are gathered and computed in, `reduce` the one
    that gradients are reduced in: float32 unless it is given. `cpu_offload` keeps parameters,
    gradients and state on the host, and steps there.
    """

    data: DataParallel | None = None
    tensor: int = 1
    reshard_after_forward: bool = True
    mixed_precision: Literal["bf16", "fp16"] | None = None
    reduce: Literal["fp32", "bf16", "fp16"] | None = None
    cpu_offload: bool = False

    @property
    def splits_parameters(self) -> bool:
        """Return whether each rank holds only a part of the parameters."""
        return self.data == "fsdp2" or self.tensor > 1


_OPTIONS = [one.name for one in fields(Parallel) if one.name not in ("data", "tensor")]
_CHOICES = {
    "reshard_after_forward": (True, False),
    "mixed_precision": ("bf16", "fp16"),
    "reduce": ("fp32", "bf16", "fp16"),
    "cpu_offload": (True, False),
}


def read_parallel(text: str) -> Parallel:
    """Return the way that a text names; ValueError says what is wrong with it."""
    chosen: dict[str, Any] = {}
    for part in text.split("+"):
        name, colon, rest = (each.strip() for each in part.partition(":"))
        if name == "tp":
            if "tensor" in chosen:
                raise ValueError(f"parallel names tp once, got {text!r}")
            if not rest.isdecimal() or not 2 <= int(rest) <= 1 << 10:
                raise ValueError(
                    f"tp needs the number of ranks that share a layer, 2 or more, as in tp:4; got"
                    f" {part!r}"
                )
            chosen["tensor"] = int(rest)
        elif name not in get_args(DataParallel):
            near = did_you_mean(name, (*get_args(DataParallel), "tp:N", "fsdp2+tp:N"))
            raise ValueError(f"no parallel named {name!r}; {near}")
        elif "data" in chosen:
            raise ValueError(f"parallel names one of ddp, zero1 and fsdp2, got {text!r}")
        else:
            chosen["data"] = name
            chosen |= _options(name, rest) if colon else {}
    if "tensor" in chosen and chosen.get("data") not in (None, "fsdp2"):
        raise ValueError(f"tp goes alone or with fsdp2, as in fsdp2+tp:4; got {text!r}")
    return Parallel(**chosen)


def _options(name: str, text: str) -> dict[str, Any]:
    if name != "fsdp2":
        raise ValueError(f"{name} has no options, got {text!r}; leave them out")
    entries = text.split(",")
    for entry in entries:
        if "=" not in entry:
            raise ValueError(
                f"an option of fsdp2 is written name=value, as in cpu_offload=true; got {entry!r}"
            )
    options = read_config(entries)
    for key, value in options.items():
        if key not in _OPTIONS:
            raise ValueError(f"fsdp2 has no option {key!r}; {did_you_mean(key, _OPTIONS)}")
        if value not in _CHOICES[key]:
            choices = " or ".join(str(each).lower() for each in _CHOICES[key])
            raise ValueError(f"fsdp2's {key} is {choices}, got {value!r}")
    return options


def require_ranks(parallel: str | None, ranks: int, rank: int) -> None:
    """Raise ValueError for ranks that do not fit each other or the way to spread a step."""
    if rank and ranks == 1:
        raise ValueError(f"rank {rank} is one of several ranks; say of how many, as in --ranks 8")
    if rank >= ranks:
        raise ValueError(f"rank is a number from 0 to {ranks - 1} of {ranks} ranks, got {rank}")
    if parallel is None:
        if ranks > 1:
            raise ValueError(f"{ranks} ranks need a way to share the work; add --parallel: {WAYS}")
        return
    way = read_parallel(parallel)
    if ranks % way.tensor:
        raise ValueError(
            f"tp:{way.tensor} needs a number of ranks that {way.tensor} divides, got {ranks}"
        )
    if way.data is None and ranks != way.tensor:
        raise ValueError(
            f"tp:{way.tensor} alone runs on {way.tensor} ranks, got {ranks}; use"
            f" fsdp2+tp:{way.tensor} to spread the batch over the others"
        )

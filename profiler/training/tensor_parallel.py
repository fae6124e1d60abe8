"""Tensor parallelism: the part of each layer's matrices that a rank holds, for GPT-2 and Llama.

The plans are those of Megatron-LM (https://arxiv.org/abs/1909.08053), carried out by torch's
parallelize_module: of two matrices that follow each other, ranks share the columns of the first and
the rows of the second, and add their results once.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import ParallelStyle, parallelize_module

from optprof.scenarios import Scenario, models


class _Part(ParallelStyle):
    """The part of a module that a rank holds, with the placements of its input and output.

    `weight` and `bias` are the axes that ranks share, None for parameters that each has whole.
    torch's own styles take only Linear and Embedding, and leave other modules' parameters plain,
    which a foreach step refuses next to DTensors.
    """

    def __init__(
        self,
        *,
        weight: int | None = None,
        bias: int | None = None,
        enters: Placement | None = None,
        leaves: Placement | None = None,
    ) -> None:
        self._axes = {"weight": weight, "bias": bias}
        self._enters, self._leaves = enters or Replicate(), leaves or Replicate()

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        # torch's annotation of what these functions return is too narrow.
        distribute: Any = distribute_module
        return distribute(module, device_mesh, self._distribute, self._enter, self._leave)

    def _distribute(self, _: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for name, parameter in list(module.named_parameters(recurse=False)):
            axis = self._axes[name]
            # Every rank has the same seed, so nothing is sent from the first one.
            part = distribute_tensor(
                parameter,
                mesh,
                [Replicate() if axis is None else Shard(axis)],
                src_data_rank=None,
            )
            module.register_parameter(name, nn.Parameter(part, parameter.requires_grad))

    def _enter(self, _: Any, inputs: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        first, *others = inputs
        return DTensor.from_local(first, mesh, [self._enters], run_check=False), *others

    def _leave(self, _: Any, output: Any, mesh: DeviceMesh) -> torch.Tensor:
        return output.redistribute(mesh, [self._leaves]).to_local()


_WHOLE = _Part()
_EMBEDDING = _Part(weight=0)
_HEAD = _Part(weight=0)
_COLUMNS = _Part(weight=0, bias=0, leaves=Shard(-1))
_ROWS = _Part(weight=1, enters=Shard(-1))
# GPT-2's layers keep their weights transposed.
_COLUMNS_TRANSPOSED = _Part(weight=1, bias=0, leaves=Shard(-1))
_ROWS_TRANSPOSED = _Part(weight=0, enters=Shard(-1))
_PLANS: Mapping[str, Mapping[str, _Part]] = {
    "gpt2": {
        "transformer.wte": _EMBEDDING,
        "transformer.wpe": _WHOLE,
        "transformer.h.*.ln_1": _WHOLE,
        "transformer.h.*.attn.c_attn": _COLUMNS_TRANSPOSED,
        "transformer.h.*.attn.c_proj": _ROWS_TRANSPOSED,
        "transformer.h.*.ln_2": _WHOLE,
        "transformer.h.*.mlp.c_fc": _COLUMNS_TRANSPOSED,
        "transformer.h.*.mlp.c_proj": _ROWS_TRANSPOSED,
        "transformer.ln_f": _WHOLE,
        "lm_head": _HEAD,
    },
    "llama": {
        "model.embed_tokens": _EMBEDDING,
        "model.layers.*.input_layernorm": _WHOLE,
        "model.layers.*.self_attn.q_proj": _COLUMNS,
        "model.layers.*.self_attn.k_proj": _COLUMNS,
        "model.layers.*.self_attn.v_proj": _COLUMNS,
        "model.layers.*.self_attn.o_proj": _ROWS,
        "model.layers.*.post_attention_layernorm": _WHOLE,
        "model.layers.*.mlp.gate_proj": _COLUMNS,
        "model.layers.*.mlp.up_proj": _COLUMNS,
        "model.layers.*.mlp.down_proj": _ROWS,
        "model.norm": _WHOLE,
        "lm_head": _HEAD,
    },
}
# The numbers of a configuration that the ranks share, by architecture.
_SHARED = {
    "gpt2": ("num_attention_heads", "n_inner"),
    "llama": ("num_attention_heads", "num_key_value_heads", "intermediate_size"),
}


def planned_architecture(scenario: Scenario) -> str:
    """Return the architecture of the scenario's model; raise ValueError if it has no plan."""
    entry = models.describe(scenario.model)
    architecture = entry.architecture if entry else ""
    if architecture in _PLANS and scenario.lora_rank is None:
        return architecture
    what = f"{scenario.model} with adapters" if architecture in _PLANS else scenario.model
    raise ValueError(
        f"tp has plans for {' and '.join(_PLANS)} models, got {what}; use fsdp2, ddp or zero1"
    )


def share_layers(model: Any, mesh: DeviceMesh, scenario: Scenario) -> None:
    """Leave this rank's part of each layer in the model, in place.

    GPT-2 makes queries, keys and values by one matrix. Its columns count as ordered by rank, so
    that each rank has all three of its own heads. Raises ValueError for a model without a plan, and
    for heads that the ranks cannot share.
    """
    architecture = planned_architecture(scenario)
    ranks = mesh.size()
    for name in _SHARED[architecture]:
        # GPT-2 without n_inner takes 4 times its width, which its heads divide.
        if (count := getattr(model.config, name)) and count % ranks:
            raise ValueError(
                f"{scenario.model} has {name}={count}, which {ranks} ranks cannot share; use a"
                f" tp:N whose N divides {count}"
            )
    is_tied = model.lm_head.weight is model.get_input_embeddings().weight
    parallelize_module(model, mesh, dict(_PLANS[architecture]))
    if is_tied:
        model.lm_head.weight = model.get_input_embeddings().weight
    if architecture == "gpt2":
        for block in model.transformer.h:
            block.attn.split_size //= ranks

"""The catalogue of models as data: names, families and configurations, without torch.

The configurations are those of the published checkpoints; everything else is transformers' default.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .schema import MOST_LETTERS, did_you_mean

DEFAULT_SEQUENCE_LENGTH = 1024
# The layers that get adapters, by architecture: peft's choice for GPT-2 and Llama, and Llama's for
# ViT.
ADAPTED = {"gpt2": ("c_attn",), "llama": ("q_proj", "v_proj"), "vit": ("q_proj", "v_proj")}
# Limits of a configuration: each layer, and each item of a list like ResNet's depths, is a module.
MOST_LAYERS, MOST_SIZES, MOST_SIZE = 1 << 10, 1 << 6, 1 << 20
# The architectures' names for the longest sequence.
_POSITIONS = ("n_positions", "max_position_embeddings")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """A model: its family, its architecture in transformers and its configuration.

    `positions` is the longest sequence in tokens, None for a model that reads images (3 x 224 x
    224). `parameter_count` counts tied weights once.
    """

    name: str
    family: str
    architecture: Literal["gpt2", "llama", "vit", "resnet"]
    config: Mapping[str, Any]
    positions: int | None = None
    parameter_count: int


def _gpt2(name: str, parameter_count: int, *, width: int, layers: int, heads: int) -> ModelEntry:
    config = {
        "n_embd": width,
        "n_layer": layers,
        "n_head": heads,
        "n_positions": 1024,
        "use_cache": False,
    }
    return ModelEntry(
        name=name,
        family="gpt2",
        architecture="gpt2",
        config=config,
        positions=1024,
        parameter_count=parameter_count,
    )


def _tiny(name: str, parameter_count: int) -> ModelEntry:
    """Return a small GPT-2 over bytes, which goes through a whole run in seconds."""
    config = {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 256,
        "vocab_size": 256,
        "use_cache": False,
    }
    config |= {"bos_token_id": 0, "eos_token_id": 0}
    return ModelEntry(
        name=name,
        family="tiny",
        architecture="gpt2",
        config=config,
        positions=256,
        parameter_count=parameter_count,
    )


def _llama2(
    name: str, parameter_count: int, *, width: int, hidden: int, layers: int, heads: int
) -> ModelEntry:
    config = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": 4096,
        "use_cache": False,
    }
    return ModelEntry(
        name=name,
        family="llama2",
        architecture="llama",
        config=config,
        positions=4096,
        parameter_count=parameter_count,
    )


def _llama3(
    name: str, parameter_count: int, *, width: int, hidden: int, layers: int, heads: int
) -> ModelEntry:
    """Return a Llama 3: eight key-value heads, and an output layer of its own.

    Its sizes are in table 3 of https://arxiv.org/abs/2407.21783, its parameters in the index of the
    checkpoint on https://huggingface.co/meta-llama.
    """
    config = {
        "vocab_size": 128_256,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rope_theta": 500_000.0,
        "use_cache": False,
    }
    config |= {"bos_token_id": 128_000, "eos_token_id": 128_001}
    return ModelEntry(
        name=name,
        family="llama3",
        architecture="llama",
        config=config,
        positions=8192,
        parameter_count=parameter_count,
    )


def _vit(
    name: str, parameter_count: int, *, width: int, layers: int, heads: int, patch: int
) -> ModelEntry:
    config = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "patch_size": patch,
        "num_labels": 1000,
    }
    return ModelEntry(
        name=name, family="vit", architecture="vit", config=config, parameter_count=parameter_count
    )


def _resnet(
    name: str, parameter_count: int, *, block: str, depths: list[int], widths: list[int]
) -> ModelEntry:
    config = {"layer_type": block, "depths": depths, "hidden_sizes": widths, "num_labels": 1000}
    return ModelEntry(
        name=name,
        family="resnet",
        architecture="resnet",
        config=config,
        parameter_count=parameter_count,
    )


_CATALOGUE = {
    entry.name: entry
    for entry in (
        _gpt2("gpt2", 124_439_808, width=768, layers=12, heads=12),
        _gpt2("gpt2-medium", 354_823_168, width=1024, layers=24, heads=16),
        _gpt2("gpt2-large", 774_030_080, width=1280, layers=36, heads=20),
        _gpt2("gpt2-xl", 1_557_611_200, width=1600, layers=48, heads=25),
        _llama2("llama2-7b", 6_738_415_616, width=4096, hidden=11008, layers=32, heads=32),
        _llama2("llama2-13b", 13_015_864_320, width=5120, hidden=13824, layers=40, heads=40),
        _llama3("llama3-8b", 8_030_261_248, width=4096, hidden=14336, layers=32, heads=32),
        _llama3("llama3-70b", 70_553_706_496, width=8192, hidden=28672, layers=80, heads=64),
        _vit("vit-s16", 22_050_664, width=384, layers=12, heads=6, patch=16),
        _vit("vit-b16", 86_567_656, width=768, layers=12, heads=12, patch=16),
        _vit("vit-h14", 632_045_800, width=1280, layers=32, heads=16, patch=14),
        _resnet(
            "resnet18", 11_689_512, block="basic", depths=[2, 2, 2, 2], widths=[64, 128, 256, 512]
        ),
        _resnet(
            "resnet50",
            25_557_032,
            block="bottleneck",
            depths=[3, 4, 6, 3],
            widths=[256, 512, 1024, 2048],
        ),
        _tiny("tiny", 132_864),
    )
}


def available() -> tuple[str, ...]:
    """Return the names of the catalogue, by family and size."""
    return tuple(_CATALOGUE)


def describe(name: str) -> ModelEntry | None:
    """Return the catalogue's entry, or None for `module:factory`.

    Raises ValueError with near names for any other name.
    """
    if ":" in name:
        return None
    if name.endswith(".py"):
        raise ValueError(
            f"{name!r} names no factory; write {name}:NAME for the function or class in it that"
            " returns a model"
        )
    if name not in _CATALOGUE:
        raise ValueError(
            f"no model named {name!r}; {did_you_mean(name, _CATALOGUE)} (module:factory names your"
            " own)"
        )
    return _CATALOGUE[name]


def family_name(name: str, config: Mapping[str, Any] | None = None) -> str | None:
    """Return the family of a catalogue's model.

    None for `module:factory`, and for a model with a changed configuration.
    """
    entry = describe(name)
    return entry.family if entry and not config else None


def family(name: str) -> tuple[str, ...]:
    """Return the names of the model's family, by size; for `module:factory` the name alone."""
    entry = describe(name)
    if entry is None:
        return (name,)
    return tuple(other.name for other in _CATALOGUE.values() if other.family == entry.family)


# Few models that show how a state grows with a language model: the ends of GPT-2, then Llama.
_LANGUAGE_CURVE = ("gpt2", "gpt2-xl", "llama2-7b", "llama3-8b", "llama3-70b")


def curve(names: Iterable[str]) -> tuple[str, ...]:
    """Return the models of a plot over sizes for these ones, by family and size, then factories.

    A published language model is shown with small and large ones of other families, any other model
    with its own family.
    """
    shown: set[str] = set()
    factories: list[str] = []
    for name in names:
        if (entry := describe(name)) is None:
            factories.append(name)
        elif any(entry.family == _CATALOGUE[other].family for other in _LANGUAGE_CURVE):
            shown |= {name, *_LANGUAGE_CURVE}
        else:
            shown |= {*family(name)}
    return *(name for name in _CATALOGUE if name in shown), *factories


# The architectures' names for the width of the hidden state and the number of attention heads.
_ATTENTION = {
    "gpt2": ("n_embd", "n_head"),
    "llama": ("hidden_size", "num_attention_heads"),
    "vit": ("hidden_size", "num_attention_heads"),
}


def attention(name: str, config: Mapping[str, Any]) -> dict[str, int]:
    """Return the model's width and number of attention heads, as `num_embeds` and `num_heads`.

    `config` overrides the model's own. Empty for models without attention and `module:factory`.
    """
    entry = describe(name)
    if entry is None or entry.architecture not in _ATTENTION:
        return {}
    width, heads = ({**entry.config, **config}[key] for key in _ATTENTION[entry.architecture])
    return {"num_embeds": width, "num_heads": heads}


def sequence_length(
    name: str, requested: int | None, config: Mapping[str, Any] | None = None
) -> int | None:
    """Return the tokens in a sequence: the requested number, by default 1024.

    `config` overrides the model's own. None for images, and by default for `module:factory`. Raises
    ValueError if the model has fewer positions.
    """
    entry = describe(name)
    if type(requested) is int and requested < 1:
        raise ValueError(f"sequence_length must be a whole number >= 1, got {requested}")
    if entry is None:
        return requested
    if entry.positions is None:
        if requested is not None:
            raise ValueError(
                f"{name} reads images and has no sequence length, got {requested}; leave it out"
            )
        return None
    positions = next(
        (config[key] for key in _POSITIONS if config and key in config), entry.positions
    )
    if requested is not None and requested > positions:
        raise ValueError(
            f"{name} has {positions} positions, got a sequence length of {requested}; request at"
            f" most {positions}"
        )
    return requested or min(DEFAULT_SEQUENCE_LENGTH, positions)


def read_config(pairs: Iterable[str]) -> dict[str, Any]:
    """Return the changes to a configuration from texts like `n_layer=24`.

    Values are Python literals; true, false and none may be written in any case, and other words are
    strings. Raises ValueError for a text of another form.
    """
    config: dict[str, Any] = {}
    for pair in pairs:
        if len(pair) > MOST_LETTERS:
            raise ValueError(
                f"a configuration entry has at most {MOST_LETTERS} letters, got {len(pair)}"
            )
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not key.isidentifier() or not value:
            raise ValueError(
                f"a configuration entry is written key=value, as in n_layer=24, got {pair!r}"
            )
        if key in config:
            raise ValueError(f"configuration entry {key!r} is given twice")
        config[key] = _value(value)
    return config


def require_size(config: Mapping[str, Any], where: str, source: str = "") -> None:
    """Raise ValueError for a model that is too large to build, as is done before anything runs."""
    for key, value in config.items():
        values = value if isinstance(value, list | tuple) else [value]
        numbers = [each for each in values if isinstance(each, int | float)]
        is_depth = "layer" in key or "depth" in key
        most, size = MOST_LAYERS if is_depth else MOST_SIZE, max(numbers, default=0)
        if is_depth and size <= most:
            # The layers of all stages together.
            size = sum(numbers)
        if len(values) > MOST_SIZES:
            raise ValueError(
                f"{where}.{key[:40]}{source} has at most {MOST_SIZES} items, got {len(values)}"
            )
        if size > most:
            raise ValueError(f"{where}.{key[:40]}{source} is at most {most}, got {size}")


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text

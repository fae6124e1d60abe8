"""Which scenarios a comparison takes: every name checked before anything runs, in an order that
traces each model once.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

import torch
from msgspec import Meta

from optprof import optimizers
from optprof.scenarios import Scenario, factories, hardware, models, schema
from optprof.scenarios.settings import own_settings
from optprof.scenarios.spec import Attention, AutocastDType, Device, DType, Implementation, Workload
from optprof.scenarios.suites import MOST_SCENARIOS
from optprof.scenarios.workpiece import build

from ..allocator.settings import AllocatorSettings, from_environment
from ..measuring.harness import require_cuda
from ..simulating.training import without_optimizer
from ..training.accumulating import require_possible
from ..training.optimizer import require_implementation

SIMULATED_STEPS = 2
MEASURED_STEPS = 100
# The tokens of a batch are real where all else is simulated: 1 GB of them.
MOST_TOKENS = 1 << 27
# Four months.
MOST_TIMEOUT = 1e7


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a user asked for: models and optimizers to set side by side, and what holds for all of
    them.

    `device` "auto" simulates CUDA and measures this machine (CUDA where there is one, else the
    CPU). `implementation` None is what the optimizer's text says (sm3:fused=True), else torch's
    default: foreach on CUDA and where it is simulated, the loop on the CPU. `alloc_conf` is what
    PYTORCH_ALLOC_CONF says where it is not given. `steps` None is 2 simulated or at most 100
    measured. `batch_size`, `sequence_length`, `attention` and `dtype` None are the defaults of a
    factory of the user's; for a model of the catalogue they are 1, 1024 tokens, "sdpa" and "fp32".
    """

    models: Sequence[str]
    optimizers: Sequence[str]
    device: str = "auto"
    workload: str = "train"
    config: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    amp: str | None = None
    batch_size: int | None = None
    sequence_length: int | None = None
    micro_batches: int = 1
    accumulate: str | None = None
    max_grad_norm: float | None = None
    set_to_none: bool = True
    checkpointing: bool = False
    attention: str | None = None
    lora_rank: int | None = None
    gpu: str | None = None
    alloc_conf: str = field(default_factory=from_environment)
    implementation: str | None = None
    steps: int | None = None
    seed: int = 0


def plan(comparison: Comparison) -> list[Scenario]:
    """The scenarios of a comparison; ValueError names the first model, optimizer, option, GPU or
    allocator setting that is wrong.

    Where a simulation is asked for, the state alone is simulated too, for one model's whole family,
    so that there is a curve over sizes; a model with a configuration of its own belongs to none.
    """
    _require_known(comparison)
    found: list[Scenario] = []
    for device in _devices(comparison.device):
        for model in comparison.models:
            found += _scenarios(comparison, model, device)
        if device == "sim":
            # The state of a model that the GPU has no room for is a point of the curve too.
            alone = replace(comparison, workload="state", gpu=None, accumulate=None)
            for model in comparison.models if comparison.config else _companions(comparison.models):
                if comparison.workload == "train" or model not in comparison.models:
                    # A smaller model of the family may have fewer positions; only a factory of the
                    # user's needs the length.
                    asked = (
                        alone
                        if models.describe(model) is None
                        else replace(alone, sequence_length=None)
                    )
                    found += _scenarios(asked, model, device)
    for scenario in found:
        _require_batch(scenario)
        require_possible(scenario)
    _check(comparison, {(scenario.model, scenario.gpu): scenario for scenario in found}.values())
    return [scenario for place, scenario in enumerate(found) if scenario not in found[:place]]


def _require_known(comparison: Comparison) -> None:
    """Raise ValueError for too many questions, and for a name that nobody knows."""
    count = len(comparison.models) * len(comparison.optimizers)
    if count > MOST_SCENARIOS:
        raise ValueError(
            f"a comparison has at most {MOST_SCENARIOS} models times optimizers, got {count}"
        )
    for name in comparison.models:
        if models.describe(name) is None:
            factories.load(name)
    if comparison.gpu is not None:
        hardware.describe(comparison.gpu)
    AllocatorSettings.parse(comparison.alloc_conf)


def _require_batch(scenario: Scenario) -> None:
    tokens = scenario.batch_size * (scenario.sequence_length or 1)
    if tokens > MOST_TOKENS:
        raise ValueError(
            f"batch_size times sequence_length is at most {MOST_TOKENS}, got {tokens}; ask for a"
            " smaller batch"
        )


def require_timeout(timeout: float | None) -> None:
    """Raise ValueError for a time limit that is none."""
    if timeout is not None:
        schema.check(Annotated[float, Meta(ge=1.0, le=MOST_TIMEOUT)], timeout, "timeout")


def _check(comparison: Comparison, scenarios: Iterable[Scenario]) -> None:
    """Refuse what the GPU or one of the models, a scenario each, does not take."""
    # What a model does not take is found out by making it, without its weights.
    asked = comparison.config or comparison.lora_rank or comparison.checkpointing
    makes = asked or comparison.attention not in (None, "sdpa")
    for scenario in scenarios:
        if models.describe(scenario.model) is None:
            factories.arguments_of(scenario)
        gpu = hardware.describe(scenario.gpu) if scenario.gpu else None
        own = gpu is not None and scenario.dtype is None and not gpu.has_bf16
        dtypes = _dtypes(scenario) if makes or own else ()
        if gpu and (reason := hardware.lacking(gpu, scenario, dtypes)):
            raise ValueError(f"{reason}; ask for fp32, or for another GPU")


_made: dict[tuple[Scenario, object], frozenset[str]] = {}


def _dtypes(scenario: Scenario) -> frozenset[str]:
    """Torch's names of the dtypes of the scenario's parameters; each model is made once for all
    optimizers and GPUs.
    """
    asked = replace(without_optimizer(scenario), workload="state", gpu=None)
    factory = None
    if models.describe(scenario.model) is None:
        factory = factories.load(scenario.model)
    else:
        # Its batch holds data, however large it is.
        asked = replace(asked, batch_size=1)
    key = asked, factory
    if key not in _made:
        with own_settings():
            parameters = build(asked, "meta").model.parameters()
        _made[key] = frozenset(
            str(parameter.dtype).removeprefix("torch.") for parameter in parameters
        )
    return _made[key]


def plan_fits(comparison: Comparison, gpus: Sequence[str]) -> list[Scenario]:
    """The training steps of a comparison on each of these GPUs; ValueError names the first name or
    option that is wrong.
    """
    for gpu in gpus:
        hardware.describe(gpu)
    asked = [
        scenario
        for scenario in plan(comparison)
        if scenario.workload == "train" and scenario.model in comparison.models
    ]
    return [replace(scenario, gpu=gpu) for gpu in dict.fromkeys(gpus) for scenario in asked]


def _devices(asked: str) -> tuple[str, ...]:
    if asked == "cuda":
        require_cuda()
    if asked != "auto":
        return (asked,)
    return ("sim", "cuda" if torch.cuda.is_available() else "cpu")


def _companions(names: Sequence[str]) -> Sequence[str]:
    return models.family(names[0]) if len(names) == 1 else names


def _scenarios(comparison: Comparison, model: str, device: str) -> Iterator[Scenario]:
    batch_size, sequence_length = _sizes(comparison, model)
    for spec in comparison.optimizers:
        name, written = optimizers.parse(spec)
        implementation = cast(
            Implementation, comparison.implementation or _default_implementation(spec, device)
        )
        # An optimizer that refuses its options says so now, before anything has run.
        optimizers.create(
            spec, [torch.nn.Parameter(torch.ones(1, 1))], implementation=implementation
        )
        require_implementation(spec, implementation, cast(Device, device))
        yield Scenario(
            model=model,
            config=comparison.config,
            optimizer=name,
            options=_options(spec, written),
            implementation=implementation,
            workload=cast(Workload, comparison.workload),
            dtype=cast(DType | None, comparison.dtype),
            amp=cast(AutocastDType | None, comparison.amp),
            batch_size=batch_size,
            sequence_length=sequence_length,
            micro_batches=comparison.micro_batches,
            accumulate=comparison.accumulate,
            max_grad_norm=comparison.max_grad_norm,
            set_to_none=comparison.set_to_none,
            checkpointing=comparison.checkpointing,
            attention=cast(Attention | None, comparison.attention),
            lora_rank=comparison.lora_rank,
            gpu=comparison.gpu,
            alloc_conf=comparison.alloc_conf,
            device=cast(Device, device),
            seed=comparison.seed,
            steps=_default_steps(device) if comparison.steps is None else comparison.steps,
        )


def _sizes(comparison: Comparison, model: str) -> tuple[int, int | None]:
    """The batch size and the tokens in a sequence, those of a factory of the user's where nobody
    asked.
    """
    batch_size, length = comparison.batch_size, comparison.sequence_length
    if models.describe(model) is None:
        # A configuration may set them too.
        sizes = {
            name: factories.own_size(model, name) for name in ("batch_size", "sequence_length")
        } | dict(comparison.config)
        batch_size = sizes["batch_size"] if batch_size is None else batch_size
        length = sizes["sequence_length"] if length is None else length
    return 1 if batch_size is None else batch_size, models.sequence_length(
        model, length, comparison.config
    )


def _default_steps(device: str) -> int:
    return SIMULATED_STEPS if device == "sim" else MEASURED_STEPS


def _default_implementation(spec: str, device: str) -> str:
    """As the optimizer's text says, else as torch chooses by itself."""
    return optimizers.default_implementation(spec, "cpu" if device == "cpu" else "cuda")


def _options(spec: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an optimizer; a default that a record cannot hold is left to its
    constructor.
    """
    found = optimizers.option_defaults(spec)
    usual = optimizers.option_defaults(optimizers.parse(spec)[0])
    # Prodigy's growth rate is infinite, which JSON has no number for, whether it is written or not.
    chosen = {
        key: value for key, value in found.items() if key in written and value != usual.get(key)
    }
    schema.require_plain(chosen, optimizers.parse(spec)[0])
    return {key: value for key, value in found.items() if key in chosen or is_plain(value)}


def is_plain(value: object) -> bool:
    """Return whether a record can hold the value."""
    try:
        schema.require_plain(value)
    except ValueError:
        return False
    return True

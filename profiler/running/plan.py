"""Plan scenarios: check every question before anything runs.

A question is a mapping of `Scenario`'s fields. Its optimizer is a text with options
(`sm3:momentum=0.9`), its `device` may be "auto", and None stands for a field's default.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Annotated, Any

import torch
from msgspec import Meta

from optprof import optimizers
from optprof.optimizers import parse_list
from optprof.scenarios import Scenario, factories, hardware, models, schema
from optprof.scenarios.parallel import read_parallel
from optprof.scenarios.settings import own_settings
from optprof.scenarios.spec import usual
from optprof.scenarios.suites import MOST_SCENARIOS, Suite
from optprof.scenarios.workpiece import build

from ..allocator.settings import AllocatorSettings, from_environment
from ..measuring.harness import require_cuda
from ..measuring.trainer import has_sparse_layers
from ..simulating.training import without_optimizer
from ..training.accumulating import require_possible
from ..training.optimizer import require_implementation

Question = Mapping[str, Any]

SIMULATED_STEPS = 2
MEASURED_STEPS = 100
# A simulated batch still has real tokens: 1 GB of them.
MOST_TOKENS = 1 << 27
# torch's optimizers whose fused step refuses sparse gradients and parameters split over ranks.
_UNFUSED = ("adagrad", "sgd")
# Four months.
MOST_TIMEOUT = 1e7
# An hour and a quarter of GPT-2, if no two scenarios share a trace of the model.
MOST_SUITE_MICRO_BATCHES = 1 << 16


def plan(questions: Iterable[Question], *, has_cuda: bool | None = None) -> list[Scenario]:
    """Return the scenarios of some questions, each once.

    `has_cuda` says whether a cluster that will run them has CUDA; without it, this machine does.
    Raises ValueError for the first model, optimizer, option, GPU or allocator setting that is
    wrong.
    """
    scenarios: dict[Scenario, Scenario] = {}
    for question in questions:
        for device in _devices(question, has_cuda):
            scenario = _scenario(question, device)
            scenarios.setdefault(scenario, scenario)
    for scenario in scenarios.values():
        _require_batch(scenario)
        require_possible(scenario)
    for scenario in scenarios.values():
        _require_supported(scenario)
    return list(scenarios.values())


def plan_suite(
    suite: Suite, allowed: Collection[str], *, has_cuda: bool | None = None
) -> list[Scenario]:
    """Return the scenarios of a suite; `has_cuda` is that of `plan`.

    Of code named by the suite (`module:Class`, `module:factory`) only the `allowed` names run. A
    suite whose simulations would take hours is refused.
    """
    for question in suite.questions:
        _refuse_code(question, allowed)
    scenarios = plan(suite.questions, has_cuda=has_cuda)
    # Measured scenarios are simulated too, for two steps.
    count = sum(
        scenario.micro_batches * (scenario.steps if scenario.device == "sim" else SIMULATED_STEPS)
        for scenario in scenarios
    )
    if count > MOST_SUITE_MICRO_BATCHES:
        raise ValueError(
            f"a suite has at most {MOST_SUITE_MICRO_BATCHES} micro-batches in all simulated steps,"
            f" got {count}; make it several suites"
        )
    return scenarios


def comparison(
    models: str | Sequence[str], optimizers: str | Sequence[str], **options: Any
) -> list[Question]:
    """Return the questions that compare optimizers on models.

    `models` and `optimizers` are lists, or texts as the command line takes them; `options` are
    other fields of Scenario. A simulation adds the state alone, for a plot over sizes: of language
    models from GPT-2 to Llama 3, of other models for their families. Models with a `config` of
    their own are shown alone, and ranks without a plot. If only the state is asked for, a single
    model is shown with its family, several models alone.
    """
    _require_options(options)
    names = [models] if isinstance(models, str) else models
    specs = parse_list(optimizers) if isinstance(optimizers, str) else optimizers
    count = len(names) * len(specs)
    if count > MOST_SCENARIOS:
        raise ValueError(
            f"a comparison has at most {MOST_SCENARIOS} models times optimizers, got {count}"
        )
    questions: list[Question] = []
    for device in _devices(options):
        for name, spec in product(names, specs):
            questions.append({**options, "device": device, "model": name, "optimizer": spec})
        if device == "sim":
            questions += _curve(names, specs, options)
    return questions


def _curve(
    names: Sequence[str], specs: Sequence[str], options: Mapping[str, Any]
) -> Iterator[Question]:
    """Yield the questions about the state alone, unless the comparison already has them."""
    compared = names if options.get("workload") == "state" else ()
    for name, spec in product(_sizes_beside(names, options), specs):
        if name not in compared:
            yield {
                **options,
                "device": "sim",
                "workload": "state",
                "model": name,
                "optimizer": spec,
                # A model that is too large for the GPU still belongs on the curve.
                "gpu": None,
                "accumulate": None,
                # A smaller model of the family may have fewer positions; factories need a length.
                "sequence_length": None
                if models.describe(name)
                else options.get("sequence_length"),
            }


def _sizes_beside(names: Sequence[str], options: Mapping[str, Any]) -> Sequence[str]:
    """Return the models of the plot over sizes; a comparison of ranks has none."""
    if options.get("parallel"):
        return ()
    if options.get("config"):
        return names
    if options.get("workload") == "state":
        # Every record of such a run is a result of its own, not a point of a plot.
        return models.family(names[0]) if len(names) == 1 else names
    return models.curve(names)


def require_timeout(timeout: float | None) -> None:
    """Raise ValueError unless the time limit is None or a reasonable number of seconds."""
    if timeout is not None:
        schema.check(Annotated[float, Meta(ge=1.0, le=MOST_TIMEOUT)], timeout, "timeout")


def _require_options(options: Mapping[str, Any]) -> None:
    names = {field.name for field in fields(Scenario)} - {"model", "optimizer", "options"}
    for name in options:
        if name not in names:
            raise ValueError(
                f"no option is named {name!r}; {schema.did_you_mean(name, sorted(names))}"
            )


def _refuse_code(question: Question, allowed: Collection[str]) -> None:
    try:
        optimizer, _ = optimizers.parse(question.get("optimizer", "adamw"))
    except (RecursionError, MemoryError):
        raise ValueError(f"cannot read the optimizer {question['optimizer'][:40]!r}") from None
    for name in (question["model"], optimizer):
        if ":" in name and name not in allowed:
            raise ValueError(
                f"a suite runs no code of its own, got {name!r}; if you trust it, give --allow"
                f" {name}"
            )


def _devices(question: Question, has_cuda: bool | None = None) -> tuple[str, ...]:
    """Return the devices of a question: "auto" simulates CUDA and measures this machine.

    Ranks are measured without being asked only if each has a GPU here. Raises ValueError for a
    measurement of one rank of many.
    """
    device, rank = usual("device", question.get("device")), question.get("rank") or 0
    if device == "cuda" and has_cuda is None:
        require_cuda()
    if device in ("cpu", "cuda") and rank:
        raise ValueError(
            f"--device {device} measures all ranks, and --rank {rank} asks for one; leave --rank"
            " out, or simulate that rank with --device sim"
        )
    if device not in (None, "auto"):
        return (device,)
    if question.get("parallel") is not None:
        has_room = torch.cuda.device_count() >= (question.get("ranks") or 1)
        return ("sim", "cuda") if has_room and not rank else ("sim",)
    is_on_cuda = torch.cuda.is_available() if has_cuda is None else has_cuda
    return ("sim", "cuda" if is_on_cuda else "cpu")


def _scenario(question: Question, device: Any) -> Scenario:
    values = {name: value for name, value in question.items() if value is not None}
    sizes = _sizes(values)
    spec = values.get("optimizer", "adamw")
    name, written = optimizers.parse(spec)
    implementation = values.get("implementation") or optimizers.default_implementation(
        spec, "cpu" if device == "cpu" else "cuda"
    )
    # Options that the optimizer refuses are reported now, before anything runs.
    optimizers.create(spec, [torch.nn.Parameter(torch.ones(1, 1))], implementation=implementation)
    require_implementation(spec, implementation, device)
    alloc_conf = values.get("alloc_conf", from_environment())
    AllocatorSettings.parse(alloc_conf)
    settled = {
        "optimizer": name,
        "options": _options(spec, written),
        "implementation": implementation,
        "alloc_conf": alloc_conf,
        "device": device,
    }
    steps = SIMULATED_STEPS if device == "sim" else MEASURED_STEPS
    scenario = Scenario(**{"steps": steps, **values, **sizes, **settled})
    is_open = "implementation" not in values and not written.get("fused")
    if is_open and device == "cpu" and name in _UNFUSED:
        if scenario.parallel is not None and read_parallel(scenario.parallel).splits_parameters:
            return replace(scenario, implementation="foreach")
        if _is_sparse(scenario):
            return replace(scenario, implementation="loop")
    return scenario


def _is_sparse(scenario: Scenario) -> bool:
    """Return whether a factory's model has layers with sparse gradients."""
    if scenario.implementation != "fused" or models.describe(scenario.model) is not None:
        return False
    try:
        with own_settings():
            return has_sparse_layers(build(scenario, "meta").model)
    except Exception:
        # The record of its run says what is wrong.
        return False


def _sizes(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the batch size and the sequence length; a factory has its own defaults for them."""
    model, config = values["model"], values.get("config", {})
    defaults: dict[str, Any] = {}
    if models.describe(model) is None:
        names = ("batch_size", "sequence_length")
        # A configuration may set them too.
        defaults = {name: factories.own_size(model, name) for name in names} | dict(config)
    length = values.get("sequence_length", defaults.get("sequence_length"))
    batch_size = values.get("batch_size", defaults.get("batch_size"))
    return {
        "batch_size": 1 if batch_size is None else batch_size,
        "sequence_length": models.sequence_length(model, length, config),
    }


def _options(spec: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an optimizer.

    Defaults that a record cannot hold are left to the optimizer: Prodigy's growth rate is infinite,
    and JSON has no infinity.
    """
    options = optimizers.option_defaults(spec)
    defaults = optimizers.option_defaults(optimizers.parse(spec)[0])
    changed = {
        key: value
        for key, value in options.items()
        if key in written and value != defaults.get(key)
    }
    schema.require_plain(changed, optimizers.parse(spec)[0])
    return {key: value for key, value in options.items() if key in changed or _is_plain(value)}


def _is_plain(value: object) -> bool:
    try:
        schema.require_plain(value)
    except ValueError:
        return False
    return True


def _require_batch(scenario: Scenario) -> None:
    tokens = scenario.batch_size * (scenario.sequence_length or 1)
    if tokens > MOST_TOKENS:
        raise ValueError(
            f"batch_size times sequence_length is at most {MOST_TOKENS}, got {tokens}; ask for a"
            " smaller batch"
        )


def _require_supported(scenario: Scenario) -> None:
    """Raise ValueError for options that the model or the GPU does not support."""
    if scenario.parallel is not None and read_parallel(scenario.parallel).tensor > 1:
        from ..training.tensor_parallel import planned_architecture

        planned_architecture(scenario)
    if models.describe(scenario.model) is None:
        factories.arguments_of(scenario)
    gpu = None if scenario.gpu is None else hardware.describe(scenario.gpu)
    # Only a model built with these options, though without data, shows whether it supports them.
    changed = scenario.config or scenario.lora_rank or scenario.checkpointing or scenario.added
    needs_dtypes = gpu is not None and scenario.dtype is None and not gpu.has_bf16
    is_built = changed or scenario.attention not in (None, "sdpa") or needs_dtypes
    dtypes = _dtypes(scenario) if is_built else ()
    if gpu and (reason := hardware.unsupported(gpu, scenario, dtypes)):
        raise ValueError(f"{reason}; ask for fp32, or for another GPU")


_dtypes_of: dict[tuple[Scenario, object], frozenset[str]] = {}


def _dtypes(scenario: Scenario) -> frozenset[str]:
    """Return torch's names of the dtypes of the scenario's parameters.

    A model is built once for all optimizers, devices and GPUs.
    """
    scenario = replace(scenario, accumulate=None, gpu=None, steps=SIMULATED_STEPS)
    scenario = replace(without_optimizer(scenario), workload="state")
    factory = None
    if models.describe(scenario.model) is None:
        factory = factories.load(scenario.model)
    else:
        # The batch holds data, and the parameters do not depend on it.
        scenario = replace(scenario, batch_size=1, sequence_length=None)
    key = scenario, factory
    if key not in _dtypes_of:
        with own_settings():
            parameters = build(scenario, "meta").model.parameters()
        _dtypes_of[key] = frozenset(
            str(parameter.dtype).removeprefix("torch.") for parameter in parameters
        )
    return _dtypes_of[key]

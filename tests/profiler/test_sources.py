"""Sources of allocations in small models, in which every tensor has a different size."""

import torch
from torch.utils.checkpoint import checkpoint

from optprof import optimizers
from optprof.profiler.simulating.optimizer_trace import trace_optimizer
from optprof.profiler.simulating.training import trace_model
from optprof.profiler.tracing.sources import Source
from optprof.profiler.tracing.trace import Recorder
from optprof.scenarios import Scenario


class Network(torch.nn.Module):
    def __init__(self, *, recomputing: bool = False) -> None:
        super().__init__()
        self.first = torch.nn.Linear(64, 128)
        self.act = torch.nn.Tanh()
        self.second = torch.nn.Linear(128, 32)
        self.recomputing = recomputing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = (
            checkpoint(self.hidden, x, use_reentrant=False) if self.recomputing else self.hidden(x)
        )
        return self.second(hidden).exp().sum()

    def hidden(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.first(x))


def sources(recorder: Recorder, place: int) -> list[tuple[int, Source]]:
    """Return the bytes and source of each allocation of a segment, in order."""
    allocations = recorder.allocations
    return [
        (allocations.nbytes[event], allocations.sources[event])
        for event in recorder.segments[place].events
        if event >= 0
    ]


def train(network: Network) -> Recorder:
    recorder = Recorder(network)
    with recorder.phase("build"):
        x = torch.empty(16, 64, device="meta", requires_grad=True)
        for tensor in (*network.parameters(), x):
            recorder.allocate(tensor, "parameter")
    with recorder.phase("forward", "activation"):
        loss = network(x)
    with recorder.phase("backward"):
        loss.backward()
    return recorder


def network(*, recomputing: bool = False) -> Network:
    with torch.device("meta"):
        return Network(recomputing=recomputing)


def test_parameters_have_their_path_as_source():
    assert [source.module for _, source in sources(train(network()), 0)][1:] == [
        "first.weight",
        "first.bias",
        "second.weight",
        "second.bias",
    ]


def test_the_forward_pass_names_module_operation_and_line():
    named = [(nbytes, source.module, source.op) for nbytes, source in sources(train(network()), 1)]
    assert named == [
        (16 * 128 * 4, "first", "aten::addmm"),
        (16 * 128 * 4, "act", "aten::tanh"),
        (16 * 32 * 4, "second", "aten::addmm"),
        (16 * 32 * 4, "", "aten::exp"),
        (4, "", "aten::sum"),
    ]
    lines = {
        source.line.rpartition(":")[0].rpartition("/")[2]
        for _, source in sources(train(network()), 1)
    }
    assert lines == {"test_sources.py"}


def test_the_backward_pass_names_the_module_of_the_gradient():
    named = {(nbytes, source.module) for nbytes, source in sources(train(network()), 2)}
    assert {
        (128 * 64 * 4, "first"),
        (128 * 4, "first"),
        (32 * 128 * 4, "second"),
        (32 * 4, "second"),
    } <= named
    assert (16 * 128 * 4, "act") in named
    assert not {source.line for _, source in sources(train(network()), 2)} - {""}


def test_recomputed_tensors_have_the_sources_of_the_forward_pass():
    recomputed = [source for _, source in sources(train(network(recomputing=True)), 2)]
    assert "first" in {source.module for source in recomputed if source.op == "aten::addmm"}
    assert {source.module for source in recomputed if source.op == "aten::tanh_backward"} == {"act"}


def test_a_module_that_raises_is_not_running_afterwards():
    class Failing(torch.nn.Module):
        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no")

    model = torch.nn.Sequential(Failing())
    recorder = Recorder(model)
    x = torch.empty(4, device="meta")
    with recorder.phase("forward"):
        try:
            model(x)
        except RuntimeError:
            x = x + 1
    assert [source.module for _, source in sources(recorder, 0)] == [""]


def test_state_is_named_by_its_key_and_parameter():
    model = trace_model(Scenario(model="gpt2", sequence_length=8))
    traced = trace_optimizer(
        model,
        lambda parameters: optimizers.create("adamw", parameters, implementation="foreach"),
        Scenario(model="gpt2"),
    )
    state = [
        source
        for source, of in zip(
            traced.allocations.sources, traced.allocations.categories, strict=True
        )
        if of == "optimizer_state"
    ]
    assert {source.module for source in state} == {
        f"{key} of {name}" for key in ("exp_avg", "exp_avg_sq") for name in model.names
    }
    assert {source.op for source in state} == {"aten::zeros_like"}
    assert all(source.line.startswith("torch/optim/adam.py:") for source in state)


def test_no_source_contains_a_folder_of_this_machine():
    model = trace_model(Scenario(model="resnet18"))
    assert not [
        source for source in model.allocations.sources if source.line.startswith(("/", ".."))
    ]
    assert {
        source.line.partition(":")[0]
        for source in model.allocations.sources
        if source.module.endswith("convolution")
    } == {
        "",
        "transformers/models/resnet/modeling_resnet.py",
    }

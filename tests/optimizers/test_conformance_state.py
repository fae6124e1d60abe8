"""torch's conformance tests of states, hooks and errors, by their names in its test_optim.py."""

import copy
import io
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI

OURS = pytest.mark.parametrize("factory", [SGDSaI, SM3, LAMB, LAMB16])


def params_of(names: bool = False) -> Any:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(2, 3)), Parameter(torch.randn(2))]
    for param in params:
        param.grad = torch.randn_like(param)
    return list(zip(("weight", "bias"), params, strict=True)) if names else params


def stepped(make: partial[Any], params: list[Parameter], steps: int = 3, **options: Any) -> Any:
    optimizer = make(params, **options)
    for _ in range(steps):
        optimizer.step()
    return optimizer


def assert_equal(params: list[Parameter], wanted: list[Parameter]) -> None:
    for param, reference in zip(params, wanted, strict=True):
        torch.testing.assert_close(param, reference, rtol=0, atol=0)


def common_errors() -> list[Any]:
    common = pytest.importorskip(
        "torch.testing._internal.common_optimizers", reason="torch ships without its test helpers"
    )
    return common.get_error_inputs_for_all_optims("cpu", torch.float32)


@OURS
def test_errors(factory: Any) -> None:
    for error in common_errors():
        params, options = error.optimizer_error_input.params, error.optimizer_error_input.kwargs
        expected = pytest.warns if issubclass(error.error_type, Warning) else pytest.raises
        with expected(error.error_type, match=error.error_regex):
            factory(params or [Parameter(torch.ones(1))], **options)


def test_optimizer_can_be_printed(ours: partial[Any]) -> None:
    optimizer = ours(params_of())
    repr(optimizer)
    stepped(ours, params_of())
    assert type(optimizer).__name__ in str(optimizer)
    assert all(name in repr(optimizer) for name in optimizer.defaults)


@pytest.mark.parametrize("is_named", [(False, False), (True, False), (False, True), (True, True)])
def test_state_dict_deterministic(ours: partial[Any], is_named: tuple[bool, bool]) -> None:
    params = params_of()
    optimizer = ours(list(zip(("weight", "bias"), params, strict=True)) if is_named[0] else params)
    optimizer.step()
    twins = copy.deepcopy(params)
    for param, twin in zip(params, twins, strict=True):
        assert param.grad is not None
        twin.grad = param.grad.clone()
    # Neither names nor other views of the state matter.
    other = ours(list(zip(("weight", "bias"), twins, strict=True)) if is_named[1] else twins)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        optimizer.step()
        other.step()
    assert_equal(twins, params)
    first, second = optimizer.state_dict(), other.state_dict()
    assert set(first["state"]) == set(second["state"])
    for key, state in first["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(
                second["state"][key][name].float(), value.float(), rtol=0, atol=0
            )


@pytest.mark.parametrize("left_out", ["foreach", "maximize", "compiled"])
def test_can_load_older_state_dict(ours: partial[Any], left_out: str) -> None:
    params = params_of()
    optimizer = stepped(ours, params)
    old = copy.deepcopy(optimizer.state_dict())
    for group in old["param_groups"]:
        del group[left_out]
    optimizer.load_state_dict(old)
    optimizer.step()
    assert left_out in optimizer.param_groups[0]


def test_can_load_from_to_named_state_dict(ours: partial[Any]) -> None:
    for names, other_names in ((True, False), (False, True), (True, True)):
        optimizer, other = ours(params_of(names)), ours(params_of(other_names))
        optimizer.step()
        other.load_state_dict(optimizer.state_dict())
        other.step()
        assert ("param_names" in other.param_groups[0]) == names or other_names


def test_save_load_equality_with_weights_only(ours: partial[Any]) -> None:
    optimizer = stepped(ours, params_of())
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["param_groups"] == optimizer.state_dict()["param_groups"]
    for key, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert loaded["state"][key][name].dtype is value.dtype
            assert torch.equal(loaded["state"][key][name].float(), value.float())


def test_load_nontensor_step(ours: partial[Any]) -> None:
    params = params_of()
    optimizer = stepped(ours, params)
    old = copy.deepcopy(optimizer.state_dict())
    for state in old["state"].values():
        if "step" in state:
            state["step"] = int(state["step"].item())
    optimizer.load_state_dict(old)
    optimizer.step()
    assert {
        value.item()
        for state in optimizer.state.values()
        for name, value in state.items()
        if name == "step"
    } <= {4.0}


@pytest.mark.gpu
def test_a_step_count_that_comes_on_the_gpu_is_brought_to_the_host(ours: partial[Any]) -> None:
    params = [Parameter(param.detach().cuda()) for param in params_of()]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = stepped(ours, params)
    old = copy.deepcopy(optimizer.state_dict())
    for state in old["state"].values():
        state.update({name: value.cuda() for name, value in state.items()})
    optimizer.load_state_dict(old)
    assert {state["step"].device.type for state in optimizer.state.values() if "step" in state} <= {
        "cpu"
    }


def test_step_pre_hook_and_post_hook_and_all_hooks(ours: partial[Any]) -> None:
    calls: list[str] = []
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    try:
        optimizer = ours(params_of())
        hooks.append(optimizer.register_step_pre_hook(lambda *_: calls.append("pre")))
        hooks.append(optimizer.register_step_post_hook(lambda *_: calls.append("post")))
        optimizer.step()
        assert calls == ["global pre", "pre", "post", "global post"]
    finally:
        for hook in hooks:
            hook.remove()
    optimizer.step()
    assert len(calls) == 4


def test_deepcopy_copies_all_public_attrs(ours: partial[Any]) -> None:
    optimizer = stepped(ours, params_of())
    twin = copy.deepcopy(optimizer)

    def public(of: Optimizer) -> set[str]:
        return {name for name in vars(of) if not name.startswith("_")}

    assert public(optimizer) == public(twin)


def test_state_dict_pre_and_post_hook(ours: partial[Any]) -> None:
    optimizer = ours(params_of())
    calls: list[str] = []

    def after(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        calls.append("post")
        return {**state_dict, "more": True}

    optimizer.register_state_dict_pre_hook(lambda _: calls.append("pre"))
    optimizer.register_state_dict_post_hook(after)
    assert optimizer.state_dict()["more"] is True
    assert calls == ["pre", "post"]


def test_load_state_dict_pre_hook_and_prepend(ours: partial[Any]) -> None:
    saved = stepped(ours, params_of(), lr=0.25).state_dict()
    optimizer = ours(params_of())

    def halve(_: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        groups = [{**group, "lr": group["lr"] / 2} for group in state_dict["param_groups"]]
        return {**state_dict, "param_groups": groups}

    def quarter(_: Optimizer, state_dict: dict[str, Any]) -> None:
        for group in state_dict["param_groups"]:
            assert group["lr"] == 0.25
            group["lr"] = 0.0625

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert optimizer.param_groups[0]["lr"] == 0.125
    optimizer.register_load_state_dict_pre_hook(quarter, prepend=True)
    optimizer.load_state_dict(copy.deepcopy(saved))
    assert optimizer.param_groups[0]["lr"] == 0.03125


def test_load_state_dict_post_hook(ours: partial[Any]) -> None:
    saved = stepped(ours, params_of()).state_dict()
    optimizer = ours(params_of())
    states: list[Any] = []
    optimizer.register_load_state_dict_post_hook(lambda loaded: states.append(dict(loaded.state)))
    optimizer.load_state_dict(saved)
    # The hook sees the states in place.
    assert len(states[0]) == 2
    assert all(states[0].values())


def test_non_empty_state(ours: partial[Any]) -> None:
    params = params_of()
    optimizer = stepped(ours, params, steps=1)
    assert all(optimizer.state[param] for param in params)
    assert all(
        isinstance(value, Tensor) for state in optimizer.state.values() for value in state.values()
    )


@pytest.mark.gpu
def test_state_dict_cross_device(ours: partial[Any]) -> None:
    for source, target in (("cpu", "cuda"), ("cuda", "cpu")):
        params = [Parameter(param.detach().to(source)) for param in params_of()]
        twins = [Parameter(param.detach().to(target)) for param in params]
        for param in (*params, *twins):
            param.grad = torch.ones_like(param)
        optimizer, other = stepped(ours, params), ours(twins)
        with torch.no_grad():
            for twin, param in zip(twins, params, strict=True):
                twin.copy_(param)
        other.load_state_dict(optimizer.state_dict())
        for optimized in (optimizer, other):
            optimized.step()
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(twin.cpu(), param.cpu())
            devices = {name: value.device.type for name, value in other.state[twin].items()}
            assert all(
                device == ("cpu" if name == "step" else target) for name, device in devices.items()
            )

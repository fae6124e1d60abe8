"""Loaded states: each is resumed bit for bit or refused at once, in one line."""

import copy
import functools
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from optprof import optimizers

SPECS = (
    *("lamb", "lamb:preset=cybertronai", "lamb16", "lamb16:scale=upstream", "muon", "sgd-sai"),
    *("sgd-sai:momentum=0", "sm3", "sm3:momentum=0.9,beta=0.9"),
)
EACH = pytest.mark.parametrize("spec", SPECS)
SHAPES = [(), (5,), (3, 4), (2, 3, 2, 2)]


def trained(spec: str, **options: Any) -> tuple[Optimizer, list[Parameter]]:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer = optimizers.create(spec, params, **options)
    take_steps(optimizer, params, range(3))
    return optimizer, params


def take_steps(optimizer: Optimizer, params: list[Parameter], steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@functools.cache
def saved_once(spec: str) -> dict[str, Any]:
    return copy.deepcopy(trained(spec)[0].state_dict())


def saved(spec: str) -> dict[str, Any]:
    return copy.deepcopy(saved_once(spec))


def places(state_dict: dict[str, Any]) -> list[tuple[int, str]]:
    return [(key, name) for key, state in state_dict["state"].items() for name in state]


def assert_goes_on(spec: str, state_dict: dict[str, Any]) -> None:
    """Load a state and train on, bit for bit as one that was never saved."""
    wanted, references = trained(spec)
    optimizer, params = trained(spec)
    optimizer.load_state_dict(state_dict)
    for param, reference in zip(params, references, strict=True):
        assert layout(optimizer.state[param]) == layout(wanted.state[reference])
    take_steps(wanted, references, range(3, 5))
    take_steps(optimizer, params, range(3, 5))
    assert all(map(torch.equal, params, references))


def layout(state: Any) -> Any:
    return {
        name: (value.dtype, value.shape, value.device) if isinstance(value, Tensor) else value
        for name, value in state.items()
    }


def assert_refused(spec: str, wrong: Iterable[tuple[Any, tuple[str, ...]]]) -> None:
    """Refuse each state in one line with these words, and change nothing."""
    optimizer, params = trained(spec)
    for state_dict, words in wrong:
        with pytest.raises(ValueError, match=r"expected|is a") as refusal:
            optimizer.load_state_dict(state_dict)
        assert len(str(refusal.value).splitlines()) == 1
        assert all(word in str(refusal.value) for word in words), refusal.value
    after, before = optimizer.state_dict(), saved(spec)
    assert after["param_groups"] == before["param_groups"]
    for key, name in places(before):
        assert torch.equal(after["state"][key][name].float(), before["state"][key][name].float())
    take_steps(optimizer, params, range(3, 4))


def replaced(state_dict: dict[str, Any], key: Any, state: Any) -> dict[str, Any]:
    return {**state_dict, "state": {**state_dict["state"], key: state}}


NEVER: dict[str, Any] = {
    "none": None,
    "a string": "0.5\nand more",
    "true": True,
    "a list": [0.0, 0.0],
    "a tuple": (0.0,),
    "a dict": {"value": 0.0},
    "an array of objects": np.array([None]),
    "an array of text": np.array(["a"]),
    "a complex number": 1j,
    "a bool tensor": torch.tensor(True),
    "a complex tensor": torch.tensor(1j),
    "another shape": torch.zeros(7, 6),
    "no elements": torch.zeros(0),
    "a sparse tensor": torch.zeros(3, 4).to_sparse(),
    "a tensor without data": torch.zeros((), device="meta"),
}


@EACH
@pytest.mark.parametrize("value", NEVER.values(), ids=NEVER)
def test_a_wrong_tensor_is_refused_with_its_place(spec: str, value: Any) -> None:
    state_dict = saved(spec)
    wrong = [
        (
            replaced(state_dict, key, {**state_dict["state"][key], name: value}),
            (repr(name), f"parameter {key}", "found ", "of shape"),
        )
        for key, name in places(state_dict)
    ]
    assert_refused(spec, wrong)


SCALARS: dict[str, Callable[[Tensor], Any]] = {
    "a float": lambda value: value.item(),
    "a number of numpy": lambda value: np.float32(value.item()),
    "an array without axes": lambda value: np.array(value.item(), dtype=np.float64),
    "an array of one": lambda value: np.array([value.item()], dtype=np.float32),
    "a tensor of one": lambda value: value.reshape(1),
    "a float64 tensor": Tensor.double,
    "a parameter": lambda value: Parameter(value),
}


@EACH
@pytest.mark.parametrize("turn", SCALARS.values(), ids=SCALARS)
def test_a_number_becomes_the_tensor_that_a_new_state_has(
    spec: str, turn: Callable[[Tensor], Any]
) -> None:
    state_dict = saved(spec)
    scalars = [
        (key, name)
        for key, name in places(state_dict)
        if state_dict["state"][key][name].shape == ()
    ]
    for key, name in scalars:
        value = state_dict["state"][key][name]
        # A float8 moment of a parameter without axes is a scalar too.
        state_dict["state"][key][name] = turn(value if value.itemsize > 1 else value.float())
    assert_goes_on(spec, state_dict)


COUNTS: dict[str, Callable[[Tensor], Any]] = {
    "an int": lambda value: int(value.item()),
    "an int of numpy": lambda value: np.int64(value.item()),
    "an int64 tensor": Tensor.long,
    "a half": Tensor.half,
}


@pytest.mark.parametrize("spec", [spec for spec in SPECS if spec in ("lamb", "lamb16", "muon")])
@pytest.mark.parametrize("turn", COUNTS.values(), ids=COUNTS)
def test_a_count_of_steps_may_be_any_number(spec: str, turn: Callable[[Tensor], Any]) -> None:
    state_dict = saved(spec)
    for key, name in places(state_dict):
        if name == "step":
            state_dict["state"][key][name] = turn(state_dict["state"][key][name])
    assert_goes_on(spec, state_dict)


@pytest.mark.parametrize("spec", ["lamb", "lamb16", "muon"])
@pytest.mark.parametrize(
    "count", [-1, 2.5, float("nan"), float("inf"), 10**400, torch.tensor(-1.0)]
)
def test_an_invalid_count_is_refused(spec: str, count: Any) -> None:
    state_dict = saved(spec)
    # Muon counts no steps of a matrix, which comes first there.
    state_dict["state"][1]["step"] = count
    assert_refused(spec, [(state_dict, ("'step' of parameter 1",))])


TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "an array": lambda value: value.numpy() if value.itemsize > 1 else value,
    "of inference mode": lambda value: inference(value),
    "float64": lambda value: value.double(),
    "with a gradient": lambda value: (
        value.clone().requires_grad_() if value.itemsize > 1 else value
    ),
    "transposed": lambda value: value.clone().T.contiguous().T if value.dim() == 2 else value,
}


def inference(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


@EACH
@pytest.mark.parametrize("turn", TENSORS.values(), ids=TENSORS)
def test_a_tensor_of_another_kind_goes_on(spec: str, turn: Callable[[Tensor], Any]) -> None:
    state_dict = saved(spec)
    for key, name in places(state_dict):
        state_dict["state"][key][name] = turn(state_dict["state"][key][name])
    assert_goes_on(spec, state_dict)


@EACH
def test_a_tensor_whose_elements_share_memory_is_copied(spec: str) -> None:
    results: list[list[Parameter]] = []
    for spread in (Tensor.clone, lambda zeros: zeros.flatten()[0].expand(zeros.shape)):
        state_dict = saved(spec)
        for key, name in places(state_dict):
            zeros = torch.zeros_like(state_dict["state"][key][name])
            state_dict["state"][key][name] = spread(zeros)
        optimizer, params = trained(spec)
        optimizer.load_state_dict(state_dict)
        take_steps(optimizer, params, range(3, 5))
        results.append(params)
    assert all(map(torch.equal, *results))


def test_an_array_is_copied() -> None:
    state_dict = saved("lamb")
    array = state_dict["state"][2]["exp_avg"].numpy().copy()
    state_dict["state"][2]["exp_avg"] = array
    before = array.copy()
    assert_goes_on("lamb", state_dict)
    assert (array == before).all()


@EACH
def test_each_part_that_is_missing_is_named(spec: str) -> None:
    state_dict, wrong = saved(spec), []
    for key, name in places(state_dict):
        state = {each: value for each, value in state_dict["state"][key].items() if each != name}
        # Nothing is a new parameter's state, and rows alone are what a sparse gradient begins with.
        if state and [each for each in state if "accumulator" in each] != ["accumulator_0"]:
            wrong.append(
                (replaced(state_dict, key, state), (repr(name), f"parameter {key}", "found only"))
            )
    assert_refused(spec, wrong)


@EACH
def test_a_missing_state_is_that_of_a_new_parameter_and_other_keys_stay(spec: str) -> None:
    state_dict = saved(spec)
    del state_dict["state"][1]
    state_dict["state"][2] = {}
    state_dict["state"][3].update(words="kept", average=torch.ones(3, 4), none=None)
    for way in ("loop", "foreach"):
        optimizer, _ = trained(spec, implementation=way)
        optimizer.load_state_dict(copy.deepcopy(state_dict))
        params = [param for group in optimizer.param_groups for param in group["params"]]
        assert [bool(optimizer.state.get(param)) for param in params] == [True, False, False, True]
        take_steps(optimizer, params, range(3, 5))
        noted = optimizer.state[params[3]]
        assert (noted["words"], noted["none"]) == ("kept", None)
        assert torch.equal(noted["average"], torch.ones(3, 4))
        assert all(param.isfinite().all() for param in params)


@EACH
def test_the_order_of_the_keys_does_not_matter_and_the_groups_say_whose_they_are(spec: str) -> None:
    state_dict = saved(spec)
    state_dict["state"] = {
        f"name {key}": state for key, state in reversed(state_dict["state"].items())
    }
    for group in state_dict["param_groups"]:
        group["params"] = [f"name {key}" for key in group["params"]]
    assert_goes_on(spec, state_dict)


@EACH
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, "got None"),
        (lambda _: [1], "got [1] (list)"),
        (lambda _: {}, "'state' of an optimizer's state_dict is a dict, got None"),
        (
            lambda state_dict: {"state": state_dict["state"]},
            "'param_groups' of an optimizer's state_dict is a list",
        ),
        (lambda state_dict: {**state_dict, "param_groups": [{}]}, "a list of dicts with 'params'"),
        (
            lambda state_dict: {**state_dict, "state": {**state_dict["state"], "0": {}}},
            "parameter '0': found it 0 times",
        ),
        (
            lambda state_dict: {**state_dict, "state": {**state_dict["state"], 0: None}},
            "the state of parameter 0: found None",
        ),
        (
            lambda state_dict: {**state_dict, "state": {**state_dict["state"], 1: torch.ones(2)}},
            "the state of parameter 1: found float32",
        ),
        (lambda state_dict: doubled(state_dict), "parameter 0: found it 2 times"),
    ],
)
def test_other_objects_than_a_state_dict_are_refused(
    spec: str, change: Callable[[Any], Any], words: str
) -> None:
    assert_refused(spec, [(change(saved(spec)), (words,))])


def doubled(state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = [
        {**group, "params": [0 if key == 1 else key for key in group["params"]]}
        for group in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups, "state": {0: state_dict["state"][0]}}


def test_another_number_of_parameters_is_refused_by_torch() -> None:
    state_dict = saved("sm3")
    state_dict["param_groups"][0]["params"] = [0, 1]
    state_dict["state"] = {0: state_dict["state"][0]}
    optimizer, _ = trained("sm3")
    with pytest.raises(ValueError, match="doesn't match the size of optimizer's group"):
        optimizer.load_state_dict(state_dict)


def test_numbers_that_a_dtype_does_not_hold_are_refused() -> None:
    state_dict = saved("lamb16")
    state_dict["state"][1]["exp_avg"] = torch.full((5,), 0.3)
    assert_refused(
        "lamb16", [(state_dict, ("'exp_avg' of parameter 1", "numbers that float8_e4m3fn holds"))]
    )
    param = Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = optimizers.create("sgd-sai", [param])
    state: dict[str, Any] = {"gsnr": 1.0, "momentum_buffer": torch.tensor([1.0, 1e6])}
    with pytest.raises(ValueError, match="numbers that float16 holds"):
        optimizer.load_state_dict(
            {"state": {0: state}, "param_groups": optimizer.state_dict()["param_groups"]}
        )


def test_a_checkpoint_of_torch_sm3_is_taken() -> None:
    # By its 0.1.0: a step count, and a 0 instead of a buffer if there is no momentum.
    state_dict = saved("sm3")
    for state in state_dict["state"].values():
        state.update(step=3, momentum_buffer=0.0)
    optimizer, params = trained("sm3")
    optimizer.load_state_dict(state_dict)
    wanted, references = trained("sm3")
    for each, trains in ((optimizer, params), (wanted, references)):
        take_steps(each, trains, range(3, 5))
    assert all(map(torch.equal, params, references))
    assert "momentum_buffer" not in optimizer.state[params[0]]


@pytest.mark.parametrize("change", [("upstream", "max"), ("max", "upstream")])
def test_the_scale_of_lamb16_may_change_in_training(change: tuple[str, str]) -> None:
    optimizer, params = trained("lamb16", scale=change[0])
    moments = [
        optimizer.state[param]["exp_avg"].float() * optimizer.state[param]["exp_avg_scale"]
        for param in params
    ]
    optimizer.param_groups[0]["scale"] = change[1]
    take_steps(optimizer, params, range(3, 4))
    generator = torch.Generator().manual_seed(3)
    for param, moment in zip(params, moments, strict=True):
        state = optimizer.state[param]
        # A large moment of the original is clipped; what is small is stored to a sixteenth.
        right = 0.9 * moment + 0.1 * torch.randn(param.shape, generator=generator)
        decoded = state["exp_avg"].float() * state["exp_avg_scale"]
        torch.testing.assert_close(decoded, right, rtol=0.13, atol=0.05)


@pytest.mark.compiler
def test_a_group_that_comes_to_a_scale_without_a_kernel_goes_by_the_loop() -> None:
    results: list[list[Parameter]] = []
    for way in ("loop", "fused"):
        optimizer, params = trained("lamb16", implementation=way)
        optimizer.param_groups[0]["scale"] = "upstream"
        take_steps(optimizer, params, range(3, 5))
        results.append(params)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


WAYS = pytest.mark.parametrize(
    ("spec", "way"),
    [
        pytest.param(spec, way, marks=[pytest.mark.compiler] if way == "fused" else [])
        for spec in SPECS
        for way in optimizers.implementations(spec, "cpu")
        if way != "compiled" and not (way == "fused" and "upstream" in spec)
    ],
)


@WAYS
def test_a_state_made_in_inference_mode_can_be_changed_outside_of_it(spec: str, way: Any) -> None:
    results: list[list[Parameter]] = []
    for first in (torch.inference_mode, torch.no_grad):
        torch.manual_seed(0)
        params = [Parameter(torch.randn(shape)) for shape in SHAPES]
        optimizer = optimizers.create(spec, params, implementation=way)
        with first():
            take_steps(optimizer, params, range(2))
        take_steps(optimizer, params, range(2, 4))
        with first():
            take_steps(optimizer, params, range(4, 5))
        take_steps(optimizer, params, range(5, 6))
        results.append(params)
    assert all(map(torch.equal, *results))


@EACH
def test_a_state_loaded_in_inference_mode_can_be_changed_outside_of_it(spec: str) -> None:
    wanted, references = trained(spec)
    optimizer, params = trained(spec)
    with torch.inference_mode():
        optimizer.load_state_dict(saved(spec))
    for each, trains in ((optimizer, params), (wanted, references)):
        take_steps(each, trains, range(3, 5))
    assert all(map(torch.equal, params, references))


@WAYS
def test_parameters_of_inference_mode_are_stepped_in_it(spec: str, way: Any) -> None:
    with torch.inference_mode():
        params = [Parameter(torch.ones(shape)) for shape in SHAPES]
        take_steps(optimizers.create(spec, params, implementation=way), params, range(2))
    assert all(not torch.equal(param, torch.ones_like(param)) for param in params)


def test_a_refusal_says_what_was_found_and_what_was_expected() -> None:
    state_dict = saved("lamb")
    state_dict["state"][2]["exp_avg"] = torch.zeros(4, 3, dtype=torch.int64)
    optimizer, _ = trained("lamb")
    expected = (
        "LAMB cannot load 'exp_avg' of parameter 2: found int64 tensor of shape (4, 3), expected"
        " float32 tensor of shape (3, 4)"
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        optimizer.load_state_dict(state_dict)


@EACH
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_named_in_its_refusal(spec: str) -> None:
    state_dict = saved(spec)
    states = state_dict["state"]
    key = next(key for key, state in states.items() if state)
    states[key][next(iter(states[key]))] = torch.nested.nested_tensor([torch.ones(2)] * 3)
    optimizer, _ = trained(spec)
    with pytest.raises(ValueError, match="found nested float32 tensor, expected "):
        optimizer.load_state_dict(state_dict)


@EACH
@pytest.mark.parametrize(("option", "value"), [("lr", "fast"), ("lr", {}), ("params", [[], {}])])
def test_an_option_of_another_kind_is_refused_and_nothing_changed(
    spec: str, option: str, value: Any
) -> None:
    state_dict = saved(spec)
    group = state_dict["param_groups"][0]
    group[option] = [*value, *group["params"][2:]] if option == "params" else value
    optimizer, _ = trained(spec)
    before = [group["lr"] for group in optimizer.param_groups]
    with pytest.raises(ValueError, match=f"'{option}' of|the option '{option}'"):
        optimizer.load_state_dict(state_dict)
    assert [group["lr"] for group in optimizer.param_groups] == before


@pytest.mark.parametrize("value", [0.5, [0.9], None])
def test_betas_that_are_no_pair_are_refused(value: Any) -> None:
    state_dict = saved("lamb")
    state_dict["param_groups"][0]["betas"] = value
    optimizer, _ = trained("lamb")
    with pytest.raises(ValueError, match=r"the option 'betas': found .*, expected 2 numbers"):
        optimizer.load_state_dict(state_dict)

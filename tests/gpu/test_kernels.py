"""Optimizer steps and checks of the campaign: bytes by hand, targets of samples written by hand."""

from typing import Any

import kernel_marks
import kernels
import plan
import pytest
import torch
from optprof import optimizers
from optprof.scenarios import Scenario, workpiece

# Bytes that a step must move for each parameter, in fp32 and in bf16. LAMB's moments are float32 in
# both; LAMB16's have one byte each.
BYTES = {
    "sm3": (12, 6),
    "sgd-sai": (20, 10),
    "lamb16": (26, 16),
    "lamb": (40, 32),
    "adamw": (28, 14),
    "sgd": (20, 10),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_step_must_move_the_bytes_of_its_rule(name: str):
    for dtype, expected in zip((torch.float32, torch.bfloat16), BYTES[name], strict=True):
        parameter = torch.nn.Parameter(torch.ones(8, 125, dtype=dtype))
        parameter.grad = torch.ones_like(parameter)
        optimizer = optimizers.create(name, [parameter], implementation="foreach")
        optimizer.step()
        assert kernels.needed_bytes(name, optimizer) == 1000 * expected


def test_resnet_101_has_the_314_tensors_of_torchvision():
    scenario = Scenario(device="cuda", **plan.KERNEL_MODELS["resnet101 fp32"])
    parameters = list(workpiece.build(scenario, "meta").model.parameters())
    assert len(parameters) == 314
    assert sum(parameter.numel() for parameter in parameters) == 44_549_160


def test_each_model_has_all_of_ours_by_each_way_and_torch_s_fused_steps():
    jobs = [job for job in plan.kernels() if job.task == "kernel-steps"]
    for model in plan.KERNEL_MODELS:
        ways = {
            tuple(way)
            for job in jobs
            if job.name.startswith(f"kernels {model} ")
            for way in job.arguments["ways"]
        }
        ours = {(name, way) for name in plan.OURS for way in ("fused", "foreach", "compiled")}
        assert ways == ours | {("adamw", "fused"), ("sgd", "fused")}
    checked = [job.arguments["graph"] for job in plan.kernels() if job.task == "kernel-check"]
    assert sorted(checked) == sorted(plan.OURS)


def timed(milliseconds: float, nbytes: int = 900) -> dict[str, Any]:
    samples = [milliseconds / 1000] * 3
    return {"nbytes": nbytes, "warm_up": [9.0], "step": samples, "device": samples, "host": samples}


# 1,000 bytes a millisecond.
COPY = {"bytes": 1000, "seconds": [0.001, 0.001, 7.0]}


@pytest.mark.parametrize(
    ("optimizer", "milliseconds", "met"),
    [("sm3", 1.0, True), ("sm3", 1.01, False), ("lamb", 1.12, True), ("lamb", 1.13, False)],
)
def test_a_large_fused_step_is_held_to_its_share_of_the_copy(
    optimizer: str, milliseconds: float, met: bool
):
    times = {f"{optimizer} fused: times": timed(milliseconds)}
    groups = {f"kernels gpt2-xl fp32 {optimizer}": {"copy": COPY, **times}}
    (row,) = kernel_marks.steps(groups)
    assert row.target is not None
    assert row.target[1] == met
    assert row.share == pytest.approx(0.9 / milliseconds)


def test_on_many_small_tensors_a_fused_step_is_held_to_foreach():
    def target(fused: float, foreach: float) -> tuple[str, bool] | None:
        times = {"sm3 fused: times": timed(fused), "sm3 foreach: times": timed(foreach)}
        groups = {"kernels resnet101 fp32 sm3": {"copy": COPY, **times}}
        row, other = kernel_marks.steps(groups)
        assert other.target is None
        return row.target

    assert target(5.0, 5.0) == ("foreach's time", True)
    assert target(5.1, 5.0) == ("foreach's time", False)


def test_a_target_that_was_not_measured_is_not_met():
    groups: dict[str, dict[str, Any]] = {}
    for model in plan.KERNEL_MODELS:
        for name in plan.OURS:
            times = {f"{name} {way}: times": timed(1.0) for way in ("fused", "foreach")}
            groups[f"kernels {model} {name}"] = {"copy": COPY, **times}
    lines, met = kernel_marks.lines(groups)
    assert met
    assert "\n16 of our 16 targets are met." in lines
    # The same steps again, with a compiled one, change no target.
    again = {"copy": COPY, "sm3 fused: times": timed(50.0), "sm3 compiled: times": timed(2.0)}
    lines, met = kernel_marks.lines({**groups, "kernels gpt2-xl fp32 sm3 compiled": again})
    assert met
    assert any(line.startswith("| gpt2-xl fp32 | sm3 | compiled | 2.000 ms |") for line in lines)
    del groups["kernels gpt2-xl bf16 lamb"]
    lines, met = kernel_marks.lines(groups)
    assert not met
    assert "\n15 of our 16 targets are met." in lines


def test_a_difference_that_is_not_finite_is_the_largest():
    fine = {"difference": 0.5, "moved": 1.0, "finite": True}
    by_shape = {"(7,)": fine, "(3, 5)": {**fine, "difference": float("nan"), "finite": False}}
    groups = {
        "check sm3": {
            "sm3 fp32: differences": by_shape,
            "sm3 fp32: replay": {"same_before": True, "same": True, "difference": 0.0},
        }
    }
    lines, _ = kernel_marks.lines(groups)
    assert "| sm3 | fp32 | nan | 1 | (3, 5) | NOT ALL |" in lines
    assert "- replays of a CUDA graph, sm3 fp32: equal eager steps" in lines

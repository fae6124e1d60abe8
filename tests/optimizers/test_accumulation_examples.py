"""The examples of docs/accumulation.md, run unchanged, and accelerate."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

from optprof.optimizers import accumulation

DOCS = Path(__file__).parents[2] / "docs" / "accumulation.md"
OURS, TRAINER, DESCRIBED, LOGGED = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)


def names() -> dict[str, Any]:
    """Return what the examples leave to the reader."""
    torch.manual_seed(0)
    return {
        "torch": torch,
        "model": nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
        "lr": 0.01,
        "train_loader": [(torch.randn(2, 4), torch.randint(3, (2,))) for _ in range(40)],
        "cross_entropy": cross_entropy,
        "get_constant_schedule_with_warmup": lambda optimizer, warmup_steps: LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warmup_steps)
        ),
        # torch's own cosine schedule has no warm-up.
        "get_cosine_annealing_schedule": lambda optimizer, warmup_steps: CosineAnnealingLR(
            optimizer, T_max=40 - warmup_steps, eta_min=0.2
        ),
    }


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, str(DOCS), "exec"), names)
    return names


def test_our_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = run(OURS, names())["optimizer"]
    assert 1 < optimizer.num_steps < 40
    assert optimizer.num_batches == 40
    assert capsys.readouterr().out.count("last_grad_norm") == optimizer.num_steps


def test_the_first_example_of_the_description_runs() -> None:
    results = run(DESCRIBED, names())
    optimizer = results["optimizer"]
    assert 1 < optimizer.num_steps < optimizer.num_batches == 40
    # The learning rate went up by its own schedule, the threshold down to the end of the cosine's.
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.01
    assert 0.2 <= optimizer.target.value < 0.3


def test_the_second_example_counts_the_micro_batches_of_each_step() -> None:
    setup = DESCRIBED.partition("for inputs")[0]
    results = run(setup + LOGGED, names())
    sampled, batches = results["num_batches_sampled"], results["step_batches"]
    assert len(sampled) == results["optimizer"].num_steps > 1
    assert batches == [sum(sampled[: index + 1]) for index in range(len(sampled))]
    assert max(sampled) > 1


def test_trainer_steps_through_the_wrapper(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=32)
    texts = torch.randint(32, (24, 8))
    names_of_example = {
        "torch": torch,
        "GradientNormThreshold": accumulation.GradientNormThreshold,
        "model": transformers.GPT2LMHeadModel(config),
        "dataset": [{"input_ids": text, "labels": text} for text in texts],
        "folder": str(tmp_path),
    }
    before = [param.detach().clone() for param in names_of_example["model"].parameters()]
    optimizer = run(TRAINER, names_of_example)["optimizer"]
    assert optimizer.num_batches == 12
    assert 0 < optimizer.num_steps < 12
    assert not all(map(torch.equal, before, names_of_example["model"].parameters()))


def test_a_hypothesis_test_takes_its_closure_through_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    model = nn.Linear(4, 3)
    wrapper = accumulation.MetricHypothesisTest(torch.optim.SGD(model.parameters(), lr=0.1))
    model, optimizer = accelerator.prepare(model, wrapper)

    def closure() -> torch.Tensor:
        loss = model(torch.ones(2, 4)).square().mean()
        accelerator.backward(loss)
        return loss

    optimizer.step(closure)
    assert (wrapper.num_steps, wrapper.running_mean) == (1, float(wrapper.loss))


def test_accelerate_prepares_the_wrapper() -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    wrapper = accumulation.ScheduledBatch(torch.optim.SGD(model.parameters(), lr=0.1), 2)
    model, optimizer = accelerator.prepare(model, wrapper)
    start = model.weight.detach().clone()
    moved = []
    for _ in range(4):
        accelerator.backward(model(torch.ones(2, 4)).square().mean())
        optimizer.step()
        moved.append(not torch.equal(model.weight, start))
    assert moved == [False, True, True, True]
    assert wrapper.num_steps == 2

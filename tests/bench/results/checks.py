"""Checks of an optimizer in a process of its own: FSDP2, torch.compile and training loss.

A check returns a word: "yes", a deviation, or one line that says how it failed.
"""

import multiprocessing
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import mean
from typing import Any

import torch

# Loaded here, once, and not in the fork of every check.
import torch._dynamo
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from optprof import optimizers
from optprof.profiler.training.iteration import needs_closure
from optprof.profiler.training.optimizer import set_training

RANKS = 2
STEPS = 3
TOLERANCE = 1e-4


class UncheckedError(Exception):
    """A check does not fit an optimizer; the text says why."""


def model_of() -> nn.Module:
    """Return a small model; its 3 rows do not divide into 2 shards."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3), nn.Linear(3, 4), nn.Linear(4, 2))


def trained(
    spec: str, wrap: Callable[[Any], Any], shard: Callable[[nn.Module], object] = lambda _: None
) -> list[Tensor]:
    """Return the weights after a few steps; `wrap` may compile the step, `shard` the model."""
    model = model_of()
    shard(model)
    goes_by_names = optimizers.goes_by_names(spec)
    params: Any = model.named_parameters() if goes_by_names else model.parameters()
    optimizer = optimizers.create(spec, list(params))
    set_training(optimizer, True)
    if needs_closure(optimizer):
        raise UncheckedError("not checked: its step needs a closure")
    step = wrap(optimizer.step)
    for number in range(STEPS):
        torch.manual_seed(100 + number)
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        torch.manual_seed(200 + number)
        step()
    return [
        getattr(param, "full_tensor", lambda param=param: param)().detach().clone()
        for param in model.parameters()
    ]


def verdict(found: list[Tensor], wanted: list[Tensor]) -> str:
    """Return "yes" if the weights agree within TOLERANCE, else their largest difference."""
    far = max(
        ((one - other).abs().max() / other.abs().max().clamp(min=1e-12)).item()
        for one, other in zip(found, wanted, strict=True)
    )
    return "yes" if far <= TOLERANCE else f"differs by {far:.1g}"


def compiled(spec: str) -> str:
    """Compile the step, as one graph if possible, and compare it with the eager one.

    The backend is aot_eager: it traces, functionalizes and runs without writing kernels.
    """
    wanted = trained(spec, lambda step: step)
    try:
        whole = torch.compile(backend="aot_eager", fullgraph=True)
        return verdict(trained(spec, whole), wanted)
    except Exception:
        torch._dynamo.reset()
    word = verdict(trained(spec, torch.compile(backend="aot_eager")), wanted)
    return "yes, in parts" if word == "yes" else word


def sharded(spec: str) -> str:
    """Shard a model over two ranks by FSDP2 and compare its weights with unsharded training."""
    wanted = trained(spec, lambda step: step)
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("fork")
        ours, its = context.Pipe(duplex=False)
        ranks = [
            context.Process(target=_rank, args=(spec, rank, f"{folder}/store", its), daemon=True)
            for rank in range(RANKS)
        ]
        for process in ranks:
            process.start()
        its.close()
        try:
            # The first answer: after an error the other rank would wait for ever.
            ok, answer = ours.recv()
        except EOFError:
            return "no: its process ended"
        finally:
            for process in ranks:
                process.kill()
                process.join()
    return verdict([torch.tensor(each) for each in answer], wanted) if ok else f"no: {answer}"


def _rank(spec: str, rank: int, store: str, answers: Connection) -> None:
    try:
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
        mesh = init_device_mesh("cpu", (RANKS,))
        weights = trained(spec, lambda step: step, lambda model: fully_shard(model, mesh=mesh))
        if rank == 0:
            answers.send((True, [each.tolist() for each in weights]))
    except Exception as error:
        answers.send((False, _one_line(error)))


def loss(spec: str) -> str:
    """Return the final loss of the small GPT at the rate that tests/bench/training.py gives."""
    import training

    task, settings = training.gpt(), training.SPECS["gpt"][spec]
    final = mean(training.train(task, settings, seed=seed).final for seed in training.SEEDS["gpt"])
    return f"{final:.4f}"


CHECKS: dict[str, Callable[[str], str]] = {
    "FSDP2": sharded,
    "torch.compile": compiled,
    "loss": loss,
}


def alone(check: str, spec: str, seconds: float) -> str:
    """Return the word of a check that runs in a fork with a time limit."""
    # Not a daemon: the check of FSDP2 has children. They share its session and end with it.
    context = multiprocessing.get_context("fork")
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(check, spec, its))
    process.start()
    its.close()
    try:
        return ours.recv() if ours.poll(seconds) else f"no: not done in {seconds:g} s"
    except EOFError:
        process.join()
        return f"no: its process ended with status {process.exitcode}"
    finally:
        if process.is_alive():
            process.join(0.5)
        if process.is_alive():
            os.killpg(process.pid or 0, 9)
        process.join()


def _answer(check: str, spec: str, answers: Connection) -> None:
    os.setsid()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # What an optimizer prints does not belong among the lines of progress.
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, sys.stdout.fileno())
    os.dup2(sink, sys.stderr.fileno())
    try:
        answers.send(CHECKS[check](spec))
    except UncheckedError as error:
        answers.send(str(error))
    except Exception as error:
        answers.send(f"no: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    """Return the error's type and first line, and the place in the optimizer's package."""
    text = next(iter(str(error).strip().splitlines()), "")[:120]
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "optim" in Path(frame.filename).parent.name]
    place = f" ({Path(inside[-1].filename).name}:{inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {text}{place}"

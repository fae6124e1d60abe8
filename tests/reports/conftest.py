"""Records made by hand, of small whole numbers whose sums can be checked on paper."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from optprof.profiler.records.record import Environment, Machine, Memory, Record
from optprof.profiler.records.timeline import BlockSource, HeldBlock, PeakGroup, Stretch, Timeline
from optprof.scenarios.spec import Scenario

ENVIRONMENT = Environment(
    python="3.11.7",
    platform="Linux-6.1",
    machine=Machine(cpu="A Processor", cores=2, memory_bytes=8 * 2**30),
    versions={"torch": "2.13.0", "optprof": "0.1.0"},
    command=("optprof", "profile", "tiny", "-o", "adamw,sm3:momentum=0.0"),
    git_commit="0123456789ab",
    seed=7,
    time="2025-11-21T01:32:05+00:00",
    threads=2,
)
STATE_BYTES = {"adamw": 8_000, "sgd-sai": 4_000, "lamb16": 2_000, "sm3": 8}

# The options that decide the bytes of the state, with their usual values.
DECIDING_OPTIONS: dict[str, dict[str, Any]] = {
    "adamw": {"amsgrad": False},
    "sgd-sai": {"momentum": 0.9},
    "lamb16": {"scale": "max"},
    "sm3": {"momentum": 0.0},
}

Make = Callable[..., Record]
GIB = 2**30


def memory(state: int, **changes: Any) -> Memory:
    """Memory of 1,000 fp32 parameters, whose step peaks with as many bytes of temporaries."""
    parts = {"parameter": 4_000, "gradient": 4_000, "optimizer_state": state, "temporary": 4_000}
    usual = Memory(
        parameters=4_000,
        gradients=4_000,
        optimizer_state=state,
        state_by_key={"exp_avg": state},
        state_by_key_dtype={"exp_avg": {"float32": state}},
        optimizer_state_allocated=state + 512,
        peak_allocated=12_000 + state,
        peak_reserved=2**21,
        peak_phase="step",
        peak_by_category=parts,
        peak_by_phase={"step": 12_000 + state},
    )
    return replace(usual, **changes)


@pytest.fixture(scope="session")
def simulated() -> Make:
    """A simulated record of an optimizer on the model "tiny"."""

    def make(
        optimizer: str = "adamw",
        *,
        options: Mapping[str, Any] | None = None,
        state: int | None = None,
        **changes: Any,
    ) -> Record:
        settings = {
            name: changes.pop(name)
            for name in list(changes)
            if name in Scenario.__dataclass_fields__
        }
        scenario = Scenario(
            **{
                "model": "tiny",
                "optimizer": optimizer,
                "options": options or {},
                "sequence_length": 16,
            }
            | settings
        )
        results = {
            "origin": "simulated",
            "deciding_options": DECIDING_OPTIONS.get(optimizer),
            "model_family": "tiny",
            "parameter_count": 1_000,
            "memory": memory(STATE_BYTES.get(optimizer, 6_000) if state is None else state),
            "environment": ENVIRONMENT,
        }
        return Record(scenario=scenario, **(results | changes))

    return make


@pytest.fixture(scope="session")
def timed() -> Make:
    """A record of step times on a CPU, of all parameters or of a share of them."""

    def make(
        optimizer: str = "adamw",
        *,
        step: tuple[float, ...] = (0.2, 0.1, 0.3),
        share: float | None = None,
        **changes: Any,
    ) -> Record:
        names = ("model", "options", "dtype")
        settings = {"model": "tiny", "options": {}} | {
            name: changes.pop(name) for name in names if name in changes
        }
        scenario = Scenario(
            optimizer=optimizer, device="cpu", implementation="loop", sequence_length=16, **settings
        )
        results = {
            "origin": "estimated" if share else "measured",
            "deciding_options": DECIDING_OPTIONS.get(optimizer),
            "measured_share": share,
            "times": {"step": step},
            "warmup": {"step": (0.9,)},
            "environment": ENVIRONMENT,
        }
        return Record(scenario=scenario, **(results | changes))

    return make


@pytest.fixture(scope="session")
def mixed(simulated: Make, timed: Make) -> list[Record]:
    """Simulated, measured, estimated and failed records; the SGD-SaI paper has some of them."""
    published = [
        simulated(name, model=model, workload="state")
        for name in ("adamw", "sgd-sai")
        for model in ("gpt2-xl", "vit-h14")
    ]
    too_large = simulated(
        "lamb16", memory=None, outcome="out-of-memory", error="needs 26.1 GiB of 24 GiB"
    )
    return [
        simulated("adamw"),
        simulated("sm3", options={"momentum": 0.0}),
        simulated("sm3", options={"momentum": 0.9}, state=4_008),
        simulated("sgd-sai", options={"momentum": 0.9}),
        *published,
        timed("adamw", times={"forward": (0.1, 0.1), "backward": (0.2, 0.2), "step": (0.1, 0.1)}),
        timed("sgd-sai", options={"momentum": 0.9}, share=0.25),
        too_large,
    ]


@pytest.fixture(scope="session")
def timeline() -> Timeline:
    """One step of three phases, whose peak is 6 GiB.

    It has 1 GiB of parameters, up to 2 of activations, and 3 of temporaries at the peak.
    """
    weight = BlockSource("parameter", "Embedding", "<b>wte</b>.*.weight", "", "")
    product = BlockSource("activation", "Linear", "h.*.mlp.c_fc", "aten::addmm", "model.py:12")
    copy = BlockSource("temporary", "Linear", "h.*.mlp.c_fc", "aten::mm", "")
    loss = BlockSource("activation", "", "", "aten::nll_loss", "model.py:20")
    block = HeldBlock(
        block_bytes=3 * GIB,
        requested_bytes=3 * GIB,
        category="temporary",
        step=1,
        phase="backward",
        module="h.3.mlp.c_fc",
        op="aten::addmm",
        line="model.py:12",
    )
    return Timeline(
        steps=1,
        phases=(
            Stretch(step=1, phase="forward", events=2, samples=3),
            Stretch(step=1, phase="backward", events=4, samples=2),
            Stretch(step=1, phase="step", events=0, samples=1),
        ),
        places=(0, 1, 2, 1, 4, 0),
        categories={
            "parameter": (GIB,) * 6,
            "activation": (0, GIB, 2 * GIB, 2 * GIB, 0, 0),
            "temporary": (0, 0, 0, 3 * GIB, 0, 0),
        },
        reserved=(2 * GIB, 2 * GIB, 4 * GIB, 7 * GIB, 7 * GIB, 7 * GIB),
        peak=3,
        largest=(
            block,
            replace(
                block,
                category="parameter",
                step=0,
                phase="build",
                op="",
                line="",
                module="<b>wte</b>",
            ),
        ),
        groups=(
            PeakGroup(source=copy, phase="backward", blocks=2, nbytes=3 * GIB),
            PeakGroup(source=product, phase="forward", blocks=12, nbytes=2 * GIB - 512),
            PeakGroup(source=weight, phase="build", blocks=4, nbytes=GIB),
            PeakGroup(source=loss, phase="forward", blocks=1, nbytes=512),
        ),
        sources=(weight, product, copy, loss),
        # Forward allocates twice; backward begins with a copy, and frees an activation last.
        events=(0, 2, 4, 3, -2, 0),
        layers=("", "3", "", "11", "0", ""),
    )

"""Show on which settings the SGD-SaI paper's claims of fitting hold (arXiv 2412.11768).

The claims: full-precision GPT-2 1.5B on one RTX 3090, Llama2-7B on one A100-80GB. Prints the table
of docs/fit.md; takes a few minutes.
"""

from dataclasses import replace
from itertools import product

from optprof.profiler.records.fits import Fit
from optprof.profiler.running.plan import plan
from optprof.profiler.simulating.fitting import EXPANDABLE, Fitting
from optprof.scenarios import Scenario

GIB = 2**30
OPTIMIZERS = ("adamw", "sgd-sai")
GPT2 = [{"activation_function": name} for name in ("gelu_new", "gelu_pytorch_tanh")]


def scenarios(model: str, gpu: str, sequence_length: int, **changes: object) -> list[Scenario]:
    """Return the scenario of each optimizer: batch 1, fp32."""
    question = {"model": model, "device": "sim", "sequence_length": sequence_length, **changes}
    per_optimizer = plan({**question, "optimizer": name} for name in OPTIMIZERS)
    return [replace(scenario, gpu=gpu) for scenario in per_optimizer]


def settings() -> list[list[Scenario]]:
    """Return a group of scenarios for each setting."""
    small = [
        scenarios("gpt2-xl", "rtx3090", length, config=config, checkpointing=checkpointing)
        for length, config, checkpointing in product((512, 1024), GPT2, (False, True))
    ]
    large = [
        scenarios("llama2-7b", "a100-80", length, checkpointing=on)
        for length, on in product((512, 1024, 2048, 4096), (False, True))
    ]
    return small + large


def row(usual: Fit, expandable: Fit) -> str:
    """Return one line of the table: the requested setting, and with expandable segments."""
    scenario = usual.scenario
    activation = scenario.config.get("activation_function", "silu")
    needed = "" if usual.needed is None else f"{usual.needed / GIB:.2f}"
    left = [
        (
            "does not fit"
            if fit.left is None
            else f"{fit.left / GIB:.2f} left, up to {fit.largest_batch}"
        )
        for fit in (usual, expandable)
    ]
    checkpointing = "yes" if scenario.checkpointing else "no"
    cells = (
        scenario.model,
        scenario.gpu,
        scenario.sequence_length,
        activation,
        checkpointing,
        scenario.optimizer,
        needed,
        *left,
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    """Print the table, each line as soon as it is complete."""
    print(
        "| model | GPU | sequence | activation | checkpointing | optimizer | would reserve, GiB |"
        " batch 1 | with expandable segments |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    fitting = Fitting()
    for group in settings():
        for scenario in group:
            expandable = replace(scenario, alloc_conf=EXPANDABLE)
            print(row(fitting.fit(scenario), fitting.fit(expandable)), flush=True)


if __name__ == "__main__":
    main()

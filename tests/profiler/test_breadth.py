"""Twenty of the configurations in tests/bench/breadth.py, and the script's verdicts and list."""

import os
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench" / "breadth.py"
TWENTY = (
    "bart",
    "bert",
    "bloom",
    "codegen",
    "falcon",
    "gemma2",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gptj",
    "llama",
    "mpt",
    "olmo2",
    "opt",
    "phi3",
    "qwen3",
    "xlnet",
    "deit",
    "dinov2",
    "vit",
)


def load() -> Any:
    """Return the script as a module, under the name that its scenarios use."""
    spec = spec_from_file_location("breadth", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


breadth = load()


@pytest.mark.parametrize("name", TWENTY)
@pytest.mark.filterwarnings("ignore")
def test_a_small_model_of_transformers_is_simulated_as_it_trains(name: str):
    assert breadth.failure(name) is None


def test_every_name_of_the_list_is_a_configuration_with_a_reason():
    reasons = breadth.listed_failures()
    assert set(reasons) <= {*breadth.LANGUAGE, *breadth.VISION}
    assert all(reasons.values())
    assert not set(reasons) & set(TWENTY)


def listing(
    monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None], listed: dict[str, str]
) -> int:
    """Return the exit status for these reasons of failure and this list of known ones."""
    monkeypatch.setattr(breadth, "alone", lambda name, _: reasons[name])
    monkeypatch.setattr(breadth, "listed_failures", lambda: listed)
    monkeypatch.setattr(sys, "argv", ["breadth.py", *reasons])
    return breadth.main()


def test_a_failure_outside_of_the_list_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert listing(monkeypatch, {"llama": None, "gpt2": "peak with adamw: +2.0 %"}, {}) == 1
    assert "gpt2 fails and is not on the list" in capsys.readouterr().out
    assert (
        listing(monkeypatch, {"llama": None, "gpt2": "peak with adamw: +2.0 %"}, {"gpt2": "peak"})
        == 0
    )
    assert "1 of 2 pass (50.0 %)" in capsys.readouterr().out


def test_a_name_on_the_list_that_passes_must_be_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert listing(monkeypatch, {"llama": None}, {"llama": "peak"}) == 1
    assert "llama passes now; take it off breadth_failures.txt" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_configuration_that_crashes_or_hangs_fails_with_a_reason(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(breadth, "failure", lambda _: os._exit(3))
    assert breadth.alone("llama", 60) == "its process ended with status 3"
    monkeypatch.setattr(breadth, "failure", lambda _: time.sleep(60))
    assert breadth.alone("llama", 0.2) == "not done in 0.2 seconds"


def test_a_peak_that_deviates_by_more_than_1_percent_is_a_failure(monkeypatch: pytest.MonkeyPatch):
    counts = {"parameters": 8, "state": 16}
    monkeypatch.setattr(breadth, "simulated", lambda _: (breadth.Counts(**counts, peak=990), set()))
    for peak, reason in (
        (1000, None),
        (1001, "peak with adamw: -1.1 %"),
        (979, "peak with adamw: +1.1 %"),
    ):
        monkeypatch.setattr(
            breadth, "measured", lambda *_, peak=peak: breadth.Counts(**counts, peak=peak)
        )
        assert breadth.failure("llama") == reason
    monkeypatch.setattr(
        breadth, "measured", lambda *_: breadth.Counts(parameters=8, state=12, peak=990)
    )
    assert breadth.failure("llama") == "state with adamw: 16 bytes, really 12"


def test_buffers_inside_a_kernel_are_not_tensors_of_the_program():
    """A convolution on the CPU allocates buffers inside; the peak outside is that of its output."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        a = torch.ones(1000)
        b = a.sort(stable=True).values
        del a, b
    assert breadth._peak(profile, {"aten::sort", "aten::ones"}) == 4000 + 4000 + 8000
    assert breadth._peak(profile, set()) > 4000 + 4000 + 8000

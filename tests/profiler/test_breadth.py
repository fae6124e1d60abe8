"""Twenty of the configurations that tests/bench/breadth.py runs, and how it judges and lists
them.
"""

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
    """The script as a module, by the name that its scenarios give."""
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
    known = breadth.known()
    assert set(known) <= {*breadth.LANGUAGE, *breadth.VISION}
    assert all(known.values())
    assert not set(known) & set(TWENTY)


def listing(
    monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str | None], listed: dict[str, str]
) -> int:
    """The status of a run that finds these reasons, with this list."""
    monkeypatch.setattr(breadth, "alone", lambda name, _: reasons[name])
    monkeypatch.setattr(breadth, "known", lambda: listed)
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


def test_a_name_on_the_list_that_passes_is_to_be_taken_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert listing(monkeypatch, {"llama": None}, {"llama": "peak"}) == 1
    assert "llama passes now; take it off breadth_failures.txt" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_a_configuration_that_crashes_or_never_ends_is_a_reason_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(breadth, "failure", lambda _: os._exit(3))
    assert breadth.alone("llama", 60) == "its process ended with status 3"
    monkeypatch.setattr(breadth, "failure", lambda _: time.sleep(60))
    assert breadth.alone("llama", 0.2) == "not done in 0.2 seconds"


def test_a_peak_that_is_off_by_more_than_1_percent_is_a_reason(monkeypatch: pytest.MonkeyPatch):
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


def test_what_a_kernel_takes_for_itself_is_no_tensor_of_the_program():
    """A convolution on the CPU takes buffers of its own; the highest sum outside of it is that of
    its output.
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        a = torch.ones(1000)
        b = a.sort(stable=True).values
        del a, b
    assert breadth._peak(profile, {"aten::sort", "aten::ones"}) == 4000 + 4000 + 8000
    assert breadth._peak(profile, set()) > 4000 + 4000 + 8000

"""The CUDA kernels as compiled for GPUs, judged by their PTX and by NVIDIA's disassembler.

Triton compiles for a GPU that is not there. `tests/support/cuda_kernels.py` makes the steps.
"""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")

SCRIPT = Path(__file__).parents[1] / "support" / "cuda_kernels.py"
# With 65,536 registers a multiprocessor still has 512 threads in flight.
MOST_REGISTERS = 128
# Each element is moved once, in one place of the kernel's code.
ONE_PASS = {"sgd_sai_kernels.update"}


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """Return the kernels of the package, and a row for each that steps launch, on each target."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, "-P", SCRIPT], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_every_kernel_compiles_for_every_target(compiled: dict[str, Any]) -> None:
    assert compiled["kernels"]
    pairs = {(row["kernel"], row["target"]) for row in compiled["rows"]}
    assert pairs == {(kernel, target) for kernel in compiled["kernels"] for target in (80, 90, 100)}


def test_no_kernel_spills_registers(compiled: dict[str, Any]) -> None:
    assert not [
        row
        for row in compiled["rows"]
        if row["spilled"] or not 0 < row["registers"] <= MOST_REGISTERS
    ]


def test_aligned_tensors_are_moved_by_16_bytes(compiled: dict[str, Any]) -> None:
    rows = [row for row in compiled["rows"] if row["aligned"]]
    assert {row["dtype"] for row in rows} == {"float32", "bfloat16", "float16"}
    assert not [row for row in rows if row["read"] and not row["wide_loads"]]
    assert not [row for row in rows if row["written"] and not row["wide_stores"]]


def test_unaligned_tensors_are_not(compiled: dict[str, Any]) -> None:
    rows = [row for row in compiled["rows"] if row["aligned"] is False]
    assert rows
    assert not [row for row in rows if row["wide_loads"] or row["wide_stores"]]


def test_a_kernel_of_one_pass_moves_the_bytes_that_the_estimate_counts(
    compiled: dict[str, Any],
) -> None:
    rows = [row for row in compiled["rows"] if row["kernel"] in ONE_PASS and row["aligned"]]
    for row in rows:
        # A turn of the kernel's loop has one block of elements, which all its threads share.
        assert row["threads"] * row["wide_loads"] == row["block"] * row["read"], row
        assert row["threads"] * row["wide_stores"] == row["block"] * row["written"], row
    assert {
        (row["dtype"], row["read"] + row["written"])
        for row in rows
        if "momentum=0" not in row["setting"]
    } == {("float32", 20), ("bfloat16", 10), ("float16", 10)}

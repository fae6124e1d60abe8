"""Skip the tests marked `gpu` or `compiler` on a machine that has none, with the reason."""

import os
import shutil
import signal

import pytest
import torch

if not torch.cuda.is_available():
    # Triton reads it at its import: the kernels for CUDA then run on CPU tensors, interpreted.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Under a shell that runs the tests in the background, they and their children would ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {"gpu": "a CUDA device"} if not torch.cuda.is_available() else {}
    if not any(map(shutil.which, ("g++", "clang++"))):
        missing["compiler"] = "a C++ compiler"
    for item in items:
        for marker, name in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"needs {name}"))

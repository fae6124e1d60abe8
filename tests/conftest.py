"""What holds for every test: those marked `gpu` or `compiler` are skipped, with the reason, where
there is none.
"""

import shutil
import signal

import pytest
import torch

# A shell that starts the tests in the background lets them ignore Ctrl-C, and with them whatever
# they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    lacking = {"gpu": "a CUDA device"} if not torch.cuda.is_available() else {}
    if not any(map(shutil.which, ("g++", "clang++"))):
        lacking["compiler"] = "a C++ compiler"
    for item in items:
        for marker, what in lacking.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=f"needs {what}"))

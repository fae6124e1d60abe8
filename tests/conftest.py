"""What holds for every test: those marked `gpu` need a CUDA device and are skipped, with the reason, where there is none."""

import signal

import pytest
import torch

# A shell that starts the tests in the background lets them ignore Ctrl-C, and with them whatever they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

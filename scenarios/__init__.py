"""Scenarios as data, and what they name: models, batches, GPUs and suites."""

from .spec import Scenario

__all__ = ["Scenario"]

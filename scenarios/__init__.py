"""What is asked: a scenario as data, and the models that it can name."""

from .spec import Scenario

__all__ = ["Scenario"]

"""Gradient quality control: wrappers of any optimizer that decide after each micro-batch whether to
step.
"""

from .accumulation import Accumulation
from .catalogue import available, create, describe, option_defaults
from .hypothesis_test import MetricHypothesisTest
from .noise_scale import GradientNoiseScale
from .schedules import CosineTarget, NormWarmupScheduler
from .wrappers import GradientNormRescaler, GradientNormThreshold, ScheduledBatch

__all__ = [
    "Accumulation",
    "CosineTarget",
    "GradientNoiseScale",
    "GradientNormRescaler",
    "GradientNormThreshold",
    "MetricHypothesisTest",
    "NormWarmupScheduler",
    "ScheduledBatch",
    "available",
    "create",
    "describe",
    "option_defaults",
]

"""Gradient quality control: wrappers that decide after each micro-batch whether to step."""

from .accumulation import Accumulation
from .catalogue import available, create, describe, option_defaults
from .noise_scale import GradientNoiseScale
from .target import CosineTarget, NormWarmupScheduler
from .wrappers import (
    GradientNormRescaler,
    GradientNormThreshold,
    MetricHypothesisTest,
    ScheduledBatch,
)

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

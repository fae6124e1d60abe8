"""Checks of the options that an optimizer is given, in torch's words."""

from collections.abc import Mapping

from torch import Tensor


def require_not_negative(values: Mapping[str, float | Tensor]) -> None:
    """ValueError for the first value below 0, and for a tensor of more than one element."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(
                f"Tensor {'lr' if name == 'learning rate' else name} must be 1-element, got one of"
                f" shape {tuple(value.shape)}"
            )
        if not value >= 0.0:
            raise ValueError(f"Invalid {name}: {value}, must be >= 0")


def require_positive(values: Mapping[str, float | None]) -> None:
    """ValueError for the first value that is neither above 0 nor None."""
    for name, value in values.items():
        if value is not None and not value > 0.0:
            raise ValueError(f"Invalid {name}: {value}, must be > 0")


def require_fraction(values: Mapping[str, float]) -> None:
    """ValueError for the first value outside [0, 1)."""
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"Invalid {name}: {value}, must be in [0, 1)")


def require_betas(betas: tuple[float, float]) -> None:
    """ValueError where they are not two, and for the first decay rate outside [0, 1)."""
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas}, must be two decay rates")
    require_fraction({f"beta parameter at index {index}": beta for index, beta in enumerate(betas)})

"""Names of all optimizers of the table: the catalogue, torch's others and pytorch_optimizer's."""

import torch
from torch.optim.optimizer import Optimizer

from optprof import optimizers


def every_optimizer() -> list[str]:
    """Return each optimizer once, as `optprof profile --optimizers` takes it."""
    catalogue = optimizers.available("optprof", "torch", "pytorch_optimizer")
    return [*catalogue, *_of_torch(catalogue), *_of_pytorch_optimizer(catalogue)]


def _of_torch(catalogue: tuple[str, ...]) -> list[str]:
    classes = [
        value
        for value in vars(torch.optim).values()
        if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
    ]
    return sorted(
        f"torch.optim:{one.__name__}" for one in classes if one.__name__.lower() not in catalogue
    )


def _of_pytorch_optimizer(catalogue: tuple[str, ...]) -> list[str]:
    from pytorch_optimizer.optimizer import OPTIMIZERS  # pyright: ignore[reportMissingImports]

    # A name that it shares with the catalogue is the same class, unless the catalogue has it from
    # torch or from us.
    same = {
        name.replace("-", "")
        for name in catalogue
        if optimizers.describe(name).package == "pytorch_optimizer"
    }
    return sorted(
        f"pytorch_optimizer:{one.__name__}"
        for name, one in OPTIMIZERS.items()
        if name not in same and one.__module__.startswith("pytorch_optimizer")
    )

"""The baselines: torch's own optimizers, as the catalogue offers them."""

import torch

from .entry import Description, Entry

_TWO_AVERAGES = "two tensors like the parameter and a float32 step count: 8 bytes a parameter in float32, 12 with amsgrad"

BASELINES = {
    "adam": Entry(
        factory=torch.optim.Adam,
        description=Description(
            summary="averages of the gradient and of its square, for every element",
            paper="https://arxiv.org/abs/1412.6980",
            state=_TWO_AVERAGES,
            decided_by=("amsgrad",),
        ),
    ),
    "adamw": Entry(
        factory=torch.optim.AdamW,
        description=Description(
            summary="Adam with weight decay apart from the gradient",
            paper="https://arxiv.org/abs/1711.05101",
            state=_TWO_AVERAGES,
            decided_by=("amsgrad",),
        ),
    ),
    "sgd": Entry(
        factory=torch.optim.SGD,
        options={"momentum": 0.9},
        description=Description(
            summary="gradient descent with momentum (0.9 unless said)",
            paper="https://proceedings.mlr.press/v28/sutskever13.html",
            state="one tensor like the parameter: 4 bytes a parameter in float32; nothing at momentum 0",
            decided_by=("momentum",),
        ),
    ),
}

"""The baselines: torch's own optimizers, as the catalogue offers them."""

import torch

from .entry import Description, Entry
from .muon import Muon

_TWO_AVERAGES = (
    "two tensors like the parameter and a float32 step count: 8 bytes a parameter in float32, 12"
    " with amsgrad"
)

BASELINES = {
    "adafactor": Entry(
        factory=torch.optim.Adafactor,
        package="torch",
        # To save memory, says torch: its foreach holds one more tensor of every parameter's size.
        foreach_by_default=False,
        description=Description(
            summary=(
                "the square of the gradient averaged by rows and by columns, steps clipped to their"
                " size"
            ),
            paper="https://arxiv.org/abs/1804.04235",
            state=(
                "one number for each row and each column of the last two axes and a float32 step"
                " count; like the parameter for a vector"
            ),
        ),
    ),
    "adagrad": Entry(
        factory=torch.optim.Adagrad,
        package="torch",
        description=Description(
            summary=(
                "the sum of the gradient's squares, for every element; its state is there before"
                " the first step"
            ),
            paper="https://jmlr.org/papers/v12/duchi11a.html",
            state=(
                "one tensor like the parameter and a float32 step count: 4 bytes a parameter in"
                " float32"
            ),
        ),
    ),
    "adam": Entry(
        factory=torch.optim.Adam,
        package="torch",
        description=Description(
            summary="averages of the gradient and of its square, for every element",
            paper="https://arxiv.org/abs/1412.6980",
            state=_TWO_AVERAGES,
            decided_by=("amsgrad",),
        ),
    ),
    "adamw": Entry(
        factory=torch.optim.AdamW,
        package="torch",
        description=Description(
            summary="Adam with weight decay apart from the gradient",
            paper="https://arxiv.org/abs/1711.05101",
            state=_TWO_AVERAGES,
            decided_by=("amsgrad",),
        ),
    ),
    "muon": Entry(
        factory=Muon,
        package="torch",
        description=Description(
            summary=(
                "torch's Muon, momentum made orthogonal, for matrices; torch's AdamW for all else"
            ),
            paper="https://kellerjordan.github.io/posts/muon/",
            state=(
                "a matrix: one tensor like it, 4 bytes a parameter in float32; all else as AdamW, 8"
                " bytes a parameter and a step count"
            ),
        ),
    ),
    "rmsprop": Entry(
        factory=torch.optim.RMSprop,
        package="torch",
        description=Description(
            summary="an average of the gradient's square, for every element",
            paper="https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
            state=(
                "one tensor like the parameter and a step count: 4 bytes a parameter in float32; 4"
                " more each for momentum and centered"
            ),
            decided_by=("momentum", "centered"),
        ),
    ),
    "sgd": Entry(
        factory=torch.optim.SGD,
        package="torch",
        options={"momentum": 0.9},
        description=Description(
            summary="gradient descent with momentum (0.9 unless said)",
            paper="https://proceedings.mlr.press/v28/sutskever13.html",
            state=(
                "one tensor like the parameter: 4 bytes a parameter in float32; nothing at"
                " momentum 0"
            ),
            decided_by=("momentum",),
        ),
    ),
}

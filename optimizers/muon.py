"""Muon for the matrices of a model and AdamW for all other parameters, as one optimizer.

torch's Muon takes only matrices, and a model has biases, norms and convolutions too. One optimizer
for both means one state, one schedule and one measurement.
https://kellerjordan.github.io/posts/muon/
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW
from torch.optim import Muon as TorchMuon
from torch.optim.optimizer import Optimizer, ParamsT

from .arguments import Group, groups_of, split
from .loading import Loading, Shapes, lasting


class Muon(Loading):
    """torch.optim.Muon on every 2-D parameter, torch.optim.AdamW on all others, both unchanged.

    Embeddings and output layers are matrices too. To train them with AdamW, as Muon's author does,
    put them into a group with `algorithm="adamw"`. By default Muon's steps are scaled to AdamW's
    size (`adjust_lr_fn`), so that one learning rate and one weight decay suit both. A group of both
    kinds is split in two, each with its `algorithm`.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        eps: float = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        adamw_eps: float = 1e-8,
        *,
        foreach: bool | None = None,
    ) -> None:
        of_both: Group = {"lr": lr, "weight_decay": weight_decay}
        of_muon: Group = {
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_coefficients": ns_coefficients,
            "eps": eps,
            "ns_steps": ns_steps,
        }
        of_muon["adjust_lr_fn"] = adjust_lr_fn
        # torch checks the values, on dummy parameters.
        TorchMuon([torch.empty(0, 0)], **of_both, **of_muon)
        AdamW([torch.empty(0)], **of_both, betas=betas, eps=adamw_eps)
        super().__init__(
            groups_of(params),
            {**of_both, **of_muon, "betas": betas, "adamw_eps": adamw_eps, "foreach": foreach},
        )

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, as one for each of the two algorithms."""
        matrices, others = split(
            param_group, lambda param: param.ndim == 2 and param_group.get("algorithm") != "adamw"
        )
        if matrices["params"]:
            super().add_param_group({**matrices, "algorithm": "muon"})
        if others["params"]:
            super().add_param_group(
                {"eps": self.defaults["adamw_eps"], **others, "algorithm": "adamw"}
            )
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure` returned.

        The closure is called once, with gradients enabled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with lasting(param for group in self.param_groups for param in group["params"]):
            for inner in self._inner:
                inner.step()
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _shapes(self, param: Tensor, options: Group) -> Shapes:
        if options["algorithm"] == "muon":
            return {"momentum_buffer": param.shape}
        return {"exp_avg": param.shape, "exp_avg_sq": param.shape, "step": ()}

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        del name
        return param.dtype

    def _share(self) -> None:
        """Make the two optimizers, which share this one's groups and state."""
        self._inner: list[Optimizer] = []
        for kind, algorithm in _ALGORITHMS.items():
            groups = [group for group in self.param_groups if group["algorithm"] == kind]
            if groups:
                inner = algorithm(groups)
                inner.state = self.state
                self._inner.append(inner)


_ALGORITHMS: dict[str, Callable[..., Optimizer]] = {"muon": TorchMuon, "adamw": AdamW}

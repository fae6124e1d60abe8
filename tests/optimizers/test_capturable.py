"""Step counts on the device, which a CUDA graph needs: refusals, checkpoints and numbers."""

from typing import Any

import pytest
import torch
from torch.nn import Parameter

from optprof.optimizers import LAMB, SM3, multi_tensor


def trained(steps: int = 2, factory: Any = LAMB, **options: Any) -> tuple[Any, Parameter]:
    param = Parameter(torch.linspace(-1, 1, 6).view(2, 3))
    optimizer = factory([param], **options)
    go_on(optimizer, param, range(steps))
    return optimizer, param


def go_on(optimizer: Any, param: Parameter, steps: range) -> None:
    for step in steps:
        param.grad = torch.full_like(param, 0.5 + step)
        optimizer.step()


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(multi_tensor, "_is_capturing", lambda: True)
    return monkeypatch


@pytest.mark.parametrize("way", [{"foreach": False}, {"foreach": True}])
def test_counts_on_the_device_give_the_numbers_of_counts_on_the_host(way: dict[str, bool]) -> None:
    (_, wanted), (_, param) = trained(**way), trained(**way, capturable=True)
    torch.testing.assert_close(param, wanted, rtol=1e-6, atol=1e-6)


def test_a_capture_refuses_counts_on_the_host_and_first_steps(capturing: Any) -> None:
    del capturing
    with pytest.raises(RuntimeError, match=r"counts its steps on the host; .*capturable=True"):
        trained()
    with pytest.raises(RuntimeError, match="take a step before you capture one"):
        trained(capturable=True)
    with pytest.raises(RuntimeError, match="take a step before you capture one"):
        trained(factory=SM3)


def test_a_capture_takes_steps_that_do_not_count_on_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds: list[dict[str, Any]] = [{"capturable": True}, {"preset": "cybertronai"}]
    for options in kinds:
        optimizer, param = trained(**options)
        with monkeypatch.context() as patch:
            patch.setattr(multi_tensor, "_is_capturing", lambda: True)
            go_on(optimizer, param, range(2, 3))


@pytest.mark.parametrize("capturable", [False, True])
def test_a_checkpoint_goes_on_where_the_other_kind_counts(capturable: bool) -> None:
    wanted, reference = trained(capturable=not capturable)
    meta = torch.empty(2, 3, device="meta")
    optimizer, param = trained(capturable=capturable)
    optimizer.load_state_dict(wanted.state_dict())
    assert optimizer.param_groups[0]["capturable"] is capturable
    go_on(wanted, reference, range(2, 4))
    go_on(optimizer, param, range(2, 4))
    torch.testing.assert_close(param, reference, rtol=1e-6, atol=1e-6)

    # The simulated device is not the host, so the place of a count shows.
    simulated = LAMB([Parameter(meta)], capturable=capturable)
    simulated.load_state_dict(wanted.state_dict())
    (state,) = simulated.state.values()
    assert state["step"].device.type == ("meta" if capturable else "cpu")

"""The cache of output layouts, compared with the same operations without it."""

import pytest
import torch

from optprof.profiler.tracing.metacache import MetaCache

aten = torch.ops.aten


def layout(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return (
            value.shape,
            value.stride(),
            value.dtype,
            value.storage_offset(),
            value.untyped_storage().nbytes(),
        )
    return [layout(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.add.Tensor, (torch.empty(3, 4, device="meta"), 1)),
        (aten.add.Tensor, (torch.empty(3, 4, device="meta"), 1.5)),
        (aten.add.Tensor, (torch.empty(3, 4, dtype=torch.long, device="meta"), 1.5)),
        (aten.add.Tensor, (torch.empty(3, 4, dtype=torch.long, device="meta"), True)),
        (aten.mul.Tensor, (torch.empty(4, 3, device="meta").t(), torch.empty(3, 4, device="meta"))),
        (aten.mm.default, (torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta"))),
        (
            aten.native_layer_norm.default,
            (torch.empty(2, 3, 4, device="meta"), [4], None, None, 1e-5),
        ),
        (aten.empty_like.default, (torch.empty(4, 3, device="meta").t(),)),
        (
            aten._foreach_sqrt.default,
            ([torch.empty(3, device="meta"), torch.empty(2, 2, device="meta")],),
        ),
        (aten._unsafe_view.default, (torch.empty(3, 4, device="meta"), [12])),
        (aten.split.Tensor, (torch.empty(6, 4, device="meta"), 2)),
    ],
)
def test_a_cached_operation_returns_the_same_layouts(
    func: torch._ops.OpOverload, args: tuple[object, ...]
):
    cache = MetaCache()
    for _ in range(2):
        assert layout(cache.run(func, args, {})) == layout(func(*args))


def test_cached_outputs_are_new_tensors_and_views_share_storage():
    cache = MetaCache()
    x = torch.empty(3, 4, device="meta")
    made = [cache.run(aten.add.Tensor, (x, x), {}) for _ in range(3)]
    assert len({tensor.untyped_storage()._cdata for tensor in (x, *made)}) == 4
    for _ in range(2):
        view = cache.run(aten.view.default, (x, [12]), {})
        assert view.untyped_storage()._cdata == x.untyped_storage()._cdata


def test_an_operation_in_place_returns_its_operand_and_resizes_it():
    cache = MetaCache()
    x = torch.empty(3, 4, device="meta")
    for _ in range(2):
        assert cache.run(aten.mul_.Tensor, (x, 2.0), {}) is x
        assert cache.run(aten._foreach_mul_.Scalar, ([x], 2.0), {}) is None
        out = torch.empty(3, 4, device="meta")
        assert cache.run(aten.mul.out, (x, 2.0), {"out": out}) is out
        assert cache.run(aten.amax.out, (x, [0]), {"out": torch.empty(0, device="meta")}).shape == (
            4,
        )
    for shape in ((4, 3), (3, 4)):
        assert cache.run(aten.t_.default, (x,), {}).shape == shape
    for length in (5, 6, 5):
        assert cache.run(aten.resize_.default, (x, [length]), {}).shape == (length,)


def test_operands_that_do_not_fit_are_refused_as_without_the_cache():
    cache = MetaCache()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            cache.run(
                aten.mul_.Tensor, (torch.empty(3, device="meta"), torch.empty(2, device="meta")), {}
            )


def test_operations_on_host_tensors_run_for_real():
    cache = MetaCache()
    step = torch.zeros(())
    for _ in range(3):
        cache.run(aten._foreach_add_.Scalar, ([step], 1), {})
    assert step.item() == 3
    assert cache.run(aten.add.Tensor, (step, 1), {}).item() == 4

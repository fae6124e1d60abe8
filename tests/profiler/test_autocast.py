"""CUDA's autocast on meta tensors, compared with torch's own lists and by hand.

test_iteration.py compares it with a real run.
"""

from typing import Any

import pytest
import torch
from torch.testing._internal.autocast_test_lists import AutocastTestLists
from torch.utils._pytree import tree_map

from optprof.profiler.simulating.training import trace_model
from optprof.profiler.tracing import autocast
from optprof.profiler.tracing.autocast import cuda_autocast
from optprof.scenarios import Scenario

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def test_every_operation_that_torch_casts_on_cuda_is_cast():
    registered = {
        name.removeprefix("aten::")
        for name in torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA")
    }
    ours = {
        *autocast.LOWER,
        *autocast.FULL,
        *autocast.FULL_BY_DTYPE,
        *autocast.NORMS,
        *autocast.PROMOTE,
    }
    # torch refuses it under autocast.
    assert registered - ours == {"binary_cross_entropy"}
    assert ours <= registered


def to_meta(values: Any) -> Any:
    return tree_map(
        lambda value: value.to("meta") if isinstance(value, torch.Tensor) else value, values
    )


LISTS = AutocastTestLists(torch.device("cpu"))


@pytest.mark.parametrize(
    ("name", "args", "dtype"),
    [
        *(
            (name, args, FP16)
            for name, args, *_ in LISTS.torch_fp16
            if not name.startswith(("cudnn", "_thnn", "conv", "einsum", "chain"))
        ),
        *((name, args, FP32) for name, args, *_ in LISTS.torch_fp32 if name != "norm"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_operation_of_torch_s_own_test_has_the_dtype_that_torch_expects(
    name: str, args: Any, dtype: torch.dtype
):
    if not hasattr(torch, name):
        pytest.skip(f"torch has no function {name}")
    with cuda_autocast(), torch.autocast("cuda", dtype=FP16):
        result = getattr(torch, name)(*to_meta(args))
    assert (result[0] if isinstance(result, tuple) else result).dtype == dtype


def test_autocast_is_off_where_a_model_switches_it_off_and_after_its_end():
    layer, x = torch.nn.Linear(8, 8, device="meta"), torch.empty(4, 8, device="meta")
    with cuda_autocast():
        assert layer(x).dtype == FP32
        with torch.autocast("cuda", dtype=BF16):
            assert layer(x).dtype == BF16
            assert torch.is_autocast_enabled("cuda")
            with torch.autocast("cuda", enabled=False):
                assert layer(x).dtype == FP32
        assert layer(x).dtype == FP32
    assert layer(x).dtype == FP32


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_gpt2_of_one_layer_holds_a_copy_of_every_weight_that_is_multiplied(amp: str):
    fields = {"model": "gpt2", "sequence_length": 8, "config": {"n_layer": 1}, "amp": amp}
    trace = trace_model(Scenario(**fields))  # pyright: ignore[reportArgumentType]
    width, words = 768, 50257
    matrices = [3 * width * width, width * width, 4 * width * width, 4 * width * width]
    biases = [3 * width, width, 4 * width, width]
    expected = sorted(2 * count for count in (*matrices, *biases, words * width))
    forward = {event for event in trace.steps[0][0].events if event >= 0}
    copies = [
        nbytes
        for number, (nbytes, category, source) in enumerate(
            zip(
                trace.allocations.nbytes,
                trace.allocations.categories,
                trace.allocations.sources,
                strict=True,
            )
        )
        if number in forward and source.op == "aten::_to_copy" and nbytes in expected
    ]
    assert sorted(copies) == expected


def test_parameters_gradients_and_state_stay_in_float32():
    trace = trace_model(
        Scenario(model="gpt2", sequence_length=8, config={"n_layer": 1}, amp="bf16")
    )
    gradients = [
        part for layout in trace.gradients[-1] if layout is not None for part in layout.parts
    ]
    assert (
        {layout.dtype for layout, _ in trace.parameters}
        == {layout.dtype for layout in gradients}
        == {FP32}
    )


def test_a_scaler_keeps_its_scale_and_a_count_on_the_device():
    """fp16 adds a float32 scale and an int32 count of steps without an infinity, 4 bytes each."""
    plain, scaled = (
        trace_model(Scenario(model="gpt2", sequence_length=8, config={"n_layer": 1}, amp=amp))
        for amp in ("bf16", "fp16")
    )

    def lasting(trace: Any) -> list[int]:
        events = [
            event for segments in trace.steps for segment in segments for event in segment.events
        ]
        live = {event for event in events if event >= 0} - {~event for event in events if event < 0}
        gradients = {
            layout.number for layouts in trace.gradients for layout in layouts if layout is not None
        }
        return sorted(trace.allocations.nbytes[number] for number in live - gradients)

    remaining = lasting(scaled)
    for size in lasting(plain):
        remaining.remove(size)
    # The flag of the last step, whether a gradient was infinite, is dropped at the next update.
    assert remaining == [4, 4, 4]


def test_rotary_embeddings_of_llama_stay_in_float32_as_transformers_requires():
    config = {
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 2,
    }
    trace = trace_model(Scenario(model="llama2-7b", sequence_length=16, config=config, amp="bf16"))
    sources = zip(trace.allocations.sources, trace.allocations.nbytes, strict=True)
    cosines = [nbytes for source, nbytes in sources if source.op == "aten::cos"]
    assert set(cosines) == {16 * 32 * 4}

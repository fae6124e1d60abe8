"""Ways to spread a step over ranks: their text, and the errors of those that cannot be."""

import re

import pytest

from optprof.scenarios import Scenario
from optprof.scenarios.parallel import Parallel, read_parallel


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("ddp", Parallel(data="ddp")),
        ("zero1", Parallel(data="zero1")),
        ("fsdp2", Parallel(data="fsdp2")),
        ("tp:4", Parallel(tensor=4)),
        ("fsdp2+tp:4", Parallel(data="fsdp2", tensor=4)),
        ("tp:4 + fsdp2", Parallel(data="fsdp2", tensor=4)),
        (
            "fsdp2:mixed_precision=bf16,reduce=bf16+tp:2",
            Parallel(data="fsdp2", tensor=2, mixed_precision="bf16", reduce="bf16"),
        ),
        (
            "fsdp2:reshard_after_forward=false,cpu_offload=true",
            Parallel(data="fsdp2", reshard_after_forward=False, cpu_offload=True),
        ),
    ],
)
def test_a_text_names_a_way(text: str, way: Parallel) -> None:
    assert read_parallel(text) == way


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp", "no parallel named 'fsdp'; did you mean fsdp2"),
        ("", "no parallel named ''"),
        ("ddp+zero1", "parallel names one of ddp, zero1 and fsdp2, got 'ddp+zero1'"),
        ("tp:2+tp:2", "parallel names tp once, got 'tp:2+tp:2'"),
        ("tp", "as in tp:4; got 'tp'"),
        ("tp:1", "2 or more, as in tp:4; got 'tp:1'"),
        ("tp:two", "as in tp:4; got 'tp:two'"),
        ("ddp+tp:2", "tp goes alone or with fsdp2, as in fsdp2+tp:4; got 'ddp+tp:2'"),
        ("ddp:bucket=25", "ddp has no options, got 'bucket=25'; leave them out"),
        ("fsdp2:mixed_precison=bf16", "fsdp2 has no option 'mixed_precison'; did you mean"),
        ("fsdp2:mixed_precision=fp8", "fsdp2's mixed_precision is bf16 or fp16, got 'fp8'"),
        ("fsdp2:cpu_offload=yes", "fsdp2's cpu_offload is true or false, got 'yes'"),
        ("fsdp2:", "an option of fsdp2 is written name=value, as in cpu_offload=true; got ''"),
        ("fsdp2:cpu_offload", "name=value, as in cpu_offload=true; got 'cpu_offload'"),
    ],
)
def test_a_text_that_names_no_way_is_one_line_of_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        read_parallel(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ranks": 8}, "8 ranks need a way to share the work; add --parallel: ddp, zero1"),
        ({"rank": 1}, "rank 1 is one of several ranks; say of how many, as in --ranks 8"),
        (
            {"ranks": 8, "rank": 8, "parallel": "ddp"},
            "rank is a number from 0 to 7 of 8 ranks, got 8",
        ),
        (
            {"ranks": 6, "parallel": "fsdp2+tp:4"},
            "tp:4 needs a number of ranks that 4 divides, got 6",
        ),
        ({"ranks": 8, "parallel": "tp:4"}, "tp:4 alone runs on 4 ranks, got 8; use fsdp2+tp:4"),
        ({"ranks": 0, "parallel": "ddp"}, "ranks"),
        (
            {"ranks": 2, "parallel": "ddp", "accumulate": "gns"},
            "for one process, got parallel 'ddp'",
        ),
    ],
)
def test_ranks_that_do_not_fit_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        Scenario(model="gpt2", **fields)  # pyright: ignore[reportArgumentType]
    assert "\n" not in str(error.value)

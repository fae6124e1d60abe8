"""The text of PYTORCH_CUDA_ALLOC_CONF, compared with the parser in torch's own C++ library."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as run_with
from hypothesis import strategies as st

from optprof.profiler.allocator.settings import SIZE_CLASSES, UNLIMITED, AllocatorSettings

MIB = 1 << 20
DEFAULTS = "large_segment_size_mb:20,max_non_split_rounding_mb:20,expandable_segments:False"
_CLASS = "_ZN3c1016CachingAllocator26AcceleratorAllocatorConfig"


class TorchSettings:
    """The settings that torch's shared library keeps after reading a text.

    See class AcceleratorAllocatorConfig in AllocatorConfig.h.
    """

    def __init__(self) -> None:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
        self._instance = library[f"{_CLASS}8instanceEv"]
        self._instance.restype = ctypes.c_void_p
        self._divisions = library[f"{_CLASS}24roundup_power2_divisionsEm"]
        self._divisions.restype, self._divisions.argtypes = ctypes.c_size_t, [ctypes.c_size_t]

    def parse(self, text: str) -> AllocatorSettings:
        torch._C._accelerator_setAllocatorSettings(DEFAULTS)
        torch._C._accelerator_setAllocatorSettings(text)
        address = self._instance()
        large, split, rounding = (ctypes.c_size_t * 3).from_address(address)
        # After the three sizes come a vector of three pointers, the threshold and the flag.
        return AllocatorSettings(
            large_segment_size=large,
            max_split_size=UNLIMITED if split > UNLIMITED else split,
            max_non_split_rounding=rounding,
            divisions=tuple(self._divisions(MIB << place) for place in range(SIZE_CLASSES)),
            garbage_collection_threshold=ctypes.c_double.from_address(address + 48).value,
            expandable_segments=ctypes.c_bool.from_address(address + 56).value,
        )


@pytest.fixture(scope="module")
def theirs() -> Iterator[TorchSettings]:
    if torch.cuda.is_available():
        pytest.skip("the settings of a CUDA allocator in use are not played with")
    if not torch.__version__.startswith("2.13"):
        pytest.skip(f"the layout of torch 2.13's settings is read, this is {torch.__version__}")
    try:
        torch_settings = TorchSettings()
    except (AttributeError, OSError) as error:
        pytest.skip(f"torch's settings are out of reach: {error}")
    yield torch_settings
    torch._C._accelerator_setAllocatorSettings(DEFAULTS)


ACCEPTED = [
    "",
    "max_split_size_mb:20",
    " max_split_size_mb : 128 , expandable_segments : True ",
    "expandable_segments:True,",
    "max_split_size_mb:64,max_split_size_mb:128",
    "max_split_size_mb:64,large_segment_size_mb:30",
    "large_segment_size_mb:11",
    "large_segment_size_mb:64",
    "max_split_size_mb:100,large_segment_size_mb:20,max_non_split_rounding_mb:25",
    "garbage_collection_threshold:0.8,expandable_segments:True",
    "garbage_collection_threshold:.5e0",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:1",
    "roundup_power2_divisions:[]",
    "roundup_power2_divisions:[256:1,512:2,1024:4,>:8]",
    "roundup_power2_divisions:[256:8,>:2],max_split_size_mb:256",
    "roundup_power2_divisions:[>:4]",
    "roundup_power2_divisions:[512:2,256:1,>:4]",
    "roundup_power2_divisions:[1:4,65536:2]",
    "roundup_power2_divisions:[131072:2]",
    "roundup_power2_divisions:[256:1,]",
    "roundup_power2_divisions:[256:0]",
    "pinned_use_background_threads:True",
]
REFUSED = [
    "max_split_size_mb:19",
    "max_split_size_mb:64,large_segment_size_mb:100",
    "max_non_split_rounding_mb:25,large_segment_size_mb:30",
    "large_segment_size_mb:10",
    "garbage_collection_threshold:1.0",
    "garbage_collection_threshold:0",
    "expandable_segments:true",
    "roundup_power2_divisions:3",
    "roundup_power2_divisions:0",
    "roundup_power2_divisions:[300:1]",
    "roundup_power2_divisions:[0:2]",
    "roundup_power2_divisions:[256:3]",
    "roundup_power2_divisions:[256:1",
    "max_split_size_mb:abc",
    "max_split_size_mb",
    "max_split_size_mb=64",
    "max_split_size_mb:64 expandable_segments:True",
]


@pytest.mark.parametrize("text", ACCEPTED)
def test_a_text_has_the_meaning_that_torch_gives_it(text: str, theirs: TorchSettings):
    assert AllocatorSettings.parse(text) == theirs.parse(text)


@pytest.mark.parametrize("text", REFUSED)
def test_a_text_that_torch_refuses_is_refused(text: str, theirs: TorchSettings):
    with pytest.raises((ValueError, RuntimeError)):
        theirs.parse(text)
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        AllocatorSettings.parse(text)


numbers = st.one_of(st.integers(0, 70), st.sampled_from([1 << power for power in range(18)]))
pairs = st.one_of(
    st.tuples(
        st.sampled_from(
            ["max_split_size_mb", "large_segment_size_mb", "max_non_split_rounding_mb"]
        ),
        numbers.map(str),
    ),
    st.tuples(
        st.just("garbage_collection_threshold"),
        st.floats(-0.5, 1.5, allow_subnormal=False).map(repr),
    ),
    st.tuples(st.just("expandable_segments"), st.sampled_from(["True", "False", "true", "1"])),
    st.tuples(st.just("roundup_power2_divisions"), numbers.map(str)),
    st.tuples(
        st.just("roundup_power2_divisions"),
        st.lists(st.tuples(st.one_of(numbers.map(str), st.just(">")), numbers), max_size=5).map(
            lambda items: "[" + ",".join(f"{boundary}:{number}" for boundary, number in items) + "]"
        ),
    ),
)


@given(
    st.lists(pairs, max_size=4, unique_by=lambda pair: pair[0]).map(
        lambda settings: ",".join(map(":".join, settings))
    )
)
@run_with(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_list_of_settings_is_read_as_torch_reads_it(theirs: TorchSettings, text: str):
    try:
        expected = theirs.parse(text)
    except (ValueError, RuntimeError):
        expected = None
    try:
        settings = AllocatorSettings.parse(text)
    except ValueError:
        settings = None
    assert settings == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_splitsize_mb:64",
            "alloc_conf has no setting 'max_splitsize_mb'; did you mean max_split_size_mb",
        ),
        ("xyzzy:64", "alloc_conf has no setting 'xyzzy'; known are backend, expandable_segments, "),
        (
            "max_split_size_mb",
            (
                "alloc_conf is a list such as max_split_size_mb:128,expandable_segments:True, got"
                " 'max_split_size_mb'"
            ),
        ),
        ("max_split_size_mb:64.5", "max_split_size_mb must be a whole number, got '64.5'"),
        ("max_split_size_mb:-1", "max_split_size_mb must be a whole number, got '-1'"),
        (
            "max_split_size_mb:19",
            "max_split_size_mb must be >= large_segment_size_mb, which is 20, got 19",
        ),
        (
            "garbage_collection_threshold:2",
            "garbage_collection_threshold must lie between 0 and 1, got 2",
        ),
        (
            "garbage_collection_threshold:nan",
            "garbage_collection_threshold must lie between 0 and 1, got nan",
        ),
        (
            "per_process_memory_fraction:half",
            "per_process_memory_fraction must be a number, got 'half'",
        ),
        ("expandable_segments:yes", "expandable_segments must be True or False, got 'yes'"),
        (
            "backend:cudaMallocAsync",
            "backend must be native, the simulated allocator, got 'cudaMallocAsync'",
        ),
        (
            "throw_on_cudamalloc_oom:True",
            "throw_on_cudamalloc_oom:True is not simulated; leave it out",
        ),
    ],
)
def test_an_error_names_the_mistake_and_the_remedy(text: str, message: str):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        AllocatorSettings.parse(text)
    assert str(caught.value).startswith(message)


def test_settings_of_pinned_memory_and_the_memory_fraction_are_read():
    settings = AllocatorSettings.parse(
        "per_process_memory_fraction:0.9,pinned_num_register_threads:8,backend:native"
    )
    assert settings == AllocatorSettings(memory_fraction=0.9)

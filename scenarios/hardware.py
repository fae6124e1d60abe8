"""The catalogue of GPUs as data with sources: memory, bandwidth and peak rates, without torch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import dropwhile

from .schema import did_you_mean
from .spec import Scenario

# Memory of a process outside torch's pool: the CUDA context and the modules that a training step
# loads. An estimate, not a catalogue's figure: 426 MiB were seen after the first CUDA call alone
# (torch 2.10 for CUDA 13 on compute capability 8.9,
# https://github.com/unslothai/unsloth-zoo/pull/1053), "around 400 MB" is the rule since CUDA 11.7
# loads kernels one by one (https://github.com/pytorch/pytorch/issues/109888), and the kernels of a
# step come on top.
CONTEXT_BYTES = 512 << 20
# Steps are estimated for this GPU if a scenario names none. Its memory does not limit them.
DEFAULT_GPU = "a100-80"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU as a program sees it.

    `device_names` are values of `torch.cuda.get_device_name()`, without the maker's name.
    `label_gb` is the memory on the card's label. `memory_bytes` is
    `torch.cuda.get_device_properties().total_memory` on Linux: less than the label, and some MiB
    different from driver to driver. `bandwidth` is the memory's peak in bytes a second. `rates` are
    peak operations a second of dense matrix products by dtype, without sparsity and accumulated in
    fp32: "fp32" by the ordinary arithmetic units, others by the tensor cores; a dtype without
    hardware has no rate. `compute_capability` of an AMD device is torch's for its gfx number.
    `multiprocessors` is `multi_processor_count`, compute units on AMD.

    Each `..._source` names the source of its figure, `source` that of bandwidth and rates.
    """

    name: str
    title: str
    device_names: tuple[str, ...]
    compute_capability: tuple[int, int]
    label_gb: int
    memory_bytes: int
    memory_source: str
    bandwidth: float
    rates: Mapping[str, float]
    source: str
    multiprocessors: int
    multiprocessors_source: str

    @property
    def threads_per_multiprocessor(self) -> int:
        """The most threads that are resident on a multiprocessor."""
        return _THREADS[self.compute_capability]

    @property
    def usable_bytes(self) -> int:
        """The most bytes of torch's memory pool: all without the context's."""
        return self.memory_bytes - CONTEXT_BYTES

    @property
    def has_bf16(self) -> bool:
        """True if there is hardware for matrix products in bf16."""
        return "bf16" in self.rates

    @property
    def has_fp8(self) -> bool:
        """True if there is hardware for matrix products in fp8."""
        return "fp8" in self.rates


# "Maximum number of resident threads per SM" by compute capability, CUDA C++ Programming Guide,
# table "Technical Specifications"; AMD: threads_per_core_limit in openxla/xla, mi300.txtpb.
_THREADS = {
    (7, 0): 2048,
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1536,
    (8, 9): 1536,
    (9, 0): 2048,
    (9, 4): 2048,
    (10, 0): 2048,
    (12, 0): 1536,
}
# Drivers before 2021 left out NVIDIA, and wrote Tesla before the names of data centre cards.
_MAKERS = ("nvidia", "tesla", "amd")
_TERA = 1e12
_XLA = "openxla/xla, xla/backends/gpu/target_config/specs"
_GA102 = "https://images.nvidia.com/aem-dam/en-zz/Solutions/geforce/ampere/pdf/NVIDIA-ampere-GA102-GPU-Architecture-Whitepaper-V1.pdf"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_A100 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_H200 = "https://resources.nvidia.com/en-us-data-center-overview-mc/en-us-data-center-overview/hpc-datasheet-sc23-h200"
_HALVED = "halved: its rates are with sparsity"
_V100 = "https://images.nvidia.com/content/technologies/volta/pdf/volta-v100-datasheet-update-us-1165301-r5.pdf"


def _tera(**rates: float) -> dict[str, float]:
    """Return rates by dtype, from units of 10**12 operations a second."""
    return {dtype: rate * _TERA for dtype, rate in rates.items()}


_CATALOGUE = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            name="rtx3060",
            title="GeForce RTX 3060, 12 GB",
            device_names=("GeForce RTX 3060",),
            compute_capability=(8, 6),
            label_gb=12,
            memory_bytes=12_587_106_304,
            memory_source=(
                "deviceQuery under a driver for CUDA 12.4; older drivers gave up to 12,629,508,096,"
                " a newer one 11,901 MiB"
            ),
            bandwidth=360e9,
            rates=_tera(fp32=12.7, tf32=12.7, bf16=25.5, fp16=25.5),
            source=(
                "28 multiprocessors at 1.777 GHz,"
                " https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/;"
                f" operations a clock: {_GA102}"
            ),
            multiprocessors=28,
            multiprocessors_source=(
                "https://www.nvidia.com/en-us/geforce/graphics-cards/30-series/rtx-3060-3060ti/"
            ),
        ),
        Gpu(
            name="rtx3090",
            title="GeForce RTX 3090",
            device_names=("GeForce RTX 3090",),
            compute_capability=(8, 6),
            label_gb=24,
            memory_bytes=25_438_126_080,
            memory_source=(
                "torch 2.5 for CUDA 11.8, where nvidia-smi says 24,576 MiB; others 23.68 to 23.70"
                " GiB (https://github.com/3DTopia/OpenLRM/issues/42,"
                " https://github.com/Lightning-AI/lit-llama/issues/137)"
            ),
            bandwidth=936e9,
            rates=_tera(fp32=35.6, tf32=35.6, bf16=71, fp16=71),
            source=_GA102,
            multiprocessors=82,
            multiprocessors_source=_GA102,
        ),
        Gpu(
            name="rtx4090",
            title="GeForce RTX 4090",
            device_names=("GeForce RTX 4090",),
            compute_capability=(8, 9),
            label_gb=24,
            memory_bytes=25_250_627_584,
            memory_source=(
                "torch 2.11 under driver 580; 25,386,352,640 under a driver for CUDA 12.4"
            ),
            bandwidth=1008e9,
            rates=_tera(fp32=82.6, tf32=82.6, bf16=165.2, fp16=165.2, fp8=330.3),
            source=_ADA,
            multiprocessors=128,
            multiprocessors_source=_ADA,
        ),
        Gpu(
            name="rtx5090",
            title="GeForce RTX 5090",
            device_names=("GeForce RTX 5090",),
            compute_capability=(12, 0),
            label_gb=32,
            memory_bytes=33_677_180_928,
            memory_source=(
                "deviceQuery under driver 570,"
                " https://github.com/aikitoria/open-gpu-kernel-modules/issues/1"
            ),
            bandwidth=1792e9,
            rates=_tera(fp32=104.8, tf32=104.8, bf16=209.5, fp16=209.5, fp8=419),
            source="https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
            multiprocessors=170,
            multiprocessors_source="https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
        ),
        Gpu(
            name="t4",
            title="T4",
            device_names=("T4",),
            compute_capability=(7, 5),
            label_gb=16,
            memory_bytes=15_642_329_088,
            memory_source=(
                "deviceQuery under a driver for CUDA 12.5; 15,843,721,216 under one for CUDA 11.2"
            ),
            bandwidth=320e9,
            rates=_tera(fp32=8.1, fp16=65),
            source="https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/t4-tensor-core-datasheet-951643.pdf",
            multiprocessors=40,
            multiprocessors_source="deviceQuery under a driver for CUDA 11.0",
        ),
        Gpu(
            name="v100-16",
            title="V100 SXM2, 16 GB",
            device_names=("V100-SXM2-16GB",),
            compute_capability=(7, 0),
            label_gb=16,
            memory_bytes=16_935_682_048,
            memory_source=f"{_XLA}/v100.txtpb",
            bandwidth=900e9,
            rates=_tera(fp32=15.7, fp16=125),
            source=_V100,
            multiprocessors=80,
            multiprocessors_source=f"{_XLA}/v100.txtpb",
        ),
        Gpu(
            name="v100-32",
            title="V100 SXM2, 32 GB",
            device_names=("V100-SXM2-32GB",),
            compute_capability=(7, 0),
            label_gb=32,
            memory_bytes=34_072_559_616,
            memory_source=(
                "deviceQuery under a driver for CUDA 12.9; 34,089,730,048 under one for CUDA 11.4"
            ),
            bandwidth=900e9,
            rates=_tera(fp32=15.7, fp16=125),
            source=_V100,
            multiprocessors=80,
            multiprocessors_source=f"{_XLA}/v100.txtpb",
        ),
        Gpu(
            name="a10",
            title="A10",
            device_names=("A10",),
            compute_capability=(8, 6),
            label_gb=24,
            memory_bytes=23_696_375_808,
            memory_source="deviceQuery under a driver for CUDA 12.8, with ECC",
            bandwidth=600e9,
            rates=_tera(fp32=31.2, tf32=62.5, bf16=125, fp16=125),
            source="https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf",
            multiprocessors=72,
            multiprocessors_source=f"9,216 cores (data sheet) of 128 a multiprocessor ({_GA102})",
        ),
        Gpu(
            name="l4",
            title="L4",
            device_names=("L4",),
            compute_capability=(8, 9),
            label_gb=24,
            memory_bytes=23_612_293_120,
            memory_source=(
                "deviceQuery under a driver for CUDA 12.0, with ECC; another says 22.03 GiB "
                "(https://github.com/ArcInstitute/evo2/issues/190)"
            ),
            bandwidth=300e9,
            rates=_tera(fp32=30.3, tf32=60, bf16=121, fp16=121, fp8=242.5),
            source=(
                "https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet,"
                f" {_HALVED}"
            ),
            multiprocessors=58,
            multiprocessors_source=f"7,424 cores (data sheet) of 128 a multiprocessor ({_ADA})",
        ),
        Gpu(
            name="l40s",
            title="L40S",
            device_names=("L40S",),
            compute_capability=(8, 9),
            label_gb=48,
            memory_bytes=47_576_711_168,
            memory_source=(
                "cuda-device-query under a driver for CUDA 12.4, with ECC; another says 44.42 GiB "
                "(https://github.com/stepfun-ai/Step-Video-T2V/issues/8)"
            ),
            bandwidth=864e9,
            rates=_tera(fp32=91.6, tf32=183, bf16=362, fp16=362, fp8=733),
            source="https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413",
            multiprocessors=142,
            multiprocessors_source="torch, multi_processor_count=142",
        ),
        Gpu(
            name="a100-40",
            title="A100 SXM4, 40 GB",
            device_names=("A100-SXM4-40GB",),
            compute_capability=(8, 0),
            label_gb=40,
            memory_bytes=42_298_834_944,
            memory_source=(
                "deviceQuery under a driver for CUDA 12.2,"
                " https://github.com/bottlerocket-os/bottlerocket/pull/3873"
            ),
            bandwidth=1555e9,
            rates=_tera(fp32=19.5, tf32=156, bf16=312, fp16=312),
            source=_A100,
            multiprocessors=108,
            multiprocessors_source=f"{_XLA}/a100_sxm_40.txtpb",
        ),
        Gpu(
            name="a100-80",
            title="A100 SXM4, 80 GB",
            device_names=("A100-SXM4-80GB",),
            compute_capability=(8, 0),
            label_gb=80,
            memory_bytes=85_100_068_864,
            memory_source=f"{_XLA}/a100_sxm_80.txtpb, and deviceQuery under a driver for CUDA 12.5",
            bandwidth=2039e9,
            rates=_tera(fp32=19.5, tf32=156, bf16=312, fp16=312),
            source=_A100,
            multiprocessors=108,
            multiprocessors_source=f"{_XLA}/a100_sxm_80.txtpb",
        ),
        Gpu(
            name="h100-80",
            title="H100 SXM5, 80 GB",
            device_names=("H100 80GB HBM3",),
            compute_capability=(9, 0),
            label_gb=80,
            memory_bytes=84_942_979_072,
            memory_source=f"{_XLA}/h100_sxm.txtpb; others differ by up to 14 MiB",
            bandwidth=3.35e12,
            rates=_tera(fp32=67, tf32=494.5, bf16=989.5, fp16=989.5, fp8=1979),
            source=(
                "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet,"
                f" {_HALVED}"
            ),
            multiprocessors=132,
            multiprocessors_source=f"{_XLA}/h100_sxm.txtpb",
        ),
        Gpu(
            name="h200",
            title="H200 SXM",
            device_names=("H200",),
            compute_capability=(9, 0),
            label_gb=141,
            memory_bytes=150_109_880_320,
            memory_source="torch, total_memory=143,156 MB (rounded); the same bytes for H200 NVL",
            bandwidth=4.8e12,
            rates=_tera(fp32=67, tf32=494.5, bf16=989.5, fp16=989.5, fp8=1979),
            source=f"{_H200}, {_HALVED}",
            multiprocessors=132,
            multiprocessors_source=f"{_XLA}/h200.txtpb",
        ),
        Gpu(
            name="b200",
            title="B200 (HGX)",
            device_names=("B200",),
            compute_capability=(10, 0),
            label_gb=192,
            memory_bytes=191_514_411_008,
            memory_source=(
                f"{_XLA}/b200.txtpb; 178.35 GiB in https://github.com/pytorch/ao/pull/4002"
            ),
            bandwidth=7.672e12,
            rates=_tera(fp32=75, tf32=1100, bf16=2250, fp16=2250, fp8=4500),
            source=(
                f"https://resources.nvidia.com/en-us-blackwell-architecture/datasheet, {_HALVED};"
                " bandwidth by the driver's bus width and clock,"
                " https://github.com/pytorch/ao/pull/4002"
            ),
            multiprocessors=148,
            multiprocessors_source=f"{_XLA}/b200.txtpb",
        ),
        Gpu(
            name="mi300x",
            title="AMD Instinct MI300X",
            device_names=("Instinct MI300X", "Instinct MI300X VF"),
            compute_capability=(9, 4),
            label_gb=192,
            memory_bytes=206_141_652_992,
            memory_source="torch for ROCm, total_memory=196,592 MB",
            bandwidth=5.3e12,
            rates=_tera(fp32=163.4, tf32=653.7, bf16=1307.4, fp16=1307.4, fp8=2614.9),
            source="https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs/data-sheets/amd-instinct-mi300x-data-sheet.pdf",
            multiprocessors=304,
            multiprocessors_source=f"{_XLA}/mi300.txtpb",
        ),
    )
}


def name_of_device(device_name: str, total_bytes: int | None = None) -> str | None:
    """Return the catalogue's name of a device, None for a device that it does not list.

    Each word of the name counts: an A100 80GB PCIe, an RTX 4090 D and a MIG slice are other
    devices. The memory must match too if it is known: an RTX 3060 of 8 GB has the name of one of
    12 GB.
    """
    words = _words(device_name)
    return next(
        (
            gpu.name
            for gpu in _CATALOGUE.values()
            if words in map(_words, gpu.device_names) and _fits(gpu, total_bytes)
        ),
        None,
    )


def _words(device_name: str) -> list[str]:
    """Return the words of a device's name without the maker's: a100, sxm4, 40gb."""
    words = device_name.lower().replace("-", " ").split()
    return list(dropwhile(_MAKERS.__contains__, words))


def _fits(gpu: Gpu, total_bytes: int | None) -> bool:
    """Return whether the memory is this GPU's; error correction takes up to a sixteenth."""
    return total_bytes is None or abs(total_bytes - gpu.memory_bytes) < 0.1 * gpu.memory_bytes


def available() -> tuple[str, ...]:
    """Return the names of the catalogue, from desktop to data centre cards."""
    return tuple(_CATALOGUE)


def describe(name: str) -> Gpu:
    """Return the catalogue's entry; raise ValueError with near names if there is none."""
    if name not in _CATALOGUE:
        raise ValueError(f"no GPU is named {name!r}; {did_you_mean(name, _CATALOGUE)}")
    return _CATALOGUE[name]


def unsupported(gpu: Gpu, scenario: Scenario, dtypes: Collection[str] = ()) -> str | None:
    """Return why the GPU cannot run the scenario at any memory size; None if it can.

    `dtypes` are torch's names of the dtypes of the parameters.
    """
    if ("bf16" in (scenario.dtype, scenario.amp) or "bfloat16" in dtypes) and not gpu.has_bf16:
        return f"{gpu.name} has no hardware for bf16"
    return None

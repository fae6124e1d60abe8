"""Doctor: what is installed on this machine, its devices, what optprof can do, and how to fix it.

Nothing here requires a package: each finding is independent, and torch is loaded only if it is
installed.
"""

import importlib
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Literal

Section = Literal["installed", "devices", "here"]
LEAST_TORCH = (2, 11)

# Each package, its module, its purpose, and the extra of optprof that installs it.
_PACKAGES = (
    ("torch", "torch", "simulating and measuring", ""),
    ("transformers", "transformers", "the models of the catalogue", ""),
    ("typer", "typer", "the command line", ""),
    ("rich", "rich", "progress and tables", ""),
    ("psutil", "psutil", "this machine's free memory", ""),
    ("jinja2", "jinja2", "the page of a report", ""),
    ("matplotlib", "matplotlib", "the figures of a report", ""),
    ("plotly", "plotly", "the graphs of a report", ""),
    ("pandas", "pandas", "a run as a data frame", ""),
    (
        "nvidia-ml-py",
        "pynvml",
        "the GPU's clock, temperature and other processes",
        "gpu",
    ),
    ("tensorboard", "tensorboard", "--tensorboard", "tensorboard"),
    (
        "torch-tb-profiler",
        "torch_tb_profiler",
        "the traces of --trace in TensorBoard",
        "tensorboard",
    ),
    ("triton", "triton", "our optimizers' fused steps on CUDA", "fused"),
    ("peft", "peft", "--lora", "lora"),
    ("ray", "ray", "sweep --on", "ray"),
    ("pytorch-optimizer", "pytorch_optimizer", "more optimizers", "zoo"),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the diagnosis; `advice` says how to fix a problem, and may be empty."""

    section: Section
    name: str
    text: str
    good: bool = True
    advice: str = ""


def diagnose() -> list[Finding]:
    """Return all findings, section by section; a broken installation is a finding too."""
    return [*_installed(), *_devices(), *_abilities()]


def installed_by(module: str) -> str | None:
    """Return the command that installs a module's package; None if optprof does not need it."""
    return next(
        (
            _installing(package, extra)
            for package, imported, _, extra in _PACKAGES
            if imported == module
        ),
        None,
    )


def _installing(package: str, extra: str) -> str:
    return f'pip install "optprof[{extra}]"' if extra else f"pip install {package}"


def require_installed(purpose: str, *modules: str) -> None:
    """Raise ValueError if a module that the purpose needs is missing; nothing is imported."""
    for module in modules:
        if not _is_installed(module):
            raise ValueError(
                f"{purpose} needs {module}, which is not installed; {installed_by(module)}"
            )


def _installed() -> Iterator[Finding]:
    yield Finding(section="installed", name="optprof", text=_version("optprof") or "from a folder")
    yield Finding(section="installed", name="Python", text=platform.python_version())
    missing: list[str] = []
    for package, module, purpose, extra in _PACKAGES:
        is_installed = _is_installed(module)
        missing += [extra] if extra and not is_installed else []
        state = (_version(package) or "installed") if is_installed else "missing"
        yield Finding(
            section="installed",
            name=package,
            text=f"{state}, for {purpose}",
            good=is_installed,
            advice="" if is_installed else _installing(package, extra),
        )
    yield _compiler()
    if len(extras := dict.fromkeys(missing)) > 1:
        yield Finding(
            section="installed",
            name="extras",
            text="all that are missing at once",
            good=False,
            advice=_installing("", ",".join(extras)),
        )
    old = _version("torch")
    if old and _numbers(old) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        yield Finding(
            section="installed",
            name="torch",
            text=f"{old} is older than {least}",
            good=False,
            advice=f'pip install "torch>={least}"',
        )


def _compiler() -> Finding:
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    path = next(filter(None, map(shutil.which, names)), None)
    return Finding(
        section="installed",
        name="C++ compiler",
        text=f"{path or 'missing'}, for optprof's fused and compiled steps on a CPU",
        good=path is not None,
        advice="" if path else "install g++ or clang++, or set CXX",
    )


def _devices() -> Iterator[Finding]:
    cores = (
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"
        if hasattr(os, "sched_getaffinity")
        else f"{os.cpu_count()}"
    )
    free = f", {_free_memory()}" if _is_installed("psutil") else ""
    yield Finding(section="devices", name="CPU", text=f"{cores} cores{free}")
    if not _is_installed("torch"):
        yield Finding(
            section="devices",
            name="CUDA",
            text="unknown without torch",
            good=False,
            advice="pip install torch",
        )
        return
    try:
        yield from _gpus()
    except Exception as error:
        # A broken installation may raise anything, and its user looks here for the reason.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding(
            section="devices",
            name="CUDA",
            text=reason[:300],
            good=False,
            advice="reinstall torch for this machine's driver",
        )


def _gpus() -> Iterator[Finding]:
    torch = importlib.import_module("torch")
    if torch.version.cuda is None and torch.version.hip is None:
        advice = "to measure on a GPU, install a torch with CUDA: https://pytorch.org/get-started"
        yield Finding(
            section="devices",
            name="CUDA",
            text="this torch is built for the CPU only",
            good=False,
            advice=advice,
        )
    elif not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        advice = "nvidia-smi must list the GPU, and the driver must be new enough for this torch"
        yield Finding(
            section="devices",
            name="CUDA",
            text=f"torch is built for {built}, and finds no device",
            good=False,
            advice=advice,
        )
    else:
        for number in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(number)
            bf16 = "bf16" if gpu.major >= 8 else "no bf16"
            text = (
                f"{gpu.name}, {gpu.total_memory / 2**30:.2f} GiB, compute capability"
                f" {gpu.major}.{gpu.minor}, {bf16}"
            )
            yield Finding(section="devices", name=f"cuda:{number}", text=text)
            yield _nvml(number)


def _nvml(number: int) -> Finding:
    """Return the finding on the management library's readings of this GPU."""
    with (
        importlib.import_module("torch").cuda.device(number),
        importlib.import_module("optprof.profiler.machine.nvml").reading_gpu() as read,
    ):
        reading = read()
    if reading is None:
        advice = "" if _is_installed("pynvml") else installed_by("pynvml") or ""
        return Finding(
            section="devices",
            name="NVML",
            text=f"no readings of cuda:{number}",
            good=False,
            advice=advice,
        )
    return Finding(
        section="devices",
        name="NVML",
        text=f"reads cuda:{number}: {reading.clock_mhz} MHz, {reading.temperature_celsius} °C",
    )


def _abilities() -> Iterator[Finding]:
    torch = _is_installed("torch")
    models = "all models" if _is_installed("transformers") else "only models of module:factory"
    advice = "" if torch else "pip install torch"
    yield Finding(
        section="here",
        name="simulate",
        text=f"CUDA's memory, {models}" if torch else "nothing",
        good=torch,
        advice=advice,
    )
    yield Finding(
        section="here",
        name="measure",
        text=_measurable() if torch else "nothing",
        good=torch,
        advice=advice,
    )
    missing = [name for name in ("jinja2", "matplotlib", "plotly") if not _is_installed(name)]
    without = f"measure with --no-report: {', '.join(missing)} missing"
    yield Finding(
        section="here",
        name="report",
        text=without if missing else "pages and figures",
        good=not missing,
        advice=f"pip install {' '.join(missing)}" if missing else "",
    )


def _measurable() -> str:
    try:
        cuda = importlib.import_module("torch").cuda.is_available()
    except Exception:
        return "nothing: torch cannot be loaded"
    return (
        "times and bytes on CUDA and the CPU"
        if cuda
        else "times on the CPU; CUDA's memory is simulated"
    )


def _free_memory() -> str:
    free = importlib.import_module("optprof.profiler.machine.memory").free_bytes()
    return (
        f"{free / 2**30:.2f} of"
        f" {importlib.import_module('psutil').virtual_memory().total / 2**30:.2f} GiB free"
    )


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2] if part.isdecimal())

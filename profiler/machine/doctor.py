"""What this machine can do: what is installed, which devices there are, what is measured and what
is simulated here, what more would take.

Nothing that is looked for is required: each finding stands alone, and torch is loaded only where it
is there.
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

# Each package, the module that it is imported as, what it is for, and what installs it.
_PACKAGES = (
    ("torch", "torch", "everything that is found", "pip install torch"),
    ("transformers", "transformers", "the models that have a name", "pip install transformers"),
    ("typer", "typer", "the command line", "pip install typer"),
    ("rich", "rich", "progress and tables", "pip install rich"),
    ("psutil", "psutil", "what is free on this machine", "pip install psutil"),
    ("jinja2", "jinja2", "the page of a report", "pip install jinja2"),
    ("matplotlib", "matplotlib", "the figures of a report", "pip install matplotlib"),
    ("plotly", "plotly", "the graphs of a report", "pip install plotly"),
    (
        "nvidia-ml-py",
        "pynvml",
        "the GPU's clock, temperature and other processes",
        'pip install "optprof[gpu]"',
    ),
    ("tensorboard", "tensorboard", "--tensorboard", 'pip install "optprof[tensorboard]"'),
    (
        "torch-tb-profiler",
        "torch_tb_profiler",
        "the traces of --trace in TensorBoard",
        "pip install torch-tb-profiler",
    ),
    ("peft", "peft", "--lora", 'pip install "optprof[lora]"'),
    ("pytorch-optimizer", "pytorch_optimizer", "more optimizers", 'pip install "optprof[zoo]"'),
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the diagnosis; `advice` says what to do about what is not there, and is empty
    where nothing is to be done.
    """

    section: Section
    name: str
    found: str
    good: bool = True
    advice: str = ""


def diagnose() -> list[Finding]:
    """All findings, section by section; nothing is measured, and what is broken is a finding
    too.
    """
    return [*_installed(), *_devices(), *_abilities()]


def installed_by(module: str) -> str | None:
    """What installs the package that is imported as `module`; None where optprof does not ask for
    it.
    """
    return next((advice for _, imported, _, advice in _PACKAGES if imported == module), None)


def _installed() -> Iterator[Finding]:
    yield Finding(section="installed", name="optprof", found=_version("optprof") or "from a folder")
    yield Finding(section="installed", name="Python", found=platform.python_version())
    for package, module, purpose, advice in _PACKAGES:
        there = _there(module)
        found = (_version(package) or "there") if there else "missing"
        yield Finding(
            section="installed",
            name=package,
            found=f"{found}, for {purpose}",
            good=there,
            advice="" if there else advice,
        )
    yield _compiler()
    old = _version("torch")
    if old and _numbers(old) < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        yield Finding(
            section="installed",
            name="torch",
            found=f"{old} is older than {least}",
            good=False,
            advice=f'pip install "torch>={least}"',
        )


def _compiler() -> Finding:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    found = next(filter(None, map(shutil.which, wanted)), None)
    text = f"{found or 'missing'}, for fused and compiled steps of ours on a CPU"
    advice = "" if found else "install g++ or clang++, or set CXX"
    return Finding(
        section="installed", name="C++ compiler", found=text, good=found is not None, advice=advice
    )


def _devices() -> Iterator[Finding]:
    cores = (
        f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}"
        if hasattr(os, "sched_getaffinity")
        else f"{os.cpu_count()}"
    )
    free = f", {_free_memory()}" if _there("psutil") else ""
    yield Finding(section="devices", name="CPU", found=f"{cores} cores{free}")
    if not _there("torch"):
        yield Finding(
            section="devices",
            name="CUDA",
            found="cannot be looked for without torch",
            good=False,
            advice="pip install torch",
        )
        return
    try:
        yield from _gpus()
    except Exception as error:
        # Broken installations break in ways of their own, and this is where one looks for the
        # reason.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding(
            section="devices",
            name="CUDA",
            found=reason[:300],
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
            found="this torch is built for the CPU alone",
            good=False,
            advice=advice,
        )
    elif not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        advice = "nvidia-smi must list the GPU, and the driver must be new enough for this torch"
        yield Finding(
            section="devices",
            name="CUDA",
            found=f"torch is built for {built}, and sees no device",
            good=False,
            advice=advice,
        )
    else:
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            kinds = "bf16" if found.major >= 8 else "no bf16"
            text = (
                f"{found.name}, {found.total_memory / 2**30:.2f} GiB, compute capability"
                f" {found.major}.{found.minor}, {kinds}"
            )
            yield Finding(section="devices", name=f"cuda:{number}", found=text)
            yield _nvml(number)


def _nvml(number: int) -> Finding:
    """Whether the management library tells of this GPU."""
    with (
        importlib.import_module("torch").cuda.device(number),
        importlib.import_module("optprof.profiler.machine.nvml").reading_gpu() as read,
    ):
        reading = read()
    if reading is None:
        advice = "" if _there("pynvml") else 'pip install "optprof[gpu]"'
        return Finding(
            section="devices",
            name="NVML",
            found=f"does not tell of cuda:{number}",
            good=False,
            advice=advice,
        )
    return Finding(
        section="devices",
        name="NVML",
        found=f"tells of cuda:{number}: {reading.clock_mhz} MHz, {reading.temperature_celsius} °C",
    )


def _abilities() -> Iterator[Finding]:
    torch, own = _there("torch"), _there("torch") and not _there("transformers")
    models = "module:factory models alone" if own else "all models"
    needs = "" if torch else "pip install torch"
    yield Finding(
        section="here",
        name="simulate",
        found=f"CUDA's memory, {models}" if torch else "nothing",
        good=torch,
        advice=needs,
    )
    yield Finding(
        section="here",
        name="measure",
        found=_measurable() if torch else "nothing",
        good=torch,
        advice=needs,
    )
    missing = [name for name in ("jinja2", "matplotlib", "plotly") if not _there(name)]
    found = (
        f"measure with --no-report: {', '.join(missing)} missing"
        if missing
        else "pages and figures"
    )
    yield Finding(
        section="here",
        name="report",
        found=found,
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


def _there(module: str) -> bool:
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

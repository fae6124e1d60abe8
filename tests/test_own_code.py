"""No file of the current folder runs unrequested: commands in a folder full of traps."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent / "src"

# Optional modules that torch, transformers and the drawing libraries try to import, as a finder at
# the end of sys.meta_path recorded them; then installed modules and the names of our folders.
TRIED = tuple(
    re.findall(
        r"\w+",
        """
_winapi aim apex aqlm backports bitsandbytes boto3 botocore brotli brotlicffi charset_normalizer
ck4inductor clearml colorama comet_ml cuda cython deeplearning deepspeed dill dvclive eetq einops
essentia flash_attn flash_attn_interface flint fx2trt_oss g2p_en geotorch gmpy gmpy2 gptqmodel h2
hqq isal kernels librosa lz4 lzmaffi mistral_common mlflow mlx monkeytype msvcrt neural_compressor
nt onnx onnx_tf onnxruntime opt_einsum org pretty_midi pydot pynvml pyzstd q_galore_torch redis
scikits sentencepiece sksparse snappy sniffio socksio soundfile soxr swanlab tabulate tensorflow
tensorrt torch2trt torch_mlu torch_musa torch_npu torch_sdaa torch_xla torchao torchaudio
torchcomms torchdistx torchvision trackio transformer_engine tree trio triton tvm uarray wandb
winreg xarray z3 zstandard
""",
    )
)
INSTALLED = tuple(
    re.findall(
        r"\w+",
        """
google jinja2 markdown_it matplotlib mpmath numpy optimizers packaging pandas peft PIL plotly
profiler psutil pygments reports rich safetensors scenarios sympy tensorboard tokenizers torch
torch_tb_profiler tqdm transformers typer yaml
""",
    )
)
# Modules of the standard library that runpy does not load before our first line.
STANDARD = (
    "argparse",
    "json",
    "pathlib",
    "random",
    "shlex",
    "socket",
    "statistics",
    "tempfile",
    "tomllib",
    "traceback",
)

SUITE = """
[[scenarios]]
model = "tiny"
optimizer = "sm3"
sequence_length = 8
device = ["sim", "cpu"]
steps = 2
"""
MINE = "import torch\ndef build(): return torch.nn.Linear(4, 4)\nclass Own(torch.optim.SGD): pass\n"


def lay_traps(folder: Path, names: tuple[str, ...] = (*TRIED, *INSTALLED, *STANDARD)) -> None:
    """Fill a folder with modules and packages that write a file to `ran/` when they run."""
    (folder / "ran").mkdir()
    for name in names:
        trap = f"open({str(folder / 'ran' / name)!r}, 'w').close()\nraise ImportError('a trap')\n"
        (folder / f"{name}.py").write_text(trap)
        if name in INSTALLED:
            (folder / name).mkdir()
            (folder / name / "__init__.py").write_text(trap)
    (folder / "suite.toml").write_text(SUITE)


def lay_package(folder: Path) -> None:
    """Add the metadata of an installed package that registers an optimizer and a device."""
    added = folder / "trap-1.0.dist-info"
    added.mkdir()
    (added / "METADATA").write_text("Metadata-Version: 2.1\nName: trap\nVersion: 1.0\n")
    groups = "[optprof.optimizers]\ntrap = dill:Trap\n[torch.backends]\ntrap = dill:load\n"
    (added / "entry_points.txt").write_text(groups)


def run(folder: Path, style: str, *arguments: str, path: str = str(HERE)) -> str:
    """Run a command and return what it prints; `style` is "-m" or "script"."""
    script = folder / "bin" / "optprof"
    script.parent.mkdir(exist_ok=True)
    script.write_text("from optprof.cli import main; main()")
    words = {"-m": ["-m", "optprof"], "script": [str(script)]}[style]
    done = subprocess.run(
        [sys.executable, *words, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def ran(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "ran").iterdir())


# Takes seconds: the command and its children load every library that optprof uses.
def test_no_module_of_the_current_folder_is_run_by_a_suite_and_its_report(tmp_path: Path):
    lay_traps(tmp_path)
    lay_package(tmp_path)
    run(tmp_path, "-m", "sweep", "suite.toml", "--out", "a", "--trace", "--tensorboard")
    run(tmp_path, "script", "compare", "a", "a", "--html", "page.html")
    assert ran(tmp_path) == []


@pytest.mark.parametrize(
    ("style", "arguments"),
    [
        ("-m", ["doctor"]),
        ("-m", ["list", "optimizers"]),
        ("script", ["fit", "tiny", "-T", "8", "--gpu", "t4", "-o", "sgd:lr=0.1"]),
    ],
)
def test_no_module_of_the_current_folder_is_run_by_a_command(
    style: str, arguments: list[str], tmp_path: Path
):
    lay_traps(tmp_path)
    lay_package(tmp_path)
    run(tmp_path, style, *arguments)
    assert ran(tmp_path) == []


@pytest.mark.parametrize("style", ["-m", "script"])
@pytest.mark.parametrize("entry", ["", "src", "src/../src/"])
def test_a_relative_entry_of_pythonpath_is_a_folder_of_the_current_one(
    style: str, entry: str, tmp_path: Path
):
    (tmp_path / "src").mkdir()
    # Python looks for its own modules there before our first line runs.
    lay_traps(tmp_path / entry, (*TRIED, *INSTALLED))
    run(tmp_path, style, "list", "gpus", path=f"{HERE}{os.pathsep}{entry}")
    assert ran(tmp_path / entry) == []


def test_a_module_named_on_the_command_line_is_found_after_installed_ones(tmp_path: Path):
    lay_traps(tmp_path, (*INSTALLED, *STANDARD))
    (tmp_path / "mine.py").write_text(MINE)
    state = ["--workload", "state", "-d", "sim", "--no-report"]
    message = run(tmp_path, "-m", "profile", "mine:build", "-o", "sgd,mine:Own:lr=0.1", *state)
    assert "mine:Own" in message
    assert ran(tmp_path) == []


@pytest.mark.parametrize(
    ("names", "is_code"),
    [
        ("gpt2,adamw,sm3:momentum=0.9,betas=(0.9, 0.99),lamb16", False),
        ("tiny,sgd:lr=0.1,momentum=0.9", False),
        ("mine:build,sgd", True),
        ("gpt2,adamw,mine:Own", True),
        ("gpt2,sm3:momentum=0.9,mine.parts:Own:lr=0.1", True),
        ("folder/mine.py:build,sgd", True),
        ("a folder/my-model.py:build.tiny, sgd", True),
        ("", False),
        ("https://example.org/x,adamw", False),
        ("adamw,sm3:1", False),
        ("\x1b]8;;http://example.org\x1b\\", False),
        ("(1) 3: x,adamw", False),
    ],
)
def test_code_is_distinguished_from_options(
    names: str, is_code: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from optprof.cli.running import see_own_code

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    see_own_code(names)
    assert (sys.path[-1] == str(tmp_path)) == is_code

"""The commands: parse, call, print. What a command needs is loaded when it is called."""

import errno
import gc
import json
import os
import re
import shlex
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, TextIO
from warnings import catch_warnings

import typer

from optprof.library import OPTIMIZERS
from optprof.reports.streams import STDOUT, guard_streams, progress, results_on_stdout
from optprof.scenarios.schema import shortened

if TYPE_CHECKING:
    from optprof.profiler.records.record import Record
    from optprof.profiler.records.store import RunStore
    from optprof.profiler.running.worker import Worker
    from optprof.scenarios import Scenario

RUNS = Path("runs")
BROKEN = 1
REFUSED = 2
GATE_STOPPED = 3
SOME_FAILED = 4
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="Names from `optprof list models`, or module:factory."),
]
Optimizers = Annotated[
    str,
    typer.Option(
        "--optimizers",
        "-o",
        help="Names and options, as in adamw,sm3:momentum=0.9; or module:Class.",
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", "-d", help="auto (simulate CUDA, and measure this machine), sim, cpu or cuda."
    ),
]
_OWN = "or the factory's own"
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", "-B", help="Sequences or images in a batch.", show_default=f"1, {_OWN}"
    ),
]
SequenceLength = Annotated[
    int | None,
    typer.Option("--seq-len", "-T", help="Tokens in a sequence.", show_default=f"1024, {_OWN}"),
]
DType = Annotated[
    str | None,
    typer.Option(
        help="fp32, bf16, fp16 or fp64, for parameters and batch.",
        show_default="fp32, or what the factory made",
    ),
]
Amp = Annotated[
    str | None,
    typer.Option(
        help="bf16 or fp16: autocast over fp32 parameters, fp16 with a GradScaler.",
        show_default="off",
    ),
]
MicroBatches = Annotated[int, typer.Option(help="Batches whose gradients one step accumulates.")]
Accumulate = Annotated[
    str | None,
    typer.Option(
        help=(
            "Decide after each batch whether to step, as in gnts:threshold=0.8, on text; gnts, gns,"
            " gnr, sbc, mht."
        ),
        show_default="off",
    ),
]
ClipGradNorm = Annotated[
    float | None, typer.Option(help="Clip the gradients to this norm.", show_default="off")
]
KeepGradients = Annotated[
    bool,
    typer.Option(
        "--keep-gradients", help="zero_grad(set_to_none=False): gradients are zeroed, not dropped."
    ),
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--checkpointing", help="Recompute each layer's activations in the backward pass."
    ),
]
Attention = Annotated[
    str | None,
    typer.Option(
        help="sdpa (the fused kernel that CUDA picks) or eager.", show_default=f"sdpa, {_OWN}"
    ),
]
Lora = Annotated[
    int | None,
    typer.Option(help="Freeze the model, train LoRA adapters of this rank.", show_default="off"),
]
ModelConfig = Annotated[
    list[str] | None,
    typer.Option(
        "--model-config", "-c", help="An entry of the model's configuration, as n_layer=24."
    ),
]
Gpu = Annotated[
    str | None, typer.Option(help="The GPU to simulate.", show_default="one that never runs out")
]
AllocConf = Annotated[
    str,
    typer.Option(
        envvar=["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"],
        help="The allocator's options, as torch reads them.",
    ),
]
Implementation = Annotated[
    str | None,
    typer.Option(
        help="loop, foreach, fused or compiled (measured only).",
        show_default="what torch chooses on the device",
    ),
]
Workload = Annotated[
    str,
    typer.Option(
        help=(
            "train (whole steps) or state (parameters, gradients, the optimizer's step, nothing"
            " else)."
        )
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        help="Training steps, 2 or more.", show_default="2 simulated, at most 100 measured"
    ),
]
Seed = Annotated[int, typer.Option(help="Seed of weights and batch.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the run.", show_default="runs/MODEL")]
Snapshot = Annotated[
    bool,
    typer.Option(
        "--snapshot",
        help="Write snapshots/*.pickle of steps simulated or on CUDA, for pytorch.org/memory_viz.",
    ),
]
Trace = Annotated[
    bool,
    typer.Option(
        "--trace",
        help="Write torch.profiler's trace of measured iterations, for Perfetto and TensorBoard.",
    ),
]
TensorBoard = Annotated[
    bool,
    typer.Option("--tensorboard", help="Write scalars, HParams and pictures for TensorBoard, too."),
]
Resume = Annotated[
    bool,
    typer.Option(
        "--resume", help="Go on with the run that is there: skip what it has recorded as ok."
    ),
]
Timeout = Annotated[
    float | None, typer.Option(help="Seconds that a scenario may take.", show_default="no limit")
]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help=(
            "Measure on CUDA even what needs more memory than is free, and write into a folder that"
            " holds other files."
        ),
    ),
]
Replace = Annotated[
    bool,
    typer.Option("--force", help="Write over a page, or into a folder, that is not optprof's."),
]
NoReport = Annotated[
    bool,
    typer.Option(
        "--no-report",
        help="Only measure; `optprof report` draws the page later, here or elsewhere.",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print only JSON on stdout; everything else goes to stderr.")
]
Anonymous = Annotated[
    bool, typer.Option("--anonymous", help="Leave out the machine and every path.")
]
Traceback = Annotated[
    bool, typer.Option("--traceback", help="Print the whole traceback of what went wrong.")
]
Markdown = Annotated[
    bool,
    typer.Option(
        "--markdown", help="Print a Markdown table for a pull request, and nothing else on stdout."
    ),
]


@contextmanager
def _border(*, whole: bool) -> Iterator[None]:
    """Turn what a command raises into one line and status 2; `whole` prints its traceback first.

    A fault of ours, in which no code of the user's took part, asks to be reported and ends with 1.
    """
    try:
        with catch_warnings():
            warnings.showwarning = partial(_show_warning, set())
            yield
    except (typer.Exit, GeneratorExit):
        raise
    except KeyboardInterrupt:
        print("optprof: interrupted", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    except BaseException as error:
        if whole:
            traceback.print_exc()
        told, status = _told(error)
        print(f"optprof: {shortened(' '.join(told.splitlines()), 2_000)}", file=sys.stderr)
        raise typer.Exit(status) from None


def _show_warning(
    shown: set[str],
    message: Warning | str,
    category: type[Warning],
    file: str,
    line: int,
    *_: object,
) -> None:
    """Print the lines of a warning of ours that are not `shown` yet, any other as Python does."""
    if not category.__module__.startswith("optprof."):
        sys.stderr.write(warnings.formatwarning(message, category, file, line))
        return
    for text in str(message).splitlines():
        if text not in shown:
            print(text, file=sys.stderr)
            shown.add(text)


def _told(error: BaseException) -> tuple[str, int]:
    """The one line for an exception, and the exit status."""
    from optprof.profiler.machine.doctor import installed_by
    from optprof.profiler.records.outcome import is_ours, one_line, user_line

    missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0]
    if missing and (advice := installed_by(missing)):
        return f"{missing} is not installed; {advice}", REFUSED
    if is_ours(error) and isinstance(error, Exception):
        return _one_line(error), REFUSED
    if user_line(error):
        return f"{one_line(error)}; --traceback shows the whole", REFUSED
    return (
        (
            f"{one_line(error)}: this is a fault of optprof; please report it with what --traceback"
            " prints"
        ),
        BROKEN,
    )


def _command(name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command whose exceptions become one line, and give it the option --traceback."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        parameters = dict(signature(function).parameters)
        takes = "traceback" in parameters
        parameters.setdefault(
            "traceback",
            Parameter("traceback", Parameter.KEYWORD_ONLY, default=False, annotation=Traceback),
        )

        @wraps(function)
        def run(*arguments: Any, **options: Any) -> None:
            with _border(whole=options["traceback"] if takes else options.pop("traceback")):
                function(*arguments, **options)

        run.__signature__ = Signature(list(parameters.values()))  # pyright: ignore[reportAttributeAccessIssue]
        run.__annotations__ = {**function.__annotations__, "traceback": Traceback}
        app.command(name)(run)
        return run

    return register


@app.callback()
def _main() -> None:
    """What an optimizer costs: the bytes of its state, the peak it leads to, the time of its
    step.
    """


@_command("profile")
def _profile(
    models: Models,
    optimizers: Optimizers = OPTIMIZERS,
    device: Device = "auto",
    batch_size: BatchSize = None,
    sequence_length: SequenceLength = None,
    model_config: ModelConfig = None,
    dtype: DType = None,
    amp: Amp = None,
    micro_batches: MicroBatches = 1,
    accumulate: Accumulate = None,
    clip_grad_norm: ClipGradNorm = None,
    keep_gradients: KeepGradients = False,
    checkpointing: Checkpointing = False,
    attention: Attention = None,
    lora: Lora = None,
    gpu: Gpu = None,
    alloc_conf: AllocConf = "",
    implementation: Implementation = None,
    workload: Workload = "train",
    steps: Steps = None,
    seed: Seed = 0,
    out: Out = None,
    snapshot: Snapshot = False,
    trace: Trace = False,
    tensorboard: TensorBoard = False,
    resume: Resume = False,
    timeout: Timeout = None,
    force: Force = False,
    no_report: NoReport = False,
    as_json: AsJson = False,
    anonymous: Anonymous = False,
    traceback: Traceback = False,
) -> None:
    """Profile optimizers on models, and write a report."""
    with results_on_stdout() as stdout, _worker(",".join([*models, optimizers])) as worker:
        from optprof import optimizers as catalogue
        from optprof.profiler.running.beside import require_iterations
        from optprof.profiler.running.plan import Comparison, plan, require_timeout
        from optprof.scenarios.models import read_config

        require_timeout(timeout)
        scenarios = plan(
            Comparison(
                models=models,
                optimizers=catalogue.parse_list(optimizers),
                device=device,
                workload=workload,
                config=read_config(model_config or ()),
                dtype=dtype,
                amp=amp,
                batch_size=batch_size,
                sequence_length=sequence_length,
                micro_batches=micro_batches,
                accumulate=accumulate,
                max_grad_norm=clip_grad_norm,
                set_to_none=not keep_gradients,
                checkpointing=checkpointing,
                attention=attention,
                lora_rank=lora,
                gpu=gpu,
                alloc_conf=alloc_conf,
                implementation=implementation,
                steps=steps,
                seed=seed,
            )
        )
        require_iterations(scenarios, snapshots=snapshot, traces=trace)
        store = _open_run("+".join(models), out, resume, force=force, anonymous=anonymous)
        records = _run_all(
            scenarios, store, worker, timeout=timeout, force=force, snapshots=snapshot, traces=trace
        )
        _show(
            records,
            store,
            stdout,
            report=not no_report,
            tensorboard=tensorboard,
            as_json=as_json,
            logs=traceback,
            force=force,
        )
    _exit_with(records)


@_command()
def sweep(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE", help="A name from `optprof list suites`, or a file that ends in .toml."
        ),
    ],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the scenarios, their memory and the time they take; run nothing.",
        ),
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME", help="Code of your own that the suite may run; may be repeated."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/SUITE")
    ] = None,
    snapshot: Snapshot = False,
    trace: Trace = False,
    tensorboard: TensorBoard = False,
    resume: Resume = False,
    timeout: Timeout = None,
    force: Force = False,
    no_report: NoReport = False,
    as_json: AsJson = False,
    anonymous: Anonymous = False,
    traceback: Traceback = False,
) -> None:
    """Run a suite: models x optimizers x options, as a file lists them."""
    with results_on_stdout() as stdout, _worker(",".join(allow or ())) as worker:
        from optprof.profiler.running.beside import require_iterations
        from optprof.profiler.running.plan import require_timeout
        from optprof.profiler.running.sweep import sweep as scenarios_of
        from optprof.scenarios import suites

        require_timeout(timeout)
        found = suites.load(suite)
        scenarios = scenarios_of(found, allow or ())
        if dry_run:
            _forecast(scenarios, worker, stdout, timeout=timeout)
            return
        require_iterations(scenarios, snapshots=snapshot, traces=trace)
        store = _open_run(found.name, out, resume, force=force, anonymous=anonymous)
        records = _run_all(
            scenarios, store, worker, timeout=timeout, force=force, snapshots=snapshot, traces=trace
        )
        _show(
            records,
            store,
            stdout,
            report=not no_report,
            tensorboard=tensorboard,
            as_json=as_json,
            logs=traceback,
            force=force,
        )
    _exit_with(records)


@_command()
def doctor() -> None:
    """Say what is installed, which devices there are, what can be measured here, and what to
    install for more.
    """
    from optprof.profiler.machine.doctor import diagnose

    section = ""
    for finding in diagnose():
        if finding.section != section:
            print(f"{finding.section}:")
            section = finding.section
        print(f"  {'+' if finding.good else '-'} {finding.name:<18} {finding.found}")
        if finding.advice:
            print(f"    {'':<18} {finding.advice}")


@_command()
def fit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A name from `optprof list models`, or module:factory."
        ),
    ],
    optimizers: Optimizers = OPTIMIZERS,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Names from `optprof list gpus`, as in rtx3090,a100-80.", show_default="all"
        ),
    ] = None,
    batch_size: BatchSize = None,
    sequence_length: SequenceLength = None,
    model_config: ModelConfig = None,
    dtype: DType = None,
    amp: Amp = None,
    micro_batches: MicroBatches = 1,
    clip_grad_norm: ClipGradNorm = None,
    keep_gradients: KeepGradients = False,
    checkpointing: Checkpointing = False,
    attention: Attention = None,
    lora: Lora = None,
    alloc_conf: AllocConf = "",
    implementation: Implementation = None,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page.", show_default="runs/MODEL-fit")
    ] = None,
    force: Replace = False,
    as_json: AsJson = False,
    anonymous: Anonymous = False,
) -> None:
    """Say on which GPUs a training step fits, how large the batch can be, and what would make it
    fit.
    """
    with results_on_stdout() as stdout:
        _see_own_code(f"{model},{optimizers}")
        from optprof import optimizers as catalogue
        from optprof.profiler.records.privacy import disclosed_command, disclosed_fit
        from optprof.profiler.running.plan import Comparison, plan_fits
        from optprof.profiler.safety.disk import require_own_folder
        from optprof.profiler.simulating.fitting import Fitting
        from optprof.reports import FITS, write_fit_page
        from optprof.reports.fitting.terminal import render_fits
        from optprof.scenarios import hardware
        from optprof.scenarios.models import read_config

        comparison = Comparison(
            models=[model],
            optimizers=catalogue.parse_list(optimizers),
            device="sim",
            config=read_config(model_config or ()),
            dtype=dtype,
            amp=amp,
            batch_size=batch_size,
            sequence_length=sequence_length,
            micro_batches=micro_batches,
            max_grad_norm=clip_grad_norm,
            set_to_none=not keep_gradients,
            checkpointing=checkpointing,
            attention=attention,
            lora_rank=lora,
            alloc_conf=alloc_conf,
            implementation=implementation,
            seed=seed,
        )
        scenarios = plan_fits(comparison, gpu.split(",") if gpu else hardware.available())
        folder = out.expanduser() if out else RUNS / f"{model.replace(':', '.')}-fit"
        require_own_folder(folder, FITS, force=force)
        with progress(len(scenarios)) as started:
            fits = Fitting().fit_all(scenarios, started)
        fits = [disclosed_fit(found, anonymous=anonymous) for found in fits]
        words = disclosed_command(["optprof", *sys.argv[1:]], anonymous=anonymous)
        page = write_fit_page(fits, folder, words, force=force)
        if as_json:
            print(
                json.dumps(
                    {"report": str(page), "fits": [found.to_dict() for found in fits]}, indent=1
                ),
                file=stdout,
            )
        else:
            render_fits(fits, stdout)
    print(f"report: {page}", file=sys.stderr)
    failed = {found.scenario.optimizer for found in fits if found.error}
    if failed:
        print(f"not simulated: {', '.join(sorted(failed))}; the report says why", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


@_command()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, or its name under runs/.")
    ],
    markdown: Markdown = False,
    tensorboard: TensorBoard = False,
    style: Annotated[
        str, typer.Option(help="What pictures are for: paper (a column wide) or slides.")
    ] = "paper",
    figure: Annotated[
        str | None,
        typer.Option(
            help=(
                "Draw this picture alone: sgd-sai-4, the SGD-SaI paper's figure beside these"
                " records."
            )
        ),
    ] = None,
    anonymous: Anonymous = False,
    force: Replace = False,
) -> None:
    """Draw the report of a run again, from its records alone."""
    from optprof.reports import run_markdown, write_figure, write_report

    _expect_many_records()
    if markdown:
        print(run_markdown(_run(run), anonymous=anonymous))
    elif figure:
        print(*write_figure(_run(run), figure, style=style), sep="\n")
    else:
        print(
            write_report(
                _run(run), tensorboard=tensorboard, style=style, force=force, anonymous=anonymous
            )
        )


@_command()
def repair(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The folder of a run, or its name under runs/.")
    ],
) -> None:
    """Set aside what cannot be read of a run: lines in records.damaged, timelines beside
    themselves.
    """
    from optprof.profiler.records.store import RunStore

    print("\n".join(RunStore.open(_run(run)).repair()) or "nothing is damaged")


@_command()
def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A", help="A run or a folder of runs: how it was.")
    ],
    after: Annotated[
        Path, typer.Argument(metavar="B", help="A run or a folder of runs: how it is now.")
    ],
    only: Annotated[
        str | None, typer.Option(help="regressed: show nothing else.", show_default="all")
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Exit with 3 where this grew, as in 'state>0', 'peak>1%', 'step>5%'; can be given"
                " again."
            )
        ),
    ] = None,
    threshold: Annotated[
        str, typer.Option(help="How far from 1 the whole interval of a time's ratio must be.")
    ] = "5%",
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare times of different machines too.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the comparison as a page too.")] = None,
    anonymous: Anonymous = False,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Say what changed from one run to another: bytes exactly, times beyond their noise."""
    if only not in (None, "regressed"):
        raise ValueError(f"--only takes regressed, got {only!r}")
    if markdown and as_json:
        raise ValueError("--markdown and --json both want stdout; ask for one of them")
    from optprof.profiler.records.privacy import disclosed_command
    from optprof.reports.comparison.comparing import Comparing

    _expect_many_records()
    comparing = Comparing.of(
        _run(before),
        _run(after),
        fail_on or [],
        threshold=threshold,
        across_machines=across_machines,
        anonymous=anonymous,
    )
    if html:
        sides = {str(before): "A", str(after): "B"} if anonymous else {}
        words = ["optprof", *(sides.get(word, word) for word in sys.argv[1:])]
        comparing.write_page(
            html, disclosed_command(words, anonymous=anonymous), only_regressed=bool(only)
        )
        print(f"report: {html}", file=sys.stderr)
    if as_json:
        comparing.write_json(sys.stdout, only_regressed=bool(only))
    elif markdown:
        print(comparing.markdown(only_regressed=bool(only)))
    else:
        comparing.render(sys.stdout, only_regressed=bool(only))
    if comparing.stopped:
        print(f"stopped by a gate: {len(comparing.stopped)}", file=sys.stderr)
    if comparing.unjudged:
        # The newest record may be what cannot be read.
        more = f", and {len(comparing.unjudged) - 1} more" if len(comparing.unjudged) > 1 else ""
        print(
            f"stopped by every gate, because it cannot be read: {comparing.unjudged[0]}{more}",
            file=sys.stderr,
        )
    if comparing.stopped or comparing.unjudged:
        raise typer.Exit(GATE_STOPPED)


def _expect_many_records() -> None:
    """Look for cycles more seldom: records hold none."""
    gc.set_threshold(100_000, 50, 100)


@_command("explain")
def explain_metric(
    metric: Annotated[
        str | None, typer.Argument(metavar="METRIC", help="state, peak, step, ...; all by default.")
    ] = None,
) -> None:
    """Say what a figure means, how it was obtained, and what it leaves out."""
    from optprof.reports.explain import FIGURES, explain

    print("\n\n".join(explain(name) for name in ([metric] if metric else FIGURES)))


@_command("list")
def list_names(
    what: Annotated[
        str,
        typer.Argument(metavar="models|optimizers|accumulations|gpus|suites", help="What to list."),
    ],
) -> None:
    """List the models, optimizers, ways to accumulate, GPUs or suites that have a name here."""
    from optprof.cli.listing import listing

    print("\n".join(listing(what)))


# module:Class in a list of optimizers, where options follow a colon too; no address, and no text.
_OWN_CODE = re.compile(r"(?:^|,)\s*(?:[^\W\d][\w.]*|[^:,=]+\.py):[^\W\d][\w.]*\s*(?:[:,]|$)")


def _see_own_code(names: str) -> None:
    """Let module:Class and module:factory be found, behind everything that is installed.

    The current folder may be a stranger's: nothing in it is run unless one of `names` is such.
    """
    if _OWN_CODE.search(names):
        places = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        sys.path += [
            str(Path(place).absolute()) for place in places if not Path(place).is_absolute()
        ]
        sys.path.append(str(Path.cwd()))


@contextmanager
def _worker(names: str) -> Iterator["Worker"]:
    """Yield what does a run's scenarios; it loads torch while this process does. `names` are the
    user's.
    """
    from optprof.profiler.running.worker import Worker

    with Worker() as worker:
        # Behind it: what it loads is ours, and each scenario is told where the user's code is.
        _see_own_code(names)
        yield worker


def _open_run(
    name: str, out: Path | None, resume: bool, *, force: bool, anonymous: bool
) -> "RunStore":
    """The run to write into; what a run that was cut off has left is set aside or removed."""
    from optprof.profiler.records.privacy import masked
    from optprof.profiler.records.store import RunStore, last_folder
    from optprof.profiler.safety.disk import require_own_folder

    if out:
        # A command that a page shows has ~ in it, which shells leave as it is behind --out=.
        out = out.expanduser()
        require_own_folder(out, "records.jsonl", force=force)

    name = masked(name).replace("~/", "").replace(":", ".").replace("/", ".")
    if resume:
        store = RunStore.resume(out or last_folder(RUNS, name))
        store.remove_parts()
    elif out:
        store = RunStore.create(out)
    else:
        store = RunStore.create_free(RUNS, name)
    store.anonymous = anonymous
    return store


def _run_all(
    scenarios: "Sequence[Scenario]",
    store: "RunStore",
    worker: "Worker",
    *,
    timeout: float | None,
    force: bool,
    snapshots: bool,
    traces: bool,
) -> "list[Record]":
    """The records that stand when all scenarios have run, an earlier run's among them; Ctrl-C tells
    how to go on and ends with 130.
    """
    from optprof.profiler.machine.environment import environment
    from optprof.profiler.records.store import file_name, standing
    from optprof.profiler.running.resume import pending
    from optprof.profiler.running.runner import run
    from optprof.scenarios.schema import require_records

    before = store.read()
    lost = store.lost_timelines(standing(before))
    store.warn()
    waiting = (
        pending(scenarios, before, environment(seed=0), lost, anonymous=store.anonymous)
        if before
        else list(scenarios)
    )
    for name in lost & {file_name(scenario) for scenario in waiting}:
        store.set_timeline_aside(name)
    if before:
        require_records(len(before) + len(waiting))
        print(
            f"{len(scenarios) - len(waiting)} of {len(scenarios)} scenarios are recorded in"
            f" {store.folder}",
            file=sys.stderr,
        )
    try:
        with progress(len(waiting)) as started:
            run(
                waiting,
                store,
                started,
                worker=worker,
                snapshots=snapshots,
                traces=traces,
                timeout=timeout,
                force=force,
            )
    except KeyboardInterrupt:
        print(
            f"interrupted; what is finished is in {store.folder}; to go on:\n "
            f" {_going_on(store.folder)}",
            file=sys.stderr,
        )
        raise typer.Exit(INTERRUPTED) from None
    return store.read_standing()


def _one_line(error: Exception) -> str:
    """What went wrong, of the system's errors with the file and what helps."""
    if not isinstance(error, OSError) or error.filename is None:
        return str(error)
    helps = {
        errno.EROFS: "; name another folder with --out",
        errno.ENOSPC: "; make room, and go on with --resume",
    }
    help_ = "" if error.filename == STDOUT else helps.get(error.errno or 0, "")
    return f"{error.filename}: {error.strerror}{help_}"


def _forecast(
    scenarios: "Sequence[Scenario]", worker: "Worker", stdout: TextIO, *, timeout: float | None
) -> None:
    from optprof.profiler.measuring.measurement import to_simulate
    from optprof.profiler.records.store import RunStore
    from optprof.profiler.running.runner import Runner
    from optprof.profiler.running.sweep import forecast
    from optprof.reports.forecasts import render_forecasts

    with TemporaryDirectory() as folder, progress(len(scenarios)) as started:
        runner = Runner(worker=worker, store=RunStore(Path(folder)), timeout=timeout)
        found = forecast(
            scenarios,
            lambda scenario: runner.find(
                to_simulate(scenario) if scenario.device != "sim" else scenario
            ),
            started,
        )
    render_forecasts(found, stdout)


def _going_on(folder: Path) -> str:
    """This command, to be given again."""
    out = (
        []
        if any(word == "--out" or word.startswith("--out=") for word in sys.argv)
        else ["--out", str(folder)]
    )
    return shlex.join(
        ["optprof", *(word for word in sys.argv[1:] if word != "--resume"), *out, "--resume"]
    )


def _show(
    records: "Sequence[Record]",
    store: "RunStore",
    stdout: TextIO,
    *,
    report: bool,
    tensorboard: bool,
    as_json: bool,
    logs: bool,
    force: bool,
) -> None:
    """Print the records and where their page is; `logs` prints what failed scenarios have
    printed.
    """
    from optprof.reports import terminal

    page = None
    if report:
        from optprof.reports import write_report

        page = write_report(store.folder, tensorboard=tensorboard, force=force)
    if as_json:
        told = {
            "run": str(store.folder),
            "report": page and str(page),
            "records": [record.to_dict() for record in records],
        }
        print(json.dumps(told, indent=1), file=stdout)
    else:
        terminal.render(records, stdout)
    print(
        (
            f"report: {page}"
            if page
            else f"records: {store.records_path}; draw them with: optprof report {store.folder}"
        ),
        file=sys.stderr,
    )
    for record in records:
        if record.outcome != "ok" and record.log:
            scenario = record.scenario
            told = (
                f"{record.outcome}: {scenario.model} {scenario.optimizer}, log in"
                f" {store.folder / record.log}"
            )
            print(" ".join(told.split()), file=sys.stderr)
            if logs:
                try:
                    print(store.read_log(record), file=sys.stderr)
                except (OSError, ValueError) as error:
                    print(f"the log cannot be read: {error}", file=sys.stderr)


def _exit_with(records: "Sequence[Record]") -> None:
    failed = sum(record.outcome != "ok" for record in records)
    if failed:
        print(f"{failed} of {len(records)} scenarios failed; the report lists why", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


def _run(named: Path) -> Path:
    """The folder of a run that is named by its path, or by its name under runs/."""
    return named if named.exists() else RUNS / named


def main() -> None:
    """Run the command that the arguments name."""
    # In `python -c` it is the current folder.
    sys.path[:] = [place for place in sys.path if place]
    guard_streams()
    try:
        try:
            app()
        finally:
            # What waits in the buffer may meet a full disk.
            sys.stdout.flush()
    except OSError as error:
        print(f"optprof: {_one_line(error)}", file=sys.stderr)
        sys.exit(REFUSED)

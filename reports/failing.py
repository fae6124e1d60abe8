"""Failing: the requested results that a run lacks, in words, and the commands that help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, get_args, get_type_hints

from optprof.profiler.records.planned import Unfinished
from optprof.profiler.records.record import Record
from optprof.profiler.safety.plain import plain
from optprof.scenarios.spec import Option, Scenario

from .arithmetic.capacity import lacking
from .arithmetic.entries import Entry, by_setting, failures, ran_out, requested
from .arithmetic.findings import Findings
from .arithmetic.labels import optimizer_key, shortened, unusual_options
from .arithmetic.provenance import shell
from .units import BINARY, Units, bytes_text
from .words import OUTCOMES, listed

# A verdict with more sentences is no longer read.
MOST_SENTENCES = 2
MOST_VERDICTS = 3
MOST_LETTERS = 160
FINDS = "# finds the cheapest change that makes it fit"
# Fields that `optprof fit` does not take, or that other parts of its command line name.
_NOT_OF_FIT = {
    *("model", "optimizer", "options", "gpu"),
    *("device", "workload", "steps", "accumulate", "seed"),
}


@dataclass(frozen=True, kw_only=True)
class Unfit:
    """The optimizers of one setting that run out of a GPU's memory, and those that do not."""

    name: str
    gpu: str
    out: Sequence[Entry]
    fitting: Sequence[Entry]

    @property
    def verb(self) -> str:
        """The answer, after the setting's name."""
        return f"does not fit on {self.gpu}"

    def lack(self, units: Units = BINARY) -> str:
        """The memory that is missing: 0.750 GiB more needed, or a range of several optimizers."""
        known = {entry.label: nbytes for entry in self.out if (nbytes := lacking(entry.bytes_from))}
        if not known:
            return ""
        least, most = min(known.values()), max(known.values())
        size = bytes_text(least, units, most if len(known) > 1 else None)
        return f"{size} more needed"


def unfinished_text(unfinished: Unfinished | None) -> str:
    """The records that are still missing, and how to go on; empty for a finished run."""
    if unfinished is None:
        return ""
    commands = [shell([*map(plain, command), "--resume"]) for command in unfinished.commands]
    go_on = f" Go on with: {'; '.join(commands)}" if commands else ""
    verb = "is" if unfinished.missing == 1 else "are"
    share = f"{unfinished.missing:,} of {unfinished.planned:,}"
    return (
        f"Unfinished: {share} scenarios {verb} missing. The run was interrupted, or is still going"
        f" on.{go_on}"
    )


def unfits(findings: Findings) -> list[Unfit]:
    """Return the settings that run out of a simulated GPU's memory, in the order of the run."""
    found = []
    for setting, group in by_setting(findings.entries).items():
        out = [entry for entry in group if entry.ran_out]
        if out:
            gpu = out[0].scenario.gpu or "the simulated GPU"
            found.append(
                Unfit(
                    name=findings.names[setting].replace(f" · on {gpu}", ""),
                    gpu=gpu,
                    out=out,
                    fitting=[entry for entry in group if not entry.ran_out],
                )
            )
    return found


def title(findings: Findings) -> str:
    """The title of a run: its models, and what failed."""
    models, missing = listed(findings.models), unfits(findings)
    asked = requested(findings.records)
    gpus = listed(list(dict.fromkeys(each.gpu for each in missing)))
    if missing and all(ran_out(record) for record in asked):
        return f"{models} {'does' if len(findings.models) == 1 else 'do'} not fit on {gpus}"
    cost = f"What an optimizer costs on {models}"
    lost = _other_failures(findings)
    if not findings.entries and lost:
        return f"{cost}: no scenario has a result"
    parts = []
    if missing:
        labels = list(dict.fromkeys(entry.label for each in missing for entry in each.out))
        parts.append(f"{listed(labels)} {'does' if len(labels) == 1 else 'do'} not fit on {gpus}")
    if lost:
        parts.append(listed(_verdicts(findings), MOST_VERDICTS + 1))
    return ": ".join(filter(None, (cost, "; ".join(parts))))


def sentences(findings: Findings, units: Units = BINARY) -> list[str]:
    """A sentence for each setting that does not fit, then one for the other failures."""
    missing = unfits(findings)
    texts = [_sentence(each, units) for each in missing[:MOST_SENTENCES]]
    if more := len(missing) - MOST_SENTENCES:
        texts += [f"{more} more settings do not fit."] if more > 0 else []
    lost = _other_failures(findings)
    reasons = list(dict.fromkeys(record.error for record in lost if record.error))
    reason = f": {shortened(reasons[0], MOST_LETTERS)}" if len(reasons) == 1 else ""
    return texts + [f"{text}{reason}." for text in _verdicts(findings)]


def _sentence(unfit: Unfit, units: Units) -> str:
    labels = [entry.label for entry in unfit.out]
    lack = unfit.lack(units)
    if unfit.fitting or len(labels) == 1:
        fits = listed([entry.label for entry in unfit.fitting])
        verb = "fits" if len(unfit.fitting) == 1 else "fit"
        return (
            f"{unfit.name} {unfit.verb} with {listed(labels)}{f': {lack}' if lack else ''}."
            f"{f' {fits} {verb}.' if fits else ''}"
        )
    closest = min(unfit.out, key=lambda entry: lacking(entry.bytes_from) or 0)
    nearest = replace(unfit, out=[closest]).lack(units)
    return f"{unfit.name} {unfit.verb} with any of {len(labels)} optimizers" + (
        f"; {closest.label} comes closest: {nearest}." if nearest else "."
    )


def remedies(findings: Findings) -> list[str]:
    """Return the commands that find the cheapest change that makes the steps fit."""
    groups: dict[tuple[str, ...], tuple[list[str], list[str]]] = {}
    for each in unfits(findings):
        for entry in each.out:
            scenario = entry.scenario
            gpus, optimizers = groups.setdefault(_options(scenario), ([], []))
            gpus.append(each.gpu)
            # Another optimizer of the run may be the change that is needed.
            optimizers += [_spec(other.record) for other in (*each.out, *each.fitting)]
    return [
        shell(
            [
                *("optprof", "fit", *options[:1]),
                *("--gpu", ",".join(dict.fromkeys(gpus))),
                *("-o", ",".join(dict.fromkeys(optimizers))),
                *options[1:],
            ]
        )
        for options, (gpus, optimizers) in list(groups.items())[:MOST_SENTENCES]
    ]


def _options(scenario: Scenario) -> tuple[str, ...]:
    """Return the model, and an option for each field that differs from its default."""
    hints = get_type_hints(Scenario, include_extras=True)
    usual = Scenario(
        model=scenario.model, sequence_length=1024 if scenario.sequence_length else None
    )
    words = [scenario.model]
    for each in fields(Scenario):
        value = getattr(scenario, each.name)
        option = next(
            (extra for extra in get_args(hints[each.name])[1:] if isinstance(extra, Option)), None
        )
        if option is None or each.name in _NOT_OF_FIT or value == getattr(usual, each.name):
            continue
        name = next(
            (name for name in option.names if name.startswith("--")),
            f"--{each.name.replace('_', '-')}",
        )
        words += _words(name, value)
    return tuple(words)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [name]
    if isinstance(value, Mapping):
        return [word for key, each in value.items() for word in (name, f"{key}={each}")]
    return [name, str(value)]


def _spec(record: Record) -> str:
    """Return the optimizer as a command line names it."""
    options = record.scenario.options
    text = ",".join(f"{name}={options[name]}" for name in unusual_options(record))
    return f"{record.scenario.optimizer}:{text}" if text else record.scenario.optimizer


def _other_failures(findings: Findings) -> list[Record]:
    return [record for record in failures(requested(findings.records)) if not ran_out(record)]


def _verdicts(findings: Findings) -> list[str]:
    """Return what became of the optimizers: sm3 and lamb16 were killed.

    If other models of the run have results, the models are named: adamw failed on tiny.
    """
    labels: dict[tuple[str, str], dict[str, None]] = {}
    for record in _other_failures(findings):
        label = findings.labels[optimizer_key(record.scenario)]
        place = OUTCOMES[record.outcome], record.scenario.model
        labels.setdefault(place, {})[label] = None
    models: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (verb, model), names in labels.items():
        models.setdefault((verb, tuple(names)), []).append(model)
    texts = [
        f"{listed(names)} {verb if len(names) == 1 else verb.replace('was ', 'were ')}"
        + ("" if {*where}.issuperset(findings.models) else f" on {listed(where)}")
        for (verb, names), where in models.items()
    ]
    more = len(texts) - MOST_VERDICTS
    return [*texts[:MOST_VERDICTS], f"{more} more have no result"] if more > 1 else texts

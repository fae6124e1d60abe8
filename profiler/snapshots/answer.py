"""The answers of `optprof snapshot` for one file."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from optprof.scenarios.schema import shown

from ..allocator.settings import AllocatorSettings
from ..records.snapshots import DeviceContents, SnapshotContents, Trial
from .contents import Replayable, contents_of
from .reading import read_snapshot
from .snapshot import Device, Snapshot
from .start import UnsupportedError
from .trying import confs_to_try, tried

ALL = "all"


def answer(
    path: Path,
    confs: Sequence[str] | None = None,
    total: int | None = None,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> SnapshotContents:
    """Return what a snapshot holds, and what its requests take under the settings `confs`.

    `confs` are texts of PYTORCH_CUDA_ALLOC_CONF; "all" among them stands for a list of our own, and
    None tries nothing. `total` are the bytes that the process can take of the GPU; by default they
    follow from a recorded out-of-memory, else the device is unlimited.

    Raise ValueError for a file that is no snapshot, and for unknown settings.
    """
    for conf in confs or ():
        if conf != ALL:
            AllocatorSettings.parse(conf)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} is a pipe or a device; save the snapshot in a file")
    snapshot = read_snapshot(path, lambda done, whole: progress("reading", done, whole))
    devices = [_answered(snapshot, device, confs, total, progress) for device in snapshot.devices]
    if not devices:
        raise ValueError(f"{path} has neither segments nor events; nothing used the GPU")
    return SnapshotContents(
        file=path.name, conf=snapshot.conf, devices=devices, passed_over=snapshot.passed_over
    )


def _answered(
    snapshot: Snapshot,
    device: Device,
    confs: Sequence[str] | None,
    total: int | None,
    progress: Callable[[str, int, int], None],
) -> DeviceContents:
    progress(f"looking into GPU {device.index}", 0, 1)
    try:
        settings = AllocatorSettings.parse(snapshot.conf)
    except ValueError as error:
        # Of another backend, or of a version of torch that this one does not know.
        contents = contents_of(snapshot, device, AllocatorSettings(), Replayable.of(device, None))
        return replace(contents, problem=f"recorded under {shown(snapshot.conf)}: {error}")
    replayable = Replayable.of(device, settings)
    contents = contents_of(snapshot, device, settings, replayable)
    if confs is None:
        return contents
    if not len(device.events):
        return replace(contents, problem="there are no events to replay; record the history too")
    same_device = total is None
    if same_device and contents.out_of_memory:
        # Another process may have taken memory in the meantime.
        total = max(contents.peak_reserved, *(each.capacity for each in contents.out_of_memory))
    texts: list[str] = [snapshot.conf]
    for conf in confs:
        texts += confs_to_try(snapshot.conf, limited=total is not None) if conf == ALL else [conf]
    # Two texts may say the same.
    texts = list({AllocatorSettings.parse(text): text for text in reversed(texts)}.values())[::-1]
    trials: list[Trial] = []
    try:
        for trial in tried(
            device, snapshot.conf, texts, replayable, total, same_device=same_device
        ):
            trials.append(trial)
            progress(f"GPU {device.index}: trying settings", len(trials), len(texts))
    except UnsupportedError as error:
        return replace(contents, problem=contents.problem or str(error))
    return replace(contents, trials=trials)

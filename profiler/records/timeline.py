"""Timeline: bytes of training steps from event to event, by category, and its file.

An event is an allocation or a free. A timeline keeps samples, which are exact. Among them are the
highest and the lowest moment of every stretch of events, so a curve through them has every summit
and valley. Every block at the peak belongs to a group, so the groups add up to the peak. The file
is JSON under gzip, its columns as differences.
"""

import gzip
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Annotated, Any, NotRequired, TypedDict, TypeVar, cast

from msgspec import Meta

from optprof.scenarios import schema
from optprof.scenarios.schema import Count, Text, Whole

Item = TypeVar("Item")

SCHEMA = 1

# The limits of a file, many times what a timeline has.
MOST_BYTES = 16 << 20
MOST_SAMPLES = 200_000
MOST_PHASES = 20_000
MOST_BLOCKS = 1_000
MOST_CATEGORIES = 100
MOST_GROUPS = 10_000


@dataclass(frozen=True, kw_only=True)
class HeldBlock:
    """A block at the peak: its bytes, the bytes requested, and the request's time and source.

    Step 0 is before the first. `module` is the path of a module or tensor of the model, `op` an
    operation such as "aten::addmm", `line` a line such as "file.py:12"; "" is unknown.
    """

    block_bytes: Whole
    requested_bytes: Whole
    category: Text
    step: Whole
    phase: Text
    module: Text
    op: Text
    line: Text


@dataclass(frozen=True)
class BlockSource:
    """The category of a block, and the module, operation and line of Python that requested it.

    `module` is the path of a module or tensor of the model, with "*" for each number, so the layers
    of a model have one source. `module_class` is the class of that module or of the tensor's. "" is
    unknown.
    """

    category: str
    module_class: str
    module: str
    op: str
    line: str


@dataclass(frozen=True, kw_only=True)
class PeakGroup:
    """Blocks at the peak with one source, requested in one phase: their number and exact bytes.

    A group without a phase has the blocks of all smaller groups of its category.
    """

    source: BlockSource
    phase: str
    blocks: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A phase of a step (counted from 1), with the number of its events and of its samples."""

    step: int
    phase: str
    events: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The first and the last of the `steps` that were traced, and the highest if it is another.

    The samples of all phases follow one another. `places` has the number of events of the phase
    that precede the sample, `categories` the bytes of each category's blocks, `reserved` the bytes
    of all segments. `peak` is the number of the highest sample. At that moment, `largest` has the
    largest blocks, and `groups` has all blocks: their bytes add up to the peak.

    `events` has the last event before each sample: the number of its source in `sources`, counted
    from 1, negative for a free, and 0 at the start of a phase. `layers` has the numbers in the path
    of its module, such as "13" or "0.2". Older files have neither groups nor events.
    """

    steps: int
    phases: tuple[Stretch, ...]
    places: tuple[int, ...]
    categories: Mapping[str, tuple[int, ...]]
    reserved: tuple[int, ...]
    peak: int
    largest: tuple[HeldBlock, ...]
    groups: tuple[PeakGroup, ...] = ()
    sources: tuple[BlockSource, ...] = ()
    events: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()

    @cached_property
    def allocated(self) -> tuple[int, ...]:
        """Bytes of all blocks in use at each sample."""
        return tuple(map(sum, zip(*self.categories.values(), strict=True)))

    @property
    def fragmentation(self) -> tuple[int, ...]:
        """Bytes at each sample that the allocator has reserved and no tensor uses."""
        return tuple(
            reserved - allocated
            for reserved, allocated in zip(self.reserved, self.allocated, strict=True)
        )

    def source_at(self, sample: int) -> BlockSource | None:
        """Return the source of the last event before a sample, with the whole path of its module.

        None at the start of a phase, and for an older file.
        """
        if not self.events or not self.events[sample]:
            return None
        source = self.sources[abs(self.events[sample]) - 1]
        numbers = iter(self.layers[sample].split("."))
        return replace(source, module=re.sub(r"\*", lambda _: next(numbers, "*"), source.module))

    @property
    def peak_allocated(self) -> int:
        """Most bytes of blocks in use at any moment."""
        return self.allocated[self.peak]

    @property
    def peak_stretch(self) -> Stretch:
        """Phase of the peak."""
        ends = accumulate(stretch.samples for stretch in self.phases)
        return next(
            stretch for stretch, end in zip(self.phases, ends, strict=True) if self.peak < end
        )


_Column = Annotated[list[Whole], Meta(max_length=MOST_SAMPLES)]
_Source = tuple[Text, Text, Text, Text, Text]
# The number of a source, a phase, and the number and the bytes of the blocks.
_Group = tuple[Whole, Text, Count, Count]


class _File(TypedDict):
    """Data of a file.

    Older ones do not name the scenario's files in `of`, and have no groups, sources and events.
    `layers` has numbers of `numbers`.
    """

    of: NotRequired[Text]
    steps: Whole
    phases: Annotated[list[tuple[Whole, Text, Count, Count]], Meta(max_length=MOST_PHASES)]
    places: _Column
    categories: Annotated[dict[Text, _Column], Meta(max_length=MOST_CATEGORIES)]
    reserved: _Column
    peak: Whole
    largest: Annotated[tuple[HeldBlock, ...], Meta(max_length=MOST_BLOCKS)]
    groups: NotRequired[Annotated[list[_Group], Meta(max_length=MOST_GROUPS)]]
    sources: NotRequired[Annotated[list[_Source], Meta(max_length=MOST_SAMPLES)]]
    events: NotRequired[_Column]
    numbers: NotRequired[Annotated[list[Text], Meta(max_length=MOST_SAMPLES)]]
    layers: NotRequired[_Column]


def pack(timeline: Timeline, name: str = "") -> bytes:
    """Return the bytes of the file, the same for the same timeline and `name` of the scenario."""
    sources = {source: number for number, source in enumerate(timeline.sources)}
    numbers = {text: number for number, text in enumerate(dict.fromkeys(timeline.layers))}
    data = {
        "schema": SCHEMA,
        "of": name,
        "steps": timeline.steps,
        "phases": [list(asdict(stretch).values()) for stretch in timeline.phases],
        "places": _differences(timeline.places),
        "categories": {name: _differences(column) for name, column in timeline.categories.items()},
        "reserved": _differences(timeline.reserved),
        "peak": timeline.peak,
        "largest": [asdict(block) for block in timeline.largest],
        "groups": [
            (sources[group.source], group.phase, group.blocks, group.nbytes)
            for group in timeline.groups
        ],
        "sources": [astuple(source) for source in timeline.sources],
        "events": _differences(timeline.events),
        "numbers": list(numbers),
        "layers": _differences([numbers[text] for text in timeline.layers]),
    }
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)


def unpack(packed: bytes, name: str = "", peak: int | None = None) -> Timeline:
    """Return the timeline that `pack` wrote; ValueError says in one line what is wrong.

    The timeline of another `name` is refused. An older file has no name; it must have the record's
    `peak` of allocated bytes.
    """
    data = _parsed(packed)
    if not isinstance(data, dict):
        raise ValueError(
            f"a timeline of schema {SCHEMA} is a JSON object, got {schema.shown(data)}"
        )
    schema.require_version(data.get("schema"), SCHEMA, "a timeline of schema")
    try:
        timeline = _timeline(schema.check(_File, data))
        _require_consistent(timeline)
    except ValueError as error:
        raise ValueError(f"not a timeline: {error}") from error
    of = data.get("of", "")
    if name and of and of != name:
        raise ValueError(f"the timeline of {schema.shown(of)}")
    if not of and peak not in (None, timeline.peak_allocated):
        raise ValueError(
            f"the timeline of a record whose peak is {timeline.peak_allocated} bytes and not {peak}"
        )
    return timeline


def _parsed(packed: bytes) -> Any:
    if not packed:
        raise ValueError("not a timeline: an empty file")
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            text = cast(bytes, file.read(MOST_BYTES + 1))
        if len(text) > MOST_BYTES:
            raise ValueError(f"at most {MOST_BYTES} bytes of JSON, got more")
        return schema.parse_json(text)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"not a timeline: {error}") from error


def _timeline(data: _File) -> Timeline:
    sources = tuple(BlockSource(*texts) for texts in data.get("sources", ()))
    numbers = data.get("numbers", [])
    return Timeline(
        steps=data["steps"],
        phases=tuple(
            Stretch(step=step, phase=phase, events=events, samples=samples)
            for step, phase, events, samples in data["phases"]
        ),
        places=tuple(accumulate(data["places"])),
        categories={name: tuple(accumulate(column)) for name, column in data["categories"].items()},
        reserved=tuple(accumulate(data["reserved"])),
        peak=data["peak"],
        largest=data["largest"],
        groups=tuple(
            PeakGroup(
                source=_numbered(sources, number, "source"),
                phase=phase,
                blocks=blocks,
                nbytes=nbytes,
            )
            for number, phase, blocks, nbytes in data.get("groups", ())
        ),
        sources=sources,
        events=tuple(accumulate(data.get("events", ()))),
        layers=tuple(
            _numbered(numbers, number, "text of layers")
            for number in accumulate(data.get("layers", ()))
        ),
    )


def _numbered(items: Sequence[Item], number: int, name: str) -> Item:
    if 0 <= number < len(items):
        return items[number]
    raise ValueError(f"it has {len(items)} of {name}, and names number {number}")


def _require_consistent(timeline: Timeline) -> None:
    """Raise ValueError unless the parts fit together."""
    samples = sum(stretch.samples for stretch in timeline.phases)
    columns = {"places": timeline.places, "reserved": timeline.reserved, **timeline.categories}
    for name, column in columns.items():
        if len(column) != samples:
            raise ValueError(
                f"its phases have {samples} samples, its column {schema.shown(name)} has"
                f" {len(column)}"
            )
        if min(column, default=0) < 0:
            raise ValueError(f"its column {schema.shown(name)} falls below 0")
        if max(column, default=0) > schema.MOST_WHOLE:
            raise ValueError(f"its column {schema.shown(name)} rises above {schema.MOST_WHOLE}")
    if timeline.peak not in range(len(timeline.allocated)) or timeline.peak_allocated != max(
        timeline.allocated
    ):
        raise ValueError(f"sample {timeline.peak} is not the highest")
    _require_explained(timeline, samples)


def _require_explained(timeline: Timeline, samples: int) -> None:
    """Raise ValueError unless the groups add up to the peak, and events name sources."""
    if timeline.groups:
        held: Counter[str] = Counter()
        for group in timeline.groups:
            held[group.source.category] += group.nbytes
        peak = Counter({name: each[timeline.peak] for name, each in timeline.categories.items()})
        for name in held.keys() | peak.keys():
            if held[name] != peak[name]:
                raise ValueError(
                    f"its groups have {held[name]} bytes of {schema.shown(name)}, its peak has"
                    f" {peak[name]}"
                )
    if not len(timeline.events) == len(timeline.layers) or len(timeline.events) not in (0, samples):
        raise ValueError(f"it has {samples} samples and {len(timeline.events)} events")
    if any(abs(event) > len(timeline.sources) for event in timeline.events):
        raise ValueError(f"an event names none of its {len(timeline.sources)} sources")


def _differences(column: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise((0, *column))]

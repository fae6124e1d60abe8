"""The pictures of a memory snapshot: bytes over time, and the blocks of its segments."""

from collections.abc import Sequence
from itertools import accumulate

from optprof.profiler.records.snapshots import DeviceContents, Piece, SegmentUse

from ..style import CATEGORY_COLOURS, OTHER_BLOCK
from ..tables.table import Cell, Table, bytes_cell, text_table
from ..units import Sized, bytes_text, exact_text
from .picture import Areas, Bar, Bars, Key, Layer, Part, Picture

# Colours of places in the code, the one with the most bytes first.
COLOURS = tuple(CATEGORY_COLOURS.values())
# More rows cannot be compared.
MOST_ROWS, MOST_NAMES = 16, 2


def timeline(device: DeviceContents) -> list[Picture]:
    """Return the picture of bytes over time; none for a snapshot without events."""
    curve = device.curve
    if curve is None:
        return []
    count = device.events
    words = [f"{count:,} events" for _ in curve.events]
    if curve.seconds:
        words = [f"{count:,}, after {seconds:.3f} s" for seconds in curve.seconds]
    value = Sized.of(
        lambda units: (
            f"{bytes_text(device.peak_used, units)} in use,"
            f" {bytes_text(device.peak_reserved, units)} reserved at the peak"
        )
    )
    areas = Areas(
        label=f"GPU {device.index}",
        origin="measured",
        value=value,
        alt=f"GPU {device.index}: {value.binary}",
        bands=(),
        places=[event / count for event in curve.events],
        layers=[
            Layer(name=name, colour=COLOURS[number % len(COLOURS)], values=values)
            for number, (name, values) in enumerate(zip(curve.lanes, curve.used, strict=True))
        ],
        reserved=curve.reserved,
        events=curve.events,
        words=words,
        peak=(device.peak_used_event / count, device.peak_used),
        most=max(curve.reserved, default=0),
    )
    rows = [
        (f"{event:,}", *map(bytes_cell, (sum(each[place] for each in curve.used), reserved)))
        for place, (event, reserved) in enumerate(zip(curve.events, curve.reserved, strict=True))
    ]
    return [
        Picture(
            name=f"memory-{device.index}",
            title="Memory over time",
            sentence=(
                "Requested bytes in use by pool and stream after each event, and what the allocator"
                " had reserved. A point is the largest of its stretch of events."
            ),
            context="",
            table=text_table(("event", "in use", "reserved"), rows),
            panels=(areas,),
            marks={},
            keys=(
                *(
                    Key("block", name, COLOURS[number % len(COLOURS)])
                    for number, name in enumerate(curve.lanes)
                ),
                Key("stroke", "reserved", "@ink"),
                Key("peak", "most in use", "@ink"),
            ),
        )
    ]


def block_map(device: DeviceContents) -> list[Picture]:
    """Return the picture of the segments with the most free bytes at the peak."""
    segments = [each for each in device.segments if each.free][:MOST_ROWS]
    if not segments:
        return []
    longest = max(each.nbytes for each in segments)
    names = [group.name for group in device.groups]
    return [
        Picture(
            name=f"segments-{device.index}",
            title="Segments at the peak of reserved memory",
            sentence=(
                "Each row is a segment, as long as its bytes; blocks in use are coloured by the"
                " line that requested them, and the rest is free. Those with the most free bytes"
                " come first. A segment returns to the GPU only when no block is in use."
            ),
            context="",
            table=segment_table(segments),
            panels=(
                Bars(
                    name="",
                    bars=tuple(_row(each, longest, names) for each in segments),
                ),
            ),
            marks={},
            keys=(
                *(
                    Key("block", name, COLOURS[number])
                    for number, name in enumerate(names[: len(COLOURS)])
                ),
                Key("block", "other places", OTHER_BLOCK),
                Key("empty", "free"),
            ),
        )
    ]


def _row(segment: SegmentUse, longest: int, names: Sequence[str]) -> Bar:
    lefts = accumulate((piece.nbytes for piece in segment.pieces), initial=0)
    return Bar(
        label=f"{segment.address:#x}",
        mark="",
        origin="measured",
        value=Sized.of(
            lambda units: (
                f"{bytes_text(segment.free, units)} of {bytes_text(segment.nbytes, units)} free"
            )
        ),
        parts=tuple(
            Part(
                left=100 * left / longest,
                width=100 * piece.nbytes / longest,
                colour=_colour(piece),
                words=f"{_name(piece, names)}: {exact_text(piece.nbytes)}",
            )
            for left, piece in zip(lefts, segment.pieces, strict=False)
            if piece.group is not None
        ),
        outline=100 * segment.nbytes / longest,
        words=f"{segment.lane}: {exact_text(segment.nbytes)}",
    )


def _colour(piece: Piece) -> str:
    group = piece.group
    return COLOURS[group] if group is not None and group < len(COLOURS) else OTHER_BLOCK


def _name(piece: Piece, names: Sequence[str]) -> str:
    assert piece.group is not None
    name = names[piece.group] if piece.group < len(names) else "other places"
    return name if piece.blocks == 1 else f"{name}, {piece.blocks} blocks"


def segment_table(segments: Sequence[SegmentUse]) -> Table:
    """Return a row for each segment, with the places whose blocks keep it."""
    head = ("segment", "pool", "size", "in use", "free", "largest gap", "blocks", "kept by")
    return Table(
        head=head,
        rows=tuple(
            (
                Cell(text=f"{each.address:#x}"),
                Cell(text=each.lane),
                *map(bytes_cell, (each.nbytes, each.used, each.free, each.largest)),
                Cell(text=f"{each.blocks:,}", number=True, value=each.blocks),
                Cell(text=_holders(each)),
            )
            for each in segments
        ),
        sortable=True,
    )


def _holders(segment: SegmentUse) -> str:
    """Return the places with the smallest blocks, whose move would free the segment soonest."""
    names = [f"{name} ({bytes_text(nbytes)})" for name, nbytes in segment.holders[:MOST_NAMES]]
    if not names:
        return "nothing: it is idle"
    more = len(segment.holders) - len(names)
    return "; ".join([*names, *([f"{more} more"] if more else [])])

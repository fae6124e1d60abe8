"""A small snapshot in the forms that torch writes, for tests and attacks."""

import gzip
import json
import pickle
import struct
from typing import Any

MIB = 1 << 20
FRAMES = [
    {"filename": "/site-packages/torch/nn/modules/linear.py", "line": 134, "name": "forward"},
    {"filename": "train.py", "line": 300, "name": "step"},
    {"filename": "train.py", "line": 70_000, "name": "<module>"},
]
INNER, OUTER = [FRAMES[0], FRAMES[1], FRAMES[2]], [FRAMES[1], FRAMES[2]]


def event(action: str, addr: int, size: int, time: int, **others: Any) -> dict[str, Any]:
    """Return an event with its keys in torch's order."""
    place = "device_free" if action == "oom" else "addr"
    return {
        "action": action,
        place: addr,
        "size": size,
        "stream": others.pop("stream", 0),
        "time_us": time,
        "compile_context": "N/A",
        "user_metadata": "",
        **others,
    }


def snapshot() -> dict[str, Any]:
    """Return what torch.cuda.memory._snapshot() would: a segment with three blocks, and events."""
    base = 0x7F00_0000_0000
    blocks = [
        {
            "address": base,
            "size": 1024,
            "requested_size": 1000,
            "state": "active_allocated",
            "frames": INNER,
        },
        {
            "address": base + 1024,
            "size": 512,
            "requested_size": 3,
            "state": "active_awaiting_free",
            "frames": OUTER,
        },
        {
            "address": base + 1536,
            "size": 2 * MIB - 1536,
            "requested_size": 0,
            "state": "inactive",
            "frames": [],
        },
    ]
    segment = {
        "device": 1,
        "address": base,
        "total_size": 2 * MIB,
        "allocated_size": 1024,
        "active_size": 1536,
        "requested_size": 1003,
        "stream": 0,
        "segment_type": "small",
        "segment_pool_id": (0, 3),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }
    now = 1_782_827_950_507_193
    events = [
        event("segment_alloc", base, 2 * MIB, now, pool_id=(0, 3), frames=[]),
        event("alloc", base, 1000, now + 1, pool_id=(0, 3), frames=INNER),
        event("alloc", base + 1024, 3, now + 2, pool_id=(0, 3), frames=OUTER),
        event("free_requested", base + 1024, 3, now + 3, pool_id=(0, 3), frames=[FRAMES[2]]),
        event("annotate", 0, 0, now + 4, frames=[]),
        event("oom", 2**40, 2**36, now + 5, stream=2**46 + 5, frames=list(INNER)),
    ]
    return {
        "segments": [segment],
        "device_traces": [[], events],
        "allocator_settings": {
            "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64",
            "garbage_collection_threshold": 0.5,
            "expandable_segments": False,
            "roundup_power2_divisions": {"1": 0, "2": 0},
        },
        "external_annotations": [{"name": "step", "stage": "START", "time_us": now}],
    }


def forms(data: Any) -> dict[str, bytes]:
    """Return the data in each form, by name."""
    python = {f"protocol {each}": pickle.dumps(data, each) for each in range(2, 6)}
    text = json.dumps(data).encode()
    return {
        **python,
        "C++": as_cpp(data),
        "gzip": gzip.compress(python["protocol 4"]),
        "JSON": text,
        "JSON, indented": json.dumps(data, indent=1).encode(),
        "JSON, gzip": gzip.compress(text),
    }


def as_cpp(data: Any) -> bytes:
    """Return the pickle that torch's C++ writer makes."""
    return CppPickler().dump(data)


class CppPickler:
    """Writes as torch::jit::Pickler: a container gets its place in the memo at its end.

    Texts are shared by value. A number beyond 32 bits has 8 bytes. All lists and dicts have one
    mark, however long they are.
    """

    def __init__(self) -> None:
        self._out = bytearray(b"\x80\x02")
        self._memo: dict[str | int, int] = {}

    def dump(self, data: Any) -> bytes:
        """Return the pickle."""
        self._write(data)
        return bytes(self._out + b".")

    def _write(self, value: Any) -> None:
        if isinstance(value, bool):
            self._out += b"\x88" if value else b"\x89"
        elif isinstance(value, float):
            self._out += b"G" + struct.pack(">d", value)
        elif isinstance(value, int):
            self._out += _integer(value)
        else:
            key = value if isinstance(value, str) else id(value)
            if key in self._memo:
                self._out += _with_number(b"hj", self._memo[key])
                return
            self._contents(value)
            self._memo[key] = len(self._memo)
            self._out += _with_number(b"qr", self._memo[key])

    def _contents(self, value: Any) -> None:
        if isinstance(value, str):
            text = value.encode()
            self._out += b"X" + struct.pack("<I", len(text)) + text
            return
        begin, end = {tuple: (b"", b"\x86"), list: (b"](", b"e"), dict: (b"}(", b"u")}[type(value)]
        parts = (part for pair in value.items() for part in pair) if type(value) is dict else value
        self._out += begin
        for part in parts:
            self._write(part)
        self._out += end


def _integer(value: int) -> bytes:
    if 0 <= value < 1 << 16:
        return b"K" + bytes([value]) if value < 1 << 8 else b"M" + struct.pack("<H", value)
    if abs(value) < 1 << 31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _with_number(codes: bytes, number: int) -> bytes:
    """Return the short or the long opcode with a place in the memo."""
    if number < 256:
        return codes[:1] + bytes([number])
    return codes[1:] + struct.pack("<I", number)

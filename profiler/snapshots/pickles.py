"""A reader of pickles that builds lists, tuples, dicts with text keys, text and numbers only.

It executes nothing, looks up no name and refuses every other opcode of pickletools. It reads what
Python writes under protocols 2 to 5, and torch's C++ writer under 2, in a stream: a SnapshotMaker
replaces finished events and frames by their numbers, so the file may be larger than the memory.
"""

import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any

from .form import FEWER, FrameNumber, SnapshotMaker

MOST_TEXT, MOST_DEPTH = 1 << 20, 1000
NEWEST_PROTOCOL = 5
# Bytes of memory that a value takes in a container, at most on average.
_VALUE, _REFERENCE = 100, 8
_CHUNK = 1 << 18
# More than any opcode takes with its argument, texts aside.
_MARGIN = 512
_NAMES = {ord(each.code): each.name for each in pickletools.opcodes}
_CODES = {each.name: ord(each.code) for each in pickletools.opcodes}
# A list that only refers to earlier values, as the stacks of a snapshot do. Its place in the memo,
# if it has one, follows its first opcode. Pickles are cut into frames anywhere between opcodes.
_REFERENCES = re.compile(
    rb"(\x94|q.|r....)?\(((?:(?:j....)++|h.|\x95........)++)e(?=[^(])", re.DOTALL
)
_REFERENCE_OR_FRAME = re.compile(rb"h(.)|j(.{4})|\x95.{8}", re.DOTALL)
_INT, _UNSIGNED, _LONG, _FLOAT = (struct.Struct(each) for each in ("<i", "<I", "<Q", ">d"))


class PickleReader:
    """Reads one pickle; ValueError for anything but containers, text and numbers.

    `most_memory` are the bytes of memory for all values together, roughly.
    """

    def __init__(
        self, read: Callable[[int], bytes], maker: SnapshotMaker, most_memory: int
    ) -> None:
        self._read, self._maker, self._most_memory = read, maker, most_memory
        self._stack: list[Any] = []
        # The height of the stack at each MARK, and the place in the memo of the value below.
        self._marks: list[tuple[int, int]] = []
        self._memo: list[Any] = []
        self._lists: dict[bytes, Any] = {}
        self._pairs: dict[tuple[int, int], tuple[int, int]] = {}
        self._kept = self._text = 0
        # `data[at]` is the next opcode; `safe` is the place from which more must be read first.
        self._data, self._at, self._safe, self._end = b"", 0, 0, -1
        self._before = 0
        self._stopped = False

    @property
    def place(self) -> int:
        """The number of bytes of the pickle that were read."""
        return self._before + self._at

    def read(self) -> Any:
        """Return the value of the pickle."""
        try:
            self._run()
            value = self._stack.pop()
        except IndexError:
            raise ValueError("it refers to a value that it does not have") from None
        if self._stack or self._marks or self._at != self._end or self._read(1):
            raise ValueError("values are left over after its end")
        return value

    def _run(self) -> None:
        # These opcodes are most of a snapshot; they are read here without a call.
        binget, binint1, long1, memoize = map(_CODES.get, ("BINGET", "BININT1", "LONG1", "MEMOIZE"))
        stack, memo = self._stack, self._memo
        push, integer = stack.append, int.from_bytes
        while not self._stopped:
            if self._at >= self._safe:
                self._fill()
            data, at, safe = self._data, self._at, self._safe
            while at < safe:
                code = data[at]
                if code == binget:
                    push(memo[data[at + 1]])
                    at += 2
                elif code == long1:
                    at, start = at + 2 + data[at + 1], at + 2
                    push(integer(data[start:at], "little", signed=True))
                elif code == binint1:
                    push(data[at + 1])
                    at += 2
                elif code == memoize:
                    memo.append(stack[-1])
                    at += 1
                else:
                    self._at = at + 1
                    _OPERATIONS[code](self)
                    break
            else:
                self._at = at

    def _fill(self) -> None:
        """Read on, and check the memory; ValueError if the pickle has no more bytes."""
        if self._end >= 0:
            if self._at >= self._end:
                raise ValueError("it ends too early; copy it again")
            return
        self._more(_MARGIN)
        memory = (
            _VALUE * (len(self._stack) + self._kept)
            + _REFERENCE * len(self._memo)
            + self._text
            + self._maker.memory
        )
        if memory > self._most_memory:
            raise ValueError(
                f"its values need more than {self._most_memory >> 20} MiB of memory; {FEWER}"
            )

    def _more(self, nbytes: int) -> None:
        """Have so many bytes from the next one on, zeros after the end."""
        parts = [self._data[self._at :]]
        length = len(parts[0])
        while length < nbytes or len(parts) == 1:
            part = self._read(_CHUNK)
            if not part:
                self._end = length
                parts.append(bytes(_MARGIN))
                break
            parts.append(part)
            length += len(part)
        self._before += self._at
        self._data, self._at = b"".join(parts), 0
        self._safe = length if self._end >= 0 else length - _MARGIN

    def _argument(self, nbytes: int) -> bytes:
        self._at += nbytes
        return self._data[self._at - nbytes : self._at]

    def _proto(self) -> None:
        version = self._argument(1)[0]
        if version > NEWEST_PROTOCOL:
            raise ValueError(f"it has protocol {version}, which is newer than {NEWEST_PROTOCOL}")

    def _frame(self) -> None:
        self._at += 8

    def _stop(self) -> None:
        self._stopped = True
        if self._end < 0:
            self._more(_MARGIN)

    def _mark(self) -> None:
        memo, stack = self._memo, self._stack
        if len(self._marks) >= MOST_DEPTH:
            raise ValueError(f"it is nested deeper than {MOST_DEPTH} values")
        place = len(memo) - 1 if memo and stack and memo[-1] is stack[-1] else -1
        self._marks.append((len(stack), place))

    def _since_mark(self) -> tuple[list[Any], int]:
        height, place = self._marks.pop()
        values = self._stack[height:]
        del self._stack[height:]
        return values, place

    def _constant(self, value: Any) -> None:
        self._stack.append(value)

    def _binint(self) -> None:
        self._stack.append(_INT.unpack_from(self._data, self._at)[0])
        self._at += 4

    def _binint2(self) -> None:
        at = self._at
        self._stack.append(self._data[at] | self._data[at + 1] << 8)
        self._at = at + 2

    def _binfloat(self) -> None:
        self._stack.append(_FLOAT.unpack_from(self._data, self._at)[0])
        self._at += 8

    def _text_of(self, nbytes: int) -> None:
        if nbytes > MOST_TEXT:
            raise ValueError(f"it has a text of {nbytes} bytes, more than {MOST_TEXT}")
        if self._at + nbytes > len(self._data):
            if self._end < 0:
                self._more(nbytes + _MARGIN)
            if self._at + nbytes > len(self._data):
                raise ValueError("it ends too early; copy it again")
        try:
            # As Python's own reader: file names on Linux may be no text.
            text = self._argument(nbytes).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise ValueError("it has a text that is not UTF-8") from None
        self._text += nbytes
        self._stack.append(text)

    def _short_binunicode(self) -> None:
        self._text_of(self._argument(1)[0])

    def _binunicode(self) -> None:
        self._text_of(_UNSIGNED.unpack(self._argument(4))[0])

    def _binunicode8(self) -> None:
        self._text_of(_LONG.unpack(self._argument(8))[0])

    def _empty_dict(self) -> None:
        self._stack.append({})

    def _empty_list(self) -> None:
        run = _REFERENCES.match(self._data, self._at)
        value = self._referring(run[2]) if run else None
        if run is None or value is None:
            self._stack.append([])
            return
        self._stack.append(value)
        if run[1]:
            self._put(len(self._memo) if len(run[1]) == 1 else int.from_bytes(run[1][1:], "little"))
        self._at = run.end()

    def _referring(self, run: bytes) -> Any:
        """Return what takes the place of a list of earlier values, None for the list itself."""
        value = self._lists.get(run)
        if value is None:
            values = [
                self._memo[one[0] if one else _UNSIGNED.unpack(four)[0]]
                for one, four in _REFERENCE_OR_FRAME.findall(run)
                if one or four
            ]
            value = self._maker.referring(values)
            if value is not None:
                self._text += len(run) + _VALUE
                self._lists[run] = value
        return value

    def _append(self) -> None:
        value = self._stack.pop()
        self._extend([value])

    def _appends(self) -> None:
        self._extend(self._since_mark()[0])

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("it adds values to something that is not a list")
        stack = bool(values) and set(map(type, values)) == {FrameNumber}
        # Equal frames are one value.
        self._kept += 1 + (len(values) * _REFERENCE // _VALUE if stack else len(values))
        target.extend(values)

    def _setitem(self) -> None:
        value = self._stack.pop()
        self._set([self._stack.pop(), value], -1)

    def _setitems(self) -> None:
        self._set(*self._since_mark())

    def _set(self, values: list[Any], place: int) -> None:
        target, keys = self._stack[-1], values[::2]
        if type(target) is not dict or len(values) % 2:
            raise ValueError("it adds pairs to something that is not a dict")
        for key in keys:
            # Python's hash of nested tuples has no limit of depth.
            if type(key) is not str:
                raise ValueError("it has a dict with a key that is not a text")
        target.update(zip(keys, values[1::2], strict=True))
        value = self._maker.finished(target)
        if value is target:
            self._kept += len(values) + 2
            return
        self._stack[-1], memo = value, self._memo
        if place >= 0:
            memo[place] = value
        if memo and type(memo[-1]) is list and memo[-1] is values[-1]:
            memo[-1] = self._maker.referring(values[-1]) or memo[-1]

    def _tuple_of(self, values: list[Any]) -> None:
        self._kept += len(values) + 1
        self._stack.append(tuple(values))

    def _tuple2(self) -> None:
        second, first = self._stack.pop(), self._stack.pop()
        if type(first) is int and type(second) is int:
            # Each event has its pool's number.
            value = self._pairs.get((first, second))
            if value is None:
                self._kept += 4
                value = self._pairs[first, second] = first, second
            self._stack.append(value)
        else:
            self._tuple_of([first, second])

    def _tuple3(self) -> None:
        values = [self._stack.pop() for _ in range(3)]
        self._tuple_of(values[::-1])

    def _put(self, place: int) -> None:
        # Every writer counts up.
        if place != len(self._memo):
            raise ValueError("it stores a value at an unexpected place")
        self._memo.append(self._stack[-1])

    def _long_binget(self) -> None:
        self._stack.append(self._memo[_UNSIGNED.unpack_from(self._data, self._at)[0]])
        self._at += 4


_BY_NAME: dict[str, Callable[[PickleReader], None]] = {
    "PROTO": PickleReader._proto,
    "FRAME": PickleReader._frame,
    "STOP": PickleReader._stop,
    "MARK": PickleReader._mark,
    "NONE": lambda reader: reader._constant(None),
    "NEWTRUE": lambda reader: reader._constant(True),
    "NEWFALSE": lambda reader: reader._constant(False),
    "BININT": PickleReader._binint,
    "BININT2": PickleReader._binint2,
    "BINFLOAT": PickleReader._binfloat,
    "SHORT_BINUNICODE": PickleReader._short_binunicode,
    "BINUNICODE": PickleReader._binunicode,
    "BINUNICODE8": PickleReader._binunicode8,
    "EMPTY_DICT": PickleReader._empty_dict,
    "EMPTY_LIST": PickleReader._empty_list,
    "EMPTY_TUPLE": lambda reader: reader._constant(()),
    "APPEND": PickleReader._append,
    "APPENDS": PickleReader._appends,
    "SETITEM": PickleReader._setitem,
    "SETITEMS": PickleReader._setitems,
    "TUPLE": lambda reader: reader._tuple_of(reader._since_mark()[0]),
    "TUPLE1": lambda reader: reader._tuple_of([reader._stack.pop()]),
    "TUPLE2": PickleReader._tuple2,
    "TUPLE3": PickleReader._tuple3,
    "BINPUT": lambda reader: reader._put(reader._argument(1)[0]),
    "LONG_BINPUT": lambda reader: reader._put(_UNSIGNED.unpack(reader._argument(4))[0]),
    "LONG_BINGET": PickleReader._long_binget,
}
_RUN_CODE = (
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID",
    "BINPERSID", "EXT1", "EXT2", "EXT4",
)  # fmt: skip


def _refusal(code: int) -> str:
    name = _NAMES.get(code)
    if name in _RUN_CODE:
        return f"its opcode {name} would name or run code; do not open this file with pickle.load"
    if name:
        return f"its opcode {name} makes something other than containers, text and numbers"
    return f"it has a byte {code:#04x} that is no opcode"


def _refused(code: int) -> Callable[[PickleReader], None]:
    def refuse(_: PickleReader) -> None:
        raise ValueError(_refusal(code))

    return refuse


_OPERATIONS = [_BY_NAME.get(_NAMES.get(code, ""), _refused(code)) for code in range(256)]

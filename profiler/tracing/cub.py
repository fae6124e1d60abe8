"""Storage that cub's algorithms need: sorts, scans, selections and sums over a whole device.

After the dispatch_*.cuh and tuning_*.cuh files of cub 3.0, in CUDA 13.0. Blocks have the sizes of
compute capability 8.0, or of 9.0 for GPUs from 9.0 on.
"""

from collections.abc import Sequence

from .requests import Device

_LONG = 8
_INT = 4
_ALIGNMENT = 256
_DIGIT_BITS = 8
_PADDING = 32
_BLOCKS_FOR_EACH_PLACE = 5

# Threads, and numbers of 4 bytes for each, of a block that sorts everything by itself.
_SINGLE_BLOCK = (256, 19)
# Threads of one of many blocks.
_THREADS = 384
# The same for keys of 1 and 2 bytes from compute capability 9.0 on, by bytes of key and value.
_SMALL_KEYS = {(1, 0): (512, 19), (1, 8): (384, 18), (2, 0): (512, 19), (2, 8): (512, 23)}
# Blocks of the older sort of small keys that a multiprocessor holds. The compiler's use of
# registers decides; no recording shows it.
_OLDER_OCCUPANCY = 2


def sort_bytes(device: Device, count: int, key: int, value: int, bits: int) -> int:
    """Bytes of DeviceRadixSort; `key` and `value` are bytes of one, 0 without values."""
    if count <= _items(*_SINGLE_BLOCK, key, value):
        return 1
    is_new = device.compute_capability >= (9, 0)
    if key < _INT and not is_new:
        return _older_sort_bytes(device, count, key, value)
    passes, digits = -(-bits // _DIGIT_BITS), 1 << _DIGIT_BITS
    blocks = -(-count // _block(key, value, is_new=is_new))
    second = count if passes > 1 else 0
    parts = (
        passes * digits * _LONG,
        blocks * digits * _INT,
        second * key,
        second * value,
        passes * _INT,
    )
    return _aligned(parts)


def segmented_sort_bytes(count: int, key: int, value: int) -> int:
    """Bytes of DeviceSegmentedRadixSort: a second buffer of keys and values."""
    return _aligned((count * key, count * value))


def scan_bytes(count: int, item: int) -> int:
    """Bytes of DeviceScan: a state for each block."""
    state = _INT if item < _INT else 2 * item
    block = 128 * min(15 * _INT // item, 30)
    return _aligned((state * (-(-count // block) + _PADDING) + _ALIGNMENT - 1,))


def keyed_scan_bytes(count: int) -> int:
    """Bytes of DeviceScan::InclusiveSumByKey over ints: a state and a last key for each block."""
    blocks = -(-count // 4032)
    return _aligned((16 * (blocks + _PADDING), _INT * (blocks + 1)))


def select_bytes(count: int) -> int:
    """Bytes of DeviceSelect::Flagged over longs."""
    return _aligned((_LONG * (-(-count // 4224) + _PADDING) + _ALIGNMENT - 1,))


def unique_by_key_bytes(count: int) -> int:
    """Bytes of DeviceSelect::UniqueByKey: a state for each block."""
    return _aligned((16 * (-(-count // 4928) + _PADDING) + _ALIGNMENT - 1,))


def sum_bytes(device: Device, count: int) -> int:
    """Bytes of DeviceReduce::Sum over ints: a sum for each block in flight."""
    if count <= 256 * 16:
        return 1
    blocks = device.multiprocessors * (device.threads_per_multiprocessor // 256)
    return _aligned((_INT * blocks * _BLOCKS_FOR_EACH_PLACE,))


def _aligned(parts: Sequence[int]) -> int:
    """AliasTemporaries: bytes of all parts, each of which begins at a multiple of 256 bytes."""
    return sum(-(-part // _ALIGNMENT) * _ALIGNMENT for part in parts) + _ALIGNMENT - 1


def _items(threads: int, each: int, key: int, value: int) -> int:
    """RegBoundScaling: numbers that a block takes if a thread takes `each` of 4 bytes."""
    return threads * (each * _INT // max(_INT, key, value))


def _block(key: int, value: int, *, is_new: bool) -> int:
    """OnesweepPolicy, with offsets of 64 bits: numbers that one of many blocks sorts."""
    if not is_new:
        return _items(_THREADS, 17 if key == _INT and value else 21, key, value)
    if key < _INT:
        return _items(*_SMALL_KEYS.get((key, value), (512, 17)), key, value)
    without, small, wide = (19, 17, 29) if key == _INT else (30, 30, 24)
    return _items(_THREADS, wide if value >= _LONG else small if value else without, key, value)


def _older_sort_bytes(device: Device, count: int, key: int, value: int) -> int:
    """InvokePasses: digit counts in the blocks of a full GPU; a second buffer."""
    digits = 1 << (7 if key > 1 else 5)
    blocks = device.multiprocessors * _OLDER_OCCUPANCY * _BLOCKS_FOR_EACH_PLACE
    counts = blocks * digits + _items(512, 23, _LONG, 0)
    return _aligned((_LONG * counts, count * key, count * value))

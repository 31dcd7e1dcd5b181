"""Bitmaps: strings taken as bits, the highest of the first byte being bit 0. See proto/vecmem/v1/bitmaps.proto.

Semantics are those of Redis where the names coincide. Reads look at a string where it is; a write makes a new one, as all writes of
strings do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace.keyspace import NEVER, VERSION_BYTES, Keyspace, wrong_type
from vecmem.store.keyspace.operation import (
    Moment,
    check_key,
    check_keys,
    check_member_count,
    check_request_key,
    check_slot,
    reads,
    writes,
)
from vecmem.store.keyspace.strings import inclusive_range
from vecmem.v1 import bitmaps_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Sequence

BITS_MAX: Final = 8 * limits.STRING_BYTES_MAX
SIGNED_WIDTH_MAX: Final = 64
UNSIGNED_WIDTH_MAX: Final = 63
_CHUNK_BYTES: Final = 64 * 1024
"""Counted or looked at in one step: an integer or an array of this size stays in the processor's cache."""
_RESULT_BYTES: Final = 16
"""At most, of one result of a bit field."""
_OPERATIONS: Final = {
    api.BITMAP_COMBINATION_AND: np.bitwise_and,
    api.BITMAP_COMBINATION_OR: np.bitwise_or,
    api.BITMAP_COMBINATION_XOR: np.bitwise_xor,
}

Ranged = api.CountBitsRequest | api.FindBitRequest


def count_ones(content: memoryview, start: int, stop: int) -> int:
    """How many bits are 1 from one up to and without another one, 0 <= start <= stop <= all of them."""
    if start == stop:
        return 0
    first, last = start // 8, (stop - 1) // 8
    count = -(content[first] >> 8 - start % 8).bit_count() - (content[last] & (1 << -stop % 8) - 1).bit_count()
    for begin in range(first, last + 1, _CHUNK_BYTES):
        end = min(begin + _CHUNK_BYTES, last + 1)
        count += int.from_bytes(content[begin:end], "little").bit_count()
    return count


def find_bit(content: memoryview, bit: bool, start: int, stop: int) -> int | None:
    """The first such bit from one up to and without another one, 0 <= start <= stop <= all of them."""
    place = start
    while place < stop and place % 8:
        if _bit(content, place) == bit:
            return place
        place += 1
    first, last = place // 8, stop // 8
    if first < last:
        place = 8 * _first_other(content, 0 if bit else 0xFF, first, last)
    while place < stop:
        if _bit(content, place) == bit:
            return place
        place += 1
    return None


def _first_other(content: memoryview, byte: int, start: int, stop: int) -> int:
    """Where the first byte is that is not this one, or `stop`."""
    for begin in range(start, stop, _CHUNK_BYTES):
        other = np.frombuffer(content[begin : min(begin + _CHUNK_BYTES, stop)], dtype=np.uint8) != byte
        place = int(other.argmax())
        if other[place]:
            return begin + place
    return stop


def _bit(content: memoryview | bytearray, offset: int) -> bool:
    byte = offset // 8
    return byte < len(content) and bool(content[byte] >> 7 - offset % 8 & 1)


def _find(keyspace: Keyspace, key: bytes, moment: Moment, field: str = "key") -> bytes | None:
    """A string as it is kept, its version in front. Raises WrongTypeError."""
    value = keyspace.find(key, moment.time_unix_ms)
    if value is None or isinstance(value, bytes):
        return value
    raise wrong_type(key, "string", value, field)


def _bytes(value: bytes | None) -> memoryview:
    return memoryview(b"" if value is None else value)[VERSION_BYTES:]


def _lengthened(value: bytes | None, bit_count: int) -> bytearray:
    """A string, with room for its version in front, that has so many bits at least."""
    changed = bytearray(VERSION_BYTES if value is None else value)
    changed.extend(bytes(max(0, VERSION_BYTES + (bit_count + 7) // 8 - len(changed))))
    return changed


def _write(keyspace: Keyspace, key: bytes, before: bytes | None, changed: bytearray) -> None:
    """Write a string that was changed in part: its expiry stays, unless it has expired."""
    changed[:VERSION_BYTES] = keyspace.next_version().to_bytes(VERSION_BYTES, "big")
    keyspace.put(key, bytes(changed), NEVER if before is None else keyspace.expires_at(key))


def _check_offset(request: api.SetBitRequest | api.GetBitRequest) -> None:
    check_request_key(request)
    if request.offset >= BITS_MAX:
        raise LimitExceededError(f"bit {request.offset}, beyond {BITS_MAX - 1}", field="offset")


def _set(keyspace: Keyspace, request: api.SetBitRequest, response: api.SetBitResponse, moment: Moment) -> None:
    value = _find(keyspace, request.key, moment)
    content = _bytes(value)
    response.previous = _bit(content, request.offset)
    if response.previous == request.bit and request.offset < 8 * len(content):
        return
    changed = _lengthened(value, request.offset + 1)
    if response.previous != request.bit:
        changed[VERSION_BYTES + request.offset // 8] ^= 0x80 >> request.offset % 8
    _write(keyspace, request.key, value, changed)


def _get(keyspace: Keyspace, request: api.GetBitRequest, response: api.GetBitResponse, moment: Moment) -> None:
    response.bit = _bit(_bytes(_find(keyspace, request.key, moment)), request.offset)


def _bits(request: Ranged, length_bytes: int) -> tuple[int, int]:
    """The range of a request, as those of a slice of bits."""
    unit = 1 if request.by_bit else 8
    stop = request.stop if request.HasField("stop") else -1
    start, stop = inclusive_range(request.start, stop, length_bytes * 8 // unit)
    return (0, 0) if start >= stop else (start * unit, stop * unit)


def _count(keyspace: Keyspace, request: api.CountBitsRequest, response: api.CountBitsResponse, moment: Moment) -> None:
    content = _bytes(_find(keyspace, request.key, moment))
    response.count = count_ones(content, *_bits(request, len(content)))


def _find_bit(keyspace: Keyspace, request: api.FindBitRequest, response: api.FindBitResponse, moment: Moment) -> None:
    value = _find(keyspace, request.key, moment)
    if value is None:
        if not request.bit:
            response.offset = 0
        return
    content = _bytes(value)
    start, stop = _bits(request, len(content))
    found = find_bit(content, request.bit, start, stop)
    if found is None and not request.bit and not request.HasField("stop") and start < stop:
        found = stop
    if found is not None:
        response.offset = found


def _check_combine(request: api.CombineBitmapsRequest) -> None:
    check_key(request.destination, "destination")
    check_keys(request.keys)
    check_slot([request.destination, request.keys[0]], "destination")
    if request.combination == api.BITMAP_COMBINATION_NOT:
        if len(request.keys) > 1:
            raise InvalidArgumentError(f"{len(request.keys)} keys, where one is inverted", field="keys")
    elif request.combination not in _OPERATIONS:
        raise InvalidArgumentError(f"{request.combination} is not known", field="combination")


def _combine(
    keyspace: Keyspace, request: api.CombineBitmapsRequest, response: api.CombineBitmapsResponse, moment: Moment
) -> None:
    contents = [_bytes(_find(keyspace, key, moment, f"keys[{index}]")) for index, key in enumerate(request.keys)]
    size_bytes = sum(map(len, contents))
    if size_bytes > limits.COMBINED_BITMAP_BYTES_MAX:
        raise LimitExceededError(
            f"the strings have {size_bytes} bytes together, more than {limits.COMBINED_BITMAP_BYTES_MAX}", field="keys"
        )
    combined = _combined(request.combination, contents)
    if combined:
        keyspace.put_string(request.destination, combined, NEVER)
    elif keyspace.find(request.destination, moment.time_unix_ms) is not None:
        keyspace.remove(request.destination)
    response.size_bytes = len(combined)


def _combined(combination: api.BitmapCombination.ValueType, contents: Sequence[memoryview]) -> bytes:
    first, *others = (np.frombuffer(content, dtype=np.uint8) for content in contents)
    if combination == api.BITMAP_COMBINATION_NOT:
        return np.bitwise_not(first).tobytes()
    combined = np.zeros(max(map(len, contents)), dtype=np.uint8)
    combined[: len(first)] = first
    for other in others:
        part = combined[: len(other)]
        _OPERATIONS[combination](part, other, out=part)
        if combination == api.BITMAP_COMBINATION_AND:
            combined[len(other) :] = 0
    return combined.tobytes()


def _check_field(field: api.BitField, path: str) -> None:
    width_max = SIGNED_WIDTH_MAX if field.signed else UNSIGNED_WIDTH_MAX
    if not 1 <= field.width_bits <= width_max:
        raise InvalidArgumentError(f"{field.width_bits} is not within 1 to {width_max}", field=f"{path}.width_bits")
    if field.offset + field.width_bits > BITS_MAX:
        raise LimitExceededError(
            f"ends at bit {field.offset + field.width_bits}, beyond {BITS_MAX}", field=f"{path}.offset"
        )


def _check_get_fields(request: api.GetBitFieldsRequest) -> None:
    check_request_key(request)
    check_member_count(len(request.fields), "fields")
    for index, field in enumerate(request.fields):
        _check_field(field, f"fields[{index}]")


def _get_fields(
    keyspace: Keyspace, request: api.GetBitFieldsRequest, response: api.GetBitFieldsResponse, moment: Moment
) -> None:
    content = _bytes(_find(keyspace, request.key, moment))
    response.values.extend(_number(content, field) for field in request.fields)


def _number(content: memoryview, field: api.BitField) -> int:
    """The number of a field; zero bytes follow the string."""
    first, stop = field.offset // 8, (field.offset + field.width_bits + 7) // 8
    whole = int.from_bytes(bytes(content[first:stop]).ljust(stop - first, b"\0"), "big")
    return _wrapped(whole >> 8 * stop - field.offset - field.width_bits, field)


def _put_number(content: memoryview, field: api.BitField, number: int) -> None:
    first, stop = field.offset // 8, (field.offset + field.width_bits + 7) // 8
    behind = 8 * stop - field.offset - field.width_bits
    mask = (1 << field.width_bits) - 1 << behind
    whole = int.from_bytes(content[first:stop], "big") & ~mask | number << behind & mask
    content[first:stop] = whole.to_bytes(stop - first, "big")


def _wrapped(number: int, field: api.BitField) -> int:
    """What the lowest bits of a number mean in a field."""
    number &= (1 << field.width_bits) - 1
    return number - (1 << field.width_bits) if field.signed and number >> field.width_bits - 1 else number


def _check_change_fields(request: api.ChangeBitFieldsRequest) -> None:
    check_request_key(request)
    check_member_count(len(request.changes), "changes")
    for index, change in enumerate(request.changes):
        _check_field(change.field, f"changes[{index}].field")
        if change.overflow not in api.BitFieldOverflow.values():
            raise InvalidArgumentError(f"{change.overflow} is not known", field=f"changes[{index}].overflow")


def _change_fields(
    keyspace: Keyspace, request: api.ChangeBitFieldsRequest, response: api.ChangeBitFieldsResponse, moment: Moment
) -> None:
    moment.spend(_RESULT_BYTES * len(request.changes), "changes")
    value = _find(keyspace, request.key, moment)
    ends = [step.field.offset + step.field.width_bits for step in request.changes if step.WhichOneof("kind")]
    changed = _lengthened(value, max(ends, default=0))
    dirty = len(changed) > len(_bytes(value)) + VERSION_BYTES
    with memoryview(changed) as whole, whole[VERSION_BYTES:] as content:
        for step in request.changes:
            result = response.results.add()
            old = _number(content, step.field)
            number = _result(old, step)
            if number is None:
                continue
            if number != old:
                _put_number(content, step.field, number)
                dirty = True
            result.value = number if step.WhichOneof("kind") == "increment" else old
    if dirty:
        _write(keyspace, request.key, value, changed)


def _result(old: int, step: api.BitFieldChange) -> int | None:
    """What a field becomes that holds a number; None: it has to stay."""
    match step.WhichOneof("kind"):
        case "set":
            number = step.set
        case "increment":
            number = old + step.increment
        case _:
            return old
    field = step.field
    lowest, count = (-(1 << field.width_bits - 1) if field.signed else 0), 1 << field.width_bits
    highest = lowest + count - 1
    if lowest <= number <= highest:
        return number
    match step.overflow:
        case api.BIT_FIELD_OVERFLOW_FAIL:
            return None
        case api.BIT_FIELD_OVERFLOW_SATURATE:
            # Redis takes a number that an unsigned field is set to for unsigned, so that one below 0 is far above.
            below = number < lowest and (field.signed or step.WhichOneof("kind") == "increment")
            return lowest if below else highest
        case _:
            return _wrapped(number, field)


OPERATIONS: Final[dict[str, Any]] = {
    "set_bit": writes(_check_offset, _set),
    "get_bit": reads(_check_offset, _get),
    "count_bits": reads(check_request_key, _count),
    "find_bit": reads(check_request_key, _find_bit),
    "combine_bitmaps": writes(_check_combine, _combine),
    "get_bit_fields": reads(_check_get_fields, _get_fields),
    "change_bit_fields": writes(_check_change_fields, _change_fields),
}

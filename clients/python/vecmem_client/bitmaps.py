"""Bitmaps: the bits of strings. Each function builds an operation for `Client.run` and `Client.pipeline`.

Bit 0 is the highest of the first byte. Bits behind the end of a string, and those of a key that does not exist, are 0. All raise
WrongTypeError, when they run, for a key that holds a value of another type.
"""

# ruff: noqa: A001  (the API's own words)

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vecmem.v1 import bitmaps_pb2 as api
from vecmem_client._operations import BytesLike, Operation, as_bytes, reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable

Combination = Literal["and", "or", "xor", "not"]
Overflow = Literal["wrap", "saturate", "fail"]
_COMBINATIONS = {
    "and": api.BITMAP_COMBINATION_AND,
    "or": api.BITMAP_COMBINATION_OR,
    "xor": api.BITMAP_COMBINATION_XOR,
    "not": api.BITMAP_COMBINATION_NOT,
}
_OVERFLOWS = {
    "wrap": api.BIT_FIELD_OVERFLOW_WRAP,
    "saturate": api.BIT_FIELD_OVERFLOW_SATURATE,
    "fail": api.BIT_FIELD_OVERFLOW_FAIL,
}


def set(key: BytesLike, offset: int, bit: bool = True) -> Operation[bool]:
    """Write a bit; returns what it was."""
    return writes("set_bit", lambda response: response.previous, key=as_bytes(key), offset=offset, bit=bit)


def get(key: BytesLike, offset: int) -> Operation[bool]:
    """Return a bit."""
    return reads("get_bit", lambda response: response.bit, key=as_bytes(key), offset=offset)


def count(key: BytesLike, start: int = 0, stop: int | None = None, *, by_bit: bool = False) -> Operation[int]:
    """Count the bits that are 1, from a byte (or bit) to another, both inclusive and from the end where below 0; None: to the end."""
    return reads(
        "count_bits", lambda response: response.count, key=as_bytes(key), start=start, stop=stop, by_bit=by_bit
    )


def find(
    key: BytesLike, bit: bool, start: int = 0, stop: int | None = None, *, by_bit: bool = False
) -> Operation[int | None]:
    """Return where the first such bit is, the range being that of `count`; None: there is none.

    Without a `stop` a 0 is found behind the end of the string at the latest.
    """
    return reads(
        "find_bit",
        lambda response: response.offset if response.HasField("offset") else None,
        key=as_bytes(key),
        bit=bit,
        start=start,
        stop=stop,
        by_bit=by_bit,
    )


def store_combined(destination: BytesLike, keys: Iterable[BytesLike], combination: Combination) -> Operation[int]:
    """Write the bitwise combination of 1 to 1,024 strings of one slot under a key; returns how many bytes it has, 0: there is no key."""
    return writes(
        "combine_bitmaps",
        lambda response: response.size_bytes,
        destination=as_bytes(destination),
        keys=[as_bytes(key) for key in keys],
        combination=_COMBINATIONS[combination],
    )


def field(offset: int, width_bits: int, *, signed: bool = False) -> api.BitField:
    """Name an integer of 1 to 63 bits, or 64 where signed, by its first bit. The n-th of a row of equal ones begins at n * width_bits."""
    return api.BitField(offset=offset, width_bits=width_bits, signed=signed)


def get_fields(key: BytesLike, fields: Iterable[api.BitField]) -> Operation[list[int]]:
    """Return the numbers of 1 to 1,024 fields."""
    return reads("get_bit_fields", lambda response: list(response.values), key=as_bytes(key), fields=list(fields))


def reading(place: api.BitField) -> api.BitFieldChange:
    """Build the step of `change_fields` that returns a field."""
    return api.BitFieldChange(field=place)


def setting(place: api.BitField, value: int, *, overflow: Overflow = "wrap") -> api.BitFieldChange:
    """Build the step of `change_fields` that writes a field and returns what it was."""
    return api.BitFieldChange(field=place, set=value, overflow=_OVERFLOWS[overflow])


def incrementing(place: api.BitField, delta: int, *, overflow: Overflow = "wrap") -> api.BitFieldChange:
    """Build the step of `change_fields` that adds to a field and returns what it is then."""
    return api.BitFieldChange(field=place, increment=delta, overflow=_OVERFLOWS[overflow])


def change_fields(key: BytesLike, changes: Iterable[api.BitFieldChange]) -> Operation[list[int | None]]:
    """Do 1 to 1,024 steps, all at once and each seeing those before it; returns the result of each, None: it would not fit (`fail`)."""
    return writes(
        "change_bit_fields",
        lambda response: [found.value if found.HasField("value") else None for found in response.results],
        key=as_bytes(key),
        changes=list(changes),
    )

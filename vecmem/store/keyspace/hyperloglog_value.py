"""A HyperLogLog sketch: for each of 2^14 classes of items, the longest run of zero bits that the hash of one of them began with.

What is here is part of the on-disk semantics: a replay must come to the same registers. An item's hash is BLAKE2b (RFC 7693) with a digest
of 8 bytes, taken as a little-endian number. Its lowest 14 bits choose the register; the rank of the item is one more than the zero
bits that the 50 bits above have at their lower end, so 1 to 51. A register holds the greatest rank of its items, 0 without any.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from hashlib import blake2b
from math import inf, log, sqrt
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from vecmem.store.keyspace.container import Container
from vecmem.v1 import keys_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable

INDEX_BITS: Final = 14
REGISTER_COUNT: Final = 1 << INDEX_BITS
RANK_BITS: Final = 64 - INDEX_BITS
RANK_MAX: Final = RANK_BITS + 1
SPARSE_REGISTERS_MAX: Final = 2_048
"""With more registers in use than this, all are kept. Registers only grow, so that the form hangs on the contents alone."""
_SPARSE: Final = b"\0"
_DENSE: Final = b"\1"
_RANK_SHIFT: Final = 8
_ALPHA: Final = 0.5 / log(2)
_COUNT_MAX: Final = 2**64 - 1


def register_of(item: bytes) -> tuple[int, int]:
    """The register of an item and its rank."""
    hashed = int.from_bytes(blake2b(item, digest_size=8).digest(), "little")
    rest = hashed >> INDEX_BITS
    return hashed & REGISTER_COUNT - 1, (rest & -rest).bit_length() or RANK_MAX


class HyperLogLogValue(Container):
    """Few registers are entries `index << 8 | rank` in order; more of them a byte each, of all."""

    __slots__ = ("_dense", "_sparse", "_used_count")

    TYPE = keys_pb2.KEY_TYPE_HYPERLOGLOG
    NAME = "HyperLogLog"

    def __init__(self) -> None:
        super().__init__()
        self._sparse: array[int] = array("I")
        self._dense: bytearray | None = None
        self._used_count = 0

    def __len__(self) -> int:
        """Registers in use: 0 before the first item."""
        return self._used_count

    def count_at(self, now_unix_ms: int) -> int:  # noqa: ARG002  (items do not expire)
        """The estimate."""
        return estimate(self.registers())

    def add(self, index: int, rank: int) -> bool:
        """Raise a register to a rank, 1 and up; returns whether it was lower."""
        if self._dense is not None:
            old = self._dense[index]
            if old >= rank:
                return False
            self._dense[index] = rank
            self._used_count += not old
            return True
        entry = index << _RANK_SHIFT | rank
        place = bisect_left(self._sparse, index << _RANK_SHIFT)
        if place < len(self._sparse) and self._sparse[place] >> _RANK_SHIFT == index:
            if self._sparse[place] >= entry:
                return False
            self._sparse[place] = entry
            return True
        self._sparse.insert(place, entry)
        self._used_count += 1
        self.size_bytes += self._sparse.itemsize
        if self._used_count > SPARSE_REGISTERS_MAX:
            self._keep_all(self.registers())
        return True

    def merge(self, registers: np.ndarray) -> bool:
        """Raise all registers to those of others, uint8 of shape (2^14,); returns whether any was lower."""
        mine = self.registers()
        merged = np.maximum(mine, registers)
        if np.array_equal(mine, merged):
            return False
        if self._dense is None and np.count_nonzero(merged) <= SPARSE_REGISTERS_MAX:
            self._keep_few(_entries(merged))
        else:
            self._keep_all(merged)
        return True

    def registers(self) -> np.ndarray:
        """All registers: uint8 of shape (2^14,), to be read only."""
        if self._dense is not None:
            return np.frombuffer(bytes(self._dense), dtype=np.uint8)
        entries = np.array(self._sparse, dtype=np.uint32)
        registers = np.zeros(REGISTER_COUNT, dtype=np.uint8)
        registers[entries >> _RANK_SHIFT] = entries & 0xFF
        return registers

    def dump(self) -> bytes:
        """A byte for the form, and then the entries, 4 bytes each, little-endian, or all registers."""
        if self._dense is not None:
            return _DENSE + self._dense
        return _SPARSE + np.array(self._sparse, dtype="<u4").tobytes()

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)()
        copied._sparse = self._sparse[:]
        copied._dense = None if self._dense is None else self._dense[:]
        copied._used_count = self._used_count
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """See Container."""
        loaded = cls()
        form, content = content[:1], content[1:]
        if form == _DENSE:
            registers = np.frombuffer(content, dtype=np.uint8)
            used_count = np.count_nonzero(registers)
            if len(registers) != REGISTER_COUNT or used_count <= SPARSE_REGISTERS_MAX or registers.max() > RANK_MAX:
                raise ValueError(
                    f"{len(registers)} registers, {used_count} of them in use, the highest too high or not"
                )
            loaded._keep_all(registers)
        elif form == _SPARSE:
            entries = np.frombuffer(content, dtype="<u4")
            ranks, indexes = entries & 0xFF, (entries >> _RANK_SHIFT).astype(np.int64)
            if not 1 <= len(entries) <= SPARSE_REGISTERS_MAX:
                raise ValueError(f"{len(entries)} registers in use, not within 1 to {SPARSE_REGISTERS_MAX}")
            if indexes[-1] >= REGISTER_COUNT or (np.diff(indexes) <= 0).any():
                raise ValueError("its registers are not in order")
            if ranks.min() < 1 or ranks.max() > RANK_MAX:
                raise ValueError(f"a rank is not within 1 to {RANK_MAX}")
            loaded._keep_few(entries)
        else:
            raise ValueError(f"{form!r} is no form of a sketch")
        return loaded

    def _keep_few(self, entries: np.ndarray) -> None:
        self.size_bytes += self._sparse.itemsize * (len(entries) - len(self._sparse))
        self._sparse = array("I", entries.tolist())
        self._used_count = len(entries)

    def _keep_all(self, registers: np.ndarray) -> None:
        if self._dense is None:
            self.size_bytes += REGISTER_COUNT - self._sparse.itemsize * len(self._sparse)
        self._dense = bytearray(registers.tobytes())
        self._sparse = array("I")
        self._used_count = int(np.count_nonzero(registers))


def _entries(registers: np.ndarray) -> np.ndarray:
    indexes = np.flatnonzero(registers).astype(np.uint32)
    entries: np.ndarray = indexes << _RANK_SHIFT | registers[indexes]
    return entries


def union(values: Iterable[HyperLogLogValue]) -> np.ndarray:
    """The registers of a sketch that has seen the items of all: uint8 of shape (2^14,)."""
    registers = np.zeros(REGISTER_COUNT, dtype=np.uint8)
    for value in values:
        np.maximum(registers, value.registers(), out=registers)
    return registers


def estimate(registers: np.ndarray) -> int:
    """How many distinct items registers have seen, about.

    The improved raw estimator of Ertl: New cardinality estimation algorithms for HyperLogLog sketches (2017, arXiv:1702.01284), algorithm
    6, which needs no corrections of bias and no change of formula for few items. It adds, multiplies, divides and takes square roots of
    doubles in one order, so that it gives the same number everywhere.
    """
    counts = np.bincount(registers, minlength=RANK_MAX + 1).tolist()
    total = REGISTER_COUNT * _tau(1.0 - counts[RANK_MAX] / REGISTER_COUNT)
    for rank in range(RANK_BITS, 0, -1):
        total = 0.5 * (total + counts[rank])
    total += REGISTER_COUNT * _sigma(counts[0] / REGISTER_COUNT)
    # Registers that are all at their highest rank have seen more than 64 bits tell apart.
    return min(_COUNT_MAX, round(_ALPHA * REGISTER_COUNT * REGISTER_COUNT / total)) if total else _COUNT_MAX


def _sigma(share: float) -> float:
    """What the registers without an item stand for: share + sum over k of share^(2^k) 2^(k-1)."""
    if share == 1.0:
        return inf
    total, weight, last = share, 1.0, -1.0
    while total != last:
        last = total
        share *= share
        total += share * weight
        weight += weight
    return total


def _tau(share: float) -> float:
    """What those at the highest rank stand for, `share` being that of the others: (1 - share - sum (1 - share^(2^-k))^2 2^-k) / 3."""
    if share in (0.0, 1.0):
        return 0.0
    total, weight, last = 1.0 - share, 1.0, -1.0
    while total != last:
        last = total
        share = sqrt(share)
        weight *= 0.5
        total -= (1.0 - share) ** 2 * weight
    return total / 3.0

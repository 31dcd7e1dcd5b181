"""Which hash slots a command names: a shard that owns some of several shards' slots applies it to its own, or refuses it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from vecmem.slots import slot_of
from vecmem.store.collection import Steps
from vecmem.store.keyspace.operation_keys import keys_of
from vecmem.store.slot_sets import pack, union, unpack
from vecmem.store.slot_table import SlotTable
from vecmem.store.transactions import slot_in
from vecmem.store.v1 import command_pb2
from vecmem.v1 import pipeline_pb2

STEP_NAMES: Final = 1_024
"""Names whose slot is found between two yields: about a millisecond."""
_DIVISIBLE: Final = frozenset({"upsert_points", "delete_points", "update_payloads"})


@dataclass(frozen=True, slots=True)
class Scope:
    """The slots of a command's keys and points, rising, each once; all that are owned where a filter chooses."""

    slots: NDArray[np.int64]
    by_filter: bool = False
    divisible: bool = False
    """Whether it may be applied to some of the slots, and to others later."""

    @property
    def packed(self) -> bytes:
        """For a deduplication entry."""
        return pack(self.slots)

    def left(self, remembered: command_pb2.DeduplicationEntry) -> NDArray[np.int64]:
        """The slots to which the request has not been applied; none for a repeat."""
        if not remembered.slots:
            return self.slots[:0]
        return np.setdiff1d(self.slots, unpack(remembered.slots), assume_unique=True)

    def covered(self, remembered: command_pb2.DeduplicationEntry) -> bytes:
        """The slots to which it has been applied when it was to those that were left."""
        return union(remembered.slots, self.packed)


def scope_of(command: command_pb2.Command, table: SlotTable) -> Steps[Scope | None]:
    """The slots of a command that is refused or applied as one; None: it names none, or each of its operations is looked at alone."""
    kind = command.WhichOneof("kind")
    match kind:
        case "upsert_points":
            slots = yield from _slots(point.id.encode() for point in command.upsert_points.points)
        case "delete_points" | "update_payloads":
            selection = getattr(command, kind)
            if selection.WhichOneof("selector") != "ids":
                return Scope(np.flatnonzero(table.owned), by_filter=True, divisible=True)
            slots = yield from _slots(point_id.encode() for point_id in selection.ids.ids)
        case "commit_transaction":
            slot = slot_in(command.commit_transaction)
            slots = np.array([] if slot is None else [slot], dtype=np.int64)
        case "run_operations" if command.request_id:
            slots = yield from _slots(
                key for operation in command.run_operations.operations for key in operation_keys(operation)
            )
        case _:
            return None
    return Scope(slots, divisible=kind in _DIVISIBLE)


def operation_keys(operation: pipeline_pb2.Operation) -> list[bytes]:
    """The keys that an operation names."""
    return keys_of(getattr(operation, str(operation.WhichOneof("kind"))))


def operation_slots(operation: pipeline_pb2.Operation) -> NDArray[np.int64]:
    """The slots of an operation, rising, each once."""
    return np.array(sorted({slot_of(key) for key in operation_keys(operation)}), dtype=np.int64)


def _slots(names: Iterable[bytes]) -> Steps[NDArray[np.int64]]:
    found: set[int] = set()
    for count, name in enumerate(names, start=1):
        found.add(slot_of(name))
        if count % STEP_NAMES == 0:
            yield
    return np.array(sorted(found), dtype=np.int64)

"""Which hash slots a request is about: by its keys, as the fields of the protos name them, and by the ids of its points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vecmem.slots import slot_of
from vecmem.store.keyspace.operation_keys import keys_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vecmem.v1 import pipeline_pb2, transactions_pb2


def point_slot(point_id: str) -> int:
    """The slot of a point: that of its id, in UTF-8."""
    return slot_of(point_id.encode())


def slot_of_keys(keys: Iterable[bytes]) -> int:
    """The slot of the first of some keys: where they have several, whoever has it refuses the request. 0 where there are none."""
    return next((slot_of(key) for key in keys), 0)


def slot_of_operation(request: Any) -> int:
    """The slot of an operation on keys."""
    return slot_of_keys(keys_of(request))


def slot_of_pipelined(operation: pipeline_pb2.Operation) -> int:
    """The slot of an operation of a pipeline; 0 for one that names none."""
    kind = operation.WhichOneof("kind")
    return 0 if kind is None else slot_of_operation(getattr(operation, kind))


def slot_of_transaction(request: transactions_pb2.CommitRequest) -> int:
    """The slot of all keys and points of a transaction."""
    keys = [compare.point.id.encode() if compare.HasField("point") else compare.key for compare in request.compare]
    for step in (*request.then, *request.otherwise):
        kind = step.WhichOneof("kind")
        if kind == "operation":
            operation = step.operation.WhichOneof("kind")
            if operation is not None:
                keys += keys_of(getattr(step.operation, operation))
        elif kind == "upsert":
            keys += [point.id.encode() for point in step.upsert.points]
        elif kind is not None:
            keys += [point_id.encode() for point_id in getattr(step, kind).ids.ids]
    return slot_of_keys(key for key in keys if key)

"""What did a change: taken from the command of its record, by the place that was noted with it."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any

from vecmem.store.changes import POINT, Change, ChangeKind
from vecmem.store.transactions import OTHERWISE_PLACE, STEP_PLACE
from vecmem.v1 import points_pb2, watch_pb2

if TYPE_CHECKING:
    from vecmem.store.v1 import command_pb2

_GONE = {ChangeKind.EXPIRED, ChangeKind.EVICTED}


def add_content(told: watch_pb2.Change, change: Change, command: command_pb2.Command) -> None:
    """Add what did a change to what is told of it; nothing for what was expired or evicted."""
    if change.kind in _GONE:
        return
    source: Any = command
    place = change.place
    if command.HasField("commit_transaction"):
        transaction = command.commit_transaction
        steps = transaction.then
        if place >= OTHERWISE_PLACE:
            steps, place = transaction.otherwise, place - OTHERWISE_PLACE
        source, place = steps[place // STEP_PLACE], place % STEP_PLACE
    if change.holder != POINT:
        operation = source.operation if source is not command else command.run_operations.operations[place]
        told.operation.CopyFrom(operation)
        told.operation.ClearField("request_id")
    elif source.HasField("upsert_points"):
        _fill_point(told.written_point, source.upsert_points, place, told.version)
    elif source.HasField("update_payloads"):
        update, made = source.update_payloads, told.payload_update
        match update.WhichOneof("operation"):
            case "merge_json":
                made.merge_json = update.merge_json
            case "replace_json":
                made.replace_json = update.replace_json
            case "remove":
                made.remove.paths.extend(update.remove.paths)


def _fill_point(point: points_pb2.Point, command: command_pb2.UpsertPoints, place: int, version: int) -> None:
    stored = command.points[place]
    point.id = stored.id
    point.version = version
    if stored.payload_json:
        point.payload_json = stored.payload_json
    if stored.expires_at_unix_ms:
        point.expires_at.FromMilliseconds(stored.expires_at_unix_ms)
    for column in command.vectors:
        row = place
        if column.point_indexes:
            row = bisect_left(column.point_indexes, place)
            if row == len(column.point_indexes) or column.point_indexes[row] != place:
                continue
        size = len(column.rows) // (len(column.point_indexes) or len(command.points))
        vector = point.vectors[column.name] if column.name else point.vector
        vector.dense.packed = column.rows[row * size : (row + 1) * size]

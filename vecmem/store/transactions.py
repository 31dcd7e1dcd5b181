"""Transactions: comparisons, and then all steps of one branch or none of them. See proto/vecmem/v1/transactions.proto.

Checked alone before anything is logged, decided when the record is applied. Operations on keys run first, in their order, and are
undone where a later one is refused. What points would be refused for is found before any of them is changed: no point is in two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final

from vecmem import limits
from vecmem.errors import (
    CrossSlotError,
    InvalidArgumentError,
    LimitExceededError,
    NotANumberError,
    VecmemError,
    VersionConflictError,
    located,
)
from vecmem.slots import slot_of, slots_of
from vecmem.store.changes import Noted
from vecmem.store.collection import Changes, Collection, Stamp, Steps
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.counters import integer_of
from vecmem.store.keyspace.hashes import HashValue
from vecmem.store.keyspace.keyspace import STRING, Keyspace, shown, version_of
from vecmem.store.keyspace.operation import Moment, check_key, check_member, check_value
from vecmem.store.keyspace.operation_keys import keys_of
from vecmem.store.keyspace.savepoint import Savepoint
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import check_point_id, delete_command, update_payload_command, upsert_command
from vecmem.v1 import keys_pb2, pipeline_pb2
from vecmem.v1 import transactions_pb2 as api

STEP_PLACE: Final = 1 << 16
OTHERWISE_PLACE: Final = 1 << 31
"""The place of a change (vecmem.store.changes) by a transaction: the branch, the index of the step, and that of the point within it."""
_NOT_IN_TRANSACTIONS: Final = frozenset({"scan_keys"})
_COMPARISONS: Final[dict[int, Callable[[Any, Any], bool]]] = {
    api.COMPARISON_UNSPECIFIED: eq,
    api.COMPARISON_EQUAL: eq,
    api.COMPARISON_NOT_EQUAL: ne,
    api.COMPARISON_LESS: lt,
    api.COMPARISON_LESS_OR_EQUAL: le,
    api.COMPARISON_GREATER: gt,
    api.COMPARISON_GREATER_OR_EQUAL: ge,
}

Find = Callable[[str], Collection]
"""A collection by its name. Raises CollectionNotFoundError, CollectionDamagedError."""


def fill_command(request: api.CommitRequest, find: Find, command: command_pb2.CommitTransaction) -> Iterator[None]:
    """Check a transaction, in steps, and fill its command.

    Raises InvalidArgumentError, LimitExceededError, CrossSlotError, CollectionNotFoundError and whatever a step alone would be refused for,
    with the path of the field.
    """
    keys: list[bytes] = []
    for name, parts, count_max in (
        ("compare", request.compare, limits.TRANSACTION_COMPARISONS_MAX),
        ("then", request.then, limits.TRANSACTION_STEPS_MAX),
        ("otherwise", request.otherwise, limits.TRANSACTION_STEPS_MAX),
    ):
        if len(parts) > count_max:
            raise LimitExceededError(f"{len(parts)} parts, more than {count_max}", field=name)
    if not request.then and not request.otherwise:
        raise InvalidArgumentError("has no step", field="then")
    for index, compare in enumerate(request.compare):
        with _Located(f"compare[{index}]"):
            keys += _take_compare(compare, find, command.compare.add())
    for name, steps, taken in (
        ("then", request.then, command.then),
        ("otherwise", request.otherwise, command.otherwise),
    ):
        points: set[tuple[int, str]] = set()
        for index, step in enumerate(steps):
            with _Located(f"{name}[{index}]"):
                stored = taken.add()
                yield from _take_step(step, find, stored)
                uid, ids = _points_of(stored)
                for point_id in ids:
                    if (uid, point_id) in points:
                        raise InvalidArgumentError(f"point {point_id!r} is in a step before")
                    points.add((uid, point_id))
                keys += [point_id.encode() for point_id in ids]
                if stored.HasField("operation"):
                    keys += keys_of(getattr(stored.operation, str(stored.operation.WhichOneof("kind"))))
            yield
    slots = slots_of(keys)
    if len(slots) > 1:
        named = ", ".join(map(str, slots[:16])) + (", ..." if len(slots) > 16 else "")
        raise CrossSlotError(
            f"the keys and points belong to {len(slots)} hash slots: {named}; a common {{tag}} puts them into one",
            slots=named,
        )


def grows(request: api.CommitRequest) -> bool:
    """Whether one of the steps may make the data grow."""
    return any(
        operations.OPERATIONS[str(step.operation.WhichOneof("kind"))].grows
        if step.HasField("operation") and step.operation.WhichOneof("kind")
        else step.HasField("upsert") or (step.HasField("update_payload") and not step.update_payload.HasField("remove"))
        for step in (*request.then, *request.otherwise)
    )


def keys_in(request: api.CommitRequest) -> list[bytes]:
    """The keys that the operations name."""
    return [
        key
        for step in (*request.then, *request.otherwise)
        if step.HasField("operation") and (kind := step.operation.WhichOneof("kind"))
        for key in keys_of(getattr(step.operation, kind))
    ]


def slot_in(command: command_pb2.CommitTransaction) -> int | None:
    """The hash slot of all keys and points of a transaction; None: there are none."""
    if command.compare:
        first = command.compare[0]
        return slot_of(first.compare.point.id.encode() if first.collection_uid else first.compare.key)
    for step in (*command.then, *command.otherwise):
        if step.HasField("operation"):
            keys = keys_of(getattr(step.operation, str(step.operation.WhichOneof("kind"))))
        else:
            keys = [point_id.encode() for point_id in _points_of(step)[1]]
        if keys:
            return slot_of(keys[0])
    return None


def commit(
    keyspace: Keyspace,
    by_uid: dict[int, Collection],
    missing: Callable[[int], VecmemError],
    command: command_pb2.CommitTransaction,
    stamp: Stamp,
    noted: Noted,
) -> Steps[Changes]:
    """Apply a transaction, in steps. Nobody may look at keys or points until the end."""
    time_unix_ms = stamp.time_unix_ms
    try:
        succeeded = True
        contents: dict[bytes, bytes | None] = {}
        for index, compare in enumerate(command.compare):
            succeeded &= _holds(compare, index, keyspace, by_uid, missing, time_unix_ms, contents)
            yield
        name, steps = ("then", command.then) if succeeded else ("otherwise", command.otherwise)
        yield from _check_points(steps, name, by_uid, missing, stamp)
        outcome = command_pb2.TransactionOutcome(succeeded=succeeded)
        for _ in steps:
            outcome.results.add()
        base = 0 if succeeded else OTHERWISE_PLACE
        yield from _run_operations(keyspace, steps, name, outcome, time_unix_ms, noted, base)
    except VecmemError as error:
        return Changes(refused=error)
    for index, (step, result) in enumerate(zip(steps, outcome.results, strict=True)):
        noted.base = base + index * STEP_PLACE
        yield from _change_points(step, result, by_uid, stamp, noted)
    noted.base = 0
    return Changes(result=command_pb2.CommandResult(transaction=outcome))


def _run_operations(
    keyspace: Keyspace,
    steps: Sequence[command_pb2.StoredStep],
    name: str,
    outcome: command_pb2.TransactionOutcome,
    time_unix_ms: int,
    noted: Noted,
    base: int,
) -> Steps[None]:
    """Run the operations on keys: all of them, or none where one raises."""
    savepoint = Savepoint(keyspace)
    moment = Moment(time_unix_ms)
    places = [index for index, step in enumerate(steps) if step.HasField("operation")]
    changes = Noted()
    for index in places:
        operation = steps[index].operation
        kind: Any = operation.WhichOneof("kind")
        found, request = operations.OPERATIONS[kind], getattr(operation, kind)
        if found.writes and index != places[-1]:
            savepoint.keep(keys_of(request))
        response = getattr(outcome.results[index].operation, kind)
        response.SetInParent()
        try:
            found.run(keyspace, request, response, moment)
            if not found.writes:
                moment.spend(response.ByteSize(), "")
        except VecmemError as error:
            savepoint.restore()
            raise located(error, f"{name}[{index}].operation.{kind}") from error
        changes.base = base + index * STEP_PLACE
        keyspace.note_changes(0, changes)
        yield
    noted.packed += changes.packed


def _check_points(
    steps: Sequence[command_pb2.StoredStep],
    name: str,
    by_uid: dict[int, Collection],
    missing: Callable[[int], VecmemError],
    stamp: Stamp,
) -> Steps[None]:
    """Raise what the steps on points would be refused for."""
    for index, step in enumerate(steps):
        kind = step.WhichOneof("kind")
        if kind is None or kind == "operation":
            continue
        command = getattr(step, kind)
        path = f"{name}[{index}].{_REQUEST_FIELDS[kind]}"
        collection = by_uid.get(command.collection_uid)
        if collection is None:
            raise located(missing(command.collection_uid), path)
        refused: VecmemError | None = None
        if kind == "upsert_points":
            refused = collection.beyond_storage(command)
            conflict = next(iter(collection.conflicts(command.points, stamp.time_unix_ms)), None)
            if conflict is not None:
                refused = VersionConflictError(
                    f"point {conflict.id!r} has version {conflict.actual_version}, not {conflict.expected_version}",
                    point=conflict.id,
                    actual_version=str(conflict.actual_version),
                )
        elif kind == "update_payloads":
            _, _, refused = yield from collection.changed_payloads(command, stamp)
        if refused is not None:
            raise located(refused, path)


def _change_points(
    step: command_pb2.StoredStep,
    result: api.TransactionStepResult,
    by_uid: dict[int, Collection],
    stamp: Stamp,
    noted: Noted,
) -> Steps[None]:
    kind = step.WhichOneof("kind")
    if kind is None or kind == "operation":
        return
    command: Any = getattr(step, kind)
    collection = by_uid[command.collection_uid]
    match kind:
        case "upsert_points":
            changes = yield from collection.upsert(command, stamp, noted)
            result.upsert.version = stamp.version
            result.upsert.inserted_count, result.upsert.updated_count = changes.inserted_count, changes.updated_count
        case "delete_points":
            changes = yield from collection.delete(command, stamp, noted)
            result.delete.deleted_count = changes.deleted_count
        case "update_payloads":
            changes = yield from collection.update_payloads(command, stamp, noted)
            result.update_payload.updated_count = changes.updated_count
            result.update_payload.version = stamp.version if changes.updated_count else 0


_REQUEST_FIELDS: Final = {"upsert_points": "upsert", "delete_points": "delete", "update_payloads": "update_payload"}


def _take_compare(compare: api.Compare, find: Find, stored: command_pb2.StoredCompare) -> list[bytes]:
    """Check a comparison and store it; returns the key that it looks at, or the id as one."""
    condition = compare.WhichOneof("condition")
    match compare.WhichOneof("target"):
        case "key":
            check_key(compare.key)
            looked_at = compare.key
        case "point":
            check_point_id(compare.point.id, "point.id")
            if condition not in ("exists", "version"):
                raise InvalidArgumentError("a point has no such thing", field=condition or "condition")
            stored.collection_uid = find(compare.point.collection).uid
            looked_at = compare.point.id.encode()
        case _:
            raise InvalidArgumentError("neither key nor point is set", field="target")
    match condition:
        case None:
            raise InvalidArgumentError("nothing is compared", field="condition")
        case "exists":
            pass
        case "type":
            if compare.type not in keys_pb2.KeyType.values() or not compare.type:
                raise InvalidArgumentError(f"{compare.type} is not known", field="type")
        case _:
            compared = getattr(compare, condition)
            if compared.comparison not in _COMPARISONS:
                raise InvalidArgumentError(f"{compared.comparison} is not known", field=f"{condition}.comparison")
            if condition in ("value", "field"):
                check_value(compared.value, f"{condition}.value")
            if condition == "field":
                check_member(compared.field, "field.field")
    stored.compare.CopyFrom(compare)
    stored.compare.ClearField("point")
    if stored.collection_uid:
        stored.compare.point.id = compare.point.id
    return [looked_at]


def _take_step(step: api.TransactionStep, find: Find, stored: command_pb2.StoredStep) -> Iterator[None]:
    kind = step.WhichOneof("kind")
    if kind is None:
        raise InvalidArgumentError("is of a kind that this version does not know", field="kind")
    with _Located(kind):
        request: Any = getattr(step, kind)
        if kind == "operation":
            _check_operation(request)
            stored.operation.CopyFrom(request)
            return
        if request.HasField("write"):
            raise InvalidArgumentError("has to be that of the transaction", field="write")
        collection = find(request.collection)
        if kind == "upsert":
            yield from upsert_command(collection, request.points, stored.upsert_points)
            return
        if request.WhichOneof("selector") == "filter":
            raise InvalidArgumentError("a transaction names its points by id", field="filter")
        if kind == "delete":
            stored.delete_points.CopyFrom(delete_command(collection, request))
        else:
            stored.update_payloads.CopyFrom(update_payload_command(collection, request))


def _check_operation(operation: pipeline_pb2.Operation) -> None:
    kind = operation.WhichOneof("kind")
    if kind in _NOT_IN_TRANSACTIONS:
        raise InvalidArgumentError("looks at keys of all slots", field=kind)
    if operation.request_id:
        raise InvalidArgumentError("has to be that of the transaction", field="request_id")
    if kind is None:
        raise InvalidArgumentError("is of a kind that this version does not know", field="kind")
    try:
        operations.check(operation)
    except VecmemError as error:
        raise located(error, kind) from error


def _points_of(stored: command_pb2.StoredStep) -> tuple[int, Sequence[str]]:
    """The collection and the ids that a step changes."""
    match stored.WhichOneof("kind"):
        case "upsert_points":
            return stored.upsert_points.collection_uid, [point.id for point in stored.upsert_points.points]
        case "delete_points":
            return stored.delete_points.collection_uid, list(dict.fromkeys(stored.delete_points.ids.ids))
        case "update_payloads":
            return stored.update_payloads.collection_uid, list(dict.fromkeys(stored.update_payloads.ids.ids))
        case _:
            return 0, ()


def _holds(
    stored: command_pb2.StoredCompare,
    index: int,
    keyspace: Keyspace,
    by_uid: dict[int, Collection],
    missing: Callable[[int], VecmemError],
    time_unix_ms: int,
    contents: dict[bytes, bytes | None],
) -> bool:
    """Whether a comparison holds. `contents` keeps those of strings, which are copies, for further comparisons."""
    compare = stored.compare
    with _Located(f"compare[{index}]"):
        if stored.collection_uid:
            collection = by_uid.get(stored.collection_uid)
            if collection is None:
                raise missing(stored.collection_uid)
            row = collection.find(compare.point.id, time_unix_ms)
            version = 0 if row is None else int(collection.rows.versions[row])
            return _version_holds(compare, version)
        value = keyspace.find(compare.key, time_unix_ms)
        match compare.WhichOneof("condition"):
            case "type":
                held = 0 if value is None else STRING if isinstance(value, bytes) else value.TYPE
                return held == compare.type
            case "value":
                content = _content(keyspace, compare.key, time_unix_ms, contents)
                return content is not None and _COMPARISONS[compare.value.comparison](content, compare.value.value)
            case "field":
                found = keyspace.container(compare.key, HashValue, time_unix_ms)
                content = None if found is None else found.get(compare.field.field, time_unix_ms)
                return content is not None and _COMPARISONS[compare.field.comparison](content, compare.field.value)
            case "integer":
                content = _content(keyspace, compare.key, time_unix_ms, contents)
                number = 0 if content is None else integer_of(content)
                if number is None:
                    raise NotANumberError(f"key: {shown(compare.key)} holds no integer", field="key")
                return _COMPARISONS[compare.integer.comparison](number, compare.integer.value)
            case _:
                return _version_holds(compare, 0 if value is None else version_of(value))


def _content(keyspace: Keyspace, key: bytes, time_unix_ms: int, contents: dict[bytes, bytes | None]) -> bytes | None:
    if key not in contents:
        contents[key] = keyspace.string(key, time_unix_ms)
    return contents[key]


def _version_holds(compare: api.Compare, version: int) -> bool:
    if compare.WhichOneof("condition") == "exists":
        return compare.exists == (version != 0)
    return _COMPARISONS[compare.version.comparison](version, compare.version.version)


class _Located:
    """Puts a path before that of the field of whatever error passes."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, VecmemError):
            located(error, self._path)

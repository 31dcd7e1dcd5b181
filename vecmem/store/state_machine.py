"""The state machine: all collections as a pure fold over the log.

`apply` reads no clock, no random number and no configuration; whatever varies was put into the record before it was appended. So
every replay of the same records gives the same state and the same results.

A record whose command meets a state that it does not fit (its collection was deleted meanwhile) gets a refusal as its
result, the same at every replay; it never raises. An exception out of `apply` is a defect, and the shard stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from vecmem import limits
from vecmem.errors import (
    CollectionDamagedError,
    CollectionExistsError,
    CollectionNotFoundError,
    KeyspaceDamagedError,
    LimitExceededError,
    RequestIdReusedError,
    UnsupportedFormatError,
    VecmemError,
)
from vecmem.log.record import LogEntry
from vecmem.store import slot_moves, transactions
from vecmem.store.changes import Change, ChangeKind, ChangeWindow, Noted, RecordChanges
from vecmem.store.collection import Changes, Collection, Stamp, Steps
from vecmem.store.deduplication import DeduplicationWindow, add_result
from vecmem.store.keyspace import operations
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import Moment
from vecmem.store.slot_scope import Scope, operation_slots, scope_of
from vecmem.store.slot_sets import mask_of, pack
from vecmem.store.slot_table import SlotTable, moving_error
from vecmem.store.staging import Staging
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import pipeline_pb2

COMMAND_RECORD = 1
"""Record type of commands in the log."""

REQUEST_ID_FIELD = "write.request_id"

STEP_KEYS = 32
"""Keys removed between two yields: well below a millisecond."""
Observer = Callable[[int, int], Iterator[None]]
"""Called with the place of each operation of a record, and the record's time, before the operation runs. Not at a repeat or a replay."""

Listener = Callable[[RecordChanges], None]

_REFUSALS: dict[str, type[VecmemError]] = {}


def refusal_error(refusal: command_pb2.Refusal) -> VecmemError:
    """The exception that a refusal stands for."""
    if not _REFUSALS:
        pending: list[type[VecmemError]] = [VecmemError]
        while pending:
            kind = pending.pop()
            _REFUSALS[kind.reason] = kind
            pending.extend(kind.__subclasses__())
    error = _REFUSALS[refusal.reason](refusal.message)
    error.metadata.update(refusal.metadata)
    return error


class StateMachine:
    """Collections by name and by uid, and the keyspace."""

    def __init__(self) -> None:
        self.collections: dict[str, Collection] = {}
        self.by_uid: dict[int, Collection] = {}
        self.damaged: dict[str, tuple[int, str]] = {}
        """Collections that could not be loaded: uid and what is wrong, by name."""
        self.keyspace_damage = ""
        """Why the keyspace could not be loaded; empty: it was."""
        self.deduplication = DeduplicationWindow()
        self.committing = False
        """Whether a transaction has been applied in part: readers of keys and points wait."""
        self.changes = ChangeWindow()
        self.listener: Listener | None = None
        """Told of the changes of each record that is applied."""
        self.lease: command_pb2.HoldLease | None = None
        """The last one in the log that was applied here; of no consequence for the data, and in no checkpoint."""
        self._keyspace = Keyspace()
        self.time_unix_ms = 0
        self.slots: SlotTable | None = None
        """The hash slots that the shard owns. None: all of them, it is the only one."""
        self.staging = Staging()
        """What is on its way here from other shards."""
        self.slots_listener: Callable[[], None] | None = None
        """Told when slots have changed hands."""

    @property
    def keyspace(self) -> Keyspace:
        """The keys. Raises KeyspaceDamagedError."""
        if self.keyspace_damage:
            raise self.damaged_keys_error()
        return self._keyspace

    def damaged_keys_error(self) -> KeyspaceDamagedError:
        """What to raise where the keys are damaged."""
        return KeyspaceDamagedError(f"the keys are damaged: {self.keyspace_damage}")

    @property
    def version_offset(self) -> int:
        """How much the version of the points that a record writes is ahead of its sequence."""
        return 0 if self.slots is None else self.slots.version_offset

    def version_at(self, sequence: int) -> int:
        """The version of the points that a record wrote."""
        return sequence if self.slots is None else self.slots.version_at(sequence)

    def check_names(self, names: Iterable[bytes]) -> None:
        """Before a read of keys, or of points by their ids, in the same turn of the event loop. Raises MovedError for another shard's."""
        if self.slots is not None:
            self.slots.check_names(names)

    def name_of(self, uid: int) -> str:
        """The name of a collection that is there."""
        return self.by_uid[uid].name

    def collection(self, name: str) -> Collection:
        """The collection of that name. Raises CollectionNotFoundError, CollectionDamagedError."""
        found = self.collections.get(name)
        if found is not None:
            return found
        if name in self.damaged:
            raise CollectionDamagedError(f"collection {name!r} is damaged: {self.damaged[name][1]}")
        raise CollectionNotFoundError(f"no collection {name[:200]!r}")

    def uid(self, name: str) -> int:
        """The uid of a collection, damaged ones included. Raises CollectionNotFoundError."""
        return self.damaged[name][0] if name in self.damaged else self.collection(name).uid

    def collection_name(self, change: Change) -> str | None:
        """The name of the collection that a change is one of; None: it was deleted, longer ago than the window of changes goes back."""
        if change.of_collection:
            return change.name.decode()
        found = self.by_uid.get(change.number)
        if found is not None:
            return found.name
        for name, (uid, _) in self.damaged.items():
            if uid == change.number:
                return name
        return self.changes.deleted_collections.get(change.number)

    def add(self, collection: Collection) -> None:
        """Put a collection into place."""
        if self.slots is not None:
            for _ in collection.index_slots():
                pass
        self.collections[collection.name] = collection
        self.by_uid[collection.uid] = collection

    def creation_refusal(self, name: str) -> VecmemError | None:
        """Why no collection of that name can be created now; None: it can."""
        if name in self.collections or name in self.damaged:
            return CollectionExistsError(f"collection {name!r} exists")
        if len(self.collections) + len(self.damaged) >= limits.COLLECTIONS_MAX:
            return LimitExceededError(f"there are {limits.COLLECTIONS_MAX} collections already")
        return None

    def point_count(self) -> int:
        """Points in all collections, expired ones included."""
        return sum(len(collection.row_of) for collection in self.collections.values())

    def apply(self, entry: LogEntry, observer: Observer | None = None) -> Steps[command_pb2.CommandResult]:
        """Apply one record, in steps; returns its result. Raises UnsupportedFormatError for a record it does not know.

        An observer may read the state between operations on keys, and changes nothing.
        """
        if entry.record.record_type != COMMAND_RECORD:
            raise UnsupportedFormatError(f"record {entry.sequence} has type {entry.record.record_type}")
        command = command_pb2.Command.FromString(entry.record.payload)
        self.time_unix_ms = command.time_unix_ms
        scope: Scope | None = None
        if self.slots is not None:
            scope = yield from scope_of(command, self.slots)
            if scope is not None and (moved := self.slots.not_owned(scope.slots)) is not None:
                # Not remembered: the request is sent again, to the owner.
                return command_pb2.CommandResult(sequence=entry.sequence, refusal=_refusal(moved))
        remembered: command_pb2.DeduplicationEntry | None = None
        within = None if scope is None else scope.slots
        if command.request_id:
            remembered = self.deduplication.find(command.request_id, command.time_unix_ms)
            if remembered is not None:
                if scope is None or within is None or remembered.request_fingerprint != command.request_fingerprint:
                    return repeated_result(remembered, command.request_fingerprint)
                within = scope.left(remembered)
                if not within.size:
                    return repeated_result(remembered, command.request_fingerprint)
                if not scope.divisible:
                    return command_pb2.CommandResult(
                        sequence=entry.sequence, refusal=_refusal(_reused(command.request_id, REQUEST_ID_FIELD))
                    )
        if self.slots is not None and scope is not None and within is not None:
            blocked = self.slots.first_blocked(within)
            if scope.by_filter and self.slots.blocked_count:
                blocked = moving_error(None)
            if blocked is not None:
                return command_pb2.CommandResult(sequence=entry.sequence, refusal=_refusal(blocked))
        stamp = Stamp(
            entry.sequence,
            entry.sequence + self.version_offset,
            command.time_unix_ms,
            None if remembered is None or within is None else mask_of(within.tolist()),
        )
        noted = Noted()
        changes = yield from self._dispatch(command, stamp, observer, noted)
        if noted.packed:
            record = RecordChanges(entry.sequence, command.time_unix_ms, bytes(noted.packed))
            self.changes.add(record)
            if self.listener is not None:
                self.listener(record)
        result = changes.result or command_pb2.CommandResult()
        result.sequence = entry.sequence
        result.version = entry.sequence + self.version_offset
        result.inserted_count = changes.inserted_count
        result.updated_count = changes.updated_count
        result.deleted_count = changes.deleted_count
        result.conflicts.extend(changes.conflicts)
        if changes.refused is not None:
            result.refusal.CopyFrom(_refusal(changes.refused))
        if remembered is not None:
            add_result(result, remembered.result)
        # Of what was chosen among no slots, nothing is remembered: slots that come later bring their own memory along.
        among_none = scope is not None and scope.by_filter and not scope.slots.size
        if command.request_id and not among_none and not _is_to_come_again(command, result):
            covered = b"" if scope is None else scope.packed if remembered is None else scope.covered(remembered)
            self.deduplication.remember(
                command_pb2.DeduplicationEntry(
                    request_id=command.request_id,
                    request_fingerprint=command.request_fingerprint,
                    sequence=entry.sequence,
                    time_unix_ms=command.time_unix_ms,
                    result=result,
                    slots=covered,
                )
            )
        return result

    def _dispatch(
        self, command: command_pb2.Command, stamp: Stamp, observer: Observer | None, noted: Noted
    ) -> Steps[Changes]:
        sequence, time_unix_ms = stamp.sequence, stamp.time_unix_ms
        kind = command.WhichOneof("kind")
        if kind is None:
            raise UnsupportedFormatError(f"record {sequence} holds a command of a kind that this version does not know")
        if kind == "create_collection":
            return self._create(command.create_collection, sequence, time_unix_ms, noted)
        if kind == "hold_lease":
            self.lease = command.hold_lease
            return Changes()
        if kind == "commit_transaction":
            return (yield from self._commit_transaction(command.commit_transaction, stamp, noted))
        if kind == "set_slots":
            changes = yield from slot_moves.set_slots(self, command.set_slots, stamp)
            if self.slots_listener is not None:
                self.slots_listener()
            return changes
        if kind == "stage_slots":
            return (yield from slot_moves.stage_slots(self, command.stage_slots))
        if kind in ("run_operations", "expire_keys", "evict_keys"):
            if self.keyspace_damage:
                return Changes(refused=self.damaged_keys_error())
            if kind == "run_operations":
                return (yield from self._run_operations(command.run_operations, stamp, observer, noted))
            if kind == "evict_keys":
                return (yield from self._evict_keys(command.evict_keys, noted))
            return (yield from self._expire_keys(command.expire_keys, time_unix_ms, noted))
        operation = getattr(command, kind)
        collection = self.by_uid.get(operation.collection_uid)
        if collection is None:
            if kind == "delete_collection" and self._give_up(operation.collection_uid, noted):
                return Changes()
            return Changes(refused=self._missing(operation.collection_uid))
        match kind:
            case "update_collection":
                return (yield from collection.configure(operation.config, noted))
            case "delete_collection":
                del self.collections[collection.name]
                del self.by_uid[collection.uid]
                self.staging.drop_collection(collection.uid)
                noted.add_collection(ChangeKind.COLLECTION_DELETED, collection.uid, collection.name)
                return Changes(deleted_count=len(collection.row_of))
            case "upsert_points":
                return (yield from collection.upsert(operation, stamp, noted))
            case "delete_points":
                return (yield from collection.delete(operation, stamp, noted))
            case "update_payloads":
                return (yield from collection.update_payloads(operation, stamp, noted))
            case "expire_points":
                return (yield from collection.expire(operation, stamp, noted))
            case _:
                raise UnsupportedFormatError(f"record {sequence} holds a command {kind!r}")

    def _commit_transaction(self, command: command_pb2.CommitTransaction, stamp: Stamp, noted: Noted) -> Steps[Changes]:
        if self.keyspace_damage:
            return Changes(refused=self.damaged_keys_error())
        steps = [*command.then, *command.otherwise]
        if not all(step.WhichOneof("kind") for step in steps) or not all(
            step.operation.WhichOneof("kind") for step in steps if step.HasField("operation")
        ):
            raise UnsupportedFormatError(f"record {stamp.sequence} holds a step that this version does not know")
        self.committing = True
        try:
            return (yield from transactions.commit(self.keyspace, self.by_uid, self._missing, command, stamp, noted))
        finally:
            self.committing = False

    def _run_operations(
        self,
        command: command_pb2.RunOperations,
        stamp: Stamp,
        observer: Observer | None,
        noted: Noted,
    ) -> Steps[Changes]:
        if not all(operation.WhichOneof("kind") for operation in command.operations):
            raise UnsupportedFormatError(f"record {stamp.sequence} holds an operation that this version does not know")
        moment = Moment(stamp.time_unix_ms)
        told = command_pb2.CommandResult()
        results = told.operation_results
        for place, operation in enumerate(command.operations):
            if place:
                yield
            if observer is not None:
                yield from observer(place, stamp.time_unix_ms)
            if self.slots is not None:
                self._run_in_slot(operation, results.add(), stamp.sequence, moment, self.slots)
            elif operation.request_id:
                self._run_once(operation, results.add(), stamp.sequence, moment)
            else:
                operations.run(self.keyspace, operation, results.add(), moment)
            self.keyspace.note_changes(place, noted)
        return Changes(result=told)

    def _expire_keys(self, command: command_pb2.ExpireKeys, time_unix_ms: int, noted: Noted) -> Steps[Changes]:
        deleted_count = 0
        for start in range(0, len(command.keys), STEP_KEYS):
            deleted_count += self.keyspace.remove_expired(command.keys[start : start + STEP_KEYS], time_unix_ms)
            self.keyspace.note_changes(0, noted, ChangeKind.EXPIRED)
            yield
        return Changes(deleted_count=deleted_count)

    def _evict_keys(self, command: command_pb2.EvictKeys, noted: Noted) -> Steps[Changes]:
        deleted_count = 0
        for start in range(0, len(command.keys), STEP_KEYS):
            for key in command.keys[start : start + STEP_KEYS]:
                if key in self.keyspace.values and (not command.only_expiring or self.keyspace.expires(key)):
                    self.keyspace.remove(key)
                    deleted_count += 1
            self.keyspace.note_changes(0, noted, ChangeKind.EVICTED)
            yield
        return Changes(deleted_count=deleted_count)

    def _run_in_slot(
        self,
        operation: pipeline_pb2.Operation,
        result: pipeline_pb2.OperationResult,
        sequence: int,
        moment: Moment,
        table: SlotTable,
    ) -> None:
        """Run an operation on keys of a slot that is owned here and takes writes."""
        slots = operation_slots(operation)
        error: VecmemError | None = table.not_owned(slots)
        if error is None and not (operation.request_id and self._was_done(operation, moment)):
            # A repeat changes nothing.
            error = table.first_blocked(slots)
        if error is not None:
            result.error.CopyFrom(operations.stored_error(error))
        elif operation.request_id:
            self._run_once(operation, result, sequence, moment, pack(slots))
        else:
            operations.run(self.keyspace, operation, result, moment)

    def _was_done(self, operation: pipeline_pb2.Operation, moment: Moment) -> bool:
        return self.deduplication.find(operation.request_id, moment.time_unix_ms) is not None

    def _run_once(
        self,
        operation: pipeline_pb2.Operation,
        result: pipeline_pb2.OperationResult,
        sequence: int,
        moment: Moment,
        slots: bytes = b"",
    ) -> None:
        """Run an operation with a request_id, or give the first result of one that came again."""
        fingerprint = request_fingerprint(operation)
        remembered = self.deduplication.find(operation.request_id, moment.time_unix_ms)
        if remembered is None:
            operations.run(self.keyspace, operation, result, moment)
            self.deduplication.remember(
                command_pb2.DeduplicationEntry(
                    request_id=operation.request_id,
                    request_fingerprint=fingerprint,
                    sequence=sequence,
                    time_unix_ms=moment.time_unix_ms,
                    result=command_pb2.CommandResult(
                        sequence=sequence, operation_results=[result], version=self.version_at(sequence)
                    ),
                    slots=slots,
                )
            )
            return
        if remembered.request_fingerprint == fingerprint:
            result.CopyFrom(remembered.result.operation_results[0])
        else:
            result.error.CopyFrom(operations.stored_error(_reused(remembered.request_id, "request_id")))

    def _create(self, command: command_pb2.CreateCollection, sequence: int, time_unix_ms: int, noted: Noted) -> Changes:
        # Not the limit on their number, which is checked before the log: a limit that changes must not change a replay.
        if command.name in self.collections or command.name in self.damaged:
            return Changes(refused=CollectionExistsError(f"collection {command.name!r} exists"))
        self.add(Collection(command.name, sequence, time_unix_ms, command.config))
        noted.add_collection(ChangeKind.COLLECTION_CREATED, sequence, command.name)
        return Changes()

    def _give_up(self, uid: int, noted: Noted) -> bool:
        """Delete a damaged collection: its operator has decided that nothing of it is to be saved."""
        names = [name for name, (damaged_uid, _) in self.damaged.items() if damaged_uid == uid]
        for name in names:
            del self.damaged[name]
            noted.add_collection(ChangeKind.COLLECTION_DELETED, uid, name)
        return bool(names)

    def _missing(self, uid: int) -> VecmemError:
        for name, (damaged_uid, damage) in self.damaged.items():
            if damaged_uid == uid:
                return CollectionDamagedError(f"collection {name!r} is damaged: {damage}")
        return CollectionNotFoundError("the collection was deleted meanwhile")


def repeated_result(remembered: command_pb2.DeduplicationEntry, fingerprint: int) -> command_pb2.CommandResult:
    """The first result of a request that came again; a refusal when it is another request under the same id."""
    if remembered.request_fingerprint == fingerprint:
        return remembered.result
    return command_pb2.CommandResult(refusal=_refusal(_reused(remembered.request_id, REQUEST_ID_FIELD)))


def _is_to_come_again(command: command_pb2.Command, result: command_pb2.CommandResult) -> bool:
    """Whether it is the operation of somebody who waits, and found nothing."""
    if not command.run_operations.waits or result.HasField("refusal"):
        return False
    [outcome] = result.operation_results
    kind = str(outcome.WhichOneof("kind"))
    waits = operations.OPERATIONS[kind].waits if kind != "error" else None
    return waits is not None and not waits.found(getattr(outcome, kind))


def _refusal(error: VecmemError) -> command_pb2.Refusal:
    return command_pb2.Refusal(reason=error.reason, message=error.message, metadata=error.metadata)


def _reused(request_id: str, field: str) -> RequestIdReusedError:
    return RequestIdReusedError(f"request_id {request_id!r} was used for another request", field=field)

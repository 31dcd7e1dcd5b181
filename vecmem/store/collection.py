"""One collection: points by id, their payloads and vectors, and how records change them.

The write methods are steps of applying a record: generators that yield now and then so that a large record does not hold
the event loop, and return what changed. They read nothing but the collection and their arguments. Between two steps
the points may be changed in part (`changing`): readers wait for the end (`Shard.settled`), searches in threads do not see it at
all (`RowView`).
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from sortedcontainers import SortedList

from vecmem.errors import InvalidPayloadError, InvalidVectorError, LimitExceededError, VecmemError
from vecmem.index.arena import UNSTORABLE, Arena, Rows, unstorable
from vecmem.index.field_path import FieldPath
from vecmem.index.filter import CompiledFilter, compile_filter
from vecmem.index.filter_cache import FilterCache
from vecmem.index.flat import FlatIndex
from vecmem.index.kernel import KernelIndex
from vecmem.index.payload import PayloadTable, merge_payload, remove_paths
from vecmem.index.row_set import RowSet
from vecmem.index.rows import NEVER, RowTable, RowView
from vecmem.index.vector_index import VectorIndex
from vecmem.slots import slot_of
from vecmem.store.changes import ChangeKind, Noted
from vecmem.store.configuration import payload_types, vector_parameters
from vecmem.store.slot_sets import SlotMask
from vecmem.store.v1 import command_pb2
from vecmem.v1 import collections_pb2

T = TypeVar("T")
Steps = Generator[None, None, T]

STEP_POINTS = 256
"""Points handled between two yields: about a millisecond."""
SORTED_POINTS = 2_048
"""Sorted between two yields: about a millisecond."""
STEP_SLOTS = 1_024
"""Points whose hash slot is found between two yields: about a millisecond."""
EXPIRING_SLACK = 1_024
"""Entries of the expiry heap beyond twice the points before it is built anew."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a record gives to what it writes."""

    sequence: int
    """From which on rows are visible, or not any more."""
    version: int
    time_unix_ms: int
    within: SlotMask | None = None
    """The hash slots that the record is applied to: the others have had it before. None: all."""


@dataclass(slots=True)
class Changes:
    """What a record did. `refused` set: nothing."""

    inserted_count: int = 0
    updated_count: int = 0
    deleted_count: int = 0
    conflicts: tuple[command_pb2.Conflict, ...] = ()
    result: command_pb2.CommandResult | None = None
    """Set where there is more to tell than these numbers: they are added to it."""
    refused: VecmemError | None = None


class Collection:
    """The state of one collection. All methods run on the event loop."""

    def __init__(self, name: str, uid: int, created_at_unix_ms: int, config: collections_pb2.CollectionConfig) -> None:
        self.name = name
        self.uid = uid
        self.created_at_unix_ms = created_at_unix_ms
        self.config = config
        self.rows = RowTable()
        self.payloads = PayloadTable()
        self.payloads.declare(payload_types(config))
        self.row_of: dict[str, int] = {}
        self.sorted_ids: SortedList[str] = SortedList()
        self.vectors: dict[str, VectorIndex] = {}
        for vector_name, parameters in vector_parameters(config).items():
            self.vectors[vector_name] = (
                FlatIndex(parameters) if parameters.hnsw is None else KernelIndex(parameters, self.rows)
            )
        self._filters = FilterCache(self.rows, self.payloads, self._rows_of_ids)
        self.changing = False
        """Whether a record has been applied to points in part: readers wait. What only prepares a change does not set it."""
        self.rewriting = False
        """Whether it has changed payloads in place, so that those who go by a snapshot of the rows wait as well."""
        self._expiring: list[tuple[int, int]] = []

    # -- applying records ------------------------------------------------------------------------------------------------

    def upsert(
        self,
        command: command_pb2.UpsertPoints,
        stamp: Stamp,
        noted: Noted,
        versions: Sequence[int] | None = None,
    ) -> Steps[Changes]:
        """Insert or replace points. `versions`: those that they have already, where they come from another shard."""
        refused = self.beyond_storage(command)
        if refused is not None:
            return Changes(refused=refused)
        points = command.points
        sequence, time_unix_ms = stamp.sequence, stamp.time_unix_ms
        accepted, conflicts = self._check_versions(points, stamp)
        rows = self.rows.allocate(len(accepted))
        yield from self._write_vectors(command, accepted, rows)
        inserted: list[str] = []
        replaced: list[int] = []
        revived_count = 0
        self.changing = True
        for count, (index, row) in enumerate(zip(accepted.tolist(), rows.tolist(), strict=True), start=1):
            point = points[index]
            point_id = point.id
            old = self.row_of.get(point_id)
            if old is None:
                inserted.append(point_id)
            else:
                replaced.append(old)
                revived_count += self._is_expired(old, time_unix_ms)
            self.payloads.set(row, point.payload_json)
            version = stamp.version if versions is None else versions[index]
            self.rows.publish(row, point_id, sequence, point.expires_at_unix_ms, version)
            if self.rows.slots is not None:
                self.rows.slots[row] = slot_of(point_id.encode())
            self.row_of[point_id] = row
            noted.add_point(index, ChangeKind.WRITTEN, self.uid, point_id)
            if point.expires_at_unix_ms:
                heapq.heappush(self._expiring, (point.expires_at_unix_ms, row))
            if count % STEP_POINTS == 0:
                yield
        for start in range(0, len(inserted), STEP_POINTS):
            self.sorted_ids.update(inserted[start : start + STEP_POINTS])
            yield
        self._kill(replaced, sequence)
        self.changing = False
        if len(self._expiring) > EXPIRING_SLACK + 2 * len(self.row_of):
            # Points whose expiry is moved on again and again leave entries behind, which may be due only years from now.
            self._rebuild_expiring()
        return Changes(
            inserted_count=len(inserted) + revived_count,
            updated_count=len(replaced) - revived_count,
            conflicts=conflicts,
        )

    def delete(self, command: command_pb2.DeletePoints, stamp: Stamp, noted: Noted) -> Steps[Changes]:
        """Delete points by ids or by filter."""
        rows = yield from self._select(command, stamp)
        yield from self.remove(rows, stamp.sequence, ChangeKind.DELETED, noted)
        return Changes(deleted_count=len(rows))

    def expire(self, command: command_pb2.ExpirePoints, stamp: Stamp, noted: Noted) -> Steps[Changes]:
        """Delete those of the named points that have expired."""
        named = (self.row_of.get(point_id) for point_id in dict.fromkeys(command.ids))
        rows = [row for row in named if row is not None and self._is_expired(row, stamp.time_unix_ms)]
        yield from self.remove(rows, stamp.sequence, ChangeKind.EXPIRED, noted)
        return Changes(deleted_count=len(rows))

    def update_payloads(self, command: command_pb2.UpdatePayloads, stamp: Stamp, noted: Noted) -> Steps[Changes]:
        """Change payloads by ids or by filter: all of them, or none where one would grow over the limit."""
        rows, changed, refused = yield from self.changed_payloads(command, stamp)
        if refused is not None:
            return Changes(refused=refused)
        self.changing = self.rewriting = True
        for count, (row, payload) in enumerate(zip(rows, changed, strict=True), start=1):
            self.payloads.set(row, payload)
            self.rows.versions[row] = stamp.version
            noted.add_point(0, ChangeKind.WRITTEN, self.uid, self.rows.ids[row])
            if count % STEP_POINTS == 0:
                yield
        self.changing = self.rewriting = False
        return Changes(updated_count=len(rows))

    def changed_payloads(
        self, command: command_pb2.UpdatePayloads, stamp: Stamp
    ) -> Steps[tuple[list[int], list[bytes], VecmemError | None]]:
        """Rows and their new payloads, or why there are none. Changes nothing."""
        rows = yield from self._select(command, stamp)
        operation = command.WhichOneof("operation")
        paths = [FieldPath.parse(path, "remove") for path in command.remove.paths]
        changed: list[bytes] = []
        refused: tuple[str, VecmemError] | None = None
        for count, row in enumerate(rows, start=1):
            old = self.payloads.get(row)
            try:
                if operation == "merge_json":
                    changed.append(merge_payload(old, command.merge_json))
                elif operation == "remove":
                    changed.append(remove_paths(old, paths))
                else:
                    changed.append(command.replace_json)
            except (LimitExceededError, InvalidPayloadError) as error:
                # The order of rows depends on when they were reclaimed, and a replay must tell of the same point.
                point_id = self.rows.ids[row]
                if refused is None or point_id < refused[0]:
                    refused = point_id, type(error)(f"point {point_id!r}: {error.message}")
            if count % STEP_POINTS == 0:
                yield
        return rows, changed, None if refused is None else refused[1]

    def configure(self, config: collections_pb2.CollectionConfig, noted: Noted) -> Steps[Changes]:
        """Take a new definition; names, dimensions and metrics of the vectors are the same.

        Refused where vectors do not fit a new storage.
        """
        changed = vector_parameters(config)
        arenas: dict[str, Arena] = {}
        live = np.zeros(self.rows.row_count, dtype=np.bool_)
        live[self.rows.live_rows()] = True
        for name, parameters in changed.items():
            arena = self.vectors[name].arena
            if parameters.storage is not arena.storage:
                try:
                    arenas[name] = yield from arena.stored_as(parameters.storage, live)
                except InvalidVectorError as error:
                    return Changes(refused=InvalidVectorError(f"vector {name!r}: {error.message}"))
        self.config = config
        self.payloads.declare(payload_types(config))
        for name, parameters in changed.items():
            self.vectors[name].configure(parameters, arenas.get(name))
        noted.add_collection(ChangeKind.COLLECTION_CHANGED, self.uid, self.name)
        return Changes()

    def index_slots(self) -> Steps[None]:
        """Know the hash slot of each point from now on."""
        self.rows.note_slots()
        slots = self.rows.slots
        assert slots is not None
        for count, (point_id, row) in enumerate(self.row_of.items(), start=1):
            slots[row] = slot_of(point_id.encode())
            if count % STEP_SLOTS == 0:
                yield

    # -- reading ---------------------------------------------------------------------------------------------------------

    def rows_of_slots(self, slots: SlotMask) -> Steps[list[int]]:
        """The rows of the points of some hash slots, expired ones included, in order of their ids. `index_slots` has been called."""
        assert self.rows.slots is not None
        rows = self.rows.live_rows()
        return (yield from self._by_id(rows[slots[self.rows.slots[rows]]].tolist()))

    def view(self, sequence: int, now_unix_ms: int) -> RowView:
        """What a search beginning now sees."""
        return self.rows.view(sequence, now_unix_ms)

    def find(self, point_id: str, now_unix_ms: int) -> int | None:
        """The row of a point that exists and has not expired."""
        row = self.row_of.get(point_id)
        return None if row is None or self._is_expired(row, now_unix_ms) else row

    def matching(self, compiled: CompiledFilter | None, sequence: int, now_unix_ms: int) -> NDArray[np.bool_]:
        """Which rows are visible now and pass the filter; shape (row_count,)."""
        view = self.view(sequence, now_unix_ms)
        return view.visible_mask() if compiled is None else self.matching_rows(compiled, view).mask()

    def matching_rows(self, compiled: CompiledFilter, view: RowView) -> RowSet:
        """Which rows a view sees and pass the filter."""
        return self._filters.matching(compiled, view)

    def ids_after(self, point_id: str) -> Iterable[str]:
        """Ids greater than `point_id` in order; the empty string comes before all."""
        ids: Iterable[str] = self.sorted_ids.irange(minimum=point_id or None, inclusive=(False, True))
        return ids

    def expired_ids(self, now_unix_ms: int, count_max: int) -> list[str]:
        """Ids of up to `count_max` points whose time has come, earliest first; they are reported again until deleted."""
        found: list[tuple[int, int]] = []
        while self._expiring and self._expiring[0][0] <= now_unix_ms and len(found) < count_max:
            entry = heapq.heappop(self._expiring)
            # A row that was given out again to the same point with the same expiry has two equal entries.
            if self._is_current(entry) and entry not in found[-1:]:
                found.append(entry)
        for entry in found:
            heapq.heappush(self._expiring, entry)
        return [self.rows.ids[row] for _, row in found]

    def reclaim(self) -> bool:
        """Free some of the rows of points long gone; returns whether another call would find more now."""
        return self.rows.reclaim(self._forget)

    def load_points(self, live: NDArray[np.bool_]) -> None:
        """Index the ids of a row table filled from a checkpoint; `live` of shape (row_count,)."""
        rows = np.flatnonzero(live).tolist()
        ids = self.rows.ids
        self.row_of = {ids[row]: row for row in rows}
        self.sorted_ids = SortedList(self.row_of)
        self._rebuild_expiring()

    # -- inside ----------------------------------------------------------------------------------------------------------

    def _check_versions(
        self, points: Sequence[command_pb2.StoredPoint], stamp: Stamp
    ) -> tuple[Rows, tuple[command_pb2.Conflict, ...]]:
        """Indexes of the points whose condition holds, and the conflicts of the others."""
        within = stamp.within
        if within is not None:
            # A part of a request of which the rest was applied before: not on the path of any other.
            inside = [index for index, point in enumerate(points) if within[slot_of(point.id.encode())]]
            conflicts = tuple(self.conflicts((points[index] for index in inside), stamp.time_unix_ms))
            refused = {conflict.id for conflict in conflicts}
            return np.array([index for index in inside if points[index].id not in refused], dtype=np.int64), conflicts
        conflicts = tuple(self.conflicts(points, stamp.time_unix_ms))
        accepted = np.arange(len(points))
        if conflicts:
            refused = {conflict.id for conflict in conflicts}
            accepted = np.array(
                [index for index, point in enumerate(points) if point.id not in refused], dtype=np.int64
            )
        return accepted, conflicts

    def conflicts(self, points: Iterable[command_pb2.StoredPoint], time_unix_ms: int) -> Iterator[command_pb2.Conflict]:
        """The conditions that do not hold. Ids are distinct."""
        for point in points:
            if not point.HasField("expected_version"):
                continue
            row = self.find(point.id, time_unix_ms)
            actual = 0 if row is None else int(self.rows.versions[row])
            if actual != point.expected_version:
                yield command_pb2.Conflict(id=point.id, expected_version=point.expected_version, actual_version=actual)

    def _write_vectors(self, command: command_pb2.UpsertPoints, accepted: Rows, rows: Rows) -> Steps[None]:
        row_of_index = np.full(len(command.points), -1, dtype=np.int64)
        row_of_index[accepted] = rows
        for column in command.vectors:
            if not column.rows:
                continue  # as records of before this was looked at may have it: no indexes would mean all points
            index = self.vectors[column.name]
            vectors = np.frombuffer(column.rows, dtype="<f4").reshape(-1, index.parameters.dimension)
            targets = row_of_index[list(column.point_indexes)] if column.point_indexes else row_of_index
            for start in range(0, len(targets), STEP_POINTS):
                part = targets[start : start + STEP_POINTS]
                kept = part >= 0
                index.add(part[kept], vectors[start : start + STEP_POINTS][kept])
                yield

    def beyond_storage(self, command: command_pb2.UpsertPoints) -> InvalidVectorError | None:
        """Why vectors that were checked under another storage cannot be kept in this one."""
        for column in command.vectors:
            index = self.vectors[column.name]
            vectors = np.frombuffer(column.rows, dtype="<f4").reshape(-1, index.parameters.dimension)
            if unstorable(vectors, index.parameters.metric, index.parameters.storage).any():
                return InvalidVectorError(f"vector {column.name!r} of a point: {UNSTORABLE}")
        return None

    def _select(
        self,
        command: command_pb2.DeletePoints | command_pb2.UpdatePayloads,
        stamp: Stamp,
    ) -> Steps[list[int]]:
        """Rows of the points that a command names and that have not expired, in a fixed order."""
        if command.WhichOneof("selector") == "ids":
            found = (self.find(point_id, stamp.time_unix_ms) for point_id in dict.fromkeys(command.ids.ids))
            return self._within(stamp.within, [row for row in found if row is not None])
        compiled = compile_filter(command.filter)
        yield from self.payloads.ensure_columns(compiled.paths)
        # The record's own sequence: it sees all that was applied before it, and itself has published nothing.
        rows = np.flatnonzero(self.matching(compiled, stamp.sequence, stamp.time_unix_ms)).tolist()
        return (yield from self._by_id(self._within(stamp.within, rows)))

    def _within(self, within: SlotMask | None, rows: list[int]) -> list[int]:
        if within is None:
            return rows
        slots = self.rows.slots
        assert slots is not None
        return [row for row in rows if within[slots[row]]]

    def _by_id(self, rows: list[int]) -> Steps[list[int]]:
        """Rows in order of their ids. That of the rows depends on when they were reclaimed, and a replay must note the same changes."""
        id_of = self.rows.ids.__getitem__
        runs: list[list[int]] = []
        for start in range(0, len(rows), SORTED_POINTS):
            runs.append(sorted(rows[start : start + SORTED_POINTS], key=id_of))
            yield
        if len(runs) <= 1:
            return runs[0] if runs else []
        ordered: list[int] = []
        for row in heapq.merge(*runs, key=id_of):
            ordered.append(row)
            if len(ordered) % SORTED_POINTS == 0:
                yield
        return ordered

    def remove(self, rows: list[int], sequence: int, kind: ChangeKind, noted: Noted) -> Steps[None]:
        """Take the points of rows away; `kind` is why."""
        self.changing = True
        for count, row in enumerate(rows, start=1):
            point_id = self.rows.ids[row]
            del self.row_of[point_id]
            self.sorted_ids.remove(point_id)
            noted.add_point(0, kind, self.uid, point_id)
            if count % STEP_POINTS == 0:
                yield
        self._kill(rows, sequence)
        self.changing = False

    def _kill(self, rows: list[int], sequence: int) -> None:
        if rows:
            self.rows.kill(np.array(rows, dtype=np.int64), sequence)

    def _forget(self, rows: Rows) -> None:
        for index in self.vectors.values():
            index.forget(rows)
        self.payloads.clear_rows(rows)

    def _rebuild_expiring(self) -> None:
        rows = self.rows.live_rows()
        times = self.rows.expiry_times()[rows]
        order = np.argsort(times, kind="stable")
        order = order[times[order] != NEVER]
        # What is sorted is a heap.
        self._expiring = list(zip(times[order].tolist(), rows[order].tolist(), strict=True))

    def _is_expired(self, row: int, now_unix_ms: int) -> bool:
        return self.rows.any_expiry() and self.rows.expires_at(row) <= now_unix_ms

    def _is_current(self, entry: tuple[int, int]) -> bool:
        """Whether an entry of the expiry heap still speaks of a living point."""
        expires_at_unix_ms, row = entry
        return self.rows.expires_at(row) == expires_at_unix_ms and self.row_of.get(self.rows.ids[row]) == row

    def _rows_of_ids(self, ids: Sequence[str]) -> Rows:
        found = (self.row_of.get(point_id) for point_id in ids)
        return np.array([row for row in found if row is not None], dtype=np.int64)

"""Building commands, applying them, and looking at a whole state at once."""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vecmem.clock import Clock, ManualClock
from vecmem.config import Settings
from vecmem.index.rows import row_array
from vecmem.index.vector_index import SearchRequest
from vecmem.log.record import LogEntry, Record, chain
from vecmem.store.configuration import complete_config
from vecmem.store.keyspace import image
from vecmem.store.keyspace.keyspace import Keyspace, entry_bytes
from vecmem.store.lanes import Answer, Outcome
from vecmem.store.recovery import recover
from vecmem.store.shard import Shard
from vecmem.store.state_machine import COMMAND_RECORD, StateMachine
from vecmem.store.v1 import command_pb2
from vecmem.v1 import collections_pb2, common_pb2, points_pb2

Command = command_pb2.Command
DIMENSION = 4


def entries(commands: Iterable[Command], after: int = 0, running_crc: int = 0) -> list[LogEntry]:
    """The log that holds these commands."""
    records = [Record(COMMAND_RECORD, command.SerializeToString()) for command in commands]
    return chain(records, after, running_crc)


def apply(state: StateMachine, entry: LogEntry) -> command_pb2.CommandResult:
    """Apply a record to the end; returns its result."""
    steps = state.apply(entry)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: command_pb2.CommandResult = stop.value
            return result


def create(name: str, *, time_unix_ms: int = 1, flat: bool = False, named: Sequence[str] = (), m: int = 8) -> Command:
    """A collection of vectors of DIMENSION elements under the Euclidean distance."""
    vector = collections_pb2.VectorParams(dimension=DIMENSION, metric=common_pb2.METRIC_EUCLIDEAN)
    if flat:
        vector.flat.SetInParent()
    else:
        vector.hnsw.m, vector.hnsw.ef_construction = m, 40
    config = collections_pb2.CollectionConfig(vector=vector)
    for vector_name in named:
        config.vectors[vector_name].CopyFrom(vector)
    command = Command(time_unix_ms=time_unix_ms)
    command.create_collection.name = name
    command.create_collection.config.CopyFrom(complete_config(config))
    return command


def upsert(
    uid: int,
    points: Mapping[str, bytes],
    *,
    time_unix_ms: int = 1,
    seed: int = 0,
    expires_at_unix_ms: int = 0,
    expected_versions: Mapping[str, int] | None = None,
    request_id: str = "",
) -> Command:
    """Payloads by id, with vectors drawn from the seed."""
    command = Command(time_unix_ms=time_unix_ms, request_id=request_id, request_fingerprint=seed)
    command.upsert_points.collection_uid = uid
    for point_id, payload in points.items():
        point = command.upsert_points.points.add(
            id=point_id, payload_json=payload, expires_at_unix_ms=expires_at_unix_ms
        )
        if expected_versions is not None and point_id in expected_versions:
            point.expected_version = expected_versions[point_id]
    rows = np.random.default_rng(seed).standard_normal((len(points), DIMENSION)).astype("<f4")
    command.upsert_points.vectors.add(rows=rows.tobytes())
    return command


def delete_ids(uid: int, ids: Iterable[str], *, time_unix_ms: int = 1) -> Command:
    command = Command(time_unix_ms=time_unix_ms)
    command.delete_points.collection_uid = uid
    command.delete_points.ids.ids.extend(ids)
    return command


def delete_collection(uid: int, *, time_unix_ms: int = 1) -> Command:
    command = Command(time_unix_ms=time_unix_ms)
    command.delete_collection.collection_uid = uid
    return command


def dump(state: StateMachine) -> dict[str, Any]:
    """All that a state holds and that a client could ever see of it, in a form that compares."""
    collections = {}
    for name, collection in state.collections.items():
        points = {}
        for point_id, row in collection.row_of.items():
            assert collection.rows.ids[row] == point_id
            vectors = {
                vector_name: index.arena.gather(row_array(row)).tobytes()
                for vector_name, index in collection.vectors.items()
                if index.arena.present(row + 1)[row]
            }
            points[point_id] = (
                int(collection.rows.versions[row]),
                collection.payloads.get(row),
                collection.rows.expires_at(row),
                vectors,
            )
        assert list(collection.sorted_ids) == sorted(points)
        assert sorted(collection.rows.live_rows().tolist()) == sorted(collection.row_of.values())
        collections[name] = {
            "uid": collection.uid,
            "created_at": collection.created_at_unix_ms,
            "config": collection.config.SerializeToString(deterministic=True),
            "points": points,
        }
        assert state.by_uid[collection.uid] is collection
    assert len(state.by_uid) == len(state.collections)
    return {
        "time": state.time_unix_ms,
        "collections": collections,
        "damaged": state.damaged,
        "keys": keyspace_bytes(state.keyspace),
        "changes": b"".join(state.changes.dump()),
        "deduplication": [entry.SerializeToString(deterministic=True) for entry in state.deduplication.entries()],
    }


def keyspace_bytes(keyspace: Keyspace) -> bytes:
    """The canonical form of all keys."""
    assert list(keyspace.sorted_keys) == sorted(keyspace.values)
    assert keyspace.expiries.keys() <= keyspace.values.keys()
    assert keyspace.memory_bytes == sum(entry_bytes(key, value) for key, value in keyspace.values.items())
    with tempfile.TemporaryDirectory() as directory:
        image.write_keyspace(keyspace, Path(directory))
        with np.load(Path(directory) / image.FILE) as arrays:
            return b"".join(arrays[name].tobytes() for name in sorted(arrays.files))


def nearest(
    state: StateMachine, name: str, *, sequence: int, now_unix_ms: int = 0, limit: int = 10_000, vector: str = ""
) -> list[tuple[str, float]]:
    """(id, score) of an exact search at a position."""
    collection = state.collections[name]
    with collection.rows.readers.reading():
        view = collection.view(sequence, now_unix_ms)
        request = SearchRequest(query=np.full(DIMENSION, 0.25, dtype=np.float32), limit=limit, exact=True)
        found = collection.vectors[vector].search([request], view)[0]
    return [(collection.rows.ids[row], score) for row, score in zip(found.rows, found.scores, strict=True)]


def settings_for(data_dir: Path, **changes: Any) -> Settings:
    """Settings that leave checkpoints to the test."""
    defaults: dict[str, Any] = {
        "data_dir": data_dir,
        "checkpoint_on_exit": False,
        "checkpoint_idle_seconds": 3600.0,
        "log_retention_bytes": 0,
    }
    return dataclasses.replace(Settings(), **(defaults | changes))


def hits_of(outcome: Outcome) -> list[points_pb2.Hit]:
    """The hits of an answer; raises the error of a query that failed."""
    if not isinstance(outcome, Answer):
        raise outcome
    return [points_pb2.Hit.FromString(hit) for hit in outcome.hits]


@asynccontextmanager
async def shard_at(data_dir: Path, *, clock: Clock | None = None, **changes: Any) -> AsyncIterator[Shard]:
    """A shard on a data directory, closed at the end of the block."""
    shard = Shard(recover(data_dir), settings_for(data_dir, **changes), clock or ManualClock())
    async with shard.closing():
        yield shard


async def drained(shard: Shard) -> None:
    """Wait until every row is in its graph. The test's own timeout bounds it."""
    while shard._maintenance.has_work():  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)

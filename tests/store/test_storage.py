"""Storage of vectors changes while the collection serves; what does not fit is refused and changes nothing."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.store.support import (
    DIMENSION,
    Command,
    apply,
    create,
    delete_ids,
    drained,
    dump,
    entries,
    hits_of,
    nearest,
    shard_at,
    upsert,
)
from vecmem.errors import InvalidVectorError
from vecmem.index.parameters import Storage
from vecmem.store.lanes import SearchLanes
from vecmem.store.recovery import recover
from vecmem.store.search import compile_query
from vecmem.store.shard import Shard
from vecmem.store.state_machine import StateMachine
from vecmem.store.v1 import command_pb2
from vecmem.store.validation import upsert_command
from vecmem.v1 import collections_pb2, points_pb2

IDS = [f"p{number:05d}" for number in range(3_000)]


def configure(config: collections_pb2.CollectionConfig, storage: Storage) -> Command:
    command = Command(time_unix_ms=1)
    command.update_collection.collection_uid = 1
    command.update_collection.config.CopyFrom(config)
    command.update_collection.config.vector.storage = collections_pb2.Storage.ValueType(storage)
    return command


def with_vector(point_id: str, values: list[float]) -> Command:
    command = upsert(1, {point_id: b"{}"})
    command.upsert_points.vectors[0].rows = np.array(values, dtype="<f4").tobytes()
    return command


def vectors_of(state: StateMachine) -> np.ndarray:
    collection = state.collections["c"]
    rows = np.array([collection.row_of[point_id] for point_id in sorted(collection.row_of)])
    return collection.vectors[""].arena.gather(rows)


def test_float16_rounds_once_and_for_good() -> None:
    """Vectors become the nearest float16, and stay it when the storage is float32 again; a replay gives the same state."""
    created = create("c")
    config = created.create_collection.config
    commands = [
        created,
        upsert(1, dict.fromkeys(IDS[:500], b"{}")),
        configure(config, Storage.FLOAT16),
        upsert(1, dict.fromkeys(IDS[500:700], b"{}"), seed=1),
        configure(config, Storage.FLOAT32),
        upsert(1, dict.fromkeys(IDS[700:800], b"{}"), seed=2),
    ]
    states = []
    for _ in range(2):
        state = StateMachine()
        for entry in entries(commands):
            assert not apply(state, entry).HasField("refusal")
        states.append(state)
    assert dump(states[0]) == dump(states[1])
    raw = [
        np.frombuffer(commands[place].upsert_points.vectors[0].rows, "<f4").reshape(-1, DIMENSION)
        for place in (1, 3, 5)
    ]
    rounded = np.concatenate([*(part.astype(np.float16).astype(np.float32) for part in raw[:2]), raw[2]])
    assert np.array_equal(vectors_of(states[0]), rounded)
    scores = dict(nearest(states[0], "c", sequence=6))
    wide = rounded.astype(np.float64) - 0.25
    for point_id, score in zip(IDS, np.sqrt((wide**2).sum(axis=1)), strict=False):
        assert scores[point_id] == np.float32(score)


def test_float16_takes_half_the_memory() -> None:
    """Of the rows themselves."""
    sizes = {}
    for storage in Storage:
        created = create("c")
        state = StateMachine()
        commands = [created, upsert(1, dict.fromkeys(IDS, b"{}")), configure(created.create_collection.config, storage)]
        for entry in entries(commands):
            apply(state, entry)
        sizes[storage] = sum(part.nbytes for part in state.collections["c"].vectors[""].arena.chunks(len(IDS)))
    assert sizes == {Storage.FLOAT32: 4 * DIMENSION * len(IDS), Storage.FLOAT16: 2 * DIMENSION * len(IDS)}


@pytest.mark.parametrize("dead", [False, True])
def test_a_change_that_vectors_do_not_fit_is_refused(dead: bool) -> None:
    """Where a living point has an element beyond float16; a dead one decides nothing, reclaimed or not."""
    created = create("c")
    state = StateMachine()
    commands = [created, upsert(1, dict.fromkeys(IDS[:100], b"{}")), with_vector("far", [1e6, 0, 0, 0])]
    if dead:
        commands.append(delete_ids(1, ["far"]))
    log = entries([*commands, configure(created.create_collection.config, Storage.FLOAT16)])
    for entry in log[:-1]:
        apply(state, entry)
    before = dump(state)
    result = apply(state, log[-1])
    if dead:
        assert not result.HasField("refusal")
        assert state.collections["c"].vectors[""].arena.storage is Storage.FLOAT16
    else:
        assert result.refusal.reason == "INVALID_VECTOR"
        assert "float16" in result.refusal.message
        assert dump(state) == before


def test_an_upsert_checked_before_the_change_is_refused_after_it() -> None:
    """Its vectors were fine for float32: the record is in the log behind the change, and replays as a refusal."""
    created = create("c")
    state = StateMachine()
    late = with_vector("far", [7e4, 0, 0, 0])
    late.upsert_points.points.add(id="near")
    late.upsert_points.vectors[0].rows += np.ones(DIMENSION, dtype="<f4").tobytes()
    log = entries([created, configure(created.create_collection.config, Storage.FLOAT16), late])
    results = [apply(state, entry) for entry in log]
    assert results[2].refusal.reason == "INVALID_VECTOR"
    assert not state.collections["c"].row_of


@pytest.mark.parametrize(("values", "metric"), [([65_520.0, 0, 0, 0], 3), ([1e-9, 0, 0, 0], 1)])
def test_points_that_float16_cannot_hold_are_refused_before_the_log(values: list[float], metric: int) -> None:
    """Beyond its range, or under cosine with nothing left of them."""
    created = create("c")
    config = created.create_collection.config
    config.vector.metric = metric  # type: ignore[assignment]
    config.vector.storage = collections_pb2.STORAGE_FLOAT16
    state = StateMachine()
    apply(state, entries([created])[0])
    point = points_pb2.Point(id="a")
    point.vector.dense.packed = np.array(values, dtype="<f4").tobytes()
    with pytest.raises(InvalidVectorError, match="float16") as caught:
        list(upsert_command(state.collections["c"], [point], command_pb2.UpsertPoints()))
    assert caught.value.metadata["field"] == "points[0].vector"


async def find(shard: Shard, into: SearchLanes) -> list[str]:
    query = points_pb2.Query(collection="c", limit=20)
    query.nearest.vector.dense.packed = np.full(DIMENSION, 0.25, dtype="<f4").tobytes()
    query.params.exact = True
    _, outcomes = await into.run([compile_query(shard, query)], None)
    return [hit.point.id for hit in hits_of(outcomes[0])]


async def test_searches_go_on_while_the_storage_changes_and_a_restart_keeps_it(tmp_path: Path) -> None:
    """Back and forth under searches, with rows dying meanwhile; then checkpoint, restart, and the log alone."""
    with ThreadPoolExecutor(2) as executor:
        async with shard_at(tmp_path / "data") as shard:
            into = SearchLanes(shard, executor, 2)
            created = create("c")
            config = created.create_collection.config
            await shard.write(created)
            await shard.write(upsert(1, dict.fromkeys(IDS, b"{}")))
            changing = True

            async def search() -> int:
                count = 0
                while changing:
                    assert len(set(await find(shard, into))) == 20
                    count += 1
                    await asyncio.sleep(0)
                return count

            searching = asyncio.create_task(search())
            for turn, storage in enumerate((Storage.FLOAT16, Storage.FLOAT32, Storage.FLOAT16)):
                await shard.write(delete_ids(1, IDS[turn * 100 : turn * 100 + 50]))
                await shard.write(configure(config, storage))
                await shard.write(upsert(1, dict.fromkeys(IDS[turn * 100 : turn * 100 + 30], b"{}"), seed=turn))
            changing = False
            assert await searching > 2
            await drained(shard)
            arena = shard.state.collections["c"].vectors[""].arena
            assert arena.storage is Storage.FLOAT16
            expected = dump(shard.state)
            await shard.checkpoint()
        async with shard_at(tmp_path / "data") as shard:
            assert dump(shard.state) == expected
            assert shard.state.collections["c"].vectors[""].arena.storage is Storage.FLOAT16
            assert len(await find(shard, SearchLanes(shard, executor, 2))) == 20
        for checkpoint in (tmp_path / "data" / "checkpoints").iterdir():
            checkpoint.rename(tmp_path / checkpoint.name)
        recovered = recover(tmp_path / "data")
        try:
            assert dump(recovered.state) == expected
        finally:
            recovered.log.close()

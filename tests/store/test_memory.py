"""The memory limit: who has to go, that it is logged, and who is refused where nobody may."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

from tests.store.support import DIMENSION, Command, apply, create, delete_collection, dump, entries, shard_at
from tests.support.keyspace import operation
from vecmem.errors import MemoryLimitError
from vecmem.store import memory
from vecmem.store.changes import ChangeKind
from vecmem.store.keyspace.operations import OPERATIONS
from vecmem.store.memory import collection_bytes
from vecmem.store.recovery import recover
from vecmem.store.shard import Shard
from vecmem.store.state_machine import StateMachine

LIMIT_BYTES = 200_000
KEYS = [b"key%05d" % number for number in range(2_000)]


async def put(shard: Shard, key: bytes, size: int = 100, expires_at_unix_ms: int = 0) -> None:
    """What a servicer does for a write that grows."""
    await shard.memory.make_room()
    command = Command()
    written = operation("set_string", key=key, value=b"x" * size)
    if expires_at_unix_ms:
        written.set_string.expiry.at_unix_ms = expires_at_unix_ms
    command.run_operations.operations.append(written)
    if shard.memory.tracks_use:
        shard.memory.touch([key])
    await shard.write(command)


async def upsert_points(shard: Shard, name: str, count: int) -> None:
    """Make a collection of so many points."""
    await shard.write(create(name, flat=True))
    command = Command()
    command.upsert_points.collection_uid = shard.state.collection(name).uid
    for number in range(count):
        command.upsert_points.points.add(id=f"p{number}", payload_json=b'{"a":"%s"}' % (b"x" * 100))
    command.upsert_points.vectors.add(rows=bytes(4 * DIMENSION * count))
    await shard.write(command)


async def put_all(shard: Shard, keys: list[bytes]) -> None:
    for key in keys:
        await put(shard, key)


def limited(path: Path, policy: str, **rest: Any) -> Any:
    return shard_at(path, memory_limit_bytes=LIMIT_BYTES, eviction_policy=policy, **rest)


async def test_without_a_policy_writes_are_refused_at_the_limit(tmp_path):
    async with limited(tmp_path, "none") as shard:
        with pytest.raises(MemoryLimitError) as refused:
            await put_all(shard, KEYS)
        used_bytes = int(refused.value.metadata["used_bytes"])
        assert used_bytes == shard.memory.used_bytes() > LIMIT_BYTES == int(refused.value.metadata["limit_bytes"])
        assert used_bytes < LIMIT_BYTES + 500
        command = Command()
        command.run_operations.operations.append(operation("delete_keys", keys=KEYS[:2]))
        await shard.write(command)
        await put(shard, KEYS[0])
        assert shard.memory.evicted_key_count == 0


@pytest.mark.parametrize("policy", ["volatile-ttl", "volatile-lru", "lru"])
async def test_the_data_stays_below_the_limit_and_evictions_replay(tmp_path, policy):
    values = random.Random(3)
    async with limited(tmp_path, policy, checkpoint_on_exit=False) as shard:
        start = shard.now_unix_ms()
        for key in KEYS:
            await put(shard, key, values.randrange(1_000), start + values.randrange(10**6, 10**9))
            assert shard.memory.used_bytes() <= LIMIT_BYTES + 1_500
        assert shard.memory.evicted_key_count == len(KEYS) - len(shard.state.keyspace.values) > 1_000
        assert KEYS[-1] in shard.state.keyspace.values or policy == "volatile-ttl"
        told = [change.kind for record in shard.state.changes.after(0, 10**6) for change in record.changes()]
        assert told.count(ChangeKind.EVICTED) == shard.memory.evicted_key_count
        expected = dump(shard.state)
    recovered = recover(tmp_path)
    try:
        assert dump(recovered.state) == expected
    finally:
        recovered.log.close()


async def test_those_that_expire_first_go_first(tmp_path):
    async with limited(tmp_path, "volatile-ttl") as shard:
        start = shard.now_unix_ms() + 10**6
        for number, key in enumerate(KEYS[:1_000]):
            await put(shard, key, 100, start + 10**6 - number)
        kept = sorted(shard.state.keyspace.values)
        # The later a key came, the sooner it expires: the first ones are left, and the newest, for which some room was made at once.
        newest = [key for key in kept if key >= KEYS[990]]
        assert kept == [*KEYS[: len(kept) - len(newest)], *newest]
        assert newest[-1] == KEYS[999]


async def test_keys_that_do_not_expire_stay(tmp_path):
    for policy in ("volatile-ttl", "volatile-lru"):
        async with limited(tmp_path / policy, policy) as shard:
            for key in KEYS[:300]:
                await put(shard, key)
            expiring = shard.now_unix_ms() + 10**6
            for key in KEYS[300:600]:
                await put(shard, key, 100, expiring)
            with pytest.raises(MemoryLimitError):
                await put_all(shard, KEYS[600:])
            assert all(key in shard.state.keyspace.values for key in KEYS[:300])
            assert not any(key in shard.state.keyspace.values for key in KEYS[300:600])


async def test_what_was_used_lately_stays(tmp_path):
    """Of keys that are read again and again hardly any goes, of the others most do."""
    random.seed(5)
    async with limited(tmp_path, "lru") as shard:
        used, unused = KEYS[:100], KEYS[100:600]
        for key in [*used, *unused]:
            await put(shard, key)
        for key in KEYS[600:1_200]:
            shard.memory.touch(used)
            await put(shard, key)
        left = shard.state.keyspace.values
        assert sum(key in left for key in used) >= 95
        assert sum(key in left for key in unused) <= 100


async def test_collections_count(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "COLLECTIONS_PAUSE_FACTOR", 0)  # a sum over collections is never an old one
    async with limited(tmp_path, "volatile-ttl") as shard:
        await put(shard, KEYS[0], expires_at_unix_ms=shard.now_unix_ms() + 10**6)
        await upsert_points(shard, "a", 1_000)
        collection = shard.state.collection("a")
        key_bytes = shard.state.keyspace.memory_bytes + memory.EXPIRY_BYTES
        assert shard.memory.used_bytes() == collection_bytes(collection) + key_bytes
        assert collection_bytes(collection) > 1_000 * (100 + 4 * DIMENSION)
        # Points are never evicted, and there are too many of them: without the key it would be no better.
        with pytest.raises(MemoryLimitError):
            await put(shard, KEYS[1])
        assert list(shard.state.keyspace.values) == [KEYS[0]]
        assert len(collection.row_of) == 1_000


async def test_a_collection_that_is_deleted_makes_room_at_once(tmp_path):
    async with limited(tmp_path, "none") as shard:
        await upsert_points(shard, "a", 1_000)
        with pytest.raises(MemoryLimitError):
            await shard.memory.make_room()
        await shard.write(delete_collection(shard.state.collection("a").uid))
        # The sum over the collections may be an old one for a moment.
        for _ in range(1_000):
            with contextlib.suppress(MemoryLimitError):
                await shard.memory.make_room()
                break
            await asyncio.sleep(0.005)
        assert shard.memory.used_bytes() == 0


async def test_where_the_keys_are_damaged_points_are_refused_for_want_of_memory(tmp_path):
    async with limited(tmp_path, "lru") as shard:
        await upsert_points(shard, "a", 1_000)
        shard.state.keyspace_damage = "for this test"
        with pytest.raises(MemoryLimitError):
            await shard.memory.make_room()
        shard.memory.touch([b"a"])
        shard.state.keyspace_damage = ""


async def test_an_eviction_goes_on_and_is_counted_when_those_who_wait_for_it_go_away(tmp_path):
    async with limited(tmp_path, "lru") as shard:
        while shard.memory.used_bytes() <= LIMIT_BYTES:
            await put(shard, b"key%06d" % len(shard.state.keyspace.values))
        count = len(shard.state.keyspace.values)
        waiting = [asyncio.create_task(shard.memory.make_room()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in waiting[:2]:
            task.cancel()
        await waiting[2]
        assert all(task.cancelled() for task in waiting[:2])
        assert shard.memory.used_bytes() <= LIMIT_BYTES
        assert shard.memory.evicted_key_count == count - len(shard.state.keyspace.values) > 0


def test_an_eviction_of_keys_that_are_gone_does_nothing() -> None:
    state = StateMachine()
    written = Command(time_unix_ms=1)
    written.run_operations.operations.append(operation("set_string", key=b"a", value=b"1"))
    evicted = Command(time_unix_ms=2)
    evicted.evict_keys.keys.extend([b"b", b"a", b"a"])
    results = [apply(state, entry) for entry in entries([written, evicted])]
    assert results[1].deleted_count == 1
    assert not state.keyspace.values
    [change] = state.changes.after(1, 1)[0].changes()
    assert (change.kind, change.name) == (ChangeKind.EVICTED, b"a")


def test_every_operation_says_whether_it_grows() -> None:
    growing = {kind for kind, found in OPERATIONS.items() if found.grows}
    assert not any(not OPERATIONS[kind].writes for kind in growing)
    taking_away = ("delete", "remove", "pop", "trim", "take", "acknowledge", "release", "renew", "expire", "persist")
    assert not {kind for kind in growing if kind.startswith(taking_away)}
    adding = ("set_string", "add_", "push", "append", "insert", "store", "enqueue")
    assert {kind for kind, found in OPERATIONS.items() if kind.startswith(adding) and found.writes} <= growing


def test_what_does_not_expire_any_more_is_spared_by_a_record_that_chose_it_before() -> None:
    state = StateMachine()
    command = Command(time_unix_ms=1)
    for key in (b"kept", b"goes"):
        command.run_operations.operations.append(operation("set_string", key=key, expiry={"ttl_ms": 10**6}))
    overwritten = Command(time_unix_ms=2)
    overwritten.run_operations.operations.append(operation("set_string", key=b"kept", value=b"for ever"))
    evicted = Command(time_unix_ms=3)
    evicted.evict_keys.keys.extend([b"kept", b"goes"])
    evicted.evict_keys.only_expiring = True
    for entry in entries([command, overwritten, evicted]):
        apply(state, entry)
    assert list(state.keyspace.values) == [b"kept"]


async def test_times_of_use_leave_with_the_keys_that_are_evicted(tmp_path):
    """Otherwise what they take would have all keys evicted, and then writes refused."""
    async with limited(tmp_path, "lru") as shard:
        clock = shard.memory._clock
        assert clock is not None
        clock.touch([], 10**6)
        assert clock.size_bytes > LIMIT_BYTES
        for number in range(50):
            await put(shard, b"key%06d" % number)
        assert shard.memory.used_bytes() <= LIMIT_BYTES
        assert shard.state.keyspace.values

"""What holds a stream: blocks of entries beside a dictionary, copies, dumps, and damage that is noticed."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.stream_histories import assert_consistent
from tests.support.keyspace import NOW, contents, do
from vecmem.store.keyspace import stream_entries
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation_keys import keys_of
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.savepoint import Savepoint
from vecmem.store.keyspace.stream_entries import ID_MAX, StreamEntries, fields_bytes
from vecmem.store.keyspace.stream_groups import StreamGroup
from vecmem.store.keyspace.stream_value import StreamValue
from vecmem.v1 import streams_pb2


def append(keyspace: Keyspace, time: int, field_count: int = 1) -> None:
    fields = [{"field": b"f", "value": b"v"}] * field_count
    do(keyspace, "append_stream_entry", key=b"s", fields=fields, explicit_id={"time_unix_ms": time})


def filled(count: int) -> Keyspace:
    """A stream `s` of entries 1-0, 2-0 and so on, with a group."""
    keyspace = Keyspace()
    for time in range(1, count + 1):
        append(keyspace, time)
    do(keyspace, "create_stream_group", key=b"s", group=b"g")
    return keyspace


def read(keyspace: Keyspace, consumer: bytes = b"ada", count: int = 100) -> None:
    do(keyspace, "read_stream_group", key=b"s", group=b"g", consumer=consumer, count=count)


STEPS = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9)),
    st.tuples(st.just("append"), st.integers(1, 9)),
    st.tuples(st.just("remove"), st.integers(0, 60)),
    st.tuples(st.just("remove_place"), st.integers(0, 30)),
    st.tuples(st.just("remove_place"), st.integers(0, 30)),
    st.tuples(st.just("remove_first"), st.integers(0, 6)),
)


@given(st.lists(STEPS, max_size=60), st.integers(0, 70), st.integers(0, 70))
def test_blocks_hold_what_a_dictionary_does(steps: list[tuple[str, int]], minimum: int, maximum: int) -> None:
    with patch.object(stream_entries, "BLOCK_ENTRIES", 4):
        entries, model, last = StreamEntries(), dict[int, tuple[bytes, ...]](), 0
        # Something to begin with, so that short lists of steps already mean something.
        for kind, number in [*[("append", 2)] * 18, *steps]:
            if kind == "append":
                last += number
                model[last] = (b"f", bytes(number))
                entries.append(last, model[last])
            elif kind.startswith("remove_p"):
                if model:
                    entry_id = list(model)[number % len(model)]
                    assert entries.remove(entry_id)
                    del model[entry_id]
            elif kind == "remove":
                assert entries.remove(number) == (model.pop(number, None) is not None)
            else:
                count = min(number, len(model))
                entries.remove_first(count)
                for entry_id in list(model)[:count]:
                    del model[entry_id]
            assert entries.size_bytes == sum(map(fields_bytes, model.values()))
            assert len(entries) == len(model)
            assert all(0 < len(block.ids) <= 4 for block in entries._blocks)
            assert sum(block.size_bytes for block in entries._blocks) == entries.size_bytes
            assert entries._bounds == sorted(set(entries._bounds))
            for block, bound in zip(entries._blocks, entries._bounds, strict=True):
                assert block.ids[-1] <= bound
        assert list(entries.forward()) == list(model.items())
        assert list(entries.backward()) == list(reversed(model.items()))
        within = [(entry_id, model[entry_id]) for entry_id in model if minimum <= entry_id <= maximum]
        assert list(entries.forward(minimum, maximum)) == within
        assert list(entries.backward(minimum, maximum)) == within[::-1]
        count_after = entries.counter_after()
        for entry_id in (*model, minimum, maximum, ID_MAX):
            assert entries.get(entry_id) == model.get(entry_id)
            assert (entry_id in entries) == (entry_id in model)
            assert entries.count_before(entry_id) == sum(one < entry_id for one in model)
            assert count_after(entry_id) == sum(one > entry_id for one in model)
        assert (entries.first_id, entries.last_id) == (min(model, default=None), max(model, default=None))


def test_blocks_that_removals_leave_small_become_one() -> None:
    entries = StreamEntries()
    for entry_id in range(20_000):
        entries.append(entry_id, (b"f", b"v"))
    for entry_id in range(20_000):
        if entry_id % 200:
            entries.remove(entry_id)
    assert [entry_id for entry_id, _ in entries.forward()] == list(range(0, 20_000, 200))
    assert len(entries._blocks) <= 2


def test_a_copy_equals_and_changes_by_itself() -> None:
    keyspace = filled(2_000)
    for consumer in (b"ada", b"bob"):
        read(keyspace, consumer, count=300)
    for number in range(1_100):
        do(keyspace, "create_stream_group", key=b"s", group=b"group %d" % number)
        do(keyspace, "create_stream_consumer", key=b"s", group=b"g", consumer=b"consumer %d" % number)
    value = keyspace.values[b"s"]
    assert isinstance(value, StreamValue)
    copied = value.copy()
    assert copied == value
    assert copied.size_bytes == value.size_bytes
    before = value.dump()
    copied.append(5_000 << 64, (b"f", b"v"))
    copied.delete(1_500 << 64)
    copied.trim(700)
    group = copied.groups[b"g"]
    old_group_bytes = group.size_bytes
    group.acknowledge(1 << 64)
    group.remove_consumer(b"bob")
    group.consumer(b"cem", NOW)
    copied.size_bytes += group.size_bytes - old_group_bytes
    copied.add_group(b"new", StreamGroup(0))
    copied.remove_group(b"group 7")
    assert value.dump() == before != copied.dump()
    assert_consistent(value)
    assert_consistent(copied)


def test_a_transaction_that_is_refused_leaves_a_stream_as_it_was() -> None:
    keyspace = filled(1_000)
    read(keyspace)
    before = contents(keyspace)
    savepoint = Savepoint(keyspace)
    savepoint.keep([b"s", b"t"])
    read(keyspace, b"bob")
    append(keyspace, 2_000)
    do(keyspace, "trim_stream", key=b"s", trim={"max_length": 10})
    do(keyspace, "auto_claim_stream_entries", key=b"s", group=b"g", consumer=b"bob")
    do(keyspace, "create_stream_group", key=b"t", group=b"g", create_stream=True)
    assert contents(keyspace) != before
    savepoint.restore()
    assert contents(keyspace) == before


def test_the_keys_of_several_streams_are_found() -> None:
    positions = [streams_pb2.StreamPosition(key=key) for key in (b"{s}1", b"{s}2")]
    assert keys_of(streams_pb2.ReadStreamsRequest(positions=positions)) == [b"{s}1", b"{s}2"]


def test_damage_is_noticed() -> None:
    keyspace = filled(3)
    read(keyspace)
    append(keyspace, 9, field_count=2)
    dumped = keyspace.values[b"s"].dump()  # type: ignore[union-attr]
    assert StreamValue.load(dumped).dump() == dumped
    blobs = unpack(dumped)
    group = unpack(blobs[5])
    ids, counts = blobs[2], blobs[3]
    for place, damaged in (
        (0, b""),
        (0, blobs[0][:16] + bytes(1)),
        (0, bytes(32)),
        (1, bytes(8)),
        (1, bytes(16)),
        (2, ids[16:32] + ids[:16] + ids[32:]),
        (2, ids[:-16]),
        (2, bytes(16) + ids[16:]),
        (3, counts[:-1]),
        (3, (3).to_bytes(4, "little") * 2 + counts[8:]),
        (5, b""),
        (5, pack(group[:1])[:-1]),
        (5, pack([*group, b"ada", *group[2:]])),
        (5, pack([group[0], group[1], b"", group[3]])),
        (5, pack([*group[:3], group[3][32:64] + group[3][:32]])),
        (5, pack([*group, b"bob", *group[2:]])),
        (5, pack([b"", *group[1:]])),
    ):
        with pytest.raises(ValueError, match=r".+"):
            StreamValue.load(pack([*blobs[:place], damaged, *blobs[place + 1 :]]))
    twice = [*blobs[:1], (4).to_bytes(8, "little") + (2).to_bytes(8, "little"), *blobs[2:6], *blobs[4:]]
    for damaged in (pack(blobs[:-1]), pack([*blobs, b""]), pack(blobs[:3]), pack([]), dumped[:-1], pack(twice)):
        with pytest.raises(ValueError, match=r".+"):
            StreamValue.load(damaged)

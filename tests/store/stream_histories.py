"""Operations on streams for random histories, all that write, refused ones included; and what holds of any stream."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from vecmem.store.keyspace.stream_value import StreamValue
from vecmem.v1 import pipeline_pb2

CONSUMERS = [b"ada", b"bob"]
KINDS = [
    *["append", "append", "append", "append", "group", "read", "read", "again", "acknowledge", "claim", "auto_claim"],
    *["delete", "trim", "position", "consumer", "forget", "destroy"],
]


def draw_stream_operation(draw: st.DrawFn, operation: pipeline_pb2.Operation, key: bytes) -> None:
    """Make an operation one on the stream under a key."""
    consumer = draw(st.sampled_from(CONSUMERS))
    match draw(st.sampled_from(KINDS)):
        case "append":
            request: Any = operation.append_stream_entry
            request.fields.add(field=b"f", value=draw(st.binary(max_size=2)))
            if draw(st.integers(0, 3)) == 0:
                request.explicit_id.time_unix_ms = draw(st.integers(1, 60))
            if draw(st.integers(0, 3)) == 0:
                request.trim.max_length = draw(st.integers(0, 4))
        case "group":
            request = operation.create_stream_group
            request.create_stream, request.at_end = True, draw(st.booleans())
        case "read":
            request = operation.read_stream_group
            request.count, request.no_acknowledge = draw(st.integers(1, 3)), draw(st.integers(0, 4)) == 0
        case "again":
            request = operation.read_stream_group
            request.pending_after.SetInParent()
        case "acknowledge":
            request = operation.acknowledge_stream_entries
            add_ids(draw, request)
        case "claim":
            request = operation.claim_stream_entries
            add_ids(draw, request)
            request.force, request.only_ids = draw(st.booleans()), draw(st.booleans())
            request.min_idle_ms = draw(st.sampled_from([0, 1, 50]))
        case "auto_claim":
            request = operation.auto_claim_stream_entries
            request.min_idle_ms, request.count = draw(st.sampled_from([0, 1, 50])), draw(st.integers(0, 2))
        case "delete":
            request = operation.delete_stream_entries
            add_ids(draw, request)
        case "trim":
            request = operation.trim_stream
            request.trim.min_id.time_unix_ms = draw(st.integers(0, 60))
        case "position":
            request = operation.set_stream_group_position
            request.after.time_unix_ms = draw(st.integers(0, 60))
        case "consumer":
            request = operation.create_stream_consumer
        case "forget":
            request = operation.delete_stream_consumer
        case _:
            request = operation.delete_stream_group
    request.key = key
    if "group" in request.DESCRIPTOR.fields_by_name:
        request.group = b"g"
    if "consumer" in request.DESCRIPTOR.fields_by_name:
        request.consumer = consumer


def assert_consistent(value: StreamValue) -> None:
    """All that a stream keeps twice is the same both times, and a dump keeps it."""
    for group in value.groups.values():
        assert list(group.ids) == sorted(group.pending)
        held = {name: [one for one in group.ids if group.pending[one].consumer == name] for name in group.consumers}
        assert {name: list(consumer.pending) for name, consumer in group.consumers.items()} == held
        assert sum(map(len, held.values())) == len(group.pending)
        assert list(group.names.after(None, group.consumers)) == sorted(group.consumers)
    assert list(value.group_names.after(None, value.groups)) == sorted(value.groups)
    assert all(value.entries.get(entry_id) == fields for entry_id, fields in value.entries.forward())
    loaded = StreamValue.load(value.dump())
    assert (loaded.dump(), loaded.size_bytes) == (value.dump(), value.size_bytes)


def add_ids(draw: st.DrawFn, request: Any) -> None:
    """Ids of a stream this small: now and then they name an entry."""
    first = draw(st.integers(1, 60))
    for time in range(first, first + 20):
        for sequence in range(2):
            request.ids.add(time_unix_ms=time, sequence=sequence)

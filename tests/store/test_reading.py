"""What a reply takes is counted as it travels, so that no page and no reply grows over what a message may hold."""

from __future__ import annotations

import pytest

from tests.store.support import DIMENSION, Command, apply, create, entries, upsert
from vecmem.store import reading, wire
from vecmem.store.collection import Collection
from vecmem.store.state_machine import StateMachine
from vecmem.v1 import common_pb2, points_pb2

NAMES = ["v" * 63 + chr(ord("0") + number) for number in range(8)]
LONG_IDS = [f"{number:03d}" + "é" * 250 for number in range(50)]
"""Of 503 bytes."""
ZEROS = b'{"zeros":[' + b",".join([b"0"] * 500) + b"]}"
STRUCT = common_pb2.PayloadSelector(all=True, format=common_pb2.PAYLOAD_FORMAT_STRUCT)
VECTORS = common_pb2.VectorSelector(all=True)


def with_vectors(command: Command) -> Command:
    rows = command.upsert_points.vectors[0].rows
    for name in NAMES:
        command.upsert_points.vectors.add(name=name, rows=rows)
    return command


@pytest.fixture
def collection() -> Collection:
    state = StateMachine()
    commands = [create("c", flat=True, named=NAMES), with_vectors(upsert(1, dict.fromkeys(LONG_IDS, ZEROS)))]
    for entry in entries(commands):
        apply(state, entry)
    return state.collection("c")


@pytest.mark.parametrize("payload", [None, STRUCT], ids=["json", "struct"])
@pytest.mark.parametrize("vectors", [None, VECTORS], ids=["alone", "with vectors"])
@pytest.mark.parametrize("encoding", ["VECTOR_ENCODING_PACKED", "VECTOR_ENCODING_VALUES"])
def test_a_point_counts_for_no_less_than_it_adds_to_a_reply(
    collection: Collection,
    payload: common_pb2.PayloadSelector | None,
    vectors: common_pb2.VectorSelector | None,
    encoding: str,
) -> None:
    selection = reading.compile_selection(
        collection, payload, vectors, request_encoding=common_pb2.VectorEncoding.Value(encoding)
    )
    page, hits = points_pb2.ScrollResponse(), points_pb2.QueryResponse()
    page_size, hits_size = reading.ReplySize(), reading.ReplySize()
    for point_id in LONG_IDS:
        points = selection.encode(collection, [collection.row_of[point_id]])
        page.MergeFromString(wire.repeated_field(2, points))
        page_size.grow(points, "")
        encoded = wire.hits(points, [0.5])
        hits.MergeFromString(wire.repeated_field(2, encoded))
        hits_size.grow(encoded, "")
    assert page.ByteSize() <= page_size.size_bytes <= page.ByteSize() + len(LONG_IDS) * wire.FRAME_BYTES_MAX
    assert hits.ByteSize() <= hits_size.size_bytes
    if vectors is not None:
        assert page.ByteSize() > len(LONG_IDS) * (1 + len(NAMES)) * 4 * DIMENSION


def test_a_page_of_structs_ends_when_it_is_large_not_when_its_json_would_be(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_BYTES_MAX", 30_000)
    selection = reading.compile_selection(collection, STRUCT, None)
    found: list[str] = []
    after = ""
    while True:
        points, after = reading.scroll(
            collection,
            after=after,
            page_size=1_000,
            compiled=None,
            selection=selection,
            sequence=2,
            now_unix_ms=1,
        )
        page = points_pb2.ScrollResponse.FromString(wire.repeated_field(2, points))
        assert page.ByteSize() <= 30_000 + page.points[-1].ByteSize() + wire.FRAME_BYTES_MAX
        found += [point.id for point in page.points]
        if not after:
            break
    assert found == LONG_IDS

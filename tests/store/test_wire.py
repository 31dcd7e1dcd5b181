"""Replies put together as bytes are, byte for byte, what the generated classes serialize to."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.store.support import apply, create, entries, upsert
from vecmem.store import wire
from vecmem.store.reading import compile_selection
from vecmem.store.state_machine import StateMachine
from vecmem.v1 import common_pb2, points_pb2

UINT64 = st.integers(0, 2**64 - 1) | st.integers(0, 70).map(lambda bits: min(2**bits, 2**64 - 1))
PAYLOADS = st.binary(max_size=40) | st.integers(0, 70_000).map(bytes)
POINTS = st.builds(points_pb2.Point, id=st.text(min_size=1, max_size=200), version=UINT64, payload_json=PAYLOADS)
SCORES = st.floats(width=32) | st.sampled_from([0.0, -0.0])


def encoded(*points: points_pb2.Point) -> list[bytes]:
    versions = np.array([point.version for point in points], dtype=np.uint64).view(np.int64)
    ids = [point.id for point in points]
    return wire.points(ids, versions, [point.payload_json for point in points], list(range(len(points))))


def without_empty_payload(point: points_pb2.Point) -> points_pb2.Point:
    """A payload without bytes does not travel."""
    if not point.payload_json:
        point.ClearField("payload")
    return point


@pytest.mark.parametrize("edge", [0, 1, 2**7, 2**14, 2**21, 2**28, 2**32, 2**56, 2**63])
def test_numbers_at_the_edges_of_their_lengths(edge: int) -> None:
    for value in range(max(edge - 2, 0), edge + 3):
        point = points_pb2.Point(id="a", version=value)
        assert encoded(point) == [point.SerializeToString()]
        header = common_pb2.ResponseHeader(position=common_pb2.Position(sequence=value))
        assert wire.header_field(value, 0) == points_pb2.QueryResponse(header=header).SerializeToString()


@given(UINT64, st.integers(0, 2**63 - 1))
def test_headers(sequence: int, time_unix_ms: int) -> None:
    header = common_pb2.ResponseHeader(
        position=common_pb2.Position(sequence=sequence), server_time_unix_ms=time_unix_ms
    )
    assert wire.header_field(sequence, time_unix_ms) == points_pb2.QueryResponse(header=header).SerializeToString()


@given(POINTS)
def test_points(point: points_pb2.Point) -> None:
    assert encoded(point) == [without_empty_payload(point).SerializeToString()]


@given(st.lists(st.tuples(POINTS, SCORES), max_size=8), st.text(max_size=20))
def test_replies_with_their_frames(found: list[tuple[points_pb2.Point, float]], text: str) -> None:
    raw_points = encoded(*(point for point, _ in found))
    raw_hits = wire.hits(raw_points, [score for _, score in found])
    hits = [points_pb2.Hit(point=without_empty_payload(point), score=score) for point, score in found]
    assert raw_hits == [hit.SerializeToString() for hit in hits]
    assert wire.repeated_field(2, raw_hits) == points_pb2.QueryResponse(hits=hits).SerializeToString()
    assert all(len(wire.repeated_field(2, [raw])) <= len(raw) + wire.FRAME_BYTES_MAX for raw in raw_hits)
    outcomes = [points_pb2.QueryOutcome(result=points_pb2.QueryResult(hits=hits))]
    raw_outcome = wire.message_field(1, wire.repeated_field(1, raw_hits))
    batch = points_pb2.QueryBatchResponse(outcomes=outcomes)
    assert wire.repeated_field(2, [raw_outcome]) == batch.SerializeToString()
    if text:
        page = points_pb2.ScrollResponse(points=[hit.point for hit in hits], next_page_token=text)
        assert wire.repeated_field(2, raw_points) + wire.message_field(3, text.encode()) == page.SerializeToString()


@pytest.mark.parametrize("score", [1e-50, -1e-50, 0.1, struct.unpack("<f", struct.pack("<f", 0.1))[0]])
def test_scores_are_rounded_as_the_messages_round_them(score: float) -> None:
    point = points_pb2.Point(id="a", version=1)
    assert wire.hits(encoded(point), [score]) == [points_pb2.Hit(point=point, score=score).SerializeToString()]


def test_rows_beyond_the_payloads_have_none_and_others_are_refused() -> None:
    versions = np.array([7, 8, 9], dtype=np.int64)
    first, second = wire.points(["a", "b"], versions, [b"{}"], [1, 0])
    assert first == points_pb2.Point(id="b", version=8).SerializeToString()
    assert second == points_pb2.Point(id="a", version=7, payload_json=b"{}").SerializeToString()
    for row in (-1, 2, 3, 2**70):
        with pytest.raises(IndexError):
            wire.points(["a", "b"], versions, [], [row])


def test_what_is_no_part_of_a_reply_is_refused() -> None:
    wrong: Any = [["text"], [None], [b"", 1]]
    for bodies in wrong:
        with pytest.raises(TypeError):
            wire.repeated_field(1, bodies)
    for number in (0, 16):
        with pytest.raises(ValueError, match="1 to 15"):
            wire.repeated_field(number, [b""])
    with pytest.raises(ValueError, match="as many"):
        wire.hits([b""], [])
    with pytest.raises(TypeError):
        wire.hits([b""], ["text"])  # type: ignore[list-item]
    with pytest.raises(TypeError):
        wire.points(["a"], np.zeros(1, dtype=np.int64), ["text"], [0])  # type: ignore[list-item]


@pytest.mark.parametrize("payload", [None, common_pb2.PayloadSelector(all=False), common_pb2.PayloadSelector(all=True)])
@pytest.mark.parametrize("form", [common_pb2.PAYLOAD_FORMAT_JSON, common_pb2.PAYLOAD_FORMAT_STRUCT])
@pytest.mark.parametrize("vectors", [None, common_pb2.VectorSelector(all=True)])
@pytest.mark.parametrize("expires_at_unix_ms", [0, 1_800_000_000_001])
def test_a_point_has_what_its_selection_asks_for_whichever_way_it_is_encoded(
    payload: common_pb2.PayloadSelector | None,
    form: common_pb2.PayloadFormat.ValueType,
    vectors: common_pb2.VectorSelector | None,
    expires_at_unix_ms: int,
) -> None:
    state = StateMachine()
    command = upsert(1, {"a": b'{"k":1}', "b": b'{"k":2}'})
    command.upsert_points.points[0].expires_at_unix_ms = expires_at_unix_ms
    for entry in entries([create("c", flat=True), command]):
        apply(state, entry)
    collection = state.collection("c")
    if payload is not None:
        payload = common_pb2.PayloadSelector(all=payload.all, format=form)
    selection = compile_selection(collection, payload, vectors)
    for point_id, number in (("a", 1), ("b", 2)):
        found = points_pb2.Point.FromString(*selection.encode(collection, [collection.row_of[point_id]]))
        assert (found.id, found.version) == (point_id, 2)
        assert found.HasField("expires_at") == (point_id == "a" and bool(expires_at_unix_ms))
        assert found.expires_at.ToMilliseconds() == (expires_at_unix_ms if point_id == "a" else 0)
        assert found.HasField("vector") == (vectors is not None)
        as_struct = payload is not None and form == common_pb2.PAYLOAD_FORMAT_STRUCT
        wanted = payload is None or payload.all
        assert found.payload_json == (b'{"k":%d}' % number if wanted and not as_struct else b"")
        assert dict(found.payload_struct) == ({"k": number} if wanted and as_struct else {})

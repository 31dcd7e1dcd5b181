"""The parts that need no server: filters, vectors, batches, retries, progress, errors."""

from __future__ import annotations

import io
import pickle
from datetime import UTC, datetime, timedelta

import grpc
import numpy as np
import pytest

from vecmem.v1 import common_pb2, filter_pb2, points_pb2
from vecmem_client import (
    BulkProgress,
    DimensionMismatchError,
    Hit,
    InternalError,
    InvalidArgumentError,
    Point,
    ProgressBar,
    RetryPolicy,
    UnavailableError,
    VecmemClientError,
    all_of,
    any_of,
    field,
    has_id,
    none_of,
)
from vecmem_client._batches import BATCH_BYTES_MAX, Columns, batches_of_columns, batches_of_points
from vecmem_client._errors import build_error, error_from_message
from vecmem_client._values import encode_payload
from vecmem_client._vectors import pack_vector

Filter = filter_pb2.Filter


def parse(text):
    from google.protobuf import text_format

    return text_format.Parse(text, Filter())


@pytest.mark.parametrize(
    ("condition", "text"),
    [
        (field("a.b") == "x", 'field { path: "a.b" match { keyword: "x" } }'),
        (field("a") == True, 'field { path: "a" match { boolean: true } }'),  # noqa: E712
        (field("a") == np.int8(3), 'field { path: "a" match { integer: 3 } }'),
        (field("a") != 3, 'none_of { filters { field { path: "a" match { integer: 3 } } } }'),
        (field("a") == 0.5, 'field { path: "a" number_range { gte { real: 0.5 } lte { real: 0.5 } } }'),
        (field("a") < 3, 'field { path: "a" number_range { lt { integer: 3 } } }'),
        (field("a") <= 3.5, 'field { path: "a" number_range { lte { real: 3.5 } } }'),
        (field("a") > 2**53 + 1, 'field { path: "a" number_range { gt { integer: 9007199254740993 } } }'),
        (field("a") >= -1, 'field { path: "a" number_range { gte { integer: -1 } } }'),
        (
            field("a") >= datetime(1970, 1, 1, 0, 1, tzinfo=UTC),
            'field { path: "a" time_range { gte { seconds: 60 } } }',
        ),
        (
            field("a").is_in(["x", 1, False]),
            'field { path: "a" any_of { values { keyword: "x" } values { integer: 1 } values { boolean: false } } }',
        ),
        (field("a").is_in([]), 'field { path: "a" any_of {} }'),
        (field("a").exists(), 'field { path: "a" exists: true }'),
        (field("a").is_null(), 'field { path: "a" is_null: true }'),
        (has_id("x", "y"), 'has_id { ids: "x" ids: "y" }'),
        (has_id(), "has_id {}"),
        (all_of(), "all_of {}"),
        (any_of(), "any_of {}"),
        (none_of(has_id()), "none_of { filters { has_id {} } }"),
        (~any_of(), "none_of { filters { any_of {} } }"),
    ],
)
def test_an_expression_builds_its_filter(condition, text):
    assert condition.proto() == parse(text)


def test_long_chains_stay_flat_and_operands_stay_as_they_were():
    """The server allows sixteen levels; a chain of a hundred conditions must not need a hundred."""
    first = field("n") == 0
    chain = first
    for n in range(1, 100):
        chain = chain & (field("n") == n)
    assert len(chain.proto().all_of.filters) == 100
    assert first.proto() == parse('field { path: "n" match { integer: 0 } }')
    either = (first | has_id("a")) | (has_id("b") | has_id("c"))
    assert [part.WhichOneof("kind") for part in either.proto().any_of.filters] == [
        "field",
        "has_id",
        "has_id",
        "has_id",
    ]
    mixed = (first | has_id("a")) & has_id("b")
    assert [part.WhichOneof("kind") for part in mixed.proto().all_of.filters] == ["any_of", "has_id"]


def test_a_message_combines_with_an_expression():
    raw = parse('has_id { ids: "a" }')
    combined = (field("n") == 1) & raw
    assert [part.WhichOneof("kind") for part in combined.proto().all_of.filters] == ["field", "has_id"]


def test_a_condition_cannot_be_changed_from_outside():
    condition = has_id("a")
    condition.proto().has_id.ids.append("b")
    assert condition == has_id("a")
    assert hash(condition) == hash(has_id("a"))
    assert condition != has_id("b")


@pytest.mark.parametrize(
    ("mistake", "make"),
    [
        (TypeError, lambda: 1 < field("n") < 5),
        (TypeError, lambda: has_id("a") and has_id("b")),
        (TypeError, lambda: not has_id("a")),
        (TypeError, lambda: has_id("a") & True),
        (TypeError, lambda: field("n") == None),  # noqa: E711
        (TypeError, lambda: field("n") == [1]),
        (TypeError, lambda: field("n") < "5"),
        (TypeError, lambda: field("n") < True),
        (TypeError, lambda: field("n").is_in("abc")),
        (TypeError, lambda: field("n").between(1, datetime.now(UTC))),
        (TypeError, lambda: field("")),
        (ValueError, lambda: field("n") == 2**63),
        (ValueError, lambda: field("n") < datetime(2026, 1, 1)),  # noqa: DTZ001
    ],
)
def test_a_mistaken_expression_is_refused(mistake, make):
    with pytest.raises(mistake):
        make()


def test_vectors_are_packed_as_little_endian_float32():
    expected = np.array([1, 2.5, -3], "<f4").tobytes()
    for vector in ([1, 2.5, -3], (1.0, 2.5, -3.0), np.array([1, 2.5, -3], ">f8"), np.array([1, 2.5, -3], "<f4")):
        assert pack_vector(vector) == expected
    strided = np.array([[1, 9], [2.5, 9], [-3, 9]], np.float32)[:, 0]
    assert pack_vector(strided) == expected


@pytest.mark.parametrize("vector", [[], [[1.0]], 1.0, np.zeros((2, 2)), np.zeros(0, np.float32)])
def test_a_vector_of_another_shape_is_refused(vector):
    with pytest.raises(ValueError, match="shape"):
        pack_vector(vector)


@pytest.mark.parametrize("vector", [["a"], [None], [True], [1j], np.array(["1"]), np.array([object()])])
def test_a_vector_of_no_numbers_is_refused(vector):
    with pytest.raises(TypeError):
        pack_vector(vector)


def test_payloads_become_compact_json():
    moment = datetime(2026, 1, 1, 12, tzinfo=UTC)
    payload = {"é": 2**62, "t": moment, "x": np.float32(0.5), "a": np.arange(3)}
    assert (
        encode_payload(payload)
        == '{"é":4611686018427387904,"t":"2026-01-01T12:00:00+00:00","x":0.5,"a":[0,1,2]}'.encode()
    )
    assert encode_payload('{"a": 1}') == encode_payload(b'{"a": 1}') == b'{"a": 1}'
    with pytest.raises(TypeError):
        encode_payload([("a", 1)])


def requests_of(batches):
    return [(points_pb2.UpsertStreamRequest.FromString(batch.request), batch.point_count) for batch in batches]


def test_columns_and_points_cut_into_the_same_batches():
    rng = np.random.default_rng(3)
    matrix = rng.random((25, 3))
    ids = [f"p{n}" for n in range(25)]
    payloads = [{"n": n} for n in range(25)]
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    points = [Point(i, v, p, expires_at=moment) for i, v, p in zip(ids, matrix, payloads, strict=True)]
    columns = Columns.check(np.array(ids), matrix, payloads, moment)
    by_columns = requests_of(batches_of_columns("c", columns, batch_size=10, request_id="r"))
    by_points = requests_of(batches_of_points("c", iter(points), batch_size=10, request_id="r"))
    assert by_columns == by_points
    assert [count for _, count in by_points] == [10, 10, 5]
    assert [request.write.request_id for request, _ in by_points] == ["r-0", "r-1", "r-2"]


def test_a_batch_is_closed_at_its_size_in_bytes():
    """8 MiB, so that no batch comes near the message limit of 64 MiB."""
    text = "x" * 1_000_000
    points = [Point(f"p{n}", [1.0], {"x": text}) for n in range(20)]
    columns = Columns.check([p.id for p in points], [[1.0]] * 20, [p.payload for p in points], None)
    for batches in (
        batches_of_points("c", points, batch_size=1_000, request_id="r"),
        batches_of_columns("c", columns, batch_size=1_000, request_id="r"),
    ):
        made = list(batches)
        assert [batch.point_count for batch in made] == [9, 9, 2]
        assert all(len(batch.request) < BATCH_BYTES_MAX + 1_100_000 for batch in made)


@pytest.mark.parametrize("size", [0, 10_001])
def test_a_batch_size_out_of_range_is_refused_at_once(size):
    with pytest.raises(ValueError, match="batch_size"):
        batches_of_points("c", [], batch_size=size, request_id="r")


def test_waits_grow_are_spread_and_end():
    policy = RetryPolicy(attempts_max=6, backoff_seconds_first=0.1, backoff_seconds_max=0.5)
    for attempts, longest in [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (5, 0.5)]:
        waits = [policy.wait_seconds(attempts, 10) for _ in range(50)]
        assert all(longest / 2 <= wait <= longest for wait in waits)
        assert len(set(waits)) > 1
    assert policy.wait_seconds(6, 10) is None
    assert policy.wait_seconds(1, 0.01) is None
    assert RetryPolicy(attempts_max=10**6).wait_seconds(10**5, 10) <= 2


@pytest.mark.parametrize(
    "arguments",
    [{"attempts_max": 0}, {"backoff_seconds_first": -1}, {"backoff_seconds_max": 0.01}, {"backoff_multiplier": 0.5}],
)
def test_a_retry_policy_out_of_range_is_refused(arguments):
    with pytest.raises(ValueError):  # noqa: PT011
        RetryPolicy(**arguments)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_redraws_one_line_on_a_terminal():
    file = Terminal()
    bar = ProgressBar("load", file=file, width=10)
    for count, seconds in [(100, 1.0), (101, 1.01), (500, 5.0)]:
        bar(BulkProgress(count, 1_000, seconds, finished=False))
    bar(BulkProgress(1_000, 1_000, 100.0, finished=True))
    lines = file.getvalue().split("\r\x1b[K")
    assert lines == [
        "",
        "load  [#.........]  10%  100/1,000  100/s  0:09 left",
        "load  [#####.....]  50%  500/1,000  100/s  0:05 left",
        "load  [##########] 100%  1,000/1,000  10/s  in 1:40\n",
    ]


def test_the_bar_leaves_one_line_in_a_log():
    file = io.StringIO()
    bar = ProgressBar(file=file)
    bar(BulkProgress(10, None, 1.0, finished=False))
    bar(BulkProgress(20, None, 3_700.0, finished=True))
    assert file.getvalue() == "upsert  20  0/s  in 1:01:40\n"


def test_progress_knows_rate_and_time_left():
    assert BulkProgress(0, 100, 0.0, finished=False).points_per_second == 0
    assert BulkProgress(0, 100, 1.0, finished=False).remaining_seconds is None
    assert BulkProgress(50, None, 1.0, finished=False).remaining_seconds is None
    assert BulkProgress(25, 100, 5.0, finished=False).remaining_seconds == 15


def test_an_unknown_reason_takes_the_class_of_its_code():
    """So that an older client still tells a bad request from a server away."""
    error = build_error(grpc.StatusCode.INVALID_ARGUMENT, "m", "BRAND_NEW", {"a": "b"})
    assert type(error) is InvalidArgumentError
    assert (error.reason, error.metadata, error.message, str(error)) == ("BRAND_NEW", {"a": "b"}, "m", "m")
    assert type(build_error(grpc.StatusCode.UNAVAILABLE, "m", "", {})) is UnavailableError
    assert type(build_error(grpc.StatusCode.PERMISSION_DENIED, "m", "", {})) is VecmemClientError
    assert build_error(grpc.StatusCode.PERMISSION_DENIED, "m", "", {}).reason == "PERMISSION_DENIED"
    assert type(build_error(grpc.StatusCode.INTERNAL, "m", "", {})) is InternalError


def test_an_error_of_a_batch_is_the_same_exception():
    message = common_pb2.Error(code=3, message="m", reason="DIMENSION_MISMATCH", metadata={"field": "vector"})
    error = error_from_message(message)
    assert type(error) is DimensionMismatchError
    assert (error.code, error.metadata) == (grpc.StatusCode.INVALID_ARGUMENT, {"field": "vector"})


def test_results_and_errors_survive_pickling():
    """They cross process boundaries in worker pools."""
    hit = Hit("a", 1, b'{"n":1}', np.ones(2, np.float32), {}, None, 0.5)
    copy = pickle.loads(pickle.dumps(hit))
    assert (copy.id, copy.score, copy.payload, copy.vector.tolist()) == ("a", 0.5, {"n": 1}, [1, 1])
    error = pickle.loads(pickle.dumps(DimensionMismatchError("m", metadata={"field": "vector"})))
    assert (type(error), error.message, error.metadata) == (DimensionMismatchError, "m", {"field": "vector"})


def test_a_payload_is_decoded_once_when_asked_for():
    hit = Hit("a", 1, b'{"n": 9007199254740993}')
    assert hit.payload is hit.payload
    assert hit.payload == {"n": 9007199254740993}
    broken = Hit("a", 1, b"{")
    assert broken.id == "a"
    with pytest.raises(ValueError, match="Expecting"):
        _ = broken.payload


def test_expiries_are_times_with_a_zone():
    with pytest.raises(ValueError, match="zone"):
        list(batches_of_points("c", [Point("a", [1.0], expires_at=datetime(2030, 1, 1))], batch_size=1, request_id=""))  # noqa: DTZ001
    with pytest.raises(TypeError):
        list(batches_of_points("c", [Point("a", [1.0], expires_at=timedelta(1))], batch_size=1, request_id=""))

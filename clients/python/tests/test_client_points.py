"""What both clients do with points and collections, against a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from vecmem.v1 import filter_pb2
from vecmem_client import (
    CollectionNotFoundError,
    DimensionMismatchError,
    Exclude,
    Flat,
    Hnsw,
    InvalidIdError,
    Metric,
    Point,
    PointNotFoundError,
    Position,
    PositionAheadError,
    ProgressBar,
    Query,
    VectorConfig,
    VersionConflict,
    all_of,
    any_of,
    field,
    has_id,
)

AXES = np.eye(4)


async def fill(client, collection, count=10):
    """Point n lies at an angle of n degrees or so to the first axis, so that ids are in order of distance."""
    points = [Point(f"p{n:03}", [1.0, n / 100, 0, 0], {"n": n, "parity": ["even", "odd"][n % 2]}) for n in range(count)]
    return await client.upsert(collection, points)


@pytest.mark.one_shard(reason="each shard gives its own versions")
async def test_a_point_is_found_the_moment_its_upsert_returns(client, collection):
    result = await client.upsert(collection, [Point("a", AXES[0], {"title": "first"}), Point("b", AXES[1])])
    assert (result.inserted_count, result.updated_count, list(result.conflicts)) == (2, 0, [])
    hits = await client.query(collection, AXES[0], limit=1)
    assert [(hit.id, hit.payload, hit.version) for hit in hits] == [("a", {"title": "first"}, result.version)]
    assert hits[0].score == pytest.approx(1.0)
    assert hits[0].vector is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.int64])
async def test_a_vector_of_any_real_dtype_asks_the_same(client, collection, dtype):
    await fill(client, collection)
    vector = np.array([1, 0, 0, 0], dtype)
    before = vector.copy()
    expected = [(hit.id, hit.score) for hit in await client.query(collection, [1.0, 0, 0, 0])]
    assert [(hit.id, hit.score) for hit in await client.query(collection, vector)] == expected
    assert [(hit.id, hit.score) for hit in await client.query(collection, np.repeat(vector, 2)[::2])] == expected
    assert (vector == before).all()
    assert vector.dtype == before.dtype


async def test_query_pages_thresholds_and_selects(client, collection):
    await fill(client, collection)
    near = [1.0, 0, 0, 0]
    assert [hit.id for hit in await client.query(collection, near, limit=3, offset=2)] == ["p002", "p003", "p004"]
    best = await client.query(collection, near, limit=5)
    kept = await client.query(collection, near, score_threshold=best[2].score)
    assert [hit.id for hit in kept] == ["p000", "p001", "p002"]
    (hit,) = await client.query(collection, near, limit=1, with_payload=["n"], with_vectors=True)
    assert hit.payload == {"n": 0}
    assert hit.vector.dtype == np.float32
    np.testing.assert_allclose(hit.vector, near)
    (hit,) = await client.query(collection, near, limit=1, with_payload=Exclude(["n"]))
    assert hit.payload == {"parity": "even"}
    (hit,) = await client.query(collection, near, limit=1, with_payload=False)
    assert (hit.payload, hit.payload_json) == ({}, b"")
    exact = await client.query(collection, near, limit=5, exact=True, ef=100)
    assert [(hit.id, hit.score) for hit in exact] == [(hit.id, hit.score) for hit in best]


async def test_query_near_a_stored_point_leaves_it_out(client, collection):
    await fill(client, collection)
    assert [hit.id for hit in await client.query(collection, id="p000", limit=2)] == ["p001", "p002"]
    with pytest.raises(PointNotFoundError):
        await client.query(collection, id="nobody")


async def test_named_vectors_go_in_and_out_by_name(client, collection_name):
    vectors = {"text": VectorConfig(3, Metric.EUCLIDEAN, Flat(), "float32"), "image": VectorConfig(2, "dot", Hnsw(m=8))}
    made = await client.create_collection(collection_name, vectors=vectors, description="two vectors")
    assert made.vector is None
    assert made.vectors["text"] == vectors["text"]
    assert (made.vectors["image"].metric, made.vectors["image"].index.m) == (Metric.DOT, 8)
    await client.upsert(
        collection_name,
        [Point("a", vectors={"text": [0, 0, 0], "image": [1, 1]}), Point("b", vectors={"text": [3, 4, 0]})],
    )
    hits = await client.query(collection_name, [0, 0, 0], using="text", with_vectors=["image"])
    assert [(hit.id, hit.score) for hit in hits] == [("a", 0.0), ("b", 5.0)]
    assert hits[0].vectors["image"].tolist() == [1.0, 1.0]
    assert dict(hits[1].vectors) == {}
    assert [hit.id for hit in await client.query(collection_name, [1, 2], using="image")] == ["a"]
    await client.delete_collection(collection_name)


async def test_get_returns_points_in_the_order_asked_for(client, collection):
    expires_at = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    await client.upsert(
        collection,
        [
            Point("a", AXES[0], '{"big": 9007199254740993}', expires_at=expires_at),
            Point("b", AXES[1], b'{"x": [null]}'),
        ],
    )
    b, a = await client.get(collection, ["b", "missing", "a"], with_vectors=True)
    assert (a.id, a.payload, a.expires_at) == ("a", {"big": 9007199254740993}, expires_at)
    assert (b.id, b.payload, b.expires_at, b.vector.tolist()) == ("b", {"x": [None]}, None, [0, 1, 0, 0])


async def test_an_expired_point_is_not_there(client, collection):
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    await client.upsert(collection, [Point("old", AXES[0], expires_at=long_ago), Point("new", AXES[1])])
    assert [hit.id for hit in await client.query(collection, AXES[0])] == ["new"]
    assert await client.count(collection) == 1


async def test_a_failed_condition_is_listed_and_changes_nothing(client, collection):
    first = await client.upsert(collection, [Point("a", AXES[0], {"v": 1}, expected_version=0)])
    again = await client.upsert(collection, [Point("a", AXES[0], {"v": 2}, expected_version=0)])
    assert again.conflicts == [VersionConflict("a", 0, first.version)]
    swap = await client.upsert(collection, [Point("a", AXES[0], {"v": 3}, expected_version=first.version)])
    assert (swap.updated_count, list(swap.conflicts)) == (1, [])
    assert (await client.get(collection, ["a"]))[0].payload == {"v": 3}


async def test_filters_reach_every_reading_method(client, collection):
    await fill(client, collection)
    odd = (field("parity") == "odd") & (field("n") > 2)
    assert [hit.id for hit in await client.query(collection, AXES[0], filter=odd)] == ["p003", "p005", "p007", "p009"]
    assert await client.count(collection, filter=odd) == 4
    assert [point.id async for point in client.scroll(collection, filter=~odd, page_size=2)] == [
        "p000", "p001", "p002", "p004", "p006", "p008",
    ]  # fmt: skip
    raw = filter_pb2.Filter(has_id=filter_pb2.PointIds(ids=["p001", "p002"]))
    assert await client.count(collection, filter=raw) == 2
    assert await client.count(collection, filter=any_of(has_id("p001"), field("n").is_in([1, 2.0, 3.5]))) == 2
    assert await client.count(collection, filter=field("n").between(2, 4)) == 3
    assert await client.count(collection, filter=field("n") == 2.0) == 1
    assert await client.count(collection, filter=field("n") != 2) == 9
    assert await client.count(collection, filter=field("parity").not_in(["odd"])) == 5
    assert await client.count(collection, filter=~field("nothing").exists()) == 10
    assert await client.count(collection, filter=field("n").is_null()) == 0


async def test_times_in_payloads_are_found_by_datetimes(client, collection):
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    points = [Point(f"h{h}", AXES[0], {"at": noon + timedelta(hours=h)}) for h in range(5)]
    await client.upsert(collection, points)
    assert await client.count(collection, filter=field("at") > noon) == 4
    two = timedelta(hours=2)
    assert await client.count(collection, filter=field("at").between(noon, noon + two)) == 3
    elsewhere = (noon + two).astimezone(datetime.fromisoformat("2026-01-01T00:00:00+05:30").tzinfo)
    assert [p.id async for p in client.scroll(collection, filter=field("at") == elsewhere)] == ["h2"]


async def test_update_payload_merges_replaces_and_removes(client, collection):
    await fill(client, collection, 3)
    merged = await client.update_payload(collection, ids=["p000", "missing"], merge={"n": -1, "new": True})
    assert merged.updated_count == 1
    await client.update_payload(collection, filter=field("n") == 1, replace={"only": "this"})
    await client.update_payload(collection, ids=["p002"], remove=["parity", "missing"])
    points = await client.get(collection, ["p000", "p001", "p002"], with_vectors=True)
    assert [point.payload for point in points] == [{"n": -1, "parity": "even", "new": True}, {"only": "this"}, {"n": 2}]
    assert points[0].version == merged.version
    assert points[1].vector is not None


async def test_delete_by_ids_and_by_filter(client, collection):
    await fill(client, collection)
    assert (await client.delete(collection, ids=["p000", "missing"])).deleted_count == 1
    assert (await client.delete(collection, filter=field("parity") == "odd")).deleted_count == 5
    assert [point.id async for point in client.scroll(collection)] == ["p002", "p004", "p006", "p008"]
    assert (await client.delete(collection, filter=all_of())).deleted_count == 4


async def test_a_batch_gives_each_query_its_own_outcome(client, collection):
    await fill(client, collection)
    good = Query(collection=collection, vector=AXES[0], limit=1)
    bad = Query(collection=collection, vector=[1.0, 2.0])
    lost = Query(collection="no-such-collection", vector=AXES[0])
    results = await client.query_batch([good, bad, lost, good], return_exceptions=True)
    assert [hit.id for hit in results[0]] == [hit.id for hit in results[3]] == ["p000"]
    assert isinstance(results[1], DimensionMismatchError)
    assert isinstance(results[2], CollectionNotFoundError)
    with pytest.raises(DimensionMismatchError) as caught:
        await client.query_batch([good, bad, lost])
    assert caught.value.__notes__ == ["in query 1 of the batch"]
    assert [[hit.id for hit in hits] for hits in await client.query_batch([good])] == [["p000"]]


async def test_bulk_loads_columns(client, collection_name):
    vectors = {"": VectorConfig(8, Metric.EUCLIDEAN), "other": VectorConfig(2, Metric.DOT)}
    await client.create_collection(collection_name, vectors[""], vectors={"other": vectors["other"]})
    rng = np.random.default_rng(1)
    matrix, other = rng.random((1_050, 8)), rng.random((1_050, 2)).astype(np.float16)
    before = matrix.copy()
    seen = []
    result = await client.upsert_bulk(
        collection_name,
        [f"r{n}" for n in range(1_050)],
        {"": matrix, "other": other},
        [{"n": n} if n % 2 else b'{"n":"even"}' for n in range(1_050)],
        expires_at=[None if n else datetime(2001, 1, 1, tzinfo=UTC) for n in range(1_050)],
        batch_size=100,
        window=3,
        progress=seen.append,
    )
    assert (result.point_count, list(result.conflicts), result.reconnect_count) == (1_050, [], 0)
    assert result.position == client.last_position
    counts = [progress.point_count for progress in seen]
    assert counts == sorted(counts)
    assert counts[-1] == 1_050
    assert [progress.finished for progress in seen] == [False] * (len(seen) - 1) + [True]
    assert {progress.total_count for progress in seen} == {1_050}
    assert await client.count(collection_name) == 1_049
    (point,) = await client.get(collection_name, ["r7"], with_vectors=True)
    assert point.payload == {"n": 7}
    np.testing.assert_array_equal(point.vector, matrix[7].astype(np.float32))
    np.testing.assert_array_equal(point.vectors["other"], other[7].astype(np.float32))
    np.testing.assert_array_equal(matrix, before)
    await client.delete_collection(collection_name)


async def test_bulk_loads_a_stream_of_points_and_reports_conflicts(client, collection, capsys):
    await client.upsert(collection, [Point("p3", AXES[0])])
    points = (Point(f"p{n}", AXES[n % 4], expected_version=0) for n in range(25))
    result = await client.upsert_stream(collection, points, batch_size=10, progress=ProgressBar("load"))
    assert result.point_count == 25
    assert [conflict.id for conflict in result.conflicts] == ["p3"]
    assert capsys.readouterr().err.startswith("load  25  ")
    assert await client.count(collection) == 25


async def test_an_empty_load_is_no_error(client, collection):
    result = await client.upsert_bulk(collection, [], np.empty((0, 4)))
    assert (result.point_count, result.position) == (0, None)


async def test_a_refused_batch_ends_the_load_and_keeps_what_came_before(client, collection):
    points = [Point(f"p{n}", AXES[0]) for n in range(30)]
    points[25] = Point("bad", [1.0, 2.0])
    with pytest.raises(DimensionMismatchError) as caught:
        await client.upsert_stream(collection, points, batch_size=10, window=1)
    assert caught.value.__notes__ == ["20 points of the load were acknowledged before"]
    assert await client.count(collection) == 20


async def test_collections_are_made_listed_changed_and_removed(client, collection_name):
    names = [f"{collection_name}.{n}" for n in range(5)]
    for name in names:
        made = await client.create_collection(name, VectorConfig(2), description="before")
        assert made == await client.get_collection(name)
    listed = [c.name async for c in client.list_collections(page_size=2) if c.name.startswith(collection_name)]
    assert listed == names
    changed = await client.update_collection(names[0], description="after", hnsw=Hnsw(ef=200))
    assert (changed.description, changed.vector.index.ef, changed.uid) == ("after", 200, changed.uid)
    await client.upsert(names[0], [Point("a", [1, 0])])
    stats = await client.collection_stats(names[0])
    assert (stats.point_count, stats.vectors[""].vector_count) == (1, 1)
    assert [(await client.delete_collection(name)).deleted_count for name in names] == [1, 0, 0, 0, 0]
    with pytest.raises(CollectionNotFoundError):
        await client.get_collection(names[0])


@pytest.mark.one_shard(reason="positions of several shards are in no order")
async def test_a_position_carries_from_one_client_to_another(client, make_client, server, collection):
    other = make_client(server.address)
    assert other.last_position == Position(0, 0)
    result = await client.upsert(collection, [Point("a", AXES[0])])
    assert client.last_position == result.position
    assert [hit.id for hit in await other.query(collection, AXES[0], min_position=client.last_position)] == ["a"]
    assert other.last_position.sequence >= result.position.sequence
    ahead = Position(result.position.shard, result.position.sequence + 1_000_000)
    with pytest.raises(PositionAheadError):
        await other.count(collection, min_position=ahead)


async def test_the_server_tells_about_itself_and_checkpoints(client, collection):
    await client.upsert(collection, [Point("a", AXES[0])])
    checkpoint = await client.create_checkpoint()
    info = await client.server_info()
    assert info.version
    assert info.started_at.tzinfo is UTC
    assert info.checkpoint_sequence >= checkpoint.sequence > 0
    assert info.read_only_reason == ""


async def test_mistakes_are_seen_before_anything_is_sent(client, collection):
    """None of these reaches the server, whose answer would be a VecmemClientError."""
    before = (await client.server_info()).log_last_sequence
    for mistake, call in [
        (ValueError, client.query(collection)),
        (ValueError, client.query(collection, AXES[0], id="a")),
        (ValueError, client.query(collection, AXES)),
        (TypeError, client.query(collection, ["1", "0", "0", "0"])),
        (TypeError, client.query(collection, AXES[0], filter={"n": 1})),
        (ValueError, client.delete(collection)),
        (ValueError, client.update_payload(collection, ids=["a"], merge={}, replace={})),
        (TypeError, client.delete(collection, ids="a")),
        (ValueError, client.upsert(collection, [])),
        (ValueError, client.upsert(collection, [Point("a")])),
        (TypeError, client.upsert(collection, [Point("a", AXES[0], {"x": object()})])),
        (ValueError, client.upsert(collection, [Point("a", AXES[0], {"x": float("nan")})])),
        (ValueError, client.upsert(collection, [Point("a", AXES[0], expires_at=datetime(2026, 1, 1))])),  # noqa: DTZ001
        (ValueError, client.upsert_bulk(collection, ["a", "b"], AXES)),
        (ValueError, client.upsert_bulk(collection, ["a"], AXES[0])),
        (ValueError, client.upsert_bulk(collection, ["a"], AXES[:1], [{}, {}])),
        (ValueError, client.create_collection("x")),
        (ValueError, client.count(collection, timeout_seconds=0)),
    ]:
        with pytest.raises(mistake):
            await call
    assert (await client.server_info()).log_last_sequence == before


async def test_a_name_that_the_server_refuses_raises_by_reason(client):
    with pytest.raises(InvalidIdError) as caught:
        await client.create_collection("no/slash", VectorConfig(2))
    assert (caught.value.reason, caught.value.code.name) == ("INVALID_ID", "INVALID_ARGUMENT")
    assert caught.value.metadata["field"]

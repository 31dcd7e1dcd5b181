"""Collections over the raw API: definitions, paging, changes, retries, statistics."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from tests.support.api import COSINE, DOT, EUCLIDEAN, expect_refusal, params, payload_indexes, point
from vecmem.v1 import collections_pb2, common_pb2


def create_request(name, request_id="", dimension=2, description=""):
    return collections_pb2.CreateCollectionRequest(
        name=name,
        config=collections_pb2.CollectionConfig(vector=params(dimension, DOT), description=description),
        write=common_pb2.WriteOptions(request_id=request_id),
    )


def get(api, name):
    return api.call("GetCollection", collections_pb2.GetCollectionRequest(name=name)).collection


def delete(api, name, request_id=""):
    write = common_pb2.WriteOptions(request_id=request_id)
    return api.call("DeleteCollection", collections_pb2.DeleteCollectionRequest(name=name, write=write))


def update(api, name, **changes):
    return api.call("UpdateCollection", collections_pb2.UpdateCollectionRequest(name=name, **changes)).collection


def test_a_collection_comes_back_with_its_defaults_filled_in(api, collection_name):
    made = api.create(
        collection_name,
        params(2, COSINE),
        flat=params(3, EUCLIDEAN, flat=True),
        tuned=params(4, DOT, m=8, ef_construction=50, ef=20),
    ).collection
    assert get(api, collection_name) == made
    assert made.config.vector.hnsw == collections_pb2.HnswParams(m=16, ef_construction=200, target_recall=0.97)
    assert made.config.vector.storage == collections_pb2.STORAGE_FLOAT32
    assert made.config.vectors["flat"].WhichOneof("index") == "flat"
    assert made.config.vectors["flat"].storage == collections_pb2.STORAGE_FLOAT32
    tuned = collections_pb2.HnswParams(m=8, ef_construction=50, ef=20, target_recall=0.97)
    assert made.config.vectors["tuned"].hnsw == tuned
    assert not made.config.HasField("payload_indexes")
    assert abs(made.created_at.ToMilliseconds() - time.time() * 1000) < 3_600_000


def test_the_largest_dimension_is_taken(api, collection_name):
    api.create(collection_name, params(16_384, DOT, flat=True))
    api.upsert(collection_name, [point("a", [1.0] * 16_384)])
    (hit,) = api.query(collection_name, [1.0] * 16_384)
    assert hit.score == 16_384.0


def test_every_name_that_the_rules_allow_is_taken(api, collection_name):
    tail = collection_name.replace("-", ".")
    for name in (f"A_b.{tail}", "-", "_x", "0", "x" * 128):
        api.create(name, params(2, DOT))
        assert get(api, name).name == name
        delete(api, name)


def test_collections_are_listed_by_name_page_by_page_while_some_come_and_go(api, collection_name):
    names = [f"{collection_name}.{i:02d}" for i in range(10)]
    for name in names:
        api.create(name, params(2, DOT))
    listed, token, first = [], "", True
    while token or first:
        request = collections_pb2.ListCollectionsRequest(page_size=3, page_token=token)
        page = api.call("ListCollections", request)
        assert len(page.collections) <= 3
        listed += [one.name for one in page.collections]
        token = page.next_page_token
        if first:
            delete(api, names.pop())
            first = False
    assert listed == sorted(listed)
    assert [name for name in listed if name.startswith(collection_name)] == names


def test_a_repeated_creation_returns_the_first_collection(api, collection_name):
    first = api.call("CreateCollection", create_request(collection_name, f"make {collection_name}"))
    api.upsert(collection_name, [point("a", [1.0, 0.0])])
    before = api.info().log_last_sequence
    again = api.call("CreateCollection", create_request(collection_name, f"make {collection_name}"))
    assert again.collection == first.collection
    assert api.info().log_last_sequence == before
    assert api.count(collection_name) == 1


def test_a_repeated_deletion_returns_the_first_count_and_spares_a_later_collection(api, collection_name):
    api.create(collection_name, params(2, DOT))
    api.upsert(collection_name, [point(f"p{i}", [1.0, 0.0]) for i in range(3)])
    assert delete(api, collection_name, f"drop {collection_name}").deleted_point_count == 3
    old_name_new_collection = api.create(collection_name, params(3, COSINE)).collection
    assert delete(api, collection_name, f"drop {collection_name}").deleted_point_count == 3
    assert get(api, collection_name) == old_name_new_collection


def test_a_deleted_collection_leaves_nothing_to_its_successor(api, collection_name):
    old = api.create(collection_name, params(2, DOT)).collection
    api.upsert(collection_name, [point("a", [1.0, 0.0], payload_json=b'{"k":1}')])
    delete(api, collection_name)
    assert expect_refusal(lambda: get(api, collection_name)).reason == "COLLECTION_NOT_FOUND"
    new = api.create(collection_name, params(5, EUCLIDEAN)).collection
    assert new.uid > old.uid
    assert api.scroll(collection_name) == []
    assert api.query(collection_name, [1.0] * 5) == []


def test_concurrent_creations_of_one_name_have_one_winner(api, collection_name):
    def attempt(_):
        try:
            return api.call("CreateCollection", create_request(collection_name)).collection.uid
        except grpc.RpcError as error:
            return error

    with ThreadPoolExecutor(8) as threads:
        outcomes = list(threads.map(attempt, range(8)))
    winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert winners == [get(api, collection_name).uid]
    assert {str(outcome.code()) for outcome in outcomes if not isinstance(outcome, int)} == {
        "StatusCode.ALREADY_EXISTS"
    }


@pytest.mark.parametrize("target", [0.5, 0.97, 0.999, 1.0])
@pytest.mark.parametrize("code", collections_pb2.GraphCode.values())
def test_every_graph_code_and_recall_target_is_taken_and_kept(api, collection_name, code, target):
    chosen = collections_pb2.HnswParams(m=16, ef_construction=200, graph=code, target_recall=target)
    api.create(collection_name, params(2, DOT, graph=code, target_recall=target), named=params(2, DOT))
    assert get(api, collection_name).config.vector.hnsw == chosen
    update(api, collection_name, vectors_hnsw={"named": collections_pb2.HnswParams(graph=code, target_recall=target)})
    assert get(api, collection_name).config.vectors["named"].hnsw == chosen
    # Parameters are given all together: what is 0 takes its default.
    assert update(
        api, collection_name, hnsw=collections_pb2.HnswParams(ef=80)
    ).config.vector.hnsw == collections_pb2.HnswParams(m=16, ef_construction=200, ef=80, target_recall=0.97)


def test_storage_is_chosen_for_each_vector_and_changed_later(api, collection_name):
    half, single = collections_pb2.STORAGE_FLOAT16, collections_pb2.STORAGE_FLOAT32

    def stored():
        stats = api.stats(collection_name)
        config = get(api, collection_name).config
        declared = {"": config.vector.storage} | {name: each.storage for name, each in config.vectors.items()}
        assert {name: each.storage for name, each in stats.vectors.items()} == declared
        return declared

    api.create(
        collection_name, params(2, DOT, storage=half), flat=params(2, DOT, flat=True, storage=half), n=params(3, DOT)
    )
    assert stored() == {"": half, "flat": half, "n": single}
    update(api, collection_name, storage=single, vectors_storage={"n": half})
    assert stored() == {"": single, "flat": half, "n": half}
    update(api, collection_name, description="words", vectors_storage={"flat": single, "n": 0})
    assert stored() == {"": single, "flat": single, "n": half}


def test_the_default_vectors_storage_cannot_change_where_there_is_none(api, collection_name):
    api.create(collection_name, n=params(2, DOT))
    refusal = expect_refusal(lambda: update(api, collection_name, storage=collections_pb2.STORAGE_FLOAT16))
    assert (refusal.reason, refusal.field) == ("UNKNOWN_VECTOR", "storage")
    assert get(api, collection_name).config.vectors["n"].storage == collections_pb2.STORAGE_FLOAT32


def test_payload_indexes_are_declared_and_replaced_as_a_whole(api, collection_name):
    declared = collections_pb2.PayloadIndexes(
        indexes=[
            collections_pb2.PayloadIndex(path=f'author."x.{kind}"', type=kind)
            for kind in collections_pb2.PayloadType.values()[1:]
        ]
    )
    config = collections_pb2.CollectionConfig(vector=params(2, DOT), payload_indexes=declared)
    api.call("CreateCollection", collections_pb2.CreateCollectionRequest(name=collection_name, config=config))
    assert get(api, collection_name).config.payload_indexes == declared
    assert update(api, collection_name, description="words").config.payload_indexes == declared
    many = payload_indexes(**{f"p{i}": collections_pb2.PAYLOAD_TYPE_INTEGER for i in range(64)})
    assert update(api, collection_name, payload_indexes=many).config.payload_indexes == many
    none = collections_pb2.PayloadIndexes()
    assert not update(api, collection_name, payload_indexes=none).config.payload_indexes.indexes


def test_an_update_changes_only_what_it_names(api, collection_name):
    api.create(collection_name, params(2, DOT), named=params(3, DOT))
    described = update(api, collection_name, description="words")
    assert described.config.description == "words"
    assert described.config.vector.hnsw.m == 16
    tuned = update(api, collection_name, vectors_hnsw={"named": collections_pb2.HnswParams(m=32)})
    assert tuned.config.description == "words"
    assert tuned.config.vector.hnsw.m == 16
    assert tuned.config.vectors["named"].hnsw == collections_pb2.HnswParams(
        m=32, ef_construction=200, target_recall=0.97
    )
    assert update(api, collection_name, description="").config.description == ""
    assert get(api, collection_name).config.vectors["named"].hnsw.m == 32


def test_concurrent_updates_of_different_things_are_all_kept(api, collection_name):
    names = [f"v{i}" for i in range(8)]
    api.create(collection_name, **{name: params(2, DOT) for name in names})

    def tune(name):
        update(api, collection_name, vectors_hnsw={name: collections_pb2.HnswParams(ef=100)})

    for round_number in range(5):
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(tune, names))
        config = get(api, collection_name).config
        assert {name: config.vectors[name].hnsw.ef for name in names} == dict.fromkeys(names, 100), round_number
        update(api, collection_name, vectors_hnsw={name: collections_pb2.HnswParams(ef=64) for name in names})


def test_new_graph_parameters_rebuild_the_graph_and_searches_stay_complete(api, collection_name):
    rng = np.random.default_rng(7)
    vectors = rng.normal(size=(3_000, 16)).astype("<f4")
    api.create(collection_name, params(16, EUCLIDEAN, m=4, ef_construction=20))
    api.upsert(collection_name, [point(f"p{i:04d}", vector.tolist()) for i, vector in enumerate(vectors)])

    def until(condition):
        deadline = time.monotonic() + 60
        while not condition(api.stats(collection_name).vectors[""]):
            check_complete()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def check_complete():
        chosen = rng.integers(len(vectors))
        (hit,) = api.query(collection_name, vectors[chosen].tolist(), limit=1, params={"ef": 200})
        assert (hit.point.id, hit.score) == (f"p{chosen:04d}", 0.0)
        assert len(api.query(collection_name, vectors[chosen].tolist(), limit=500)) == 500

    until(lambda stats: stats.tail_row_count == 0)
    small_graph_bytes = api.stats(collection_name).vectors[""].graph_bytes
    update(api, collection_name, hnsw=collections_pb2.HnswParams(m=48, ef_construction=60))
    until(lambda stats: not stats.rebuilding and stats.tail_row_count == 0 and stats.graph_bytes > small_graph_bytes)
    assert api.stats(collection_name).vectors[""].graph_row_count == len(vectors)
    check_complete()


def test_statistics_count_what_is_there(api, collection_name):
    api.create(collection_name, params(2, COSINE), flat=params(3, DOT, flat=True))
    payload = b'{"k":"v"}'
    api.upsert(collection_name, [point(f"a{i}", [1.0, i], payload_json=payload) for i in range(6)])
    api.upsert(collection_name, [point(f"b{i}", vectors={"flat": point("", [1.0] * 3).vector}) for i in range(4)])
    stats = api.stats(collection_name)
    assert stats.point_count == 10
    assert stats.payload_bytes == 6 * len(payload)
    assert (stats.vectors[""].vector_count, stats.vectors["flat"].vector_count) == (6, 4)
    assert stats.vectors[""].graph_row_count + stats.vectors[""].tail_row_count == 6
    assert (stats.vectors["flat"].graph_row_count, stats.vectors["flat"].graph_bytes) == (0, 0)
    assert stats.vectors["flat"].arena_bytes >= 4 * 3 * 4
    api.delete(collection_name, "a0", "a1", "b0")
    stats = api.stats(collection_name)
    assert (stats.point_count, stats.vectors[""].vector_count, stats.vectors["flat"].vector_count) == (7, 4, 3)


@pytest.mark.parametrize("method", ["UpdateCollection", "DeleteCollection"])
def test_a_write_to_a_collection_deleted_since_is_refused(api, collection_name, method):
    api.create(collection_name, params(2, DOT))
    delete(api, collection_name)
    request = getattr(collections_pb2, f"{method}Request")(name=collection_name)
    assert expect_refusal(lambda: api.call(method, request)).reason == "COLLECTION_NOT_FOUND"


def test_a_repeated_update_returns_the_collection(api, collection_name):
    api.create(collection_name, params(2, DOT))
    write = common_pb2.WriteOptions(request_id=f"update {collection_name}")
    first = update(api, collection_name, description="one", write=write)
    assert update(api, collection_name, description="one", write=write) == first


@pytest.mark.one_shard(reason="positions of several shards are in no order")
def test_a_repeated_update_describes_the_collection_as_it_is_now(api, collection_name):
    api.create(collection_name, params(2, DOT))
    write = common_pb2.WriteOptions(request_id=f"update {collection_name}")
    first = update(api, collection_name, description="one", write=write)
    assert first.config.description == "one"
    update(api, collection_name, description="two")
    again = api.call(
        "UpdateCollection",
        collections_pb2.UpdateCollectionRequest(name=collection_name, description="one", write=write),
    )
    assert again.header.position.sequence < api.info().log_last_sequence
    assert (again.collection.uid, again.collection.config.description) == (first.uid, "two")


def test_a_repeated_update_does_not_describe_a_later_collection_of_the_same_name(api, collection_name):
    api.create(collection_name, params(2, DOT))
    write = common_pb2.WriteOptions(request_id=f"update {collection_name}")
    update(api, collection_name, description="one", write=write)
    delete(api, collection_name)
    api.create(collection_name, params(3, COSINE))
    refusal = expect_refusal(lambda: update(api, collection_name, description="one", write=write))
    assert (refusal.code, refusal.reason) == ("NOT_FOUND", "COLLECTION_NOT_FOUND")


def test_there_are_at_most_so_many_collections(own_server, own_api):
    small = collections_pb2.CollectionConfig(vector=params(2, DOT, flat=True))
    waiting = []
    for number in range(1_000):
        request = collections_pb2.CreateCollectionRequest(name=f"c{number:04d}", config=small)
        waiting.append(own_api.collections.CreateCollection.future(request, timeout=60))
        if len(waiting) == 100:
            assert all(call.result().collection.uid for call in waiting)
            waiting.clear()
    last = own_api.info().log_last_sequence
    refusal = expect_refusal(lambda: own_api.call("CreateCollection", create_request("one-more")))
    assert (refusal.code, refusal.reason) == ("INVALID_ARGUMENT", "LIMIT_EXCEEDED")
    assert own_api.info().log_last_sequence == last
    assert own_api.info().collection_count == 1_000
    delete(own_api, "c0500")
    assert own_api.call("CreateCollection", create_request("one-more")).collection.uid > last
    own_server.kill()  # a thousand collections are not worth the time that a last checkpoint of them takes

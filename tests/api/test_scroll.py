"""Scroll and Count over the raw API: every point that is there all the time exactly once, whatever is written meanwhile."""

from __future__ import annotations

import random
import threading

import pytest

from tests.support.api import DOT, connect, params, point
from vecmem.v1 import common_pb2, filter_pb2, points_pb2


def number_below(bound):
    bounds = filter_pb2.NumberRange(lt=filter_pb2.Number(integer=bound))
    return filter_pb2.Filter(field=filter_pb2.FieldCondition(path="n", number_range=bounds))


def numbered(ids):
    return [point(one, [1.0, 0.0], payload_json=b'{"n":%d}' % i) for i, one in enumerate(ids)]


@pytest.fixture
def stored(api, collection_name):
    api.create(collection_name, params(2, DOT, flat=True))
    return collection_name


@pytest.mark.parametrize("page_size", [1, 2, 7, 99, 100, 101, 1_000, 10_000])
def test_pages_are_full_and_in_order_of_the_ids(api, stored, page_size):
    ids = [f"p{i:03d}" for i in range(100)]
    api.upsert(stored, numbered(random.Random(1).sample(ids, 100)))
    pages = list(api.pages(stored, page_size))
    assert [found.id for page in pages for found in page] == ids
    assert all(len(page) == page_size for page in pages[:-1])
    assert len(pages) == -(-100 // page_size)


def test_a_page_holds_a_hundred_points_unless_told(api, stored):
    api.upsert(stored, numbered([f"p{i:03d}" for i in range(101)]))
    reply = api.call("Scroll", points_pb2.ScrollRequest(collection=stored))
    assert len(reply.points) == 100
    assert reply.next_page_token


def test_the_order_is_that_of_utf_8_bytes(api, stored):
    ids = ["", "a", "Z", "é", "z", "\uffff", "\U0001f600", "~", "aa", "a\0"][1:]
    api.upsert(stored, numbered(ids))
    assert [found.id for found in api.scroll(stored, page_size=2)] == sorted(ids, key=str.encode)


@pytest.mark.parametrize("bound", [0, 1, 5, 50, 199, 1_000])
@pytest.mark.parametrize("page_size", [1, 3, 500])
def test_a_filter_is_counted_and_walked_alike(api, stored, bound, page_size):
    ids = [f"p{i:03d}" for i in range(200)]
    api.upsert(stored, numbered(ids))
    assert [found.id for found in api.scroll(stored, page_size, filter=number_below(bound))] == ids[:bound]
    assert api.count(stored, number_below(bound)) == min(bound, 200)


def test_a_token_survives_writes_and_the_point_that_it_stands_at(api, stored):
    api.upsert(stored, numbered(["a", "c", "e", "g"]))
    first = api.call("Scroll", points_pb2.ScrollRequest(collection=stored, page_size=2))
    assert [found.id for found in first.points] == ["a", "c"]
    api.delete(stored, "c", "e")
    api.upsert(stored, numbered(["b", "d", "f"]))
    rest = api.call(
        "Scroll", points_pb2.ScrollRequest(collection=stored, page_size=9, page_token=first.next_page_token)
    )
    assert [found.id for found in rest.points] == ["d", "f", "g"]
    assert rest.next_page_token == ""


def test_a_token_survives_a_crash(own_server):
    with connect(own_server.address) as api:
        api.create("c", params(2, DOT))
        api.upsert("c", numbered("abcdef"))
        first = api.call("Scroll", points_pb2.ScrollRequest(collection="c", page_size=4))
    own_server.kill()
    own_server.start()
    with connect(own_server.address) as api:
        rest = api.call("Scroll", points_pb2.ScrollRequest(collection="c", page_token=first.next_page_token))
        assert [found.id for found in rest.points] == ["e", "f"]


def test_what_is_there_all_the_time_comes_exactly_once_while_others_come_and_go(api, server, stored):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    stable = {f"{i:04d}-stable" for i in range(0, 2_000, 2)}
    api.upsert(stored, numbered(sorted(stable)))
    done = threading.Event()
    failures = []

    def churn(worker):
        rng = random.Random(seed + worker)
        with connect(server.address) as mine:
            try:
                while not done.is_set():
                    some = [f"{rng.randrange(2_000):04d}-{worker}" for _ in range(20)]
                    mine.upsert(stored, numbered(some))
                    # Stable points change too: they move to other rows but stay.
                    mine.upsert(stored, numbered(rng.sample(sorted(stable), 20)))
                    mine.delete(stored, *rng.sample(some, 15))
            except Exception as error:  # noqa: BLE001 - told to the test below
                failures.append(error)

    threads = [threading.Thread(target=churn, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    try:
        rng = random.Random(seed)
        for _ in range(6):
            seen = [found.id for found in api.scroll(stored, page_size=rng.choice([50, 77, 333]))]
            assert seen == sorted(set(seen))
            assert stable <= set(seen)
            assert {found.id for found in api.scroll(stored, page_size=5_000, filter=number_below(5_000))} >= stable
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert api.count(stored) == len(api.scroll(stored))


@pytest.mark.one_shard(reason="all or none holds for each shard")
def test_a_count_beside_whole_batches_is_never_in_between(api, server, stored):
    """Upserts and deletes of 500 points each are atomic: a count, a page and a query see a multiple of 500."""
    ids = [f"p{i:03d}" for i in range(500)]
    done = threading.Event()
    failures = []

    def write():
        with connect(server.address) as mine:
            try:
                while not done.is_set():
                    mine.upsert(stored, numbered(ids))
                    mine.delete(stored, *ids)
            except Exception as error:  # noqa: BLE001 - told to the test below
                failures.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    nothing = common_pb2.PayloadSelector(all=False)
    try:
        counts = set()
        for _ in range(60):
            counts.add(api.count(stored))
            counts.add(api.count(stored, number_below(500)))
            page = points_pb2.ScrollRequest(collection=stored, page_size=10_000, with_payload=nothing)
            counts.add(len(api.call("Scroll", page).points))
            counts.add(len(api.query(stored, [1.0, 0.0], limit=1_000, with_payload=nothing)))
            counts.add(len(api.get(stored, *ids)))
            counts.add(len(api.query(stored, [1.0, 0.0], limit=1_000, filter=number_below(500), with_payload=nothing)))
    finally:
        done.set()
        thread.join()
    assert failures == []
    assert counts == {0, 500}

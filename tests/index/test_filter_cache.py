"""Kept row sets say what fresh ones would, whatever is written, dies, expires or is asked in between; and the check finds a stale one."""

from __future__ import annotations

import random

import numpy as np
import orjson
import pytest

from vecmem.index import filter as filters
from vecmem.index.column import PayloadType
from vecmem.index.field_path import FieldPath
from vecmem.index.filter import compile_filter
from vecmem.index.filter_cache import ENTRY_BYTES, FilterCache
from vecmem.index.payload import PayloadTable
from vecmem.index.row_set import RowSet
from vecmem.index.rows import RowTable
from vecmem.v1 import filter_pb2 as pb

A = FieldPath.parse("a", "path")


def keyword(value):
    return pb.Filter(field=pb.FieldCondition(path="a", match=pb.MatchValue(keyword=value)))


def below(bound):
    number_range = pb.NumberRange(lt=pb.Number(integer=bound))
    return pb.Filter(field=pb.FieldCondition(path="b", number_range=number_range))


MESSAGES = [
    keyword("x"),
    below(3),
    pb.Filter(none_of=pb.FilterList(filters=[keyword("y"), below(2)])),
    pb.Filter(has_id=pb.PointIds(ids=["p1", "p4", "p7"])),
]


class Forgetful:
    """A table whose changes are not counted."""

    change_count = property(lambda _: 0, lambda *_: None)


class ForgetfulRows(Forgetful, RowTable):
    pass


class ForgetfulPayloads(Forgetful, PayloadTable):
    pass


class Timeless(FilterCache):
    """Forgets that rows expire."""

    def matching(self, compiled, view):
        if view.expires_at is not None and self._visible is not None:
            view.now_unix_ms = max(view.now_unix_ms, self._visible.from_unix_ms)
            view.now_unix_ms = min(view.now_unix_ms, self._visible.until_unix_ms - 1)
        return super().matching(compiled, view)


def live_through(seed, *, rows_kind=RowTable, payloads_kind=PayloadTable, cache_kind=FilterCache, expiring=True):
    """Random writes, deletions, payload changes, expiries and reclaims, with a check of every filter after each."""
    rng = random.Random(seed)
    rows, payloads, row_of = rows_kind(), payloads_kind(), {}
    payloads.declare({A: PayloadType.KEYWORD})
    cache = cache_kind(rows, payloads, lambda ids: np.array([row_of[one] for one in ids if one in row_of], np.int64))
    compiled = [compile_filter(message) for message in MESSAGES]
    sequence, now = 0, 1_000

    def write(point_id):
        (row,) = rows.allocate(1).tolist()
        payloads.set(row, orjson.dumps({"a": rng.choice("xyz"), "b": rng.randrange(6)}))
        rows.publish(row, point_id, sequence, now + rng.randrange(1, 40) if expiring and rng.random() < 0.4 else 0)
        old, row_of[point_id] = row_of.get(point_id), row
        if old is not None:
            rows.kill(np.array([old]), sequence)

    for _ in range(150):
        sequence += 1
        what = rng.randrange(6)
        if what < 2 or not row_of:
            write(f"p{rng.randrange(12)}")
        elif what == 2:
            rows.kill(np.array([row_of.pop(rng.choice(list(row_of)))]), sequence)
        elif what == 3:
            payloads.set(row_of[rng.choice(list(row_of))], orjson.dumps({"b": rng.randrange(6)}))
        elif what == 4:
            rows.reclaim(payloads.clear_rows)
        else:
            now += rng.randrange(15)
        for one in rng.sample(compiled, 3):
            for view in (
                rows.view(sequence, now),
                rows.view(max(sequence - rng.randrange(3), 0), now - rng.randrange(3)),
            ):
                expected = one.mask(payloads, rows.row_count, cache._rows_of_ids) & view.visible_mask()
                found = cache.matching(one, view)
                assert found.mask().tolist() == expected.tolist()
                assert found.count == np.count_nonzero(expected)


@pytest.mark.parametrize("seed", range(40))
def test_a_kept_set_says_what_a_fresh_one_would(seed):
    live_through(seed)


@pytest.mark.parametrize(
    "stale",
    [{"rows_kind": ForgetfulRows, "expiring": False}, {"payloads_kind": ForgetfulPayloads}, {"cache_kind": Timeless}],
    ids=["rows", "payloads", "time"],
)
def test_the_check_above_finds_a_stale_set(stale):
    def run():
        for seed in range(40):
            live_through(seed, **stale)

    with pytest.raises(AssertionError):
        run()


def filled(bytes_max):
    rows, payloads = RowTable(), PayloadTable()
    for row in rows.allocate(800).tolist():
        payloads.set(row, orjson.dumps({"b": row}))
        rows.publish(row, f"p{row}", 1, 0)
    return rows, payloads, FilterCache(rows, payloads, lambda _: np.zeros(0, np.int64), bytes_max)


def test_a_filter_that_comes_again_gets_the_very_same_set(monkeypatch):
    rows, payloads, cache = filled(100_000)
    first = cache.matching(compile_filter(below(7)), rows.view(1, 5))
    monkeypatch.setattr(RowSet, "of_mask", None)
    assert cache.matching(compile_filter(below(7)), rows.view(9, 6)) is first
    assert not first.bits.flags.writeable
    monkeypatch.undo()
    payloads.set(3, b"{}")
    assert cache.matching(compile_filter(below(7)), rows.view(1, 5)) is not first


def test_the_sets_kept_are_bounded_in_bytes_and_the_least_recently_used_go():
    rows, _, cache = filled(3 * (100 + ENTRY_BYTES + 40))
    view = rows.view(1, 5)
    kept = {bound: cache.matching(compile_filter(below(bound)), view) for bound in (1, 2, 3)}
    assert cache.matching(compile_filter(below(1)), view) is kept[1]
    cache.matching(compile_filter(below(4)), view)
    assert cache.size_bytes <= 3 * (100 + ENTRY_BYTES + 40)
    assert cache.matching(compile_filter(below(1)), view) is kept[1]
    assert cache.matching(compile_filter(below(2)), view) is not kept[2]


def test_a_set_larger_than_all_room_is_answered_and_not_kept():
    rows, _, cache = filled(10)
    assert cache.matching(compile_filter(below(5)), rows.view(1, 5)).count == 5
    assert cache.size_bytes == 0


def test_filters_that_come_again_are_compiled_once_and_no_more_than_so_many_are_kept(monkeypatch):
    monkeypatch.setattr(filters, "COMPILED_COUNT_MAX", 4)
    filters._compiled.clear()
    first = compile_filter(below(100))
    assert compile_filter(below(100), "another.place") is first
    for bound in range(10):
        compile_filter(below(bound))
    assert len(filters._compiled) == 4
    assert compile_filter(below(100)) is not first
    large = pb.Filter(field=pb.FieldCondition(path="a"))
    large.field.any_of.values.extend(pb.MatchValue(keyword="k" * 50) for _ in range(100))
    compile_filter(large)
    assert large.SerializeToString(deterministic=True) not in filters._compiled

"""The payload table: rows, and columns that are built late, kept current, shared, and dropped."""

from __future__ import annotations

import random

import numpy as np
import orjson
import pytest

from vecmem.index import payload
from vecmem.index.column import Column
from vecmem.index.conditions import NumberRange
from vecmem.index.field_path import FieldPath
from vecmem.index.payload import COLUMNS_MAX, SLICE_BYTES, PayloadTable


def path(text: str) -> FieldPath:
    return FieldPath.parse(text, "path")


A, B, C = path("a"), path("b"), path("c")


def filled(count: int, **options: int) -> PayloadTable:
    table = PayloadTable(**options)
    for row in range(count):
        table.set(row, orjson.dumps({"a": row, "b": row % 3}))
    return table


def column_values(table: PayloadTable, one: FieldPath) -> list:
    column = table.column(one)
    return [column.values(row) for row in range(table.row_count)]


def test_rows_grow_and_bytes_are_counted():
    table = PayloadTable()
    assert (table.row_count, table.payload_bytes, table.get(7)) == (0, 0, b"")
    table.set(3, b'{"a":1}')
    assert (table.row_count, table.payload_bytes) == (4, 7)
    assert [table.get(row) for row in range(5)] == [b"", b"", b"", b'{"a":1}', b""]
    table.set(3, b"{}")
    table.set(0, b'{"a":22}')
    assert table.payload_bytes == 10
    table.clear(3)
    table.clear(3)
    table.clear(99)
    assert (table.row_count, table.payload_bytes, table.get(3)) == (4, 8, b"")


def test_a_build_yields_between_slices_and_only_then():
    table = filled(10, slice_rows=4)
    assert sum(1 for _ in table.ensure_columns([A, B])) == 3
    assert sum(1 for _ in table.ensure_columns([A, B])) == 0
    assert column_values(table, A) == [(row,) for row in range(10)]
    assert sum(1 for _ in PayloadTable().ensure_columns([A])) == 0


def test_a_slice_ends_early_at_large_payloads():
    table = PayloadTable()
    large = orjson.dumps({"a": "x" * SLICE_BYTES})
    for row in range(5):
        table.set(row, large)
    assert sum(1 for _ in table.ensure_columns([A])) == 5


def test_changes_during_a_build_end_up_in_the_column():
    table = filled(6, slice_rows=2)
    build = table.ensure_columns([A])
    next(build)
    table.set(0, b'{"a":"below"}')
    table.set(5, b'{"a":"above"}')
    table.clear(1)
    table.clear(4)
    table.set(4, b'{"a":"reused"}')
    table.set(8, b'{"a":"appended"}')
    for _ in build:
        pass
    expected = [("below",), None, (2,), (3,), ("reused",), ("above",), None, None, ("appended",)]
    assert column_values(table, A) == expected


def test_two_builds_of_one_column_share_the_work():
    table = filled(8, slice_rows=1)
    first, second = table.ensure_columns([A]), table.ensure_columns([B, A])
    slices = 0
    running = [first, second]
    while running:
        for build in tuple(running):
            if next(build, "end") == "end":
                running.remove(build)
            else:
                slices += 1
    assert slices == 16
    assert column_values(table, A) == [(row,) for row in range(8)]
    assert column_values(table, B) == [(row % 3,) for row in range(8)]


def test_an_abandoned_build_is_taken_up_where_it_stopped():
    table = filled(10, slice_rows=1)
    build = table.ensure_columns([A])
    for _ in range(7):
        next(build)
    build.close()
    assert not table._wanted, "a build that is over must hold no column"
    table.set(2, b'{"a":"changed"}')
    assert sum(1 for _ in table.ensure_columns([A])) == 3
    assert column_values(table, A)[2] == ("changed",)


def test_the_least_recently_used_column_goes():
    table = filled(4, columns_max=2)
    for one in (A, B, A, C):
        table.column(one)
    assert table.column_count == 2
    assert sum(1 for _ in table.ensure_columns([A, C])) == 0
    assert sum(1 for _ in table.ensure_columns([B])) == 1


def test_one_filter_may_need_more_columns_than_are_kept():
    table = filled(4, columns_max=2)
    for _ in table.ensure_columns([A, B, C]):
        pass
    assert sum(1 for _ in table.ensure_columns([A, B, C])) == 0
    table.column(path("d"))
    assert table.column_count == 2


def test_a_build_keeps_its_columns_from_being_dropped():
    table = filled(6, columns_max=1, slice_rows=2)
    build = table.ensure_columns([A])
    next(build)
    for one in (B, C):
        for _ in table.ensure_columns([one]):
            pass
    assert sum(1 for _ in build) == 2
    assert sum(1 for _ in table.ensure_columns([A])) == 0


def test_rows_are_cleared_without_a_look_at_their_payloads(monkeypatch: pytest.MonkeyPatch):
    """In columns that are complete, half built and not begun; also rows without a payload, and beyond the last."""
    table = filled(40, slice_rows=10)
    table.set(7, b'{"a":[1,2,7],"b":5}')
    table.set(8, b'{"a":"x"}')
    table.column(A)
    build = table.ensure_columns([B])
    next(build)
    monkeypatch.setattr(payload.orjson, "loads", None)
    table.clear_rows(np.array([39, 7, 8, 3, 0, 60]))
    table.clear_rows(np.array([7, 9]))
    table.clear_rows(np.zeros(0, dtype=np.int64))
    monkeypatch.undo()
    for _ in build:
        pass
    gone = {0, 3, 7, 8, 9, 39}
    assert column_values(table, A) == [None if row in gone else (row,) for row in range(40)]
    assert column_values(table, B) == [None if row in gone else (row % 3,) for row in range(40)]
    assert table.column(A).codes_with([(int, 7), "x", (int, 39)]) == []
    assert table.column(B).distinct_count == 3
    assert [row for row in range(40) if not table.get(row)] == sorted(gone)
    assert table.payload_bytes == sum(len(table.get(row)) for row in range(40))
    table.set(7, b'{"a":7}')
    assert table.column(A).values(7) == (7,)


def test_clearing_many_rows_at_once_is_clearing_each():
    """Random values, several at a row, against a column that is cleared row by row."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    together, alone = Column(), Column()
    for _ in range(200):
        for row in rng.sample(range(60), 20):
            values = tuple(rng.randrange(8) for _ in range(rng.randrange(4)))
            together.set(row, values)
            alone.set(row, values)
        rows = rng.sample(range(70), 25)
        together.clear(np.array(rows))
        for row in rows:
            alone.set(row, None)
        assert [together.values(row) for row in range(60)] == [alone.values(row) for row in range(60)]
        assert together.distinct_count == alone.distinct_count
        for number in range(8):
            found = [column.rows_with_codes(column.codes_with([(int, number)]), 60) for column in (together, alone)]
            assert np.array_equal(*found)


def test_many_filters_at_once_keep_their_columns_until_their_masks_are_taken():
    """Two hundred paths in one call, nothing of which is built twice; they go when others are asked for."""
    paths = [path(f"k{number}") for number in range(200)]
    table = PayloadTable(slice_rows=2)
    for row in range(3):
        table.set(row, orjson.dumps({f"k{number}": number * row for number in range(200)}))
    for _ in table.ensure_columns(paths):
        pass
    assert table.column_count == 200
    kept = {one: table._columns[one].column for one in paths}
    for one in paths:
        assert table.column(one) is kept[one]
    for _ in table.ensure_columns([paths[3]]):
        pass
    assert table.column_count == COLUMNS_MAX
    assert table.column(paths[3]) is kept[paths[3]]


def test_pinned_columns_outlast_other_builds_and_no_longer():
    """Blocks may overlap, and end by errors."""
    table = filled(6, columns_max=1, slice_rows=2)
    with table.pinned([A, B]):
        for _ in table.ensure_columns([A, B]):
            pass
        kept = [table.column(A), table.column(B)]
        with table.pinned([B]):
            for _ in table.ensure_columns([C]):
                pass
            table.column(path("d"))
        assert [table.column(A), table.column(B)] == kept
    assert table.column_count == 1

    def build_and_fail() -> None:
        for _ in table.ensure_columns([A, B]):
            pass
        assert table.column_count == 2
        raise ValueError("gone")

    with pytest.raises(ValueError, match="gone"), table.pinned([A, B]):
        build_and_fail()
    assert table.column_count == 1
    assert not table._wanted


def test_rows_with_equal_values_share_a_code_type_by_type():
    column = Column()
    for row, values in enumerate([(1,), (1,), (1.0,), (True,), ("1",), (1, 1), (), None, (1,), (True, 1), (1, True)]):
        column.set(row, values)
    codes = column.codes(11).tolist()
    assert codes[0] == codes[1] == codes[8]
    assert codes[7] == 0
    assert len(set(codes)) == 9
    assert column.distinct_count == 8
    assert [type(column.values(row)[0]) for row in (0, 2, 3, 4)] == [int, float, bool, str]
    assert column.values(9) == (True, 1)
    assert [type(value) for value in column.values(10)] == [int, bool]
    assert column.values(6) == ()
    assert column.values(7) is None


@pytest.mark.parametrize("make", [lambda n: (n,), lambda n: (n / 7,), lambda n: (f"k{n}",), lambda n: (n, f"k{n}", n)])
def test_churn_of_unique_values_does_not_leak(make):
    """Codes, dictionary and postings stay within a few times of what is live, however many values came and went."""
    column = Column()
    for change in range(20_000):
        column.set(change % 100, make(change))
    assert column.distinct_count == 100
    assert column.code_count < 1_500
    assert len(column.integers.codes) + len(column.reals.codes) < 4_000
    assert len(column._codes_of_member) <= 200
    assert [column.values(row) for row in range(100)] == [make(19_900 + row) for row in range(100)]


def test_reused_codes_never_answer_for_what_they_were():
    """Random churn with few rows, checked against plain Python through equality and through a range."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    column, stored = Column(), {}
    for step in range(30_000):
        row = rng.randrange(50)
        choice = rng.randrange(4)
        number = rng.randrange(10**6)
        values = [None, (number,), (f"n{number}", number % 10), (number, number + 1)][choice]
        column.set(row, values)
        stored[row] = values
        if step % 1_000 == 0:
            found = column.rows_with_codes(column.codes_with([(int, 3)]), 50).tolist()
            assert found == [3 in (stored.get(row) or ()) for row in range(50)]
            found = NumberRange(gt=None, gte=None, lt=500_000, lte=None).mask(column, 50).tolist()
            expected = [
                any(type(value) is int and value < 500_000 for value in stored.get(row) or ()) for row in range(50)
            ]
            assert found == expected

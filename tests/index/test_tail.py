"""The tail: a queue with removal from the middle."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vecmem.index.tail import _CAPACITY_MIN, Tail


def test_it_is_a_queue() -> None:
    """Oldest first; `first` takes nothing out."""
    tail = Tail()
    assert len(tail) == 0
    assert tail.first(3).size == 0
    tail.append(np.array([5, 3]))
    tail.append(np.array([9]))
    assert tail.rows().tolist() == [5, 3, 9]
    assert tail.first(2).tolist() == [5, 3]
    assert tail.first(10).tolist() == [5, 3, 9]
    assert len(tail) == 3


def test_discard_says_what_it_removed() -> None:
    """Strangers are passed over."""
    tail = Tail()
    assert tail.discard(np.array([1])).tolist() == [False]
    tail.append(np.arange(5))
    assert tail.discard(np.array([0, 77, 2])).tolist() == [True, False, True]
    assert tail.discard(np.array([0, 2])).tolist() == [False, False]
    assert tail.rows().tolist() == [1, 3, 4]
    assert tail.first(1).tolist() == [1]


def test_first_is_never_empty_while_there_are_rows() -> None:
    """Or maintenance would think that there is nothing left to do."""
    tail = Tail()
    tail.append(np.arange(100))
    tail.discard(np.arange(10, 99))
    seen = []
    while (rows := tail.first(4)).size:
        seen += rows.tolist()
        tail.discard(rows)
    assert seen == [*range(10), 99]
    assert len(tail) == 0


def test_copies_are_the_callers_own() -> None:
    """A search keeps its rows through compaction."""
    tail = Tail()
    tail.append(np.arange(4))
    rows = tail.rows()
    tail.discard(np.array([1]))
    tail.append(np.arange(10, 5_000))
    assert rows.tolist() == [0, 1, 2, 3]


def test_it_compacts_rather_than_growing() -> None:
    """A short queue through which many rows pass stays small, and grows where it must."""
    tail = Tail()
    for start in range(0, 50_000, 50):
        tail.append(np.arange(start, start + 50))
        tail.discard(tail.first(50))
        assert len(tail) == 0
    assert tail._rows.size == _CAPACITY_MIN
    tail.append(np.arange(10_000))
    assert tail.rows().tolist() == list(range(10_000))


class Codes:
    """Stands for the kernel's."""

    def __init__(self, rows: list[int]) -> None:
        self.rows = set(rows)

    def discard(self, rows: np.ndarray) -> None:
        self.rows -= set(rows.tolist())


def test_what_is_forgotten_while_it_is_coded_is_not_in_its_codes() -> None:
    """And a piece of which nothing is left is not kept."""
    tail = Tail()
    tail.append(np.arange(100))
    rows = tail.uncoded_first(50)
    codes = Codes(rows.tolist())
    tail.forget(np.arange(40, 60))
    tail.code(codes, rows)
    assert codes.rows == set(range(40))
    assert tail.view().rest.tolist() == [*range(60, 100)]
    rows = tail.uncoded_first(10)
    tail.forget(np.arange(60, 70))
    tail.code(Codes(rows.tolist()), rows)
    assert tail.view().coded == (codes,)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["append", "forget", "drain", "code", "drop", "recode"]), st.integers(0, 700)),
        max_size=40,
    )
)
def test_codes_and_the_rest_are_all_of_the_tail(steps: list[tuple[str, int]]) -> None:
    """Every row of the tail is in one of the two, and beside those only codes of rows that left for the graph."""
    tail, model, drained = Tail(), [], set()
    for what, number in steps:
        if what == "append":
            rows = [row for row in range(number) if row not in set(model) | drained]
            tail.append(np.array(rows, dtype=np.int64))
            model += rows
        elif what == "forget":
            gone = list(range(number % 3, 1_000, number + 1))
            tail.forget(np.array(gone))
            model = [row for row in model if row not in gone]
            drained -= set(gone)
        elif what == "drain":
            rows = tail.first(number)
            assert tail.discard(rows).all()
            model = model[len(rows) :]
            drained |= set(rows.tolist())
        elif what == "code":
            rows = np.sort(tail.uncoded_first(number))
            tail.code(Codes(rows.tolist()), rows)
        else:
            tail.drop_codes(drained=what == "drop")
        view = tail.view()
        coded = [row for codes in view.coded for row in codes.rows]
        assert len(coded) == len(set(coded))
        rest = view.rest.tolist()
        assert rest == model[len(model) - len(rest) :]
        assert not set(rest) & set(coded)
        assert set(model) <= {*coded, *rest} <= set(model) | drained
        assert view.count == len(model)
    tail.discard(tail.rows())
    tail.drop_codes(drained=True)
    assert tail.view().coded == ()


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["append", "discard", "drain"]), st.integers(0, 700)), max_size=30))
def test_it_agrees_with_a_list(steps: list[tuple[str, int]]) -> None:
    """Any order of operations, across compactions; rows come back after they left."""
    tail, model = Tail(), []
    for what, number in steps:
        if what == "append":
            rows = [row for row in range(number) if row not in set(model)]
            tail.append(np.array(rows, dtype=np.int64))
            model += rows
        elif what == "discard":
            gone = list(range(0, 1_000, number + 1))
            assert tail.discard(np.array(gone)).tolist() == [row in model for row in gone]
            model = [row for row in model if row not in gone]
        else:
            taken = tail.first(number).tolist()
            assert taken == model[: len(taken)]
            tail.discard(np.array(taken, dtype=np.int64))
            model = model[len(taken) :]
        assert tail.rows().tolist() == model
        assert len(tail) == len(model)

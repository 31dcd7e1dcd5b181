"""Rows: who sees which, and when one is given out again."""

from __future__ import annotations

import numpy as np
import pytest

from vecmem.index.rows import NEVER, Readers, RowTable, row_array


def born(table: RowTable, sequence: int, count: int = 1, expires_at: int = 0) -> list[int]:
    rows = table.allocate(count).tolist()
    for row in rows:
        table.publish(row, f"id{row}", sequence, expires_at)
    return rows


def forget_nothing(_rows: np.ndarray) -> None:
    """No index is there to forget."""


def reclaimed(table: RowTable) -> list[int]:
    """Rows that indexes are told to forget by reclaims until there is nothing to do."""
    forgotten: list[int] = []
    while table.reclaim(lambda rows: forgotten.extend(rows.tolist())):
        pass
    return forgotten


def test_a_row_is_seen_from_birth_to_death() -> None:
    """Born at 5, dead at 8: seen at 5, 6 and 7."""
    table = RowTable()
    (row,) = born(table, 5)
    table.kill(row_array(row), 8)
    seen = [sequence for sequence in range(3, 11) if table.view(sequence, 0).visible_mask()[row]]
    assert seen == [5, 6, 7]
    assert seen == [sequence for sequence in range(3, 11) if table.view(sequence, 0).visible(row_array(row))[0]]


def test_a_row_born_and_dead_in_one_record_is_never_seen() -> None:
    """The same id twice in one upsert: the first version was never there."""
    table = RowTable()
    (row,) = born(table, 5)
    table.kill(row_array(row), 5)
    assert not any(table.view(sequence, 0).visible_mask()[row] for sequence in range(4, 8))


def test_rows_given_out_are_invisible_until_published() -> None:
    """Fresh ones and reused ones, at any sequence."""
    table = RowTable()
    rows = born(table, 1, 3)
    table.kill(np.array(rows), 2)
    for _ in range(2):
        table.reclaim(forget_nothing)
    reused = table.allocate(5)
    assert set(reused.tolist()) > set(rows)
    assert not table.view(10**15, 0).visible_mask().any()
    assert table.live_rows().size == 0


def test_expiry_hides_a_row_from_its_millisecond_on() -> None:
    """A row without expiry stays; a table that never had any keeps no column for it."""
    table = RowTable()
    born(table, 1)
    assert table.view(1, 0).expires_at is None
    assert not table.any_expiry()
    (row,) = born(table, 2, expires_at=1_000)
    assert table.any_expiry()
    assert table.expires_at(row) == 1_000
    assert table.view(2, 999).visible_mask().tolist() == [True, True]
    assert table.view(2, 1_000).visible_mask().tolist() == [True, False]
    assert table.view(2, 1_000).visible(np.array([1, 0])).tolist() == [False, True]


def test_a_view_is_not_moved_by_growth() -> None:
    """The arrays grow many times over; the view keeps its own."""
    table = RowTable()
    rows = born(table, 1, 10)
    view = table.view(1, 0)
    born(table, 2, 50_000)
    table.kill(np.array(rows[:5]), 3)
    assert view.row_count == 10
    assert view.visible_mask().tolist() == [True] * 10


def test_a_dead_row_is_forgotten_when_nobody_sees_it() -> None:
    """Readers that began before its death keep it; those that began later do not."""
    table = RowTable()
    (row,) = born(table, 1)
    early = table.readers.begin()
    table.kill(row_array(row), 2)
    late = table.readers.begin()
    assert table.dead_count == 1
    assert reclaimed(table) == []
    table.readers.end(early)
    assert reclaimed(table) == [row]
    assert table.dead_count == 0
    table.readers.end(late)


def test_a_forgotten_row_is_reused_only_after_the_readers_of_that_moment() -> None:
    """They may have found its number before it was forgotten."""
    table = RowTable()
    (row,) = born(table, 1)
    table.kill(row_array(row), 2)
    reader = table.readers.begin()
    assert reclaimed(table) == [row]
    assert table.ids[row] == ""
    assert row not in table.allocate(3).tolist()
    table.reclaim(forget_nothing)
    assert row not in table.allocate(3).tolist()
    table.readers.end(reader)
    later = table.readers.begin()
    table.reclaim(forget_nothing)
    assert table.allocate(1).tolist() == [row]
    table.readers.end(later)


def test_deaths_are_forgotten_in_order() -> None:
    """A reader in between keeps the later ones."""
    table = RowTable()
    rows = born(table, 1, 3)
    table.kill(row_array(rows[0]), 2)
    reader = table.readers.begin()
    table.kill(row_array(rows[1]), 3)
    table.kill(row_array(rows[2]), 4)
    assert reclaimed(table) == rows[:1]
    table.readers.end(reader)
    assert reclaimed(table) == rows[1:]


def test_free_rows_are_used_before_fresh_ones() -> None:
    """The table does not grow under updates."""
    table = RowTable()
    old = born(table, 1, 100)
    for sequence in range(2, 50):
        new = born(table, sequence, 100)
        table.kill(np.array(old), sequence)
        old = new
        table.reclaim(forget_nothing)
    assert table.row_count <= 300
    assert sorted(table.live_rows().tolist()) == sorted(old)


def test_a_table_is_loaded_from_what_lives() -> None:
    """Dead rows become free ones, lowest first; versions and expiry are kept. Who looks from then on looks behind the checkpoint."""
    table = RowTable()
    live = np.array([True, False, True, False])
    expiry = np.array([NEVER, 5, 1_000, NEVER])
    table.load(["a", "", "c", ""], np.array([3, 1, 7, 2]), expiry, live)
    assert table.live_rows().tolist() == [0, 2]
    assert table.view(6, 0).visible_mask().tolist() == [True, False, True, False]
    assert table.view(7, 1_000).visible_mask().tolist() == [True, False, False, False]
    assert table.any_expiry()
    assert table.versions[:4].tolist() == [3, 1, 7, 2]
    assert table.expiry_times().tolist() == expiry.tolist()
    assert sorted(table.allocate(3).tolist()) == [1, 3, 4]
    assert table.ids == ["a", "", "c", "", ""]


def test_an_expiry_of_a_dead_row_does_not_count_after_loading() -> None:
    """Or every search would look at a column that says nothing."""
    table = RowTable()
    table.load(["a", ""], np.array([1, 1]), np.array([NEVER, 5]), np.array([True, False]))
    assert not table.any_expiry()


def test_readers_end_in_any_order() -> None:
    """`all_ended_before` looks at the oldest that is still there; an error ends a block as well."""
    readers = Readers()
    first, second, third = (readers.begin() for _ in range(3))
    limit = readers.next_ticket()
    readers.end(second)
    assert readers.all_ended_before(first)
    assert not readers.all_ended_before(second)
    readers.end(first)
    assert readers.all_ended_before(third)
    assert not readers.all_ended_before(limit)
    readers.end(third)
    with readers.reading():
        assert not readers.all_ended_before(readers.next_ticket())
    with pytest.raises(ZeroDivisionError), readers.reading():
        _ = 1 // 0
    assert readers.all_ended_before(readers.next_ticket())

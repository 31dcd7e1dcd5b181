"""Row sets of filters, kept while nothing that they depend on changes, so that a filter that comes again costs a look-up.

A set depends on the payloads, on which rows there are, and on the time where rows expire. Both tables count their changes. A set serves
views of the state that it was made from, at any sequence that reflects all of it, until the moment when the next of its rows expires;
any other view gets a set of its own. Not safe for threads: the store's event loop owns it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from vecmem.index.row_set import RowSet
from vecmem.index.rows import NEVER

if TYPE_CHECKING:
    from vecmem.index.column import Mask
    from vecmem.index.conditions import RowsOfIds
    from vecmem.index.filter import CompiledFilter
    from vecmem.index.payload import PayloadTable
    from vecmem.index.rows import RowTable, RowView

BYTES_MAX: Final = 16 * 1024 * 1024
"""Of the sets and keys kept for one collection, and of its mask of visible rows beside."""
ENTRY_BYTES: Final = 400
"""Of an entry beyond bits and key, about."""


@dataclass(frozen=True, slots=True)
class _Visible:
    """What views see of the rows as they are: `mask`, bool (row_count,). It serves views from one moment until before another."""

    row_changes: int
    from_unix_ms: int
    until_unix_ms: int
    mask: Mask

    def serves(self, view: RowView, row_changes: int) -> bool:
        """Whether a view made now, and not of an earlier state, sees these rows."""
        return self.row_changes == row_changes and self.from_unix_ms <= view.now_unix_ms < self.until_unix_ms


class FilterCache:
    """The row sets of one collection's filters."""

    def __init__(
        self, rows: RowTable, payloads: PayloadTable, rows_of_ids: RowsOfIds, bytes_max: int = BYTES_MAX
    ) -> None:
        self._rows = rows
        self._payloads = payloads
        self._rows_of_ids = rows_of_ids
        self._bytes_max = bytes_max
        self._sets: OrderedDict[bytes, RowSet] = OrderedDict()
        self._payload_changes = -1
        self._visible: _Visible | None = None
        self.size_bytes = 0
        """Bytes of the sets kept and their keys."""

    def matching(self, compiled: CompiledFilter, view: RowView) -> RowSet:
        """The rows that a view sees and that pass the filter."""
        rows = self._rows
        if view.sequence < rows.last_sequence or view.row_count != rows.row_count:
            # Of an earlier state, which no other view will ask for.
            return RowSet.of_mask(view.visible_mask() & self._mask(compiled, view.row_count))
        visible = self._visible
        if visible is None or not visible.serves(view, rows.change_count):
            self._visible = visible = _visible_now(view, rows.change_count)
            self._clear()
        elif self._payload_changes != self._payloads.change_count:
            self._clear()
        found = self._sets.get(compiled.key)
        if found is not None:
            self._sets.move_to_end(compiled.key)
            return found
        mask = self._mask(compiled, view.row_count)
        mask &= visible.mask
        found = RowSet.of_mask(mask)
        self._keep(compiled.key, found)
        return found

    def _mask(self, compiled: CompiledFilter, row_count: int) -> Mask:
        return compiled.mask(self._payloads, row_count, self._rows_of_ids)

    def _clear(self) -> None:
        self._sets.clear()
        self.size_bytes = 0
        self._payload_changes = self._payloads.change_count

    def _keep(self, key: bytes, found: RowSet) -> None:
        self._sets[key] = found
        self.size_bytes += _size_bytes(key, found)
        while self.size_bytes > self._bytes_max:
            self.size_bytes -= _size_bytes(*self._sets.popitem(last=False))


def _visible_now(view: RowView, row_changes: int) -> _Visible:
    mask = view.visible_mask()
    if view.expires_at is None:
        return _Visible(row_changes, -NEVER, NEVER, mask)
    until_unix_ms = int(view.expires_at[: view.row_count].min(initial=NEVER, where=mask))
    return _Visible(row_changes, view.now_unix_ms, until_unix_ms, mask)


def _size_bytes(key: bytes, found: RowSet) -> int:
    return len(key) + found.bits.nbytes + ENTRY_BYTES

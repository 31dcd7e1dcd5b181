"""Remembers results by request_id, so that a repeated write returns the first result and changes nothing.

Part of the state: what is remembered depends on the records alone, so a replay and a replica remember the same. Results are kept as bytes:
those of a pipeline have hundreds of small messages, which take ten times as much as objects.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from vecmem import limits
from vecmem.store.v1 import command_pb2


class _Remembered(NamedTuple):
    time_unix_ms: int
    content: bytes


class DeduplicationWindow:
    """The last results with a request_id.

    At most `DEDUPLICATION_ENTRIES_MAX` and `DEDUPLICATION_BYTES_MAX`, none older than `DEDUPLICATION_WINDOW_MS` of record time; the
    newest is always remembered.
    """

    def __init__(self, entries: Iterable[command_pb2.DeduplicationEntry] = ()) -> None:
        self._entries = OrderedDict((entry.request_id, _remembered(entry)) for entry in entries)
        self._size_bytes = sum(len(remembered.content) for remembered in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, request_id: str, time_unix_ms: int) -> command_pb2.DeduplicationEntry | None:
        """What is remembered of a request at a time; the caller's own."""
        remembered = self._entries.get(request_id)
        if remembered is None or remembered.time_unix_ms + limits.DEDUPLICATION_WINDOW_MS < time_unix_ms:
            return None
        return command_pb2.DeduplicationEntry.FromString(remembered.content)

    def remember(self, entry: command_pb2.DeduplicationEntry) -> None:
        """Remember the result of a request, and forget what has left the window."""
        replaced = self._entries.pop(entry.request_id, None)
        remembered = self._entries[entry.request_id] = _remembered(entry)
        self._size_bytes += len(remembered.content) - (len(replaced.content) if replaced is not None else 0)
        oldest_time_unix_ms = entry.time_unix_ms - limits.DEDUPLICATION_WINDOW_MS
        while len(self._entries) > 1:
            first = next(iter(self._entries.values()))
            too_many = len(self._entries) > limits.DEDUPLICATION_ENTRIES_MAX
            too_large = self._size_bytes > limits.DEDUPLICATION_BYTES_MAX
            if not too_many and not too_large and first.time_unix_ms >= oldest_time_unix_ms:
                break
            self._entries.popitem(last=False)
            self._size_bytes -= len(first.content)

    def entries(self) -> Iterator[command_pb2.DeduplicationEntry]:
        """All that is remembered, oldest first."""
        for remembered in self._entries.values():
            yield command_pb2.DeduplicationEntry.FromString(remembered.content)


def _remembered(entry: command_pb2.DeduplicationEntry) -> _Remembered:
    return _Remembered(entry.time_unix_ms, entry.SerializeToString())

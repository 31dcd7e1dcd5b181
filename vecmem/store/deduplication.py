"""Remembers results by request_id, so that a repeated write returns the first result and changes nothing.

Part of the state: what is remembered depends on the records alone, so a replay and a replica remember the same.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from vecmem import limits
from vecmem.store.v1 import command_pb2


class DeduplicationWindow:
    """The last `DEDUPLICATION_ENTRIES_MAX` results with a request_id, none older than `DEDUPLICATION_WINDOW_MS` of record time."""

    def __init__(self, entries: Iterable[command_pb2.DeduplicationEntry] = ()) -> None:
        self._entries = OrderedDict((entry.request_id, entry) for entry in entries)

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, request_id: str, time_unix_ms: int) -> command_pb2.DeduplicationEntry | None:
        """What is remembered of a request at a time."""
        entry = self._entries.get(request_id)
        if entry is None or entry.time_unix_ms + limits.DEDUPLICATION_WINDOW_MS < time_unix_ms:
            return None
        return entry

    def remember(self, command: command_pb2.Command, sequence: int, result: command_pb2.CommandResult) -> None:
        """Remember the result of a command that carries a request_id, and forget what has left the window."""
        self._entries.pop(command.request_id, None)
        self._entries[command.request_id] = command_pb2.DeduplicationEntry(
            request_id=command.request_id,
            request_fingerprint=command.request_fingerprint,
            sequence=sequence,
            time_unix_ms=command.time_unix_ms,
            result=result,
        )
        oldest_time_unix_ms = command.time_unix_ms - limits.DEDUPLICATION_WINDOW_MS
        while self._entries:
            first = next(iter(self._entries.values()))
            if len(self._entries) <= limits.DEDUPLICATION_ENTRIES_MAX and first.time_unix_ms >= oldest_time_unix_ms:
                break
            self._entries.popitem(last=False)

    def entries(self) -> Iterable[command_pb2.DeduplicationEntry]:
        """All that is remembered, oldest first."""
        return self._entries.values()

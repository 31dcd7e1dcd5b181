"""What keys were before, for a transaction that may yet be refused."""

from __future__ import annotations

from collections.abc import Iterable

from vecmem.store.keyspace.keyspace import Keyspace, Value


class Savepoint:
    """Made before the first change. `keep` comes before each step that changes keys, `restore` puts all that was kept back.

    Containers are copied as they are kept: operations change them in place.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._version = keyspace.version
        self._kept: dict[bytes, tuple[Value | None, int]] = {}

    def keep(self, keys: Iterable[bytes]) -> None:
        """Remember what keys hold, unless it was done before."""
        for key in keys:
            if key not in self._kept:
                value = self._keyspace.values.get(key)
                kept = value if value is None or isinstance(value, bytes) else value.copy()
                self._kept[key] = kept, self._keyspace.expires_at(key)

    def restore(self) -> None:
        """Make everything as it was."""
        keyspace = self._keyspace
        for key, (value, expires_at_unix_ms) in self._kept.items():
            if key in keyspace.values:
                keyspace.remove(key)
            if value is not None:
                keyspace.put(key, value, expires_at_unix_ms)
        keyspace.version = self._version
        keyspace.changed.clear()

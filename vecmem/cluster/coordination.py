"""What the nodes of a cluster agree on outside of their logs: values under keys, changed by compare-and-set, and who is there.

    Coordination           values with revisions, and announcements that go by themselves
    FileCoordination       an SQLite file, for the processes of one machine
    JetStreamCoordination  (vecmem.cluster.jetstream_coordination) key-value buckets of JetStream

A value that is read may be an old one; one that was changed by compare-and-set was the newest.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

from vecmem.errors import TopologyConflictError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANNOUNCED_SECONDS: Final = 5.0
"""How long an announcement lasts that is not renewed."""
BUSY_SECONDS_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and the revision that it got when it was written."""

    value: bytes
    revision: int


class Coordination(Protocol):
    """All methods raise UnavailableError where whoever keeps the values cannot be reached; what was to be changed then may have been."""

    async def get(self, key: str) -> Entry | None:
        """A value; None: there is none."""

    async def put(self, key: str, value: bytes, revision: int) -> int:
        """Change a value that has a revision, 0 for one that is not there; returns the next one. Raises TopologyConflictError."""

    async def delete(self, key: str, revision: int) -> None:
        """Remove a value that has a revision. Raises TopologyConflictError."""

    async def keys(self, prefix: str) -> list[str]:
        """The keys that begin like this, in order."""

    async def announce(self, name: str, value: bytes) -> None:
        """Tell the others something for ANNOUNCED_SECONDS, or until it is replaced."""

    async def announced(self) -> dict[str, bytes]:
        """What is announced now, by name."""

    async def close(self) -> None:
        """Let go of it."""


class FileCoordination:
    """Values in an SQLite file that every process of the machine opens. Announcements last until they are replaced."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._open()) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL)"
            )
            database.execute("CREATE TABLE IF NOT EXISTS nodes (name TEXT PRIMARY KEY, value BLOB NOT NULL)")

    async def get(self, key: str) -> Entry | None:
        """See Coordination."""
        rows = await self._run("SELECT value, revision FROM entries WHERE key = ?", (key,))
        return Entry(*rows[0]) if rows else None

    async def put(self, key: str, value: bytes, revision: int) -> int:
        """See Coordination."""
        # Revisions never come again, also not where a value is removed and made anew.
        following = time.time_ns()
        if revision:
            text = "UPDATE entries SET value = ?, revision = max(?, revision + 1) WHERE key = ? AND revision = ? RETURNING revision"
            rows = await self._run(text, (value, following, key, revision))
        else:
            text = (
                "INSERT INTO entries (key, value, revision) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING revision"
            )
            rows = await self._run(text, (key, value, following))
        if not rows:
            raise TopologyConflictError(f"{key} was changed by somebody else meanwhile")
        return int(rows[0][0])

    async def delete(self, key: str, revision: int) -> None:
        """See Coordination."""
        if not await self._run("DELETE FROM entries WHERE key = ? AND revision = ? RETURNING key", (key, revision)):
            raise TopologyConflictError(f"{key} was changed by somebody else meanwhile")

    async def keys(self, prefix: str) -> list[str]:
        """See Coordination."""
        rows = await self._run(
            "SELECT key FROM entries WHERE substr(key, 1, ?) = ? ORDER BY key", (len(prefix), prefix)
        )
        return [key for (key,) in rows]

    async def announce(self, name: str, value: bytes) -> None:
        """See Coordination."""
        await self._run(
            "INSERT INTO nodes VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    async def announced(self) -> dict[str, bytes]:
        """See Coordination."""
        return dict(await self._run("SELECT name, value FROM nodes", ()))

    async def close(self) -> None:
        """See Coordination."""

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=BUSY_SECONDS_MAX, isolation_level=None)
        database.execute("PRAGMA synchronous = FULL")
        return database

    async def _run(self, text: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        def run() -> list[tuple[Any, ...]]:
            with closing(self._open()) as database:
                return database.execute(text, values).fetchall()

        try:
            return await asyncio.to_thread(run)
        except sqlite3.Error as error:
            raise UnavailableError(f"{self._path}: {error}") from error


async def change(
    coordination: Coordination, key: str, changed: Callable[[bytes | None], bytes | None], *, attempts: int = 20
) -> bytes | None:
    """Change a value by a function of it, again when somebody else was faster; returns what it became.

    The function returns None where nothing is to be changed.

    Raises TopologyConflictError after so many attempts, and what the function raises.
    """
    for attempt in range(attempts):
        found = await coordination.get(key)
        value = changed(None if found is None else found.value)
        if value is None:
            return None if found is None else found.value
        try:
            await coordination.put(key, value, 0 if found is None else found.revision)
        except TopologyConflictError:
            if attempt + 1 == attempts:
                raise
            await asyncio.sleep(0.01 * (attempt + 1))
        else:
            return value
    raise AssertionError("the last attempt has raised")

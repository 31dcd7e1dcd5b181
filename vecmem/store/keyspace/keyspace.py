"""The values under keys, with their versions and expiry.

A value is `bytes` for a string: 8 bytes of version, big-endian, and then the content. A tuple or an object for each would cost 50 bytes
more, a sixth of what a key with a value of 100 bytes takes. Every other type is a Container.

Nothing here reads a clock: whoever asks says what time it is, and a key whose time has come is then not there. It is removed by
an `ExpireKeys` record, which changes nothing that anybody could see.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import TypeVar

from sortedcontainers import SortedList

from vecmem.errors import WrongTypeError
from vecmem.slots import slot_of
from vecmem.store.changes import ChangeKind, Noted
from vecmem.store.keyspace.container import Container

Value = bytes | Container
C = TypeVar("C", bound=Container)

STRING = 1
"""The type of a string, as KeyType has it, in the API and on disk."""
NEVER = 0
"""Stands for an expiry that does not come."""
VERSION_BYTES = 8
ENTRY_BYTES = 160
"""About what a key and its value take beyond their own bytes: two object headers, places in the table and in the order of keys."""
LOOKS_PER_KEY = 4
"""Entries of the expiry heap looked at for each key that may be found: those whose time was moved on are only put back."""
EXPIRING_SLACK = 1_024
"""Entries of the expiry heap beyond twice the keys that expire before it is built anew."""
STEP_KEYS = 1_024
"""Keys whose slot is found between two yields: about a millisecond."""


class Keyspace:
    """All keys. Every method that changes something is a step of applying a record."""

    def __init__(self) -> None:
        self.values: dict[bytes, Value] = {}
        self.sorted_keys: SortedList[bytes] = SortedList()
        self.expiries: dict[bytes, int] = {}
        """When a key is removed, milliseconds since the Unix epoch; only of keys that are."""
        self.endings: dict[bytes, int] = {}
        """When the last item of a container has expired, which ends the key as well; only of those all of whose items expire."""
        self.version = 0
        """The last version given out. Each change of a key takes the next."""
        self.memory_bytes = 0
        """About what keys and values take."""
        self.changed: dict[bytes, bool] = {}
        """Keys changed since whoever tells of changes looked last, and whether their values were: otherwise it was the expiry alone."""
        self.by_slot: dict[int, set[bytes]] | None = None
        """The keys of each hash slot that has some. None: nobody asks for them."""
        self._expiring: list[tuple[int, bytes]] = []

    def find(self, key: bytes, now_unix_ms: int) -> Value | None:
        """The value of a key that exists and has not expired."""
        value = self.values.get(key)
        if value is not None and self.expiries and self.expiries.get(key, now_unix_ms + 1) <= now_unix_ms:
            return None
        if self.endings and self.endings.get(key, now_unix_ms + 1) <= now_unix_ms:
            return None
        return value

    def string(self, key: bytes, now_unix_ms: int) -> bytes | None:
        """The content of a string. Raises WrongTypeError."""
        value = self.find(key, now_unix_ms)
        if value is None:
            return None
        if not isinstance(value, bytes):
            raise wrong_type(key, "string", value)
        return value[VERSION_BYTES:]

    def container(self, key: bytes, kind: type[C], now_unix_ms: int, field: str = "key") -> C | None:
        """The value of a key that is a container of a kind. Raises WrongTypeError, with the path of the field that names the key."""
        value = self.find(key, now_unix_ms)
        if value is None or type(value) is kind:
            return value
        raise wrong_type(key, kind.NAME, value, field)

    def change(self, key: bytes, value: Container, old_size_bytes: int, now_unix_ms: int) -> int:
        """Tell of a container that was changed, or is new (`old_size_bytes` 0); returns the key's version. Without items it is removed.

        The expiry of a key that exists stays.
        """
        value.version = self.next_version()
        known = old_size_bytes != 0 and self.find(key, now_unix_ms) is value
        if known:
            self.memory_bytes += value.size_bytes - old_size_bytes
            self.changed[key] = True
        if not len(value):
            if known:
                self.remove(key)
        elif not known:
            self.put(key, value, NEVER)
        else:
            self._set_ending(key, value.ends_at_unix_ms)
        return value.version

    def expires_at(self, key: bytes) -> int:
        """Milliseconds since the Unix epoch, or NEVER."""
        return self.expiries.get(key, NEVER)

    def next_version(self) -> int:
        """A version for a change."""
        self.version += 1
        return self.version

    def put_string(self, key: bytes, content: bytes, expires_at_unix_ms: int) -> int:
        """Write a string in place of whatever the key holds; returns its version."""
        version = self.next_version()
        self.put(key, version.to_bytes(VERSION_BYTES, "big") + content, expires_at_unix_ms)
        return version

    def put(self, key: bytes, value: Value, expires_at_unix_ms: int) -> None:
        """Put a value in place of whatever the key holds."""
        old = self.values.get(key)
        if old is None:
            self.sorted_keys.add(key)
            self.memory_bytes += entry_bytes(key, value)
            if self.by_slot is not None:
                self.by_slot.setdefault(slot_of(key), set()).add(key)
        else:
            self.memory_bytes += value_bytes(value) - value_bytes(old)
        self.values[key] = value
        self.changed[key] = True
        self._set_expiry(key, expires_at_unix_ms)
        self._set_ending(key, NEVER if isinstance(value, bytes) else value.ends_at_unix_ms)

    def set_expiry(self, key: bytes, expires_at_unix_ms: int) -> None:
        """Set when a key that exists is removed."""
        self.changed.setdefault(key, False)
        self._set_expiry(key, expires_at_unix_ms)

    def _set_expiry(self, key: bytes, expires_at_unix_ms: int) -> None:
        if expires_at_unix_ms != NEVER:
            self._push_expiring(self.expiries.get(key), expires_at_unix_ms, key)
            self.expiries[key] = expires_at_unix_ms
        elif self.expiries:
            self.expiries.pop(key, None)

    def _set_ending(self, key: bytes, ends_at_unix_ms: int) -> None:
        if ends_at_unix_ms == NEVER:
            if self.endings:
                self.endings.pop(key, None)
        else:
            self._push_expiring(self.endings.get(key), ends_at_unix_ms, key)
            self.endings[key] = ends_at_unix_ms

    def remove(self, key: bytes) -> None:
        """Remove a key that exists."""
        value = self.values.pop(key)
        self.changed[key] = True
        self.sorted_keys.remove(key)
        self.memory_bytes -= entry_bytes(key, value)
        self.expiries.pop(key, None)
        self.endings.pop(key, None)
        if self.by_slot is not None:
            slot = slot_of(key)
            keys = self.by_slot[slot]
            keys.remove(key)
            if not keys:
                del self.by_slot[slot]

    def index_slots(self) -> Iterator[None]:
        """Know the keys of each hash slot from now on; steps of about a millisecond."""
        self.by_slot = {}
        for count, key in enumerate(self.values, start=1):
            self.by_slot.setdefault(slot_of(key), set()).add(key)
            if count % STEP_KEYS == 0:
                yield

    def keys_of_slots(self, slots: Iterable[int]) -> list[bytes]:
        """The keys of some slots, in order of their bytes. `index_slots` has been called."""
        by_slot = self.by_slot
        assert by_slot is not None
        return sorted(key for slot in slots for key in by_slot.get(slot, ()))

    def note_changes(self, place: int, noted: Noted, gone: ChangeKind = ChangeKind.DELETED) -> None:
        """Note what an operation has changed; `gone` is what became of a key that is not there any more."""
        if not self.changed:
            return
        for key, of_value in self.changed.items():
            value = self.values.get(key)
            if value is None:
                noted.add(place, gone, 0, 0, key)
                continue
            kind = ChangeKind.WRITTEN if of_value else ChangeKind.EXPIRY_SET
            noted.add(place, kind, STRING if isinstance(value, bytes) else value.TYPE, version_of(value), key)
        self.changed.clear()

    def expired_keys(self, now_unix_ms: int, count_max: int) -> tuple[list[bytes], bool]:
        """Up to `count_max` keys whose time has come, and whether there may be more; they are reported again until removed."""
        found: dict[bytes, int] = {}
        looked_count = 0
        while self._expiring and self._expiring[0][0] <= now_unix_ms:
            if len(found) == count_max or looked_count == LOOKS_PER_KEY * count_max:
                break
            looked_count += 1
            due_unix_ms, key = heapq.heappop(self._expiring)
            times = [time for time in (self.expiries.get(key), self.endings.get(key)) if time is not None]
            if times and min(times) <= min(due_unix_ms, now_unix_ms):
                found[key] = due_unix_ms
            elif times:
                heapq.heappush(self._expiring, (min(times), key))
        more = len(found) == count_max or looked_count == LOOKS_PER_KEY * count_max
        for key, due_unix_ms in found.items():
            heapq.heappush(self._expiring, (due_unix_ms, key))
        return list(found), more

    def expires(self, key: bytes) -> bool:
        """Whether a key is there and goes at some time by itself."""
        return key in self.expiries or key in self.endings

    def some_expiring(self, shares: Iterable[float]) -> Iterator[bytes]:
        """Keys that expire, one for each share from 0 to below 1 of them, in no order that matters; some may be gone."""
        for share in shares:
            if self._expiring:
                yield self._expiring[int(share * len(self._expiring))][1]

    def remove_expired(self, keys: Iterable[bytes], now_unix_ms: int) -> int:
        """Remove those of the keys whose time has come; returns how many."""
        expired = [key for key in dict.fromkeys(keys) if key in self.values and self.find(key, now_unix_ms) is None]
        for key in expired:
            self.remove(key)
        return len(expired)

    def keys_from(self, minimum: bytes, maximum: bytes | None, *, after: bytes | None = None) -> Iterator[bytes]:
        """Keys in order of their bytes: from `minimum`, or behind `after` where that is greater, up to and without `maximum`."""
        inclusive = after is None or after < minimum
        start = minimum if inclusive else after
        keys: Iterator[bytes] = self.sorted_keys.irange(start, maximum, inclusive=(inclusive, False))
        return keys

    def load(self, entries: Iterable[tuple[bytes, Value]], expiries: dict[bytes, int], version: int) -> None:
        """Fill an empty keyspace from a checkpoint. Keys come in order of their bytes."""
        self.values = dict(entries)
        self.sorted_keys = SortedList(self.values)
        self.expiries = expiries
        self.version = version
        self.memory_bytes = sum(entry_bytes(key, value) for key, value in self.values.items())
        self.endings = {
            key: value.ends_at_unix_ms
            for key, value in self.values.items()
            if not isinstance(value, bytes) and value.ends_at_unix_ms != NEVER
        }
        self._rebuild_expiring()

    def _push_expiring(self, old_unix_ms: int | None, expires_at_unix_ms: int, key: bytes) -> None:
        # A time that is moved on keeps its entry, which finds the new time when it is due.
        if old_unix_ms is None or expires_at_unix_ms < old_unix_ms:
            heapq.heappush(self._expiring, (expires_at_unix_ms, key))
            if len(self._expiring) > EXPIRING_SLACK + 2 * (len(self.expiries) + len(self.endings)):
                # Times that are taken away or brought forward leave entries behind, which may be due only years from now.
                self._rebuild_expiring()

    def _rebuild_expiring(self) -> None:
        # What is sorted is a heap.
        times = (*self.expiries.items(), *self.endings.items())
        self._expiring = sorted((expires_at, key) for key, expires_at in times)


def version_of(value: Value) -> int:
    """The version of a key, given its value."""
    return int.from_bytes(value[:VERSION_BYTES], "big") if isinstance(value, bytes) else value.version


def with_version(value: Value, version: int) -> Value:
    """The same value under another version; a container is changed in place."""
    if not isinstance(value, bytes):
        value.version = version
        return value
    return version.to_bytes(VERSION_BYTES, "big") + value[VERSION_BYTES:]


def value_bytes(value: Value) -> int:
    """About what a value takes."""
    return len(value) if isinstance(value, bytes) else value.size_bytes


def entry_bytes(key: bytes, value: Value) -> int:
    """About what a key and its value take."""
    return ENTRY_BYTES + len(key) + value_bytes(value)


def wrong_type(key: bytes, wanted: str, value: Value, field: str = "key") -> WrongTypeError:
    """What to raise for a key whose value is of another type."""
    held = "string" if isinstance(value, bytes) else value.NAME
    return WrongTypeError(f"{field}: {shown(key)} holds a {held}, not a {wanted}", field=field)


def shown(key: bytes) -> str:
    """A key for messages."""
    return repr(key[:80])[1:] + ("..." if len(key) > 80 else "")

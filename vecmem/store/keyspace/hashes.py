"""Hashes: fields with values. See proto/vecmem/v1/hashes.proto; semantics are those of Redis where the names coincide.

A field whose time has come is there for nobody. It is taken out by a later write to the hash, so that reads change nothing; when the last
one goes, the keyspace knows (`ends_at_unix_ms`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, Self

import numpy as np
from sortedcontainers import SortedList

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace import counters
from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.keyspace import NEVER, Keyspace, shown
from vecmem.store.keyspace.operation import (
    REPLY_BYTES_MAX,
    Moment,
    Run,
    check_conditional_expiry,
    check_expiry,
    check_member,
    check_member_count,
    check_members,
    check_request_key,
    check_value,
    expiry_condition_holds,
    expiry_of,
    frees,
    reads,
    writes,
)
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.paging import PAGE_LOOKS_MAX, ItemOrder, check_page, page_end, page_start
from vecmem.store.keyspace.sorting import copy_sorted
from vecmem.store.reading import PAGE_BYTES_MAX
from vecmem.v1 import hashes_pb2 as api
from vecmem.v1 import keys_pb2

HASH_BYTES: Final = 200
"""About what a hash without fields takes beyond any container: its tables."""
FIELD_BYTES: Final = 120
"""About what a field takes beyond its own bytes and its value's: two object headers and places in the table and the order."""
EXPIRING_FIELD_BYTES: Final = 240
"""About what its expiry takes."""
PURGED_FIELDS_MAX: Final = limits.MEMBERS_PER_REQUEST_MAX
"""Expired fields that one write takes out: as many as one writes, so that they do not pile up. Nobody sees them, so that the outcome of
records does not hang on it."""
_EXPIRING: Final = np.dtype([("index", "<u4"), ("expires_at_unix_ms", "<i8")])


class HashValue(Container):
    """Fields with values. Methods without a time know nothing of expired fields: to them these are still there."""

    __slots__ = ("_expiries", "_expiring", "_order", "_values")

    TYPE = keys_pb2.KEY_TYPE_HASH
    NAME = "hash"

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes += HASH_BYTES
        self._values: dict[bytes, bytes] = {}
        self._expiries: dict[bytes, int] = {}
        """Milliseconds since the Unix epoch; only of fields that expire."""
        self._expiring: SortedList[tuple[int, bytes]] | None = None
        """The same, the first to go first; made for the first field that expires."""
        self._order = ItemOrder()

    def __len__(self) -> int:
        return len(self._values)

    def count_at(self, now_unix_ms: int) -> int:
        """Fields that have not expired."""
        return len(self._values) - self._expired_count(now_unix_ms)

    @property
    def ends_at_unix_ms(self) -> int:
        """When the last field has expired; NEVER: one does not."""
        if self._expiring is None or not self._expiring or len(self._expiring) < len(self._values):
            return NEVER
        return int(self._expiring[-1][0])

    def get(self, field: bytes, now_unix_ms: int) -> bytes | None:
        """The value of a field that has not expired."""
        if self._expiries and self._expiries.get(field, now_unix_ms + 1) <= now_unix_ms:
            return None
        return self._values.get(field)

    def expires_at(self, field: bytes) -> int:
        """Milliseconds since the Unix epoch, or NEVER."""
        return self._expiries.get(field, NEVER)

    def after(self, field: bytes | None) -> Iterator[bytes]:
        """Fields behind one, expired ones among them, in order of their bytes; None: all."""
        return iter(self._order.after(field, self._values))

    def fields_at(self, now_unix_ms: int) -> Sequence[bytes]:
        """Fields that have not expired, to be reached by their places. Quick, unless some have expired and are not taken out yet."""
        fields: Sequence[bytes] = self._order.listed(self._values)
        if self._expired_count(now_unix_ms):
            return [field for field in fields if self.get(field, now_unix_ms) is not None]
        return fields

    def put(self, field: bytes, value: bytes, expires_at_unix_ms: int) -> None:
        """Write a field."""
        old = self._values.get(field)
        self._values[field] = value
        if old is None:
            self._order.added(field, self._values)
            self.size_bytes += FIELD_BYTES + len(field) + len(value)
        else:
            self.size_bytes += len(value) - len(old)
        self.set_expiry(field, expires_at_unix_ms)

    def set_expiry(self, field: bytes, expires_at_unix_ms: int) -> None:
        """Set when a field that is there expires."""
        old = self._expiries.pop(field, NEVER)
        if old != NEVER and self._expiring is not None:
            self._expiring.remove((old, field))
            self.size_bytes -= EXPIRING_FIELD_BYTES
        if expires_at_unix_ms != NEVER:
            self._expiries[field] = expires_at_unix_ms
            if self._expiring is None:
                self._expiring = SortedList()
            self._expiring.add((expires_at_unix_ms, field))
            self.size_bytes += EXPIRING_FIELD_BYTES

    def remove(self, field: bytes) -> None:
        """Remove a field that is there."""
        self.set_expiry(field, NEVER)
        self._take_out(field)

    def purge(self, now_unix_ms: int) -> None:
        """Take out fields that have expired, some of them if there are many."""
        count = min(self._expired_count(now_unix_ms), PURGED_FIELDS_MAX)
        if count and self._expiring is not None:
            expired = self._expiring[:count]
            del self._expiring[:count]
            self.size_bytes -= EXPIRING_FIELD_BYTES * count
            for _, field in expired:
                del self._expiries[field]
                self._take_out(field)

    def _take_out(self, field: bytes) -> None:
        value = self._values.pop(field)
        self._order.removed(field)
        self.size_bytes -= FIELD_BYTES + len(field) + len(value)

    def _expired_count(self, now_unix_ms: int) -> int:
        return 0 if self._expiring is None else int(self._expiring.bisect_left((now_unix_ms + 1, b"")))

    def dump(self) -> bytes:
        """Fields in order of their bytes, then their values, then the places and times of those that expire."""
        fields = sorted(self._values)
        expiring = [(index, self._expiries[field]) for index, field in enumerate(fields) if field in self._expiries]
        return pack([*fields, *map(self._values.__getitem__, fields), np.array(expiring, dtype=_EXPIRING).tobytes()])

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)()
        copied._values, copied._expiries = self._values.copy(), self._expiries.copy()
        copied._expiring = None if self._expiring is None else copy_sorted(self._expiring)
        copied._order = self._order.copy()
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """The hash that was dumped. Raises ValueError."""
        *parts, expiring_bytes = unpack(content) or [b""]
        count = len(parts) // 2
        fields, values = parts[:count], parts[count:]
        if not count or len(values) != count:
            raise ValueError(f"{len(parts)} byte strings are no fields with values")
        if any(field >= following for field, following in pairwise(fields)):
            raise ValueError("fields are out of order")
        expiring = np.frombuffer(expiring_bytes, dtype=_EXPIRING).tolist() if expiring_bytes else []
        places = [-1, *(index for index, _ in expiring), count]
        if any(place >= following for place, following in pairwise(places)):
            raise ValueError("fields that expire are out of order")
        loaded = cls()
        loaded._values = dict(zip(fields, values, strict=True))
        loaded._order.loaded(loaded._values)
        loaded.size_bytes += FIELD_BYTES * count + sum(map(len, parts)) + EXPIRING_FIELD_BYTES * len(expiring)
        if expiring:
            loaded._expiries = {fields[index]: expires_at for index, expires_at in expiring}
            if min(loaded._expiries.values()) <= NEVER:
                raise ValueError("a field expires at no time")
            loaded._expiring = SortedList((expires_at, fields[index]) for index, expires_at in expiring)
        return loaded


def _find(keyspace: Keyspace, key: bytes, moment: Moment) -> HashValue | None:
    return keyspace.container(key, HashValue, moment.time_unix_ms)


def _changed(keyspace: Keyspace, key: bytes, value: HashValue, old_size_bytes: int, moment: Moment) -> None:
    """The end of every write to a hash."""
    value.purge(moment.time_unix_ms)
    keyspace.change(key, value, old_size_bytes, moment.time_unix_ms)


def _check_set(request: api.SetHashFieldsRequest) -> None:
    check_request_key(request)
    check_member_count(len(request.fields), "fields")
    for index, item in enumerate(request.fields):
        check_member(item.field, f"fields[{index}].field")
        check_value(item.value, f"fields[{index}].value")
    if request.condition not in api.HashFieldCondition.values():
        raise InvalidArgumentError(f"{request.condition} is not known", field="condition")
    if request.HasField("expiry"):
        check_expiry(request.expiry)


def _set(
    keyspace: Keyspace, request: api.SetHashFieldsRequest, response: api.SetHashFieldsResponse, moment: Moment
) -> None:
    now = moment.time_unix_ms
    found = _find(keyspace, request.key, moment)
    fields = {item.field: item.value for item in request.fields}
    existing = set() if found is None else {field for field in fields if found.get(field, now) is not None}
    if (request.condition == api.HASH_FIELD_CONDITION_ABSENT and existing) or (
        request.condition == api.HASH_FIELD_CONDITION_PRESENT and len(existing) < len(fields)
    ):
        return
    value = HashValue() if found is None else found
    old_size_bytes = 0 if found is None else found.size_bytes
    keep = request.expiry.keep
    expires_at = NEVER if keep else expiry_of(request.expiry, keyspace, request.key, moment)
    for field, content in fields.items():
        value.put(field, content, value.expires_at(field) if keep and field in existing else expires_at)
    _changed(keyspace, request.key, value, old_size_bytes, moment)
    response.written = True
    response.new_count = len(fields) - len(existing)


def _check_fields(request: api.GetHashFieldsRequest | api.ExpireHashFieldsRequest) -> None:
    check_request_key(request)
    check_members(request.fields, "fields")


def _get(
    keyspace: Keyspace, request: api.GetHashFieldsRequest, response: api.GetHashFieldsResponse, moment: Moment
) -> None:
    found = _find(keyspace, request.key, moment)
    size_bytes = 0
    for field in request.fields:
        value = None if found is None else found.get(field, moment.time_unix_ms)
        answer = response.values.add()
        if value is not None:
            size_bytes += len(value)
            if size_bytes > REPLY_BYTES_MAX:
                raise LimitExceededError(f"the values have more than {REPLY_BYTES_MAX} bytes", field="fields")
            answer.value = value


def _check_all(request: api.GetHashRequest) -> None:
    check_request_key(request)
    check_page(request)


def _get_all(keyspace: Keyspace, request: api.GetHashRequest, response: api.GetHashResponse, moment: Moment) -> None:
    found = _find(keyspace, request.key, moment)
    if found is None:
        return
    response.field_count = found.count_at(moment.time_unix_ms)
    page_size = request.page_size or limits.PAGE_SIZE_DEFAULT
    size_bytes = 0
    last = b""
    for looks, field in enumerate(found.after(page_start(request))):
        if len(response.fields) == page_size or size_bytes > PAGE_BYTES_MAX or looks == PAGE_LOOKS_MAX:
            response.next_page_token = page_end(request, last)
            return
        last = field
        value = found.get(field, moment.time_unix_ms)
        if value is not None:
            response.fields.add(field=field, value=value)
            size_bytes += len(field) + len(value)


def _check(
    keyspace: Keyspace, request: api.CheckHashFieldsRequest, response: api.CheckHashFieldsResponse, moment: Moment
) -> None:
    found = _find(keyspace, request.key, moment)
    response.existing.extend(
        found is not None and found.get(field, moment.time_unix_ms) is not None for field in request.fields
    )


def _delete(
    keyspace: Keyspace, request: api.DeleteHashFieldsRequest, response: api.DeleteHashFieldsResponse, moment: Moment
) -> None:
    found = _find(keyspace, request.key, moment)
    if found is None:
        return
    old_size_bytes = found.size_bytes
    for field in request.fields:
        if found.get(field, moment.time_unix_ms) is not None:
            found.remove(field)
            response.deleted_count += 1
    if response.deleted_count:
        _changed(keyspace, request.key, found, old_size_bytes, moment)


def _check_add(request: api.AddHashIntegerRequest | api.AddHashFloatRequest) -> None:
    counters.check_addition(request)
    check_member(request.field, "field")


def _adding(number: counters.Number) -> Run:
    def run(keyspace: Keyspace, request: Any, response: Any, moment: Moment) -> None:
        found = _find(keyspace, request.key, moment)
        content = None if found is None else found.get(request.field, moment.time_unix_ms)
        total = counters.add(number, content, request, response, _named(request), "field")
        if total is not None:
            _write_sum(keyspace, request, found, total, moment)

    return run


def _named(request: api.AddHashIntegerRequest | api.AddHashFloatRequest) -> str:
    return f"the field {shown(request.field)} under {shown(request.key)}"


def _write_sum(
    keyspace: Keyspace,
    request: api.AddHashIntegerRequest | api.AddHashFloatRequest,
    found: HashValue | None,
    content: bytes,
    moment: Moment,
) -> None:
    if found is not None and found.get(request.field, moment.time_unix_ms) is not None:
        expires_at = found.expires_at(request.field)
    else:
        expires_at = expiry_of(request.expiry_if_absent, keyspace, request.key, moment)
    value = HashValue() if found is None else found
    old_size_bytes = 0 if found is None else found.size_bytes
    value.put(request.field, content, expires_at)
    _changed(keyspace, request.key, value, old_size_bytes, moment)


def _check_expire(request: api.ExpireHashFieldsRequest) -> None:
    _check_fields(request)
    check_conditional_expiry(request)


def _expire(
    keyspace: Keyspace, request: api.ExpireHashFieldsRequest, response: api.ExpireHashFieldsResponse, moment: Moment
) -> None:
    expires_at = expiry_of(request.expiry, keyspace, request.key, moment)

    def expire(found: HashValue, field: bytes) -> api.HashFieldOutcome.ValueType:
        if not expiry_condition_holds(request.condition, found.expires_at(field), expires_at):
            return api.HASH_FIELD_OUTCOME_UNCHANGED
        if expires_at <= moment.time_unix_ms:
            found.remove(field)
            return api.HASH_FIELD_OUTCOME_REMOVED
        found.set_expiry(field, expires_at)
        return api.HASH_FIELD_OUTCOME_CHANGED

    _each(keyspace, request, response, moment, expire)


def _persist(
    keyspace: Keyspace, request: api.PersistHashFieldsRequest, response: api.PersistHashFieldsResponse, moment: Moment
) -> None:
    def persist(found: HashValue, field: bytes) -> api.HashFieldOutcome.ValueType:
        if found.expires_at(field) == NEVER:
            return api.HASH_FIELD_OUTCOME_UNCHANGED
        found.set_expiry(field, NEVER)
        return api.HASH_FIELD_OUTCOME_CHANGED

    _each(keyspace, request, response, moment, persist)


def _each(
    keyspace: Keyspace,
    request: api.ExpireHashFieldsRequest | api.PersistHashFieldsRequest,
    response: api.ExpireHashFieldsResponse | api.PersistHashFieldsResponse,
    moment: Moment,
    change: Callable[[HashValue, bytes], api.HashFieldOutcome.ValueType],
) -> None:
    """Do something to each field that is there, and tell what became of each."""
    found = _find(keyspace, request.key, moment)
    old_size_bytes = 0 if found is None else found.size_bytes
    for field in request.fields:
        if found is None or found.get(field, moment.time_unix_ms) is None:
            response.outcomes.append(api.HASH_FIELD_OUTCOME_ABSENT)
        else:
            response.outcomes.append(change(found, field))
    unchanged = (api.HASH_FIELD_OUTCOME_ABSENT, api.HASH_FIELD_OUTCOME_UNCHANGED)
    if found is not None and any(outcome not in unchanged for outcome in response.outcomes):
        _changed(keyspace, request.key, found, old_size_bytes, moment)


def _get_expiries(
    keyspace: Keyspace,
    request: api.GetHashFieldExpiriesRequest,
    response: api.GetHashFieldExpiriesResponse,
    moment: Moment,
) -> None:
    found = _find(keyspace, request.key, moment)
    for field in request.fields:
        answer = response.expiries.add()
        if found is not None and found.get(field, moment.time_unix_ms) is not None:
            answer.expires_at_unix_ms = found.expires_at(field)


def _check_random(request: api.GetHashRandomFieldsRequest) -> None:
    check_request_key(request)
    if request.count > limits.PAGE_SIZE_MAX:
        raise LimitExceededError(f"{request.count} is more than {limits.PAGE_SIZE_MAX}", field="count")


def _get_random(
    keyspace: Keyspace,
    request: api.GetHashRandomFieldsRequest,
    response: api.GetHashRandomFieldsResponse,
    moment: Moment,
) -> None:
    found = _find(keyspace, request.key, moment)
    if found is None:
        return
    fields = found.fields_at(moment.time_unix_ms)
    count = request.count or 1
    if request.with_repetition:
        places = [random.randrange(len(fields)) for _ in range(count)]
    else:
        places = random.sample(range(len(fields)), min(count, len(fields)))
    size_bytes = 0
    for place in places:
        chosen = response.fields.add(field=fields[place])
        if request.with_values:
            chosen.value = found.get(fields[place], moment.time_unix_ms) or b""
            size_bytes += len(chosen.value)
            if size_bytes > REPLY_BYTES_MAX:
                raise LimitExceededError(f"the values have more than {REPLY_BYTES_MAX} bytes", field="count")


OPERATIONS = {
    "set_hash_fields": writes(_check_set, _set),
    "get_hash_fields": reads(_check_fields, _get),
    "get_hash": reads(_check_all, _get_all),
    "check_hash_fields": reads(_check_fields, _check),
    "delete_hash_fields": frees(_check_fields, _delete),
    "add_hash_integer": writes(_check_add, _adding(counters.INTEGER)),
    "add_hash_float": writes(_check_add, _adding(counters.DOUBLE)),
    "expire_hash_fields": frees(_check_expire, _expire),
    "persist_hash_fields": frees(_check_fields, _persist),
    "get_hash_field_expiries": reads(_check_fields, _get_expiries),
    "get_hash_random_fields": reads(_check_random, _get_random),
}

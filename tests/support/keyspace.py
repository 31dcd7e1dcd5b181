"""Operations on a keyspace without a server, and beside a redis-server."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from vecmem.errors import VecmemError
from vecmem.store.keyspace import image, operations
from vecmem.store.keyspace.keyspace import Keyspace, entry_bytes
from vecmem.store.keyspace.operation import Moment
from vecmem.v1 import hashes_pb2, pipeline_pb2

NOW = 1_000_000


def operation(kind: str, **fields: Any) -> pipeline_pb2.Operation:
    """An operation of a kind; a field that is None is left out."""
    return pipeline_pb2.Operation(**{kind: {name: value for name, value in fields.items() if value is not None}})


def outcome_of(keyspace: Keyspace, kind: str, *, now: int = NOW, **fields: Any) -> pipeline_pb2.OperationResult:
    """Check an operation and run it."""
    checked = operation(kind, **fields)
    operations.check(checked)
    outcome = pipeline_pb2.OperationResult()
    operations.run(keyspace, checked, outcome, Moment(now))
    return outcome


def do(keyspace: Keyspace, kind: str, *, now: int = NOW, **fields: Any) -> Any:
    """Run an operation that is to succeed; returns its response."""
    outcome = outcome_of(keyspace, kind, now=now, **fields)
    assert not outcome.HasField("error"), outcome.error
    return getattr(outcome, kind)


def refusal(keyspace: Keyspace, kind: str, *, now: int = NOW, **fields: Any) -> tuple[str, str]:
    """Run an operation that the state refuses; returns reason and field. Nothing may have changed."""
    before = contents(keyspace)
    outcome = outcome_of(keyspace, kind, now=now, **fields)
    assert outcome.WhichOneof("kind") == "error", outcome
    assert contents(keyspace) == before
    return outcome.error.reason, outcome.error.metadata["field"]


def check_refusal(kind: str, **fields: Any) -> tuple[str, str]:
    """Check an operation that is wrong whatever the state; returns reason and field."""
    try:
        operations.check(operation(kind, **fields))
    except VecmemError as error:
        return error.reason, error.metadata.get("field", "")
    raise AssertionError(f"{kind} with {fields} was not refused")


def contents(keyspace: Keyspace) -> tuple[Any, ...]:
    """All that a keyspace holds, as a checkpoint would; what it counts has to be right."""
    assert list(keyspace.sorted_keys) == sorted(keyspace.values)
    assert keyspace.expiries.keys() <= keyspace.values.keys()
    assert keyspace.memory_bytes == sum(entry_bytes(key, value) for key, value in keyspace.values.items())
    assert keyspace.endings == {
        key: value.ends_at_unix_ms
        for key, value in keyspace.values.items()
        if not isinstance(value, bytes) and value.ends_at_unix_ms
    }
    assert all(isinstance(value, bytes) or len(value) for value in keyspace.values.values())
    values = {
        key: value if isinstance(value, bytes) else (value.TYPE, value.version, value.size_bytes, value.dump())
        for key, value in keyspace.values.items()
    }
    return values, dict(keyspace.expiries), keyspace.version, keyspace.memory_bytes


def reloaded(keyspace: Keyspace) -> Keyspace:
    """What a checkpoint of a keyspace gives back; it has to be the same."""
    loaded = Keyspace()
    with tempfile.TemporaryDirectory() as directory:
        image.write_keyspace(keyspace, Path(directory))
        image.load_keyspace(loaded, (Path(directory) / image.FILE).read_bytes())
    assert contents(loaded) == contents(keyspace)
    return loaded


def pairs(values: dict[bytes, bytes]) -> list[hashes_pb2.HashField]:
    """Fields as a request has them."""
    return [hashes_pb2.HashField(field=field, value=value) for field, value in values.items()]


def fields_of(keyspace: Keyspace, key: bytes, *fields: bytes, now: int = NOW) -> list[bytes | None]:
    """The values of fields of a hash; None: no such field."""
    response = do(keyspace, "get_hash_fields", key=key, fields=list(fields), now=now)
    return [found.value if found.HasField("value") else None for found in response.values]


def whole_hash(keyspace: Keyspace, key: bytes, *, page_size: int = 0, now: int = NOW) -> dict[bytes, bytes]:
    """All fields of a hash, page by page."""
    found: list[tuple[bytes, bytes]] = []
    token = ""
    while True:
        page = do(keyspace, "get_hash", key=key, page_size=page_size, page_token=token, now=now)
        assert len(page.fields) <= (page_size or 100)
        found += [(item.field, item.value) for item in page.fields]
        token = page.next_page_token
        if not token:
            assert found == sorted(found)
            assert page.field_count == len(found)
            return dict(found)


def field_expiries(keyspace: Keyspace, key: bytes, *fields: bytes, now: int = NOW) -> list[int | None]:
    """When fields of a hash expire; None: no such field."""
    response = do(keyspace, "get_hash_field_expiries", key=key, fields=list(fields), now=now)
    return [found.expires_at_unix_ms if found.HasField("expires_at_unix_ms") else None for found in response.expiries]


def members_of(keyspace: Keyspace, key: bytes, *, page_size: int = 0, now: int = NOW) -> list[bytes]:
    """All members of a set, page by page."""
    found: list[bytes] = []
    token = ""
    while True:
        page = do(keyspace, "scan_set", key=key, page_size=page_size, page_token=token, now=now)
        assert len(page.members) <= (page_size or 100)
        found += page.members
        token = page.next_page_token
        if not token:
            return found


REDIS_REASONS = {
    "WRONGTYPE": "WRONG_TYPE",
    "hash value is not": "NOT_A_NUMBER",
    "value is not a": "NOT_A_NUMBER",
    "would overflow": "OVERFLOW",
    "would produce NaN or Infinity": "OVERFLOW",
}


def redis_answer(call: Callable[[], Any]) -> Any:
    """What redis-server answers; for an error the reason that stands for it here."""
    try:
        return call()
    except redis.ResponseError as error:
        return next(reason for text, reason in REDIS_REASONS.items() if text in str(error))


def our_answer(keyspace: Keyspace, kind: str, take: Callable[[Any], Any], **fields: Any) -> Any:
    """What `take` makes of a response; for an error its reason, and nothing may have changed."""
    before = contents(keyspace)
    outcome = outcome_of(keyspace, kind, **fields)
    if outcome.HasField("error"):
        assert contents(keyspace) == before
        return outcome.error.reason
    return take(getattr(outcome, kind))

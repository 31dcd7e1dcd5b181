"""Random fields of a hash: different ones or with repetition, of those that have not expired."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.support.keyspace import NOW, check_refusal, do, outcome_of
from vecmem.store.keyspace.keyspace import Keyspace


def filled(count: int) -> Keyspace:
    keyspace = Keyspace()
    for start in range(0, count, 1_000):
        fields = [{"field": b"f%d" % n, "value": b"v%d" % n} for n in range(start, min(count, start + 1_000))]
        do(keyspace, "set_hash_fields", key=b"h", fields=fields)
    return keyspace


@pytest.mark.parametrize("size", [5, 3_000])
def test_different_fields(size: int) -> None:
    keyspace = filled(size)
    everything = {b"f%d" % n for n in range(size)}
    seen: Counter[bytes] = Counter()
    for _ in range(50):
        fields = [found.field for found in do(keyspace, "get_hash_random_fields", key=b"h", count=3).fields]
        assert len(set(fields)) == 3
        assert everything.issuperset(fields)
        seen.update(fields)
    assert len(seen) > min(size - 1, 100)
    whole = do(keyspace, "get_hash_random_fields", key=b"h", count=10_000, with_values=True).fields
    assert {found.field: found.value for found in whole} == {b"f%d" % n: b"v%d" % n for n in range(size)}
    assert len(do(keyspace, "get_hash_random_fields", key=b"h").fields) == 1


def test_with_repetition() -> None:
    keyspace = filled(2)
    fields = do(keyspace, "get_hash_random_fields", key=b"h", count=100, with_repetition=True).fields
    assert {found.field for found in fields} == {b"f0", b"f1"}
    assert len(fields) == 100
    assert all(not found.value for found in fields)


@pytest.mark.parametrize("size", [6, 2_000])
def test_expired_fields_are_not_chosen(size: int) -> None:
    keyspace = filled(size)
    do(keyspace, "expire_hash_fields", key=b"h", fields=[b"f0", b"f1", b"f2"], expiry={"at_unix_ms": NOW + 5})
    later = do(keyspace, "get_hash_random_fields", now=NOW + 5, key=b"h", count=10_000).fields
    assert {found.field for found in later} == {b"f%d" % n for n in range(3, size)}


def test_no_hash_and_wrong_requests() -> None:
    keyspace = Keyspace()
    assert not do(keyspace, "get_hash_random_fields", key=b"h", count=3, with_repetition=True).fields
    do(keyspace, "set_string", key=b"s", value=b"1")
    assert outcome_of(keyspace, "get_hash_random_fields", key=b"s").error.reason == "WRONG_TYPE"
    assert check_refusal("get_hash_random_fields", key=b"") == ("INVALID_KEY", "key")
    assert check_refusal("get_hash_random_fields", key=b"h", count=10_001) == ("LIMIT_EXCEEDED", "count")

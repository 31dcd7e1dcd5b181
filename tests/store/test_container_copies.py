"""A copy of a container equals it, and neither changes with the other."""

from __future__ import annotations

import random

import pytest
from sortedcontainers import SortedList

from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.hashes import HashValue
from vecmem.store.keyspace.lists import ListValue
from vecmem.store.keyspace.sets import SetValue
from vecmem.store.keyspace.sorted_set_value import SortedSetValue
from vecmem.store.keyspace.sorting import copy_sorted
from vecmem.v1 import lists_pb2

MEMBERS = [b"member %d" % number for number in random.Random(5).sample(range(5_000), 3_000)]


def made(kind: type[Container]) -> Container:
    if kind is HashValue:
        value = HashValue()
        for number, member in enumerate(MEMBERS):
            value.put(member, b"v", 0 if number % 3 else 1_000 + number)
        return value
    if kind is SortedSetValue:
        return SortedSetValue({member: float(number % 17) for number, member in enumerate(MEMBERS)})
    value = kind(MEMBERS)  # type: ignore[call-arg]
    if isinstance(value, ListValue):
        value.push(lists_pb2.LIST_END_LEFT, [b"first", b"zeroth"])
    return value


def change(value: Container) -> None:
    match value:
        case HashValue():
            value.put(b"new", b"w", 5)
            value.remove(MEMBERS[0])
        case SortedSetValue():
            value.put(b"new", -1.0)
            value.remove(MEMBERS[1])
        case SetValue():
            value.add(b"new")
            value.discard(MEMBERS[0])
        case ListValue():
            value.push(lists_pb2.LIST_END_RIGHT, [b"new"])
            value[1] = b"other"


@pytest.mark.parametrize("kind", [HashValue, SetValue, ListValue, SortedSetValue])
def test_a_copy_equals_and_changes_by_itself(kind: type[Container]) -> None:
    value = made(kind)
    value.version = 7
    before, size_bytes = value.dump(), value.size_bytes
    copied = value.copy()
    assert copied == value
    assert copied.size_bytes == size_bytes
    change(value)
    assert copied.dump() == before != value.dump()
    change(copied)
    assert copied == value
    assert copied.size_bytes == value.size_bytes


def test_a_copied_sorted_list_goes_on_as_any_other() -> None:
    values = random.Random(3)
    items = SortedList(values.sample(range(100_000), 10_000))
    copied = copy_sorted(items)
    expected = sorted(items)
    for _ in range(5_000):
        if values.random() < 0.5:
            item = values.randrange(100_000)
            copied.add(item)
            expected.append(item)
            expected.sort()
        else:
            place = values.randrange(len(copied))
            assert copied[place] == expected.pop(place)
            del copied[place]
    assert list(copied) == expected
    assert len(items) == 10_000
    assert copied.bisect_left(50_000) == sum(item < 50_000 for item in expected)
    copied._check()
    items._check()

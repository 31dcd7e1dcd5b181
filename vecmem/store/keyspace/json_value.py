"""JSON documents as containers: what they take, how they are written down, and when two values are equal.

A value is what a JSON parser makes of it: a dictionary whose order is that of the members, a list, a string, an integer of 64 bits, a
finite double, True, False or None. No two places share a dictionary or a list.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Self

import orjson

from vecmem import limits
from vecmem.errors import InvalidArgumentError
from vecmem.index.payload import parse_json
from vecmem.store.keyspace.container import Container
from vecmem.v1 import keys_pb2

# About what values take. They decide which documents are too large, so that another number would replay to another state.
OBJECT_BYTES: Final = 64
MEMBER_BYTES: Final = 64
"""Of a member beyond its name and value: names that are used again and again are kept once."""
ARRAY_BYTES: Final = 56
ITEM_BYTES: Final = 8
STRING_VALUE_BYTES: Final = 56
NUMBER_BYTES: Final = 32

STRING_CHARACTERS_PER_STEP: Final = 4_096
"""Characters of a string that are compared in the time that a value takes to be looked at."""


class JsonValue(Container):
    """One document."""

    __slots__ = ("root",)

    TYPE = keys_pb2.KEY_TYPE_JSON
    NAME = "JSON document"

    def __init__(self, root: Any, memory_bytes: int) -> None:
        super().__init__()
        self.root = root
        self.size_bytes += memory_bytes

    def __len__(self) -> int:
        """Not 0: a document without members is a document."""
        return 1

    def count_at(self, now_unix_ms: int) -> int:  # noqa: ARG002  (nothing in a document expires)
        """Members or items at the top."""
        return len(self.root) if isinstance(self.root, dict | list) else 1

    def dump(self) -> bytes:
        """Its text, in which the order of members and the kinds of numbers are what they are."""
        return to_text(self.root)

    def copy(self) -> Self:
        """See Container. Through its text, which is quicker than to walk through it."""
        copied = object.__new__(type(self))
        copied.root = orjson.loads(to_text(self.root))
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """The document that was dumped. Raises ValueError."""
        try:
            root = parse_json(content, "document", len(content), limits.JSON_DEPTH_MAX)
        except InvalidArgumentError as error:
            raise ValueError(error.message) from error
        return cls(root, measure(root)[0])


def parse(text: bytes, field: str) -> Any:
    """The value that is JSON in a request. Raises InvalidArgumentError, LimitExceededError."""
    return parse_json(text, field, limits.JSON_DOCUMENT_BYTES_MAX, limits.JSON_DEPTH_MAX)


def to_text(value: Any) -> bytes:
    """A value as JSON without white space."""
    return orjson.dumps(value)


def measure(value: Any) -> tuple[int, int]:
    """About how many bytes a value takes, and how deep it is nested: 0 for what is neither object nor array."""
    size_bytes = 0
    depth = -1
    level = [value]
    while level:
        depth += 1
        below: list[Any] = []
        for each in level:
            kind = each.__class__
            if kind is str:
                size_bytes += text_bytes(each)
            elif kind is dict:
                size_bytes += OBJECT_BYTES + MEMBER_BYTES * len(each) + sum(map(name_bytes, each))
                below.extend(each.values())
                below.append(None)  # an empty object is a level as well
            elif kind is list:
                size_bytes += ARRAY_BYTES + ITEM_BYTES * len(each)
                below.extend(each)
                below.append(None)
            elif each is not None and kind is not bool:
                size_bytes += NUMBER_BYTES
        level = below
    return size_bytes, depth


def sizes_within(value: Any, known: dict[int, int]) -> int:
    """What `measure` says a value takes. `known` keeps the sizes of objects and arrays by their identity: none is gone through twice."""
    kind = value.__class__
    if kind is str:
        return text_bytes(value)
    if kind is not dict and kind is not list:
        return 0 if value is None or kind is bool else NUMBER_BYTES
    size_bytes = known.get(id(value))
    if size_bytes is None:
        if kind is dict:
            size_bytes = OBJECT_BYTES + MEMBER_BYTES * len(value) + sum(map(name_bytes, value))
            size_bytes += sum(sizes_within(each, known) for each in value.values())
        else:
            size_bytes = ARRAY_BYTES + ITEM_BYTES * len(value) + sum(sizes_within(each, known) for each in value)
        known[id(value)] = size_bytes
    return size_bytes


def name_bytes(name: str) -> int:
    """The length of a name in UTF-8."""
    return len(name) if name.isascii() else len(name.encode())


def text_bytes(text: str) -> int:
    """What a string takes."""
    return STRING_VALUE_BYTES + name_bytes(text)


def equal(left: Any, right: Any, spend: Callable[[int], None] = lambda _: None) -> bool:
    """Whether two values are equal as RFC 9535 has it: numbers by what they are, but no number equals true or false.

    `spend` is told of the work before it is done, and may raise.
    """
    pairs = [(left, right)]
    while pairs:
        left, right = pairs.pop()
        kind = left.__class__
        if kind is dict:
            if right.__class__ is not dict or len(left) != len(right):
                return False
            spend(len(left))
            if left.keys() != right.keys():
                return False
            pairs.extend((value, right[name]) for name, value in left.items())
        elif kind is list:
            if right.__class__ is not list or len(left) != len(right):
                return False
            spend(len(left))
            pairs.extend(zip(left, right, strict=True))
        else:
            if kind is str:
                spend(len(left) // STRING_CHARACTERS_PER_STEP)
            if (kind is bool) != (right.__class__ is bool) or left != right:
                return False
    return True

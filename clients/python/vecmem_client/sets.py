"""Sets: members, each once. Each function builds an operation for `Client.run` and `Client.pipeline`.

All raise WrongTypeError, when they run, for a key that holds a value of another type. A set without members is no key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import sets_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable

Combination = Literal["union", "intersection", "difference"]
COMBINATIONS = {
    "union": sets_pb2.SET_COMBINATION_UNION,
    "intersection": sets_pb2.SET_COMBINATION_INTERSECTION,
    "difference": sets_pb2.SET_COMBINATION_DIFFERENCE,
}


@dataclass(frozen=True, slots=True)
class SetPage:
    """One page of members in order of their bytes. `next_page_token` empty: the last."""

    members: list[bytes]
    next_page_token: str
    member_count: int
    """Of the whole set."""


def add(key: BytesLike, members: Iterable[BytesLike]) -> Operation[int]:
    """Put 1 to 1,024 members in; returns how many are new."""
    return _members(writes, "add_set_members", lambda response: response.added_count, key, members)


def remove(key: BytesLike, members: Iterable[BytesLike]) -> Operation[int]:
    """Take 1 to 1,024 members out; returns how many there were."""
    return _members(writes, "remove_set_members", lambda response: response.removed_count, key, members)


def contains(key: BytesLike, members: Iterable[BytesLike]) -> Operation[list[bool]]:
    """Return which of 1 to 1,024 are members."""
    return _members(reads, "check_set_members", lambda response: list(response.existing), key, members)


def page(key: BytesLike, *, page_size: int = 0, page_token: str = "") -> Operation[SetPage]:
    """Return a page of all members; 0: 100 of them."""
    return reads(
        "scan_set",
        lambda response: SetPage(list(response.members), response.next_page_token, response.member_count),
        key=as_bytes(key),
        page_size=page_size,
        page_token=page_token,
    )


def pop(key: BytesLike, count: int = 1) -> Operation[list[bytes]]:
    """Take up to so many members out at random."""
    return writes("pop_set_members", _listed, key=as_bytes(key), count=count)


def sample(key: BytesLike, count: int = 1) -> Operation[list[bytes]]:
    """Return up to so many different members at random."""
    return reads("get_set_random_members", _listed, key=as_bytes(key), count=count)


def move(key: BytesLike, destination: BytesLike, member: BytesLike) -> Operation[bool]:
    """Move a member to another set of the same slot; returns whether it was there."""
    return writes(
        "move_set_member",
        lambda response: response.moved,
        key=as_bytes(key),
        destination=as_bytes(destination),
        member=as_bytes(member),
    )


def combine(keys: Iterable[BytesLike], combination: Combination) -> Operation[list[bytes]]:
    """Return the union, the intersection, or the difference of the first and the others, of sets of one slot."""
    return reads("combine_sets", _listed, keys=[as_bytes(key) for key in keys], combination=COMBINATIONS[combination])


def store_combined(destination: BytesLike, keys: Iterable[BytesLike], combination: Combination) -> Operation[int]:
    """Put what `combine` returns in place of a key of the same slot; returns how many members it has."""
    return writes(
        "store_combined_sets",
        lambda response: response.member_count,
        destination=as_bytes(destination),
        keys=[as_bytes(key) for key in keys],
        combination=COMBINATIONS[combination],
    )


def count_intersection(keys: Iterable[BytesLike], *, limit: int = 0) -> Operation[int]:
    """Return how many members sets of one slot have in common, counted up to a limit; 0: without."""
    return reads(
        "count_set_intersection",
        lambda response: response.count,
        keys=[as_bytes(key) for key in keys],
        limit=limit,
    )


def _members(build: Any, kind: str, convert: Any, key: BytesLike, members: Iterable[BytesLike]) -> Operation[Any]:
    operation: Operation[Any] = build(
        kind, convert, key=as_bytes(key), members=[as_bytes(member) for member in members]
    )
    return operation


def _listed(response: Any) -> list[bytes]:
    return list(response.members)

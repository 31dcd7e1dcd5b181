"""Lists: items in order, with two ends. Each function builds an operation for `Client.run` and `Client.pipeline`.

All raise WrongTypeError, when they run, for a key that holds a value of another type. A list without items is no key. Indexes
begin at 0; below 0 they count from the end, -1 being the last.
"""

# ruff: noqa: A001  (the API's own words)

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from vecmem.v1 import lists_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, as_wait_ms, reads, writes

if TYPE_CHECKING:
    from collections.abc import Iterable

End = Literal["left", "right"]
_ENDS = {"left": lists_pb2.LIST_END_LEFT, "right": lists_pb2.LIST_END_RIGHT}
_SIDES = {"before": lists_pb2.LIST_SIDE_BEFORE, "after": lists_pb2.LIST_SIDE_AFTER}


def push(
    key: BytesLike, items: Iterable[BytesLike], *, end: End = "right", only_if_present: bool = False
) -> Operation[int]:
    """Put 1 to 1,024 items at an end, one after the other; returns how many items the list has."""
    return writes(
        "push_list_items",
        _count,
        key=as_bytes(key),
        end=_ENDS[end],
        items=[as_bytes(item) for item in items],
        only_if_present=only_if_present,
    )


def pop(key: BytesLike, count: int = 1, *, end: End = "left", wait_seconds: float = 0) -> Operation[list[bytes]]:
    """Take up to so many items from an end, the outermost first; wait so long, at most an hour, where there is none."""
    return writes(
        "pop_list_items", _items, key=as_bytes(key), end=_ENDS[end], count=count, wait_ms=as_wait_ms(wait_seconds)
    )


def pop_first(
    keys: Iterable[BytesLike], count: int = 1, *, end: End = "left", wait_seconds: float = 0
) -> Operation[tuple[bytes, list[bytes]] | None]:
    """Take items from the first list that exists of several of one slot; returns its key and them, None: there is none, in time."""
    return writes(
        "pop_list_items",
        lambda response: (response.key, list(response.items)) if response.items else None,
        keys=[as_bytes(key) for key in keys],
        end=_ENDS[end],
        count=count,
        wait_ms=as_wait_ms(wait_seconds),
    )


def get_range(key: BytesLike, start: int = 0, stop: int | None = None) -> Operation[list[bytes]]:
    """Return the items from `start` to `stop`, both inclusive; None: to the end. At most 10,000."""
    return reads("get_list_range", _items, key=as_bytes(key), start=start, stop=stop)


def get(key: BytesLike, index: int) -> Operation[bytes | None]:
    """Return one item; None: there is none at that place."""
    return reads("get_list_item", _item, key=as_bytes(key), index=index)


def length(key: BytesLike) -> Operation[int]:
    """Return how many items there are."""
    return reads("get_list_item", _count, key=as_bytes(key))


def set(key: BytesLike, index: int, item: BytesLike) -> Operation[bool]:
    """Write an item in place of another; returns False where there is none at that place."""
    return writes(
        "set_list_item", lambda response: response.written, key=as_bytes(key), index=index, item=as_bytes(item)
    )


def insert(key: BytesLike, item: BytesLike, *, side: Literal["before", "after"], pivot: BytesLike) -> Operation[bool]:
    """Put an item before or after the first one that equals the pivot; returns False where none does."""
    return writes(
        "insert_list_item",
        lambda response: response.inserted,
        key=as_bytes(key),
        side=_SIDES[side],
        pivot=as_bytes(pivot),
        item=as_bytes(item),
    )


def remove(key: BytesLike, item: BytesLike, count: int = 0) -> Operation[int]:
    """Remove items that equal this: the first ones, below 0 the last ones, 0 all. Returns how many were removed."""
    return writes(
        "remove_list_items",
        lambda response: response.removed_count,
        key=as_bytes(key),
        item=as_bytes(item),
        count=count,
    )


def trim(key: BytesLike, start: int = 0, stop: int | None = None) -> Operation[int]:
    """Keep only the items from `start` to `stop`, both inclusive; returns how many were removed."""
    return writes("trim_list", lambda response: response.removed_count, key=as_bytes(key), start=start, stop=stop)


def move(
    key: BytesLike,
    destination: BytesLike,
    *,
    end: End = "left",
    destination_end: End = "right",
    wait_seconds: float = 0,
) -> Operation[bytes | None]:
    """Move an item from an end to an end of a list of the same slot; returns it, None: there was none, in time."""
    return writes(
        "move_list_item",
        _item,
        key=as_bytes(key),
        destination=as_bytes(destination),
        end=_ENDS[end],
        destination_end=_ENDS[destination_end],
        wait_ms=as_wait_ms(wait_seconds),
    )


def find(
    key: BytesLike, item: BytesLike, *, rank: int = 0, count: int = 1, compared_count_max: int = 0
) -> Operation[list[int]]:
    """Return where items stand that equal this: from the `rank`-th on (below 0: from the end), `count` of them, 0: all."""
    return reads(
        "find_list_item",
        lambda response: list(response.indexes),
        key=as_bytes(key),
        item=as_bytes(item),
        rank=rank,
        count=count,
        compared_count_max=compared_count_max,
    )


def _count(response: Any) -> int:
    return int(response.item_count)


def _items(response: Any) -> list[bytes]:
    return list(response.items)


def _item(response: Any) -> bytes | None:
    return response.item if response.HasField("item") else None

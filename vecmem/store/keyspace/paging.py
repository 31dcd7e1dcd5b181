"""Pages of the items of one container, in order of their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from sortedcontainers import SortedList

from vecmem import limits
from vecmem.errors import InvalidPageTokenError, LimitExceededError
from vecmem.store.keyspace.sorting import copy_sorted
from vecmem.store.reading import decode_page_token, encode_page_token
from vecmem.store.validation import request_fingerprint

PAGE_LOOKS_MAX: Final = 10_000
"""Items looked at for one page: a few milliseconds."""
SORTED_ITEMS_MIN: Final = 1_000
"""From so many items on their order is kept; fewer are sorted for each page, in less than a millisecond."""
_FIRST: Final = b"="
"""Stands before an item in a page token, where an empty item would mean the first page."""


class ItemOrder:
    """Items in order of their bytes. It is no part of a container's state: a small one has none."""

    __slots__ = ("_sorted",)

    def __init__(self) -> None:
        self._sorted: SortedList[bytes] | None = None

    def added(self, item: bytes, items: dict[bytes, Any]) -> None:
        """Tell of a new item that is now among `items`."""
        if self._sorted is not None:
            self._sorted.add(item)
        elif len(items) >= SORTED_ITEMS_MIN:
            self._sorted = SortedList(items)

    def removed(self, item: bytes) -> None:
        """Tell of an item that is there no more."""
        if self._sorted is not None:
            self._sorted.remove(item)
            if len(self._sorted) < SORTED_ITEMS_MIN // 2:
                self._sorted = None

    def loaded(self, items: dict[bytes, Any]) -> None:
        """Tell of all items at once."""
        if len(items) >= SORTED_ITEMS_MIN:
            self._sorted = SortedList(items)

    def copy(self) -> ItemOrder:
        """One that changes by itself."""
        copied = ItemOrder()
        copied._sorted = None if self._sorted is None else copy_sorted(self._sorted)
        return copied

    def listed(self, items: dict[bytes, Any]) -> Sequence[bytes]:
        """All items, to be reached by their places."""
        return list(items) if self._sorted is None else self._sorted

    def after(self, after: bytes | None, items: dict[bytes, Any]) -> Iterable[bytes]:
        """The items behind one that may be gone, in order; None: all."""
        if self._sorted is not None:
            behind: Iterator[bytes] = self._sorted.irange(after, inclusive=(False, False))
            return self._sorted if after is None else behind
        return sorted(items if after is None else [item for item in items if item > after])


def check_page(request: Any) -> None:
    """Check `page_size` and `page_token` of a request for the items of `key`. Raises LimitExceededError, InvalidPageTokenError."""
    if request.page_size > limits.PAGE_SIZE_MAX:
        raise LimitExceededError(f"{request.page_size} is more than {limits.PAGE_SIZE_MAX}", field="page_size")
    page_start(request)


def page_start(request: Any) -> bytes | None:
    """The item that a page goes on after; None: it is the first page. Raises InvalidPageTokenError."""
    content = decode_bytes_token(request.page_token, "items", _scope(request))
    return content.removeprefix(_FIRST) if content else None


def page_end(request: Any, last: bytes) -> str:
    """The token of the page behind the one that ends with an item."""
    return encode_bytes_token("items", _scope(request), _FIRST + last)


def encode_bytes_token(kind: str, scope: list[int], after: bytes) -> str:
    """A page token that says bytes, of which each becomes one character."""
    return encode_page_token(kind, scope, after.decode("latin-1"))


def decode_bytes_token(token: str, kind: str, scope: list[int]) -> bytes:
    """The bytes that a token says; empty for the first page. Raises InvalidPageTokenError."""
    try:
        return decode_page_token(token, kind, scope).encode("latin-1")
    except UnicodeEncodeError as error:
        raise InvalidPageTokenError(f"{token[:80]!r} is not a page token", field="page_token") from error


def _scope(request: Any) -> list[int]:
    # The type of the request is in its fingerprint.
    return [request_fingerprint(type(request)(key=request.key))]

"""Lists: items in order. See proto/vecmem/v1/lists.proto; semantics are those of Redis where the names coincide."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Self

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace.container import CONTAINER_BYTES, Container
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import (
    Moment,
    Waits,
    any_key_exists,
    check_key,
    check_one_or_several,
    check_request_key,
    check_slot,
    check_value,
    check_wait,
    first_key,
    frees,
    key_exists,
    reads,
    writes,
)
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.strings import inclusive_range
from vecmem.v1 import keys_pb2
from vecmem.v1 import lists_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ITEM_BYTES = 42
"""About what an item takes beyond its own bytes: an object header and its place."""
_COMPARED_TOGETHER = 1_024
"""Items that a search takes out at once, for `list.count` to go over."""


class ListValue(Container):
    """Items in two Python lists that meet in the middle: the left half backwards, so that both ends are where appending is cheap.

    Unlike a deque, which walks to an index, it reaches any item at once. An end that has run empty takes over half of the other one: that
    takes time linear in the list, but only after as many pops.
    """

    __slots__ = ("_left", "_right")

    TYPE = keys_pb2.KEY_TYPE_LIST
    NAME = "list"

    def __init__(self, items: Iterable[bytes] = ()) -> None:
        super().__init__()
        self._left: list[bytes] = []
        self._right = list(items)
        self.size_bytes += _size_bytes(self._right)

    def __len__(self) -> int:
        return len(self._left) + len(self._right)

    def __getitem__(self, index: int) -> bytes:
        side, place = self._place(index)
        return side[place]

    def __setitem__(self, index: int, item: bytes) -> None:
        side, place = self._place(index)
        self.size_bytes += len(item) - len(side[place])
        side[place] = item

    def items(self, start: int, stop: int) -> list[bytes]:
        """Those from one index up to and without another one, 0 <= start <= stop; there may be fewer."""
        split = len(self._left)
        left = self._left[max(0, split - stop) : max(0, split - start)]
        left.reverse()
        return left + self._right[max(0, start - split) : max(0, stop - split)]

    def places(self, item: bytes, *, backwards: bool, compared_max: int = 0) -> Iterator[int]:
        """Indexes of an item, in the order of a search from an end. `compared_max` 0: all items are looked at."""
        length = len(self)
        stop = min(compared_max or length, length)
        for begin in range(0, stop, _COMPARED_TOGETHER):
            end = min(begin + _COMPARED_TOGETHER, stop)
            part = self.items(length - end, length - begin)[::-1] if backwards else self.items(begin, end)
            place = -1
            for _ in range(part.count(item)):
                place = part.index(item, place + 1)
                yield length - 1 - begin - place if backwards else begin + place

    def push(self, end: int, items: Iterable[bytes]) -> None:
        """Add items at an end, one after the other."""
        items = list(items)
        (self._left if end == api.LIST_END_LEFT else self._right).extend(items)
        self.size_bytes += _size_bytes(items)

    def peek(self, end: int, count: int) -> list[bytes]:
        """Up to so many items from an end, the outermost first."""
        length = len(self)
        if end == api.LIST_END_LEFT:
            return self.items(0, min(count, length))
        outer = self.items(max(0, length - count), length)
        outer.reverse()
        return outer

    def pop(self, end: int, items: list[bytes]) -> None:
        """Take the items that `peek` showed."""
        near, far = (self._left, self._right) if end == api.LIST_END_LEFT else (self._right, self._left)
        if len(items) > len(near):
            # What is to go and half of the rest, so that the next pops find items.
            moved = (len(far) + len(items) - len(near) + 1) // 2
            near[:0] = far[:moved][::-1]
            del far[:moved]
        del near[len(near) - len(items) :]
        self.size_bytes -= _size_bytes(items)

    def insert(self, index: int, item: bytes) -> None:
        """Add an item before that with an index; the length stands for the end."""
        split = len(self._left)
        if index < split:
            self._left.insert(split - index, item)
        else:
            self._right.insert(index - split, item)
        self.size_bytes += ITEM_BYTES + len(item)

    def keep(self, start: int, stop: int) -> None:
        """Remove all but `items(start, stop)`. Its time goes by what is removed: lists that are trimmed after every push stay cheap."""
        self.pop(api.LIST_END_RIGHT, self.peek(api.LIST_END_RIGHT, max(0, len(self) - stop)))
        self.pop(api.LIST_END_LEFT, self.peek(api.LIST_END_LEFT, start))

    def replace(self, items: list[bytes]) -> None:
        """Hold these items instead."""
        self._left = []
        self._right = items
        self.size_bytes = CONTAINER_BYTES + _size_bytes(items)

    def dump(self) -> bytes:
        """See Container."""
        return pack(self.items(0, len(self)))

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)()
        copied._left, copied._right = self._left.copy(), self._right.copy()
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """See Container."""
        return cls(unpack(content))

    def _place(self, index: int) -> tuple[list[bytes], int]:
        split = len(self._left)
        return (self._left, split - 1 - index) if index < split else (self._right, index - split)


def _size_bytes(items: list[bytes]) -> int:
    return sum(map(len, items)) + ITEM_BYTES * len(items)


def _check_end(end: int, field: str = "end") -> None:
    if end not in {api.LIST_END_LEFT, api.LIST_END_RIGHT}:
        raise InvalidArgumentError(f"{end} is no end of a list", field=field)


def _check_count(count: int, count_max: int) -> None:
    if count > count_max:
        raise LimitExceededError(f"{count} is more than {count_max}", field="count")


def _check_size(items: list[bytes], field: str) -> None:
    """Raises LimitExceededError where the items are too large for a reply."""
    size_bytes = sum(map(len, items))
    if size_bytes > limits.LIST_REPLY_BYTES_MAX:
        raise LimitExceededError(
            f"the items have {size_bytes} bytes, more than {limits.LIST_REPLY_BYTES_MAX}", field=field
        )


def _find(keyspace: Keyspace, request: Any, moment: Moment) -> ListValue | None:
    return keyspace.container(request.key, ListValue, moment.time_unix_ms)


def _from_end(index: int, length: int) -> int | None:
    """An index that may be counted from the end as one from 0 on; None: it lies beyond the list."""
    index = index + length if index < 0 else index
    return index if 0 <= index < length else None


def _check_push(request: api.PushListItemsRequest) -> None:
    check_request_key(request)
    _check_end(request.end)
    if not request.items:
        raise InvalidArgumentError("has no item", field="items")
    if len(request.items) > limits.LIST_ITEMS_PER_REQUEST_MAX:
        raise LimitExceededError(
            f"{len(request.items)} items, more than {limits.LIST_ITEMS_PER_REQUEST_MAX}", field="items"
        )
    for index, item in enumerate(request.items):
        check_value(item, f"items[{index}]")


def _push(
    keyspace: Keyspace, request: api.PushListItemsRequest, response: api.PushListItemsResponse, moment: Moment
) -> None:
    found = _find(keyspace, request, moment)
    if found is None and request.only_if_present:
        return
    value, old_size_bytes = (ListValue(), 0) if found is None else (found, found.size_bytes)
    value.push(request.end, request.items)
    keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.item_count = len(value)


def _check_pop(request: api.PopListItemsRequest) -> None:
    check_one_or_several(request)
    check_wait(request)
    _check_end(request.end)
    _check_count(request.count, limits.LIST_ITEMS_PER_REQUEST_MAX)


def _pop(
    keyspace: Keyspace, request: api.PopListItemsRequest, response: api.PopListItemsResponse, moment: Moment
) -> None:
    key, field = first_key(keyspace, request, moment)
    value = keyspace.container(key, ListValue, moment.time_unix_ms, field)
    if value is None:
        return
    items = value.peek(request.end, request.count or 1)
    _check_size(items, "count")
    moment.spend(sum(map(len, items)), "count")
    old_size_bytes = value.size_bytes
    value.pop(request.end, items)
    keyspace.change(key, value, old_size_bytes, moment.time_unix_ms)
    response.items.extend(items)
    response.item_count = len(value)
    if request.keys:
        response.key = key


def _stop(request: api.GetListRangeRequest | api.TrimListRequest) -> int:
    return request.stop if request.HasField("stop") else -1


def _get_range(
    keyspace: Keyspace, request: api.GetListRangeRequest, response: api.GetListRangeResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    start, stop = inclusive_range(request.start, _stop(request), len(value))
    if stop - start > limits.LIST_ITEMS_PER_REPLY_MAX:
        raise LimitExceededError(
            f"the range has {stop - start} items, more than {limits.LIST_ITEMS_PER_REPLY_MAX}", field="stop"
        )
    items = value.items(start, stop)
    _check_size(items, "stop")
    response.items.extend(items)
    response.item_count = len(value)


def _get_item(
    keyspace: Keyspace, request: api.GetListItemRequest, response: api.GetListItemResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    index = _from_end(request.index, len(value))
    if index is not None:
        response.item = value[index]
    response.item_count = len(value)


def _check_set_item(request: api.SetListItemRequest) -> None:
    check_request_key(request)
    check_value(request.item, "item")


def _set_item(
    keyspace: Keyspace, request: api.SetListItemRequest, response: api.SetListItemResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    index = _from_end(request.index, len(value))
    if index is not None:
        old_size_bytes = value.size_bytes
        value[index] = request.item
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
        response.written = True
    response.item_count = len(value)


def _check_insert(request: api.InsertListItemRequest) -> None:
    check_request_key(request)
    if request.side not in {api.LIST_SIDE_BEFORE, api.LIST_SIDE_AFTER}:
        raise InvalidArgumentError(f"{request.side} is no side of an item", field="side")
    check_value(request.pivot, "pivot")
    check_value(request.item, "item")


def _insert(
    keyspace: Keyspace, request: api.InsertListItemRequest, response: api.InsertListItemResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    index = next(value.places(request.pivot, backwards=False), None)
    if index is not None:
        old_size_bytes = value.size_bytes
        value.insert(index + (request.side == api.LIST_SIDE_AFTER), request.item)
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
        response.inserted = True
    response.item_count = len(value)


def _check_item(request: api.RemoveListItemsRequest | api.FindListItemRequest) -> None:
    check_request_key(request)
    check_value(request.item, "item")


def _remove(
    keyspace: Keyspace, request: api.RemoveListItemsRequest, response: api.RemoveListItemsResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    places = value.places(request.item, backwards=request.count < 0)
    removed = sorted(islice(places, min(abs(request.count) or len(value), len(value))))
    if removed:
        old_size_bytes = value.size_bytes
        items = value.items(0, len(value))
        kept: list[bytes] = []
        begin = 0
        for place in removed:
            kept += items[begin:place]
            begin = place + 1
        value.replace(kept + items[begin:])
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.removed_count = len(removed)
    response.item_count = len(value)


def _trim(keyspace: Keyspace, request: api.TrimListRequest, response: api.TrimListResponse, moment: Moment) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    length, old_size_bytes = len(value), value.size_bytes
    value.keep(*inclusive_range(request.start, _stop(request), length))
    if len(value) < length:
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.removed_count = length - len(value)
    response.item_count = len(value)


def _check_move(request: api.MoveListItemRequest) -> None:
    check_request_key(request)
    check_key(request.destination, "destination")
    check_slot([request.key, request.destination], "destination")
    _check_end(request.end)
    _check_end(request.destination_end, "destination_end")
    check_wait(request)


def _move(
    keyspace: Keyspace, request: api.MoveListItemRequest, response: api.MoveListItemResponse, moment: Moment
) -> None:
    source = _find(keyspace, request, moment)
    if source is None:
        return
    now = moment.time_unix_ms
    found = keyspace.container(request.destination, ListValue, now, "destination")
    items = source.peek(request.end, 1)
    moment.spend(len(items[0]), "key")
    old_size_bytes = source.size_bytes
    source.pop(request.end, items)
    if found is source:
        # It must not be without items in between, or it would lose its expiry.
        source.push(request.destination_end, items)
        keyspace.change(request.key, source, old_size_bytes, now)
    else:
        keyspace.change(request.key, source, old_size_bytes, now)
        destination, old_size_bytes = (ListValue(), 0) if found is None else (found, found.size_bytes)
        destination.push(request.destination_end, items)
        keyspace.change(request.destination, destination, old_size_bytes, now)
    response.item = items[0]


def _check_find(request: api.FindListItemRequest) -> None:
    _check_item(request)
    _check_count(request.count, limits.LIST_ITEMS_PER_REPLY_MAX)


def _find_item(
    keyspace: Keyspace, request: api.FindListItemRequest, response: api.FindListItemResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    places = value.places(request.item, backwards=request.rank < 0, compared_max=request.compared_count_max)
    skipped = abs(request.rank or 1) - 1
    if skipped < len(value):
        response.indexes.extend(islice(places, skipped, skipped + (request.count or 1)))


OPERATIONS = {
    "push_list_items": writes(_check_push, _push),
    "pop_list_items": frees(_check_pop, _pop, Waits(lambda response: bool(response.items), any_key_exists)),
    "get_list_range": reads(check_request_key, _get_range),
    "get_list_item": reads(check_request_key, _get_item),
    "set_list_item": writes(_check_set_item, _set_item),
    "insert_list_item": writes(_check_insert, _insert),
    "remove_list_items": frees(_check_item, _remove),
    "trim_list": frees(check_request_key, _trim),
    "move_list_item": frees(_check_move, _move, Waits(lambda response: response.HasField("item"), key_exists)),
    "find_list_item": reads(_check_find, _find_item),
}

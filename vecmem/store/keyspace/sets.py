"""Sets: members, each once. See proto/vecmem/v1/sets.proto; semantics are those of Redis where the names coincide."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sized
from itertools import islice
from typing import Final, Self

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace.container import Container
from vecmem.store.keyspace.keyspace import Keyspace
from vecmem.store.keyspace.operation import (
    REPLY_BYTES_MAX,
    Moment,
    check_key,
    check_member,
    check_members,
    check_request_key,
    check_request_keys,
    check_slot,
    frees,
    reads,
    writes,
)
from vecmem.store.keyspace.packing import pack, unpack
from vecmem.store.keyspace.paging import ItemOrder, check_page, page_end, page_start
from vecmem.v1 import keys_pb2
from vecmem.v1 import sets_pb2 as api

SET_BYTES: Final = 200
"""About what a set without members takes beyond any container: its table and its lists."""
MEMBER_OVERHEAD_BYTES: Final = 100
"""About what a member takes beyond its own bytes: an object header, its place and places in the table and the orders."""
_FRAME_BYTES_MAX: Final = 3
"""Of a member in a reply: its tag, and a length up to 1,024."""
_UINT64: Final = 2**64 - 1
_SEED_FACTOR: Final = 0xD1342543DE82EF95


class SetValue(Container):
    """Members in a list, where one can be chosen by its place, and the place of each.

    The order of the list follows from the records alone: a new member goes to the end, and the last one takes the place of one that is
    removed.
    """

    __slots__ = ("_members", "_order", "_places")

    TYPE = keys_pb2.KEY_TYPE_SET
    NAME = "set"

    def __init__(self, members: Iterable[bytes] = ()) -> None:
        super().__init__()
        self._places = {member: place for place, member in enumerate(dict.fromkeys(members))}
        self._members = list(self._places)
        self._order = ItemOrder()
        self._order.loaded(self._places)
        self.size_bytes += SET_BYTES + MEMBER_OVERHEAD_BYTES * len(self._members) + sum(map(len, self._members))

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._members)

    def __contains__(self, member: bytes) -> bool:
        return member in self._places

    def __getitem__(self, place: int) -> bytes:
        return self._members[place]

    def after(self, member: bytes | None) -> Iterator[bytes]:
        """Members behind one, in order of their bytes; None: all."""
        return iter(self._order.after(member, self._places))

    def add(self, member: bytes) -> bool:
        """Add a member; returns whether it is new."""
        if member in self._places:
            return False
        self._places[member] = len(self._members)
        self._members.append(member)
        self._order.added(member, self._places)
        self.size_bytes += MEMBER_OVERHEAD_BYTES + len(member)
        return True

    def discard(self, member: bytes) -> bool:
        """Remove a member; returns whether it was there."""
        place = self._places.pop(member, None)
        if place is None:
            return False
        last = self._members.pop()
        if place < len(self._members):
            self._members[place] = last
            self._places[last] = place
        self._order.removed(member)
        self.size_bytes -= MEMBER_OVERHEAD_BYTES + len(member)
        return True

    def dump(self) -> bytes:
        """Members in the order of the list, which decides what will be taken at random."""
        return pack(self._members)

    def copy(self) -> Self:
        """See Container."""
        copied = type(self)()
        copied._members = self._members.copy()
        copied._places = self._places.copy()
        copied._order = self._order.copy()
        copied.size_bytes, copied.version = self.size_bytes, self.version
        return copied

    @classmethod
    def load(cls, content: bytes) -> Self:
        """The set that was dumped. Raises ValueError."""
        members = unpack(content)
        loaded = cls(members)
        if not members or len(loaded) != len(members):
            raise ValueError(f"{len(members)} members, {len(loaded)} different ones")
        return loaded


def random_places(seed: int, length: int, count: int) -> Iterator[int]:
    """Places to take members from that become fewer: the first is below `length`, each further one below one less.

    Part of the on-disk semantics: a replay takes the same ones. SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
    Generators, 2014). The modulo prefers some places by less than 1 in 2^32.
    """
    state = seed & _UINT64
    for left in range(length, length - count, -1):
        state = (state + 0x9E3779B97F4A7C15) & _UINT64
        mixed = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _UINT64
        mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _UINT64
        yield (mixed ^ mixed >> 31) % left


def _find(keyspace: Keyspace, key: bytes, moment: Moment, field: str = "key") -> SetValue | None:
    return keyspace.container(key, SetValue, moment.time_unix_ms, field)


def _check_members(
    request: api.AddSetMembersRequest | api.RemoveSetMembersRequest | api.CheckSetMembersRequest,
) -> None:
    check_request_key(request)
    check_members(request.members, "members")


def _add(
    keyspace: Keyspace, request: api.AddSetMembersRequest, response: api.AddSetMembersResponse, moment: Moment
) -> None:
    found = _find(keyspace, request.key, moment)
    value = SetValue() if found is None else found
    old_size_bytes = 0 if found is None else found.size_bytes
    response.added_count = sum([value.add(member) for member in request.members])
    if response.added_count:
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)


def _remove(
    keyspace: Keyspace, request: api.RemoveSetMembersRequest, response: api.RemoveSetMembersResponse, moment: Moment
) -> None:
    found = _find(keyspace, request.key, moment)
    if found is None:
        return
    old_size_bytes = found.size_bytes
    response.removed_count = sum([found.discard(member) for member in request.members])
    if response.removed_count:
        keyspace.change(request.key, found, old_size_bytes, moment.time_unix_ms)


def _check(
    keyspace: Keyspace, request: api.CheckSetMembersRequest, response: api.CheckSetMembersResponse, moment: Moment
) -> None:
    found = _find(keyspace, request.key, moment)
    response.existing.extend(found is not None and member in found for member in request.members)


def _check_scan(request: api.ScanSetRequest) -> None:
    check_request_key(request)
    check_page(request)


def _scan(keyspace: Keyspace, request: api.ScanSetRequest, response: api.ScanSetResponse, moment: Moment) -> None:
    found = _find(keyspace, request.key, moment)
    if found is None:
        return
    response.member_count = len(found)
    page_size = request.page_size or limits.PAGE_SIZE_DEFAULT
    page = list(islice(found.after(page_start(request)), page_size + 1))
    response.members.extend(page[:page_size])
    if len(page) > page_size:
        response.next_page_token = page_end(request, page[page_size - 1])


def _check_pop(request: api.PopSetMembersRequest) -> None:
    _check_count(request, limits.MEMBERS_PER_REQUEST_MAX)


def _check_random(request: api.GetSetRandomMembersRequest) -> None:
    _check_count(request, limits.PAGE_SIZE_MAX)


def _check_count(request: api.PopSetMembersRequest | api.GetSetRandomMembersRequest, largest: int) -> None:
    check_request_key(request)
    if request.count > largest:
        raise LimitExceededError(f"{request.count} is more than {largest}", field="count")


def _pop(
    keyspace: Keyspace, request: api.PopSetMembersRequest, response: api.PopSetMembersResponse, moment: Moment
) -> None:
    found = _find(keyspace, request.key, moment)
    if found is None:
        return
    count = min(request.count or 1, len(found))
    moment.spend(count * limits.MEMBER_BYTES_MAX, "count")
    old_size_bytes = found.size_bytes
    # The version that the key is about to get is given out once only. Seeds a constant of SplitMix64 apart would give the same numbers.
    seed = (keyspace.version + 1) * _SEED_FACTOR ^ moment.time_unix_ms
    for place in random_places(seed, len(found), count):
        member = found[place]
        found.discard(member)
        response.members.append(member)
    keyspace.change(request.key, found, old_size_bytes, moment.time_unix_ms)


def _get_random(
    keyspace: Keyspace,
    request: api.GetSetRandomMembersRequest,
    response: api.GetSetRandomMembersResponse,
    moment: Moment,
) -> None:
    found = _find(keyspace, request.key, moment)
    if found is not None:
        places = random.sample(range(len(found)), min(request.count or 1, len(found)))
        response.members.extend(found[place] for place in places)


def _check_move(request: api.MoveSetMemberRequest) -> None:
    check_request_key(request)
    check_key(request.destination, "destination")
    check_slot([request.key, request.destination], "destination")
    check_member(request.member, "member")


def _move(
    keyspace: Keyspace, request: api.MoveSetMemberRequest, response: api.MoveSetMemberResponse, moment: Moment
) -> None:
    source = _find(keyspace, request.key, moment)
    if source is None:
        # As Redis, which then does not look at the destination.
        return
    destination = _find(keyspace, request.destination, moment, "destination")
    if request.member not in source:
        return
    response.moved = True
    if source is destination:
        return
    old_size_bytes = source.size_bytes
    source.discard(request.member)
    keyspace.change(request.key, source, old_size_bytes, moment.time_unix_ms)
    value = SetValue() if destination is None else destination
    old_size_bytes = 0 if destination is None else destination.size_bytes
    if value.add(request.member):
        keyspace.change(request.destination, value, old_size_bytes, moment.time_unix_ms)


def _check_combination(request: api.CombineSetsRequest | api.StoreCombinedSetsRequest) -> None:
    check_request_keys(request)
    if request.combination not in api.SetCombination.values() or not request.combination:
        raise InvalidArgumentError(f"{request.combination} is not known", field="combination")


def _check_store(request: api.StoreCombinedSetsRequest) -> None:
    check_key(request.destination, "destination")
    _check_combination(request)
    check_slot([request.destination, request.keys[0]], "destination")


def _combined(
    keyspace: Keyspace, request: api.CombineSetsRequest | api.StoreCombinedSetsRequest, moment: Moment
) -> list[bytes]:
    """Members in an order that the records decide. Raises WrongTypeError."""
    sets = _sets(keyspace, request.keys, moment)
    if request.combination == api.SET_COMBINATION_UNION:
        return list(dict.fromkeys(member for one in sets if one is not None for member in one))
    if request.combination == api.SET_COMBINATION_INTERSECTION:
        return list(_intersection(sets))
    first, *others = sets
    taken = [one for one in others if one is not None]
    return [] if first is None else [member for member in first if not any(member in one for one in taken)]


def _sets(keyspace: Keyspace, keys: Iterable[bytes], moment: Moment) -> list[SetValue | None]:
    sets = [_find(keyspace, key, moment, f"keys[{index}]") for index, key in enumerate(keys)]
    check_combined(sets)
    return sets


def check_combined(values: Iterable[Sized | None]) -> None:
    """Raises LimitExceededError where there is more to combine than an operation may, which runs in one piece."""
    count = sum(len(value) for value in values if value is not None)
    if count > limits.COMBINED_MEMBERS_MAX:
        raise LimitExceededError(
            f"the sets have {count} members together, more than {limits.COMBINED_MEMBERS_MAX}", field="keys"
        )


def _intersection(sets: list[SetValue | None]) -> Iterator[bytes]:
    present = sorted((one for one in sets if one is not None), key=len)
    if len(present) < len(sets):
        return iter(())
    smallest, *others = present
    return (member for member in smallest if all(member in one for one in others))


def _combine(
    keyspace: Keyspace, request: api.CombineSetsRequest, response: api.CombineSetsResponse, moment: Moment
) -> None:
    members = _combined(keyspace, request, moment)
    size_bytes = sum(map(len, members)) + _FRAME_BYTES_MAX * len(members)
    if size_bytes > REPLY_BYTES_MAX:
        raise LimitExceededError(
            f"the members have {size_bytes} bytes, more than {REPLY_BYTES_MAX}: store them and scan", field="keys"
        )
    response.members.extend(members)


def _store(
    keyspace: Keyspace, request: api.StoreCombinedSetsRequest, response: api.StoreCombinedSetsResponse, moment: Moment
) -> None:
    members = _combined(keyspace, request, moment)
    if members:
        keyspace.change(request.destination, SetValue(members), 0, moment.time_unix_ms)
    elif keyspace.find(request.destination, moment.time_unix_ms) is not None:
        keyspace.remove(request.destination)
    response.member_count = len(members)


def _count(
    keyspace: Keyspace,
    request: api.CountSetIntersectionRequest,
    response: api.CountSetIntersectionResponse,
    moment: Moment,
) -> None:
    shared = _intersection(_sets(keyspace, request.keys, moment))
    # A limit above every count would be more than islice takes.
    limit = min(request.limit, limits.INT64_MAX) or None
    response.count = sum(1 for _ in islice(shared, limit))


OPERATIONS = {
    "add_set_members": writes(_check_members, _add),
    "remove_set_members": frees(_check_members, _remove),
    "check_set_members": reads(_check_members, _check),
    "scan_set": reads(_check_scan, _scan),
    "pop_set_members": frees(_check_pop, _pop),
    "get_set_random_members": reads(_check_random, _get_random),
    "move_set_member": frees(_check_move, _move),
    "combine_sets": reads(_check_combination, _combine),
    "store_combined_sets": writes(_check_store, _store),
    "count_set_intersection": reads(check_request_keys, _count),
}

"""What a module of operations is made of: for each an entry of `Operation`, and the checks that several share.

`check` looks at the request alone, before anything is logged, and raises InvalidArgumentError with the path of the field. `run` does it: on
the state as it is, at a moment that came with the record, and fills the response. What it raises becomes the operation's error, and it
must have changed nothing by then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from vecmem import limits
from vecmem.errors import CrossSlotError, InvalidArgumentError, InvalidKeyError, LimitExceededError
from vecmem.slots import slot_of, slots_of
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.v1 import keys_pb2

REPLY_BYTES_MAX: Final = limits.MESSAGE_BYTES_MAX - 1024 * 1024
"""Of what one operation reads: leaves room for everything else in the message."""


@dataclass(slots=True, eq=False)
class Moment:
    """When an operation runs, and what the writes of its record may still return."""

    time_unix_ms: int
    result_bytes_left: int = limits.RESULT_BYTES_MAX

    def spend(self, size_bytes: int, field: str) -> None:
        """Count what a write is about to return of what is stored, before it changes anything. Raises LimitExceededError.

        A small request could otherwise have a result that no message and no memory holds, and so would every replay.
        """
        if size_bytes > self.result_bytes_left:
            raise LimitExceededError(
                f"returns {size_bytes} bytes, and the writes of one call return {limits.RESULT_BYTES_MAX} at most",
                field=field,
            )
        self.result_bytes_left -= size_bytes


@dataclass(frozen=True, slots=True)
class Waits:
    """How an operation waits, whose request has a `wait_ms`. Only the server waits: what is logged finds something or does not."""

    found: Callable[[Any], bool]
    """Whether a response has what was waited for."""
    ready: Callable[[Keyspace, Any, Moment], bool]
    """Whether the operation would find something, or be refused, if it ran now."""
    line: Callable[[Any], bytes] = lambda _: b""
    """Those who wait for a key take turns within a line; calls whose lines differ do not take from each other."""
    needs_no_turn: Callable[[Keyspace, Any, Moment], bool] = lambda *_: False
    """Whether what is there is for this one alone, whoever came before."""
    due_unix_ms: Callable[[Keyspace, Any, Moment], int] = lambda *_: NEVER
    """When there will be something even if nothing is changed; NEVER: only a change helps."""


Check = Callable[[Any], None]
Run = Callable[[Keyspace, Any, Any, Moment], None]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: (keyspace, request, response, moment) is what `run` takes."""

    check: Check
    run: Run
    writes: bool
    waits: Waits | None = None
    grows: bool = False
    """Whether it may make the data grow, and so is refused at the memory limit."""


def reads(check: Check, run: Run, waits: Waits | None = None) -> Operation:
    """Make an operation that changes nothing."""
    return Operation(check, run, writes=False, waits=waits)


def writes(check: Check, run: Run, waits: Waits | None = None) -> Operation:
    """Make an operation whose request is logged."""
    return Operation(check, run, writes=True, waits=waits, grows=True)


def frees(check: Check, run: Run, waits: Waits | None = None) -> Operation:
    """Make one that is logged and takes away, or adds next to nothing: it is done at the memory limit as well."""
    return Operation(check, run, writes=True, waits=waits)


def check_key(key: bytes, field: str = "key") -> None:
    """Raises InvalidKeyError, LimitExceededError."""
    if not key:
        raise InvalidKeyError("a key must not be empty", field=field)
    if len(key) > limits.KEY_BYTES_MAX:
        raise LimitExceededError(f"a key of {len(key)} bytes, more than {limits.KEY_BYTES_MAX}", field=field)


def check_request_key(request: Any) -> None:
    """Check the one key of a request."""
    check_key(request.key)


def check_keys(keys: Sequence[bytes], field: str = "keys") -> None:
    """Raises InvalidKeyError, LimitExceededError, and CrossSlotError for keys of several slots."""
    if not keys:
        raise InvalidArgumentError("names no key", field=field)
    if len(keys) > limits.KEYS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{len(keys)} keys, more than {limits.KEYS_PER_REQUEST_MAX}", field=field)
    for index, key in enumerate(keys):
        check_key(key, f"{field}[{index}]")
    check_slot(keys, field)


def check_one_or_several(request: Any) -> None:
    """Check that a request has `key` or `keys`, and these."""
    if not request.keys:
        check_key(request.key)
        return
    if request.key:
        raise InvalidArgumentError("is given beside `keys`", field="key")
    check_keys(request.keys)


def first_key(keyspace: Keyspace, request: Any, moment: Moment) -> tuple[bytes, str]:
    """The key of a request, or the first of its keys that exists, or the last one; and the path of its field."""
    for index, key in enumerate(request.keys):
        if index == len(request.keys) - 1 or keyspace.find(key, moment.time_unix_ms) is not None:
            return key, f"keys[{index}]"
    return request.key, "key"


def any_key_exists(keyspace: Keyspace, request: Any, moment: Moment) -> bool:
    """Whether there is a value under the key of a request, or under one of its keys."""
    return any(keyspace.find(key, moment.time_unix_ms) is not None for key in request.keys or [request.key])


def key_exists(keyspace: Keyspace, request: Any, moment: Moment) -> bool:
    """Whether there is a value under the key of a request."""
    return keyspace.find(request.key, moment.time_unix_ms) is not None


def check_wait(request: Any) -> None:
    """Raises LimitExceededError."""
    if request.wait_ms > limits.WAIT_MS_MAX:
        raise LimitExceededError(f"{request.wait_ms} is more than {limits.WAIT_MS_MAX}", field="wait_ms")


def check_request_keys(request: Any) -> None:
    """Check the keys of a request."""
    check_keys(request.keys)


def check_slot(keys: Sequence[bytes], field: str) -> None:
    """Raises CrossSlotError unless all keys share a slot."""
    first = slot_of(keys[0])
    if any(slot_of(key) != first for key in keys):
        slots = slots_of(keys)
        named = ", ".join(map(str, slots[:16])) + (", ..." if len(slots) > 16 else "")
        raise CrossSlotError(f"the keys belong to {len(slots)} hash slots: {named}", field=field, slots=named)


def check_value(value: bytes, field: str = "value") -> None:
    """Raises LimitExceededError."""
    if len(value) > limits.STRING_BYTES_MAX:
        raise LimitExceededError(f"has {len(value)} bytes, more than {limits.STRING_BYTES_MAX}", field=field)


def check_member(member: bytes, field: str) -> None:
    """Check a member of a set or a field of a hash. Raises LimitExceededError."""
    if len(member) > limits.MEMBER_BYTES_MAX:
        raise LimitExceededError(f"has {len(member)} bytes, more than {limits.MEMBER_BYTES_MAX}", field=field)


def check_member_count(count: int, field: str) -> None:
    """Raises InvalidArgumentError, LimitExceededError."""
    if not count:
        raise InvalidArgumentError("is empty", field=field)
    if count > limits.MEMBERS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{count} items, more than {limits.MEMBERS_PER_REQUEST_MAX}", field=field)


def check_members(members: Sequence[bytes], field: str) -> None:
    """Check members of a set or fields of a hash. Raises InvalidArgumentError, LimitExceededError."""
    check_member_count(len(members), field)
    for index, member in enumerate(members):
        check_member(member, f"{field}[{index}]")


def check_expiry(expiry: keys_pb2.Expiry, field: str = "expiry", *, keep: bool = True) -> None:
    """Raises InvalidArgumentError. `keep`: whether the expiry may stay as it is."""
    kind = expiry.WhichOneof("kind")
    if kind == "keep":
        if not keep:
            raise InvalidArgumentError("cannot be kept here", field=f"{field}.keep")
    elif kind is not None and not 1 <= getattr(expiry, kind) <= limits.TIME_MS_MAX:
        raise InvalidArgumentError(f"{getattr(expiry, kind)} is not within 1 to 2^53", field=f"{field}.{kind}")


def check_conditional_expiry(request: Any) -> None:
    """Check a required expiry and the condition it is set on. Raises InvalidArgumentError."""
    if request.expiry.WhichOneof("kind") is None:
        raise InvalidArgumentError("says no time", field="expiry")
    check_expiry(request.expiry, keep=False)
    if request.condition not in keys_pb2.ExpiryCondition.values():
        raise InvalidArgumentError(f"{request.condition} is not known", field="condition")


def expiry_condition_holds(condition: keys_pb2.ExpiryCondition.ValueType, old: int, new: int) -> bool:
    """Whether an expiry is to be replaced. `old` may be NEVER."""
    match condition:
        case keys_pb2.EXPIRY_CONDITION_NONE:
            return old == NEVER
        case keys_pb2.EXPIRY_CONDITION_SOME:
            return old != NEVER
        case keys_pb2.EXPIRY_CONDITION_LATER:
            return old != NEVER and new > old
        case keys_pb2.EXPIRY_CONDITION_EARLIER:
            return old == NEVER or new < old
        case _:
            return True


def expiry_of(expiry: keys_pb2.Expiry, keyspace: Keyspace, key: bytes, moment: Moment) -> int:
    """When a key with this expiry is removed: milliseconds since the Unix epoch, or NEVER."""
    match expiry.WhichOneof("kind"):
        case "ttl_ms":
            return moment.time_unix_ms + expiry.ttl_ms
        case "at_unix_ms":
            return expiry.at_unix_ms
        case "keep" if expiry.keep:
            return keyspace.expires_at(key) if keyspace.find(key, moment.time_unix_ms) is not None else NEVER
        case _:
            return NEVER

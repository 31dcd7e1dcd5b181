"""Counters: strings that spell numbers. Each function builds an operation for `Client.run` and `Client.pipeline`.

They raise, when they run, WrongTypeError, NotANumberError for a string that spells no number, and NumberOverflowError. `strings.get` reads
a counter, `strings.set` sets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from vecmem.v1 import counters_pb2
from vecmem_client._operations import BytesLike, Operation, as_bytes, as_expiry, writes

if TYPE_CHECKING:
    from datetime import datetime

N = TypeVar("N", int, float)
_POLICIES = {"refuse": counters_pb2.BOUND_POLICY_REFUSE, "clamp": counters_pb2.BOUND_POLICY_CLAMP}


@dataclass(frozen=True, slots=True)
class Counted(Generic[N]):
    """The counter now. `changed` False: the sum lay beyond a bound, and it was left as it was."""

    value: N
    changed: bool


def add(
    key: BytesLike,
    delta: int = 1,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    beyond: Literal["refuse", "clamp"] = "refuse",
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
) -> Operation[Counted[int]]:
    """Add to a counter of 64 bits; a key that does not exist counts as 0. The expiry is that of a counter made by this."""
    return addition("add_integer", key, delta, minimum, maximum, beyond, ttl_seconds, expires_at)


def add_float(
    key: BytesLike,
    delta: float,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    beyond: Literal["refuse", "clamp"] = "refuse",
    ttl_seconds: float | None = None,
    expires_at: datetime | None = None,
) -> Operation[Counted[float]]:
    """Add to a counter that is a double; a key that does not exist counts as 0. The expiry is that of a counter made by this."""
    return addition("add_float", key, delta, minimum, maximum, beyond, ttl_seconds, expires_at)


def addition(
    kind: str,
    key: BytesLike,
    delta: Any,
    minimum: Any,
    maximum: Any,
    beyond: str,
    ttl_seconds: float | None,
    expires_at: datetime | None,
    **place: bytes,
) -> Operation[Any]:
    """Build an addition of either kind; `place` says where in the value of the key."""
    return writes(
        kind,
        lambda response: Counted(response.value, response.changed),
        **place,
        key=as_bytes(key),
        delta=delta,
        minimum=minimum,
        maximum=maximum,
        bound_policy=_POLICIES[beyond],
        expiry_if_absent=as_expiry(ttl_seconds, expires_at),
    )

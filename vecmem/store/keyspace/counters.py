"""Counters: strings that spell numbers. See proto/vecmem/v1/counters.proto.

An integer is spelt as Redis spells it, in decimal without leading zeros; a double in the shortest form that reads back as the same one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vecmem import limits
from vecmem.errors import InvalidArgumentError, NotANumberError, NumberOverflowError
from vecmem.store.keyspace.keyspace import NEVER, Keyspace, shown
from vecmem.store.keyspace.operation import Moment, Run, check_expiry, check_request_key, expiry_of, writes
from vecmem.v1 import counters_pb2 as api
from vecmem.v1 import hashes_pb2

_FLOAT = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WHOLE_MAX = 2.0**53
"""Whole doubles up to here are spelt without a point, so that integers can be added to them."""
_BOUND_POLICIES = frozenset(api.BoundPolicy.values())
_NUMBER_BYTES_MAX = 400
"""No double needs more to be spelt, and longer texts take long to read."""

Request = (
    api.AddIntegerRequest | api.AddFloatRequest | hashes_pb2.AddHashIntegerRequest | hashes_pb2.AddHashFloatRequest
)


def integer_of(content: bytes) -> int | None:
    """The int64 that a string spells; None: it spells none."""
    if len(content) > 20 or not content.removeprefix(b"-").isdigit():
        return None
    value = int(content)
    return value if b"%d" % value == content and limits.INT64_MIN <= value <= limits.INT64_MAX else None


def float_of(content: bytes) -> float | None:
    """The finite double that a string spells; None: it spells none."""
    if len(content) > _NUMBER_BYTES_MAX or not _FLOAT.fullmatch(content):
        return None
    value = float(content)
    return value if math.isfinite(value) else None


def float_text(value: float) -> bytes:
    """The shortest spelling of a finite double."""
    return b"%d" % value if value.is_integer() and abs(value) <= _WHOLE_MAX else repr(value).encode()


def check_addition(request: Request) -> None:
    """Check a whole request but for the field of a hash. Raises InvalidArgumentError."""
    check_request_key(request)
    check_delta(request)
    if request.HasField("expiry_if_absent"):
        check_expiry(request.expiry_if_absent, "expiry_if_absent", keep=False)


def check_delta(request: Request) -> None:
    """Check what is added, and the bounds. Raises InvalidArgumentError."""
    for name in ("delta", "minimum", "maximum"):
        if not math.isfinite(getattr(request, name)):
            raise InvalidArgumentError(f"{getattr(request, name)} is not finite", field=name)
    if request.HasField("minimum") and request.HasField("maximum") and request.minimum > request.maximum:
        raise InvalidArgumentError(f"{request.minimum} is above the maximum {request.maximum}", field="minimum")
    if request.bound_policy not in _BOUND_POLICIES:
        raise InvalidArgumentError(f"{request.bound_policy} is not known", field="bound_policy")


def bounded(total: Any, request: Request) -> Any:
    """What a counter becomes whose sum is `total`; None: it is left as it is."""
    clamped = total
    if request.HasField("minimum"):
        clamped = max(clamped, request.minimum)
    if request.HasField("maximum"):
        clamped = min(clamped, request.maximum)
    return clamped if clamped == total or request.bound_policy == api.BOUND_POLICY_CLAMP else None


@dataclass(frozen=True, slots=True)
class Number:
    """A kind of number that counters have: how it is read and spelt, and which are such numbers."""

    name: str
    zero: float
    read: Callable[[bytes], Any]
    spell: Callable[[Any], bytes]
    fits: Callable[[Any], bool]


INTEGER = Number("int64", 0, integer_of, b"%d".__mod__, lambda total: limits.INT64_MIN <= total <= limits.INT64_MAX)
DOUBLE = Number("finite double", 0.0, float_of, float_text, math.isfinite)


def add(number: Number, content: bytes | None, request: Any, response: Any, subject: str, field: str) -> bytes | None:
    """Add to what a counter holds, None standing for no counter, and answer; returns the sum as it is spelt, None where a bound leaves it.

    Raises NotANumberError, naming the subject and its field, and NumberOverflowError.
    """
    before = number.zero if content is None else number.read(content)
    if before is None:
        raise NotANumberError(f"{subject} spells no {number.name}", field=field)
    total = bounded(before + request.delta, request)
    if total is None:
        response.value = before
        return None
    if not number.fits(total):
        raise NumberOverflowError(f"{before} + {request.delta} is no {number.name}", field="delta")
    response.value = total
    response.changed = True
    return number.spell(total)


def _adding(number: Number) -> Run:
    def run(keyspace: Keyspace, request: Any, response: Any, moment: Moment) -> None:
        content = keyspace.string(request.key, moment.time_unix_ms)
        total = add(number, content, request, response, f"the string under {shown(request.key)}", "key")
        if total is not None:
            _write(keyspace, request, content, total, moment)

    return run


def _write(keyspace: Keyspace, request: Request, before: bytes | None, content: bytes, moment: Moment) -> None:
    key = request.key
    if before is not None:
        expires_at = keyspace.expires_at(key)
    elif request.HasField("expiry_if_absent"):
        expires_at = expiry_of(request.expiry_if_absent, keyspace, key, moment)
    else:
        expires_at = NEVER
    keyspace.put_string(key, content, expires_at)


OPERATIONS = {
    "add_integer": writes(check_addition, _adding(INTEGER)),
    "add_float": writes(check_addition, _adding(DOUBLE)),
}

"""Rate limiters: permits that are taken and come back with time. See proto/vecmem/v1/rate_limiters.proto."""

from __future__ import annotations

from typing import Any

from vecmem import limits
from vecmem.errors import InvalidArgumentError, KeyNotFoundError
from vecmem.store.keyspace.keyspace import Keyspace, shown
from vecmem.store.keyspace.operation import Moment, check_request_key, reads, writes
from vecmem.store.keyspace.rate_limiter_value import Meter, RateLimiterValue, SlidingWindow, TokenBucket
from vecmem.v1 import rate_limiters_pb2 as api


def _check_acquire(request: api.AcquirePermitsRequest) -> None:
    check_request_key(request)
    if request.WhichOneof("definition") is None:
        raise InvalidArgumentError("names no limit: token_bucket or sliding_window", field="definition")
    _check_definition(request)


def _check_get(request: api.GetRateLimitRequest) -> None:
    check_request_key(request)
    if request.WhichOneof("definition") is not None:
        _check_definition(request)


def _check_definition(request: api.AcquirePermitsRequest | api.GetRateLimitRequest) -> None:
    kind: Any = request.WhichOneof("definition")
    definition = getattr(request, kind)
    for descriptor, number in ((field, getattr(definition, field.name)) for field in definition.DESCRIPTOR.fields):
        largest = limits.TIME_MS_MAX if descriptor.name.endswith("_ms") else limits.RATE_LIMIT_PERMITS_MAX
        if not 1 <= number <= largest:
            raise InvalidArgumentError(f"{number} is not within 1 to 2^53", field=f"{kind}.{descriptor.name}")
    if kind == "token_bucket":
        fill_ms = definition.capacity * definition.interval_ms // definition.refill_permits
        if fill_ms > limits.TIME_MS_MAX:
            raise InvalidArgumentError(
                f"{definition.capacity} permits would take {fill_ms} ms to come back, more than 2^53", field=kind
            )
    _check_cost(request.cost, _defined(request))


def _check_cost(cost: int, meter: Meter) -> None:
    if cost > meter.limit:
        raise InvalidArgumentError(f"{cost} permits are never there: the limit is {meter.limit}", field="cost")


def _defined(request: api.AcquirePermitsRequest | api.GetRateLimitRequest) -> Meter:
    """A full meter of the definition that a request has."""
    if request.WhichOneof("definition") == "token_bucket":
        bucket = request.token_bucket
        return TokenBucket(bucket.capacity, bucket.refill_permits, bucket.interval_ms)
    return SlidingWindow(request.sliding_window.limit, request.sliding_window.window_ms)


def _find(keyspace: Keyspace, key: bytes, moment: Moment) -> RateLimiterValue | None:
    return keyspace.container(key, RateLimiterValue, moment.time_unix_ms)


def _tell(
    keyspace: Keyspace,
    key: bytes,
    meter: Meter,
    cost: int,
    response: api.AcquirePermitsResponse | api.GetRateLimitResponse,
    now_unix_ms: int,
) -> None:
    """What is there, and how long until the cost, and everything, is."""
    wait_ms = meter.wait_ms(cost, now_unix_ms)
    reset_ms = max(0, meter.full_at_unix_ms - now_unix_ms)
    expires_at_unix_ms = keyspace.expires_at(key)
    if expires_at_unix_ms > now_unix_ms:
        # The key may go before: by the definition that permits were last taken by, or by hand.
        wait_ms, reset_ms = (min(each, expires_at_unix_ms - now_unix_ms) for each in (wait_ms, reset_ms))
    response.remaining = meter.remaining(now_unix_ms)
    response.retry_after_ms = wait_ms
    response.reset_after_ms = reset_ms


def _acquire(
    keyspace: Keyspace, request: api.AcquirePermitsRequest, response: api.AcquirePermitsResponse, moment: Moment
) -> None:
    now_unix_ms = moment.time_unix_ms
    cost = request.cost or 1
    found = _find(keyspace, request.key, moment)
    meter = _defined(request)
    if found is not None:
        meter = found.under(meter)
    response.allowed = meter.wait_ms(cost, now_unix_ms) == 0
    if response.allowed:
        old_size_bytes = 0 if found is None else found.size_bytes
        meter.take(cost, now_unix_ms)
        value = RateLimiterValue(meter) if found is None else found
        value.meter = meter
        value.measure()
        keyspace.change(request.key, value, old_size_bytes, now_unix_ms)
        keyspace.set_expiry(request.key, meter.full_at_unix_ms)
        cost = 0
    _tell(keyspace, request.key, meter, cost, response, now_unix_ms)


def _get(
    keyspace: Keyspace, request: api.GetRateLimitRequest, response: api.GetRateLimitResponse, moment: Moment
) -> None:
    now_unix_ms = moment.time_unix_ms
    found = _find(keyspace, request.key, moment)
    if request.WhichOneof("definition") is not None:
        meter = _defined(request) if found is None else found.under(_defined(request))
    elif found is None:
        raise KeyNotFoundError(f"no key {shown(request.key)}, and no definition in the request", field="key")
    else:
        meter = found.meter
    _check_cost(request.cost, meter)
    _tell(keyspace, request.key, meter, request.cost or 1, response, now_unix_ms)
    response.allowed = response.retry_after_ms == 0
    if isinstance(meter, TokenBucket):
        bucket = response.token_bucket
        bucket.capacity, bucket.refill_permits, bucket.interval_ms = meter.definition
    else:
        response.sliding_window.limit, response.sliding_window.window_ms = meter.definition


OPERATIONS = {
    "acquire_permits": writes(_check_acquire, _acquire),
    "get_rate_limit": reads(_check_get, _get),
}

"""Strings: bytes under keys. See proto/vecmem/v1/strings.proto; semantics are those of Redis where the names coincide."""

from __future__ import annotations

from vecmem import limits
from vecmem.errors import InvalidArgumentError, LimitExceededError
from vecmem.store.keyspace.keyspace import NEVER, VERSION_BYTES, Keyspace, version_of, wrong_type
from vecmem.store.keyspace.operation import (
    REPLY_BYTES_MAX,
    Moment,
    check_expiry,
    check_key,
    check_request_key,
    check_request_keys,
    check_slot,
    check_value,
    expiry_of,
    frees,
    reads,
    writes,
)
from vecmem.v1 import strings_pb2 as api

_SET_CONDITIONS = frozenset(api.SetCondition.values())


def _get(keyspace: Keyspace, request: api.GetStringRequest, response: api.GetStringResponse, moment: Moment) -> None:
    value = keyspace.find(request.key, moment.time_unix_ms)
    if value is None:
        return
    if not isinstance(value, bytes):
        raise wrong_type(request.key, "string", value)
    response.value = value[VERSION_BYTES:]
    response.version = version_of(value)


def _get_several(
    keyspace: Keyspace, request: api.GetStringsRequest, response: api.GetStringsResponse, moment: Moment
) -> None:
    size_bytes = 0
    for key in request.keys:
        value = keyspace.find(key, moment.time_unix_ms)
        found = response.values.add()
        size_bytes += len(value) if isinstance(value, bytes) else 0
        if size_bytes > REPLY_BYTES_MAX:
            raise LimitExceededError(f"the values have more than {REPLY_BYTES_MAX} bytes", field="keys")
        if isinstance(value, bytes):
            found.value = value[VERSION_BYTES:]
            found.version = version_of(value)


def _check_set(request: api.SetStringRequest) -> None:
    check_request_key(request)
    check_value(request.value)
    if request.HasField("expiry"):
        check_expiry(request.expiry)
    if request.condition not in _SET_CONDITIONS:
        raise InvalidArgumentError(f"{request.condition} is not known", field="condition")


def _set(keyspace: Keyspace, request: api.SetStringRequest, response: api.SetStringResponse, moment: Moment) -> None:
    key = request.key
    conditional = request.condition or request.return_previous or request.HasField("expected_version")
    if conditional:
        value = keyspace.find(key, moment.time_unix_ms)
        version = 0 if value is None else version_of(value)
        if request.return_previous and value is not None:
            if not isinstance(value, bytes):
                raise wrong_type(key, "string", value)
            moment.spend(len(value), "return_previous")
            response.previous = value[VERSION_BYTES:]
        if (
            (request.condition == api.SET_CONDITION_ABSENT and value is not None)
            or (request.condition == api.SET_CONDITION_PRESENT and value is None)
            or (request.HasField("expected_version") and request.expected_version != version)
        ):
            response.version = version
            return
    expires_at = expiry_of(request.expiry, keyspace, key, moment) if request.HasField("expiry") else NEVER
    response.version = keyspace.put_string(key, request.value, expires_at)
    response.written = True


def _check_set_several(request: api.SetStringsRequest) -> None:
    if not request.values:
        raise InvalidArgumentError("names no key", field="values")
    if len(request.values) > limits.KEYS_PER_REQUEST_MAX:
        raise LimitExceededError(f"{len(request.values)} keys, more than {limits.KEYS_PER_REQUEST_MAX}", field="values")
    for index, item in enumerate(request.values):
        check_key(item.key, f"values[{index}].key")
        check_value(item.value, f"values[{index}].value")
    check_slot([item.key for item in request.values], "values")


def _set_several(
    keyspace: Keyspace, request: api.SetStringsRequest, response: api.SetStringsResponse, moment: Moment
) -> None:
    if request.only_if_all_absent and any(
        keyspace.find(item.key, moment.time_unix_ms) is not None for item in request.values
    ):
        return
    for item in request.values:
        keyspace.put_string(item.key, item.value, NEVER)
    response.written = True


def _take(keyspace: Keyspace, request: api.TakeStringRequest, response: api.TakeStringResponse, moment: Moment) -> None:
    content = keyspace.string(request.key, moment.time_unix_ms)
    if content is not None:
        moment.spend(len(content), "key")
        keyspace.remove(request.key)
        response.value = content


def _check_append(request: api.AppendStringRequest) -> None:
    check_request_key(request)
    check_value(request.value)


def _append(
    keyspace: Keyspace, request: api.AppendStringRequest, response: api.AppendStringResponse, moment: Moment
) -> None:
    content = keyspace.string(request.key, moment.time_unix_ms)
    _write_part(keyspace, request.key, content, (content or b"") + request.value)
    response.size_bytes = len(content or b"") + len(request.value)


def _get_range(
    keyspace: Keyspace, request: api.GetStringRangeRequest, response: api.GetStringRangeResponse, moment: Moment
) -> None:
    content = keyspace.string(request.key, moment.time_unix_ms) or b""
    start, stop = inclusive_range(request.start, request.stop if request.HasField("stop") else -1, len(content))
    response.value = content[start:stop]
    response.size_bytes = len(content)


def _check_set_range(request: api.SetStringRangeRequest) -> None:
    check_request_key(request)
    end = request.offset + len(request.value)
    if end > limits.STRING_BYTES_MAX:
        raise LimitExceededError(f"ends at byte {end}, beyond {limits.STRING_BYTES_MAX}", field="offset")


def _set_range(
    keyspace: Keyspace, request: api.SetStringRangeRequest, response: api.SetStringRangeResponse, moment: Moment
) -> None:
    before = keyspace.string(request.key, moment.time_unix_ms)
    content = before or b""
    if request.value:
        head = content[: request.offset].ljust(request.offset, b"\0")
        content = head + request.value + content[request.offset + len(request.value) :]
        _write_part(keyspace, request.key, before, content)
    response.size_bytes = len(content)


def _write_part(keyspace: Keyspace, key: bytes, before: bytes | None, content: bytes) -> None:
    """Write a string that was changed in part: its expiry stays. Raises LimitExceededError."""
    if len(content) > limits.STRING_BYTES_MAX:
        raise LimitExceededError(
            f"the string would have {len(content)} bytes, more than {limits.STRING_BYTES_MAX}", field="value"
        )
    # What has expired is no longer there, nor is its expiry.
    keyspace.put_string(key, content, NEVER if before is None else keyspace.expires_at(key))


def inclusive_range(start: int, stop: int, count: int) -> tuple[int, int]:
    """Bounds as Redis counts them, both inclusive and from the end where below 0, as those of a slice of `count` items."""
    start = max(0, start + count if start < 0 else start)
    stop = stop + count if stop < 0 else stop
    return start, max(start, min(stop, count - 1) + 1)


OPERATIONS = {
    "get_string": reads(check_request_key, _get),
    "get_strings": reads(check_request_keys, _get_several),
    "set_string": writes(_check_set, _set),
    "set_strings": writes(_check_set_several, _set_several),
    "take_string": frees(check_request_key, _take),
    "append_string": writes(_check_append, _append),
    "get_string_range": reads(check_request_key, _get_range),
    "set_string_range": writes(_check_set_range, _set_range),
}

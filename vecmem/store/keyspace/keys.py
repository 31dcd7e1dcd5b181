"""What keys of every type have in common. See proto/vecmem/v1/keys.proto."""

from __future__ import annotations

from typing import Final

from vecmem import limits
from vecmem.errors import InvalidArgumentError, KeyNotFoundError, LimitExceededError
from vecmem.store.keyspace.glob import compile_glob, literal_prefix
from vecmem.store.keyspace.keyspace import (
    NEVER,
    VERSION_BYTES,
    Keyspace,
    Value,
    entry_bytes,
    shown,
    version_of,
    with_version,
)
from vecmem.store.keyspace.operation import (
    Moment,
    check_conditional_expiry,
    check_key,
    check_request_key,
    check_request_keys,
    check_slot,
    expiry_condition_holds,
    expiry_of,
    frees,
    reads,
)
from vecmem.store.keyspace.paging import decode_bytes_token, encode_bytes_token
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import keys_pb2 as api

SCAN_KEYS_MAX: Final = 10_000
SCAN_STEPS_MAX: Final = 1_000_000
"""Keys looked at for one page, and their bytes times those of the pattern: a few milliseconds."""


def _check_keys(
    keyspace: Keyspace, request: api.CheckKeysRequest, response: api.CheckKeysResponse, moment: Moment
) -> None:
    response.existing.extend(keyspace.find(key, moment.time_unix_ms) is not None for key in request.keys)


def _describe(
    keyspace: Keyspace, request: api.DescribeKeyRequest, response: api.DescribeKeyResponse, moment: Moment
) -> None:
    value = keyspace.find(request.key, moment.time_unix_ms)
    if value is None:
        return
    response.type = _type_of(value)
    response.version = version_of(value)
    response.expires_at_unix_ms = keyspace.expires_at(request.key)
    response.size = len(value) - VERSION_BYTES if isinstance(value, bytes) else value.count_at(moment.time_unix_ms)
    response.memory_bytes = entry_bytes(request.key, value)


def _delete(
    keyspace: Keyspace, request: api.DeleteKeysRequest, response: api.DeleteKeysResponse, moment: Moment
) -> None:
    for key in request.keys:
        if keyspace.find(key, moment.time_unix_ms) is not None:
            keyspace.remove(key)
            response.deleted_count += 1


def _check_rename(request: api.RenameKeyRequest) -> None:
    check_key(request.key)
    check_key(request.new_key, "new_key")
    check_slot([request.key, request.new_key], "new_key")


def _rename(keyspace: Keyspace, request: api.RenameKeyRequest, response: api.RenameKeyResponse, moment: Moment) -> None:
    key, new_key = request.key, request.new_key
    value = keyspace.find(key, moment.time_unix_ms)
    if value is None:
        raise KeyNotFoundError(f"no key {shown(key)}", field="key")
    if request.only_if_absent and keyspace.find(new_key, moment.time_unix_ms) is not None:
        return
    response.renamed = True
    if key == new_key:
        return
    expires_at = keyspace.expires_at(key)
    keyspace.remove(key)
    keyspace.put(new_key, with_version(value, keyspace.next_version()), expires_at)


def _touch(keyspace: Keyspace, request: api.TouchKeysRequest, response: api.TouchKeysResponse, moment: Moment) -> None:
    response.touched_count = sum(keyspace.find(key, moment.time_unix_ms) is not None for key in request.keys)


def _check_expire(request: api.ExpireKeyRequest) -> None:
    check_request_key(request)
    check_conditional_expiry(request)


def _expire(keyspace: Keyspace, request: api.ExpireKeyRequest, response: api.ExpireKeyResponse, moment: Moment) -> None:
    key = request.key
    if keyspace.find(key, moment.time_unix_ms) is None:
        return
    old = keyspace.expires_at(key)
    new = expiry_of(request.expiry, keyspace, key, moment)
    if expiry_condition_holds(request.condition, old, new):
        keyspace.set_expiry(key, new)
        response.changed = True


def _persist(
    keyspace: Keyspace, request: api.PersistKeyRequest, response: api.PersistKeyResponse, moment: Moment
) -> None:
    key = request.key
    if keyspace.find(key, moment.time_unix_ms) is not None and keyspace.expires_at(key) != NEVER:
        keyspace.set_expiry(key, NEVER)
        response.changed = True


def scan_scope(request: api.ScanKeysRequest) -> list[int]:
    """What a page token of a walk over keys is bound to."""
    return [request_fingerprint(api.ScanKeysRequest(pattern=request.pattern, type=request.type))]


def _scan_token(request: api.ScanKeysRequest) -> tuple[list[int], bytes]:
    """What a page token is bound to, and the key to go on after. Raises InvalidPageTokenError."""
    scope = scan_scope(request)
    return scope, decode_bytes_token(request.page_token, "keys", scope)


def _check_scan(request: api.ScanKeysRequest) -> None:
    if len(request.pattern) > limits.KEY_BYTES_MAX:
        raise LimitExceededError(
            f"a pattern of {len(request.pattern)} bytes, more than {limits.KEY_BYTES_MAX}", field="pattern"
        )
    if request.page_size > limits.PAGE_SIZE_MAX:
        raise LimitExceededError(f"{request.page_size} is more than {limits.PAGE_SIZE_MAX}", field="page_size")
    if request.type not in api.KeyType.values():
        raise InvalidArgumentError(f"{request.type} is not known", field="type")
    _scan_token(request)


def _scan(keyspace: Keyspace, request: api.ScanKeysRequest, response: api.ScanKeysResponse, moment: Moment) -> None:
    scope, after = _scan_token(request)
    prefix = literal_prefix(request.pattern)
    matches = compile_glob(request.pattern).fullmatch if request.pattern else None
    page_size = request.page_size or limits.PAGE_SIZE_DEFAULT
    steps = 0
    for count, key in enumerate(keyspace.keys_from(prefix, _behind(prefix), after=after or None), start=1):
        if (
            (matches is None or matches(key))
            and (value := keyspace.find(key, moment.time_unix_ms)) is not None
            and request.type in (api.KEY_TYPE_UNSPECIFIED, _type_of(value))
        ):
            response.keys.append(key)
        steps += len(key) * len(request.pattern)
        if len(response.keys) == page_size or count == SCAN_KEYS_MAX or steps > SCAN_STEPS_MAX:
            # Whether more follow, the next page tells.
            response.next_page_token = encode_bytes_token("keys", scope, key)
            return


def _type_of(value: Value) -> api.KeyType.ValueType:
    return api.KEY_TYPE_STRING if isinstance(value, bytes) else api.KeyType.ValueType(value.TYPE)


def _behind(prefix: bytes) -> bytes | None:
    """The first of all keys that come behind those with a prefix; None: there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


OPERATIONS = {
    "check_keys": reads(check_request_keys, _check_keys),
    "describe_key": reads(check_request_key, _describe),
    "delete_keys": frees(check_request_keys, _delete),
    "rename_key": frees(_check_rename, _rename),
    "touch_keys": reads(check_request_keys, _touch),
    "expire_key": frees(_check_expire, _expire),
    "persist_key": frees(check_request_key, _persist),
    "scan_keys": reads(_check_scan, _scan),
}

"""Actions of a history as operations of the API: how they are asked for, and what a reply says came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.support.linearizability import COUNTER, LOCK, QUEUE, REGISTER, SET, Action, Specification
from vecmem.v1 import lists_pb2, pipeline_pb2, strings_pb2, transactions_pb2

LEASE_MS: Final = 24 * 3_600_000
"""Longer than any history: leases end by release alone."""
SPECIFICATIONS: Final = {"register": REGISTER, "counter": COUNTER, "set": SET, "queue": QUEUE, "lock": LOCK}
READS: Final = frozenset({"get", "contains", "size", "members", "items", "holder"})


def kind_of(key: str) -> str:
    """What a key holds: its name ends with it."""
    return key.rsplit("-", 1)[-1]


def specifications_of(keys: Sequence[str]) -> Mapping[str, Specification]:
    return {key: SPECIFICATIONS[kind_of(key)] for key in keys}


def operation_of(action: Action) -> pipeline_pb2.Operation:
    """The operation that does an action."""
    operation = pipeline_pb2.Operation()
    key = action.key.encode()
    arguments: Any = action.arguments
    match kind_of(action.key), action.name:
        case "register", "set" | "set_if_absent" | "set_if_version":
            operation.set_string.key, operation.set_string.value = key, arguments[0].encode()
            if action.name == "set_if_absent":
                operation.set_string.condition = strings_pb2.SET_CONDITION_ABSENT
            if action.name == "set_if_version":
                operation.set_string.expected_version = arguments[1]
        case "register" | "counter", "get":
            operation.get_string.key = key
        case "register", "delete":
            operation.delete_keys.keys.append(key)
        case "counter", "add":
            operation.add_integer.key, operation.add_integer.delta = key, arguments[0]
        case "set", "add":
            operation.add_set_members.key = key
            operation.add_set_members.members.append(arguments[0].encode())
        case "set", "remove":
            operation.remove_set_members.key = key
            operation.remove_set_members.members.append(arguments[0].encode())
        case "set", "contains":
            operation.check_set_members.key = key
            operation.check_set_members.members.append(arguments[0].encode())
        case "set", "size" | "members":
            operation.scan_set.key, operation.scan_set.page_size = key, 1_000
        case "queue", "push":
            operation.push_list_items.key, operation.push_list_items.end = key, lists_pb2.LIST_END_RIGHT
            operation.push_list_items.items.append(arguments[0].encode())
        case "queue", "pop":
            operation.pop_list_items.key, operation.pop_list_items.end = key, lists_pb2.LIST_END_LEFT
        case "queue", "items":
            operation.get_list_range.key = key
        case "lock", "acquire":
            operation.acquire_lock.key, operation.acquire_lock.owner = key, arguments[0].encode()
            operation.acquire_lock.lease_ms = LEASE_MS
        case "lock", "release":
            operation.release_lock.key, operation.release_lock.owner = key, arguments[0].encode()
            operation.release_lock.fencing_token = arguments[1]
        case "lock", "holder":
            operation.describe_lock.key = key
        case other:
            raise ValueError(f"no operation does {other}")
    return operation


def condition_of(action: Action) -> transactions_pb2.Compare:
    """The comparison of a transaction that tells what `is_at_least` tells."""
    integer = transactions_pb2.CompareInteger(
        comparison=transactions_pb2.COMPARISON_GREATER_OR_EQUAL, value=action.arguments[0]
    )
    return transactions_pb2.Compare(key=action.key.encode(), integer=integer)


def answered(action: Action, reply: Any) -> Action:
    """The action with the result that a reply tells, which is that of an RPC or of an operation in a pipeline or transaction."""
    return Action(action.key, action.name, action.arguments, _result_of(action, reply))


def _result_of(action: Action, reply: Any) -> Any:
    match kind_of(action.key), action.name:
        case "register", "set":
            assert reply.written
            return reply.version
        case "register", "set_if_absent" | "set_if_version":
            return reply.written, reply.version
        case "register", "get":
            return reply.value.decode() if reply.HasField("value") else None, reply.version
        case "register", "delete":
            return reply.deleted_count == 1
        case "counter", "add":
            assert reply.changed
            return reply.value
        case "counter", "get":
            return int(reply.value) if reply.HasField("value") else 0
        case "set", "add":
            return reply.added_count == 1
        case "set", "remove":
            return reply.removed_count == 1
        case "set", "contains":
            return reply.existing[0]
        case "set", "size":
            return reply.member_count
        case "set", "members":
            assert not reply.next_page_token
            return frozenset(member.decode() for member in reply.members)
        case "queue", "push":
            return reply.item_count
        case "queue", "pop":
            return reply.items[0].decode() if reply.items else None
        case "queue", "items":
            return tuple(item.decode() for item in reply.items)
        case "lock", "release":
            return reply.released
        case "lock", "acquire":
            assert reply.acquired == (reply.holder.owner.decode() == action.arguments[0])
            assert reply.fencing_token == (reply.holder.fencing_token if reply.acquired else 0)
            return reply.holder.owner.decode(), reply.holder.fencing_token
        case "lock", "holder":
            return (reply.holder.owner.decode(), reply.holder.fencing_token) if reply.HasField("holder") else None
        case other:
            raise ValueError(f"no reply tells of {other}")

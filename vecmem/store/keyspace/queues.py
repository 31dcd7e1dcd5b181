"""Delayed queues: messages that are due at a time, delivered to one consumer at a time. See proto/vecmem/v1/queues.proto."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from vecmem import limits
from vecmem.errors import InvalidArgumentError, InvalidPageTokenError, LimitExceededError
from vecmem.store.keyspace.keyspace import NEVER, Keyspace
from vecmem.store.keyspace.operation import (
    Moment,
    Waits,
    check_request_key,
    check_value,
    check_wait,
    frees,
    reads,
    writes,
)
from vecmem.store.keyspace.paging import decode_bytes_token, encode_bytes_token
from vecmem.store.keyspace.queue_value import DEAD, HELD, WAITING, Message, Place, QueueValue
from vecmem.store.validation import request_fingerprint
from vecmem.v1 import queues_pb2 as api

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_PLACE = struct.Struct(">qQ")

ByReceipts = api.AcknowledgeMessagesRequest | api.ExtendMessagesRequest | api.ReleaseMessagesRequest


def _find(keyspace: Keyspace, request: Any, moment: Moment) -> QueueValue | None:
    return keyspace.container(request.key, QueueValue, moment.time_unix_ms)


def _check_count(items: Sequence[Any], field: str) -> None:
    if not items:
        raise InvalidArgumentError("is empty", field=field)
    _check_count_max(len(items), field)


def _check_count_max(count: int, field: str) -> None:
    if count > limits.QUEUE_MESSAGES_PER_REQUEST_MAX:
        raise LimitExceededError(f"{count} is more than {limits.QUEUE_MESSAGES_PER_REQUEST_MAX}", field=field)


def _check_time(time_ms: int, field: str, *, minimum: int = 0) -> None:
    if not minimum <= time_ms <= limits.TIME_MS_MAX:
        raise InvalidArgumentError(f"{time_ms} is not within {minimum} to 2^53", field=field)


def _check_enqueue(request: api.EnqueueMessagesRequest) -> None:
    check_request_key(request)
    _check_count(request.messages, "messages")
    for index, message in enumerate(request.messages):
        check_value(message.body, f"messages[{index}].body")
        match message.WhichOneof("due"):
            case "delay_ms":
                _check_time(message.delay_ms, f"messages[{index}].delay_ms")
            case "at_unix_ms":
                _check_time(message.at_unix_ms, f"messages[{index}].at_unix_ms", minimum=1)


def _enqueue(
    keyspace: Keyspace, request: api.EnqueueMessagesRequest, response: api.EnqueueMessagesResponse, moment: Moment
) -> None:
    now = moment.time_unix_ms
    found = _find(keyspace, request, moment)
    value, old_size_bytes = (QueueValue(), 0) if found is None else (found, found.size_bytes)
    for message in request.messages:
        # Versions only grow, whatever becomes of the key, so no id comes twice even in a queue that was empty meanwhile.
        message_id = keyspace.next_version()
        due_unix_ms = message.at_unix_ms if message.HasField("at_unix_ms") else now + message.delay_ms
        value.add(message_id, message.body, due_unix_ms, now)
        response.message_ids.append(message_id)
    keyspace.change(request.key, value, old_size_bytes, now)


def _check_receive(request: api.ReceiveMessagesRequest) -> None:
    check_request_key(request)
    _check_count_max(request.count, "count")
    _check_time(request.visibility_timeout_ms, "visibility_timeout_ms", minimum=1)
    check_wait(request)


def _is_due(keyspace: Keyspace, request: api.ReceiveMessagesRequest, moment: Moment) -> bool:
    return NEVER < _next_due_unix_ms(keyspace, request, moment) <= moment.time_unix_ms


def _next_due_unix_ms(keyspace: Keyspace, request: api.ReceiveMessagesRequest, moment: Moment) -> int:
    value = _find(keyspace, request, moment)
    return NEVER if value is None else value.next_due_unix_ms()


def _receive(
    keyspace: Keyspace, request: api.ReceiveMessagesRequest, response: api.ReceiveMessagesResponse, moment: Moment
) -> None:
    now = moment.time_unix_ms
    value = _find(keyspace, request, moment)
    if value is None:
        return
    delivered, dead, size_bytes = _choose(value, request, now)
    if delivered or dead:
        moment.spend(size_bytes, "count")
        old_size_bytes = value.size_bytes
        for message in dead:
            value.bury(message, now)
        for chosen in delivered:
            message = value.deliver(chosen, keyspace.next_version(), now + request.visibility_timeout_ms)
            response.messages.add(
                message_id=message.place[1],
                receipt=message.receipt,
                body=message.body,
                delivery_count=message.delivery_count,
                enqueued_at_unix_ms=message.enqueued_at_unix_ms,
                due_at_unix_ms=message.place[0],
            )
        keyspace.change(request.key, value, old_size_bytes, now)
    response.dead_count = len(dead)
    if next_due_unix_ms := value.next_due_unix_ms():
        response.next_due_in_ms = max(0, next_due_unix_ms - now)


def _choose(
    value: QueueValue, request: api.ReceiveMessagesRequest, now_unix_ms: int
) -> tuple[list[Message], list[Message], int]:
    """What to deliver, what to set aside, and what returning the former takes."""
    delivered: list[Message] = []
    dead: list[Message] = []
    size_bytes = body_bytes = 0
    count = request.count or 1
    for message in value.ready(None, now_unix_ms):
        if len(delivered) == count:
            break
        if request.max_deliveries and message.delivery_count >= request.max_deliveries:
            if len(dead) == limits.DEAD_MESSAGES_PER_RECEIVE_MAX:
                break
            dead.append(message)
            continue
        body_bytes += len(message.body)
        if body_bytes > limits.QUEUE_REPLY_BYTES_MAX:
            break
        size_bytes += len(message.body) + limits.QUEUE_MESSAGE_REPLY_BYTES
        delivered.append(message)
    return delivered, dead, size_bytes


def _check_receipts(request: ByReceipts) -> None:
    check_request_key(request)
    _check_count(request.receipts, "receipts")


def _with_delivered(
    keyspace: Keyspace, request: ByReceipts, told: Any, moment: Moment, do: Callable[[QueueValue, Message], None]
) -> None:
    """Do something with each message whose receipt is good, and tell for each whether it is."""
    value = _find(keyspace, request, moment)
    old_size_bytes = 0 if value is None else value.size_bytes
    changed = False
    for named in request.receipts:
        message = None if value is None else value.delivered(named.message_id, named.receipt)
        told.append(message is not None)
        if value is not None and message is not None:
            do(value, message)
            changed = True
    if value is not None and changed:
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)


def _acknowledge(
    keyspace: Keyspace,
    request: api.AcknowledgeMessagesRequest,
    response: api.AcknowledgeMessagesResponse,
    moment: Moment,
) -> None:
    _with_delivered(keyspace, request, response.acknowledged, moment, QueueValue.remove)


def _check_extend(request: api.ExtendMessagesRequest) -> None:
    _check_receipts(request)
    _check_time(request.visibility_timeout_ms, "visibility_timeout_ms", minimum=1)


def _extend(
    keyspace: Keyspace, request: api.ExtendMessagesRequest, response: api.ExtendMessagesResponse, moment: Moment
) -> None:
    due_unix_ms = moment.time_unix_ms + request.visibility_timeout_ms
    _with_delivered(
        keyspace, request, response.extended, moment, lambda value, message: value.extend(message, due_unix_ms)
    )


def _check_release(request: api.ReleaseMessagesRequest) -> None:
    _check_receipts(request)
    _check_time(request.delay_ms, "delay_ms")


def _release(
    keyspace: Keyspace, request: api.ReleaseMessagesRequest, response: api.ReleaseMessagesResponse, moment: Moment
) -> None:
    due_unix_ms = moment.time_unix_ms + request.delay_ms
    _with_delivered(
        keyspace, request, response.released, moment, lambda value, message: value.release(message, due_unix_ms)
    )


def _check_remove(request: api.RemoveMessagesRequest) -> None:
    check_request_key(request)
    _check_count(request.message_ids, "message_ids")


def _remove(
    keyspace: Keyspace, request: api.RemoveMessagesRequest, response: api.RemoveMessagesResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    length, old_size_bytes = len(value), value.size_bytes
    for message_id in request.message_ids:
        message = value.messages.get(message_id)
        if message is not None:
            value.remove(message)
    if len(value) < length:
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.removed_count = length - len(value)


def _check_redrive(request: api.RedriveMessagesRequest) -> None:
    check_request_key(request)
    if request.message_ids:
        _check_count(request.message_ids, "message_ids")
        if request.count:
            raise InvalidArgumentError("means nothing beside message_ids", field="count")
    elif not request.count:
        raise InvalidArgumentError("is 0, and there are no message_ids", field="count")
    _check_count_max(request.count, "count")
    _check_time(request.delay_ms, "delay_ms")


def _redrive(
    keyspace: Keyspace, request: api.RedriveMessagesRequest, response: api.RedriveMessagesResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    if request.message_ids:
        named = [value.messages.get(message_id) for message_id in dict.fromkeys(request.message_ids)]
        dead = [message for message in named if message is not None and message.order == DEAD]
    else:
        dead = value.first_dead(request.count)
    if dead:
        old_size_bytes = value.size_bytes
        for message in dead:
            value.redrive(message, moment.time_unix_ms + request.delay_ms)
        keyspace.change(request.key, value, old_size_bytes, moment.time_unix_ms)
    response.redriven_count = len(dead)
    response.dead_count = value.dead_count


def _scope(request: api.PeekMessagesRequest) -> list[int]:
    return [request_fingerprint(api.PeekMessagesRequest(key=request.key, state=request.state))]


def _page_start(request: api.PeekMessagesRequest) -> Place | None:
    """The place that a page goes on after; None: it is the first page. Raises InvalidPageTokenError."""
    content = decode_bytes_token(request.page_token, "messages", _scope(request))
    if not content:
        return None
    if len(content) != _PLACE.size:
        raise InvalidPageTokenError(f"{request.page_token[:80]!r} is not a page token", field="page_token")
    due_unix_ms, message_id = _PLACE.unpack(content)
    return due_unix_ms, message_id


def _check_peek(request: api.PeekMessagesRequest) -> None:
    check_request_key(request)
    if request.state not in api.QueueMessageState.values():
        raise InvalidArgumentError(f"{request.state} is not known", field="state")
    if request.page_size > limits.PAGE_SIZE_MAX:
        raise LimitExceededError(f"{request.page_size} is more than {limits.PAGE_SIZE_MAX}", field="page_size")
    _page_start(request)


def _peek(
    keyspace: Keyspace, request: api.PeekMessagesRequest, response: api.PeekMessagesResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    now = moment.time_unix_ms
    page_size = request.page_size or limits.PAGE_SIZE_DEFAULT
    body_bytes = 0
    for message in _in_state(value, request, now):
        body_bytes += len(message.body)
        if len(response.messages) == page_size or body_bytes > limits.QUEUE_REPLY_BYTES_MAX:
            last = response.messages[-1]
            place = _PLACE.pack(last.due_at_unix_ms, last.message_id)
            response.next_page_token = encode_bytes_token("messages", _scope(request), place)
            break
        response.messages.add(
            message_id=message.place[1],
            body=message.body,
            state=_state(message, now),
            delivery_count=message.delivery_count,
            enqueued_at_unix_ms=message.enqueued_at_unix_ms,
            due_at_unix_ms=message.place[0],
        )


def _in_state(value: QueueValue, request: api.PeekMessagesRequest, now_unix_ms: int) -> Iterator[Message]:
    after = _page_start(request)
    match request.state:
        case api.QUEUE_MESSAGE_STATE_READY:
            return value.ready(after, now_unix_ms)
        case api.QUEUE_MESSAGE_STATE_DELAYED:
            return value.not_due(WAITING, after, now_unix_ms)
        case api.QUEUE_MESSAGE_STATE_IN_FLIGHT:
            return value.not_due(HELD, after, now_unix_ms)
        case api.QUEUE_MESSAGE_STATE_DEAD:
            return value.dead(after)
        case _:
            return value.living(after)


def _state(message: Message, now_unix_ms: int) -> api.QueueMessageState.ValueType:
    if message.order == DEAD:
        return api.QUEUE_MESSAGE_STATE_DEAD
    if message.place[0] <= now_unix_ms:
        return api.QUEUE_MESSAGE_STATE_READY
    return api.QUEUE_MESSAGE_STATE_IN_FLIGHT if message.order == HELD else api.QUEUE_MESSAGE_STATE_DELAYED


def _describe(
    keyspace: Keyspace, request: api.DescribeQueueRequest, response: api.DescribeQueueResponse, moment: Moment
) -> None:
    value = _find(keyspace, request, moment)
    if value is None:
        return
    ready, delayed, in_flight = value.counts(moment.time_unix_ms)
    response.ready_count = ready
    response.delayed_count = delayed
    response.in_flight_count = in_flight
    response.dead_count = value.dead_count
    response.next_due_unix_ms = value.next_due_unix_ms()


OPERATIONS = {
    "enqueue_messages": writes(_check_enqueue, _enqueue),
    "receive_messages": frees(
        _check_receive,
        _receive,
        Waits(lambda response: bool(response.messages), _is_due, due_unix_ms=_next_due_unix_ms),
    ),
    "acknowledge_messages": frees(_check_receipts, _acknowledge),
    "extend_messages": frees(_check_extend, _extend),
    "release_messages": frees(_check_release, _release),
    "remove_messages": frees(_check_remove, _remove),
    "redrive_messages": frees(_check_redrive, _redrive),
    "peek_messages": reads(_check_peek, _peek),
    "describe_queue": reads(check_request_key, _describe),
}

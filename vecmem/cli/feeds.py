"""`vecmem watch`, `subscribe`, `publish` and `commit`: changes, channels and transactions.

What goes on without end is written line by line, with --json one JSON document a line; Ctrl-C ends it, and so does --count.
"""

from __future__ import annotations

import json
from typing import IO, Any

import click
from google.protobuf import json_format
from google.protobuf.message import Message

from vecmem.cli.session import Session, plain, text_of, with_session
from vecmem.v1 import transactions_pb2
from vecmem_client import Change, ChangePosition, Operation
from vecmem_client.transactions import Compare, PointStep, Step

COUNT_HELP = "End after so many."


@click.command("watch")
@click.argument("keys", nargs=-1)
@click.option("--prefix", "prefixes", multiple=True, help="All keys with this prefix; '' for all. May be repeated.")
@click.option("--collection", "collections", multiple=True, help="The points of a collection. May be repeated.")
@click.option("--after", metavar="SEQUENCE[:COUNT]", help="Go on behind a position that was shown before.")
@click.option("--earliest", is_flag=True, help="Begin with the oldest change that is retained.")
@click.option("--content", "with_content", is_flag=True, help="Tell what did each change.")
@click.option("--count", type=click.IntRange(min=1), help=COUNT_HELP)
@with_session
def watch(
    session: Session,
    *,
    keys: tuple[str, ...],
    prefixes: tuple[str, ...],
    collections: tuple[str, ...],
    after: str | None,
    earliest: bool,
    with_content: bool,
    count: int | None,
) -> None:
    """Tell what becomes of KEYS, of keys with a prefix and of the points of collections, as it happens."""
    if not keys and not prefixes and not collections:
        message = "give KEYS, --prefix or --collection"
        raise click.UsageError(message)
    if after is not None and earliest:
        message = "give one of --after and --earliest"
        raise click.UsageError(message)
    with (
        session.client() as client,
        client.watch(
            keys=keys,
            prefixes=prefixes,
            collections=collections,
            after=None if after is None else _position(after),
            earliest=earliest,
            with_content=with_content,
        ) as feed,
    ):
        start = feed.started()
        session.note(f"watching from {start.sequence}:{start.change_count}")
        for told, change in enumerate(feed, start=1):
            session.write_line(_document(change), _line(change))
            if told == count:
                return


def _position(text: str) -> ChangePosition:
    sequence, _, change_count = text.partition(":")
    if not (sequence.isdigit() and (change_count or "0").isdigit()):
        message = f"{text!r} is no position: SEQUENCE or SEQUENCE:COUNT"
        raise click.UsageError(message)
    return ChangePosition(int(sequence), int(change_count or 0))


def _document(change: Change) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": str(change.kind),
        "position": f"{change.sequence}:{change.change_count}",
        "time": change.time,
        "version": change.version,
    }
    for name in ("key", "key_type", "collection", "point_id", "point"):
        value = getattr(change, name)
        if value is not None:
            document[name] = value
    for name in ("operation", "payload_update"):
        value = getattr(change, name)
        if value is not None:
            document[name] = json_format.MessageToDict(value)
    return document


def _line(change: Change) -> str:
    subject = text_of(change.key) if change.key is not None else f"{change.collection}"
    if change.point_id is not None:
        subject = f"{change.collection}/{change.point_id}"
    line = f"{change.sequence}:{change.change_count}  {change.time.isoformat()}  {change.kind:<18} {subject}"
    content = change.operation or change.payload_update
    if content is not None:
        line += f"  {json.dumps(json_format.MessageToDict(content), ensure_ascii=False)}"
    elif change.point is not None:
        line += f"  {json.dumps(plain(change.point), ensure_ascii=False)}"
    return line


@click.command("publish")
@click.argument("channel")
@click.argument("messages", nargs=-1, required=True)
@with_session
def publish(session: Session, *, channel: str, messages: tuple[str, ...]) -> None:
    """Send MESSAGES to whoever listens to CHANNEL now."""
    with session.client() as client:
        subscriber_count = client.publish(channel, *messages)
    session.write({"subscriber_count": subscriber_count}, f"{subscriber_count} listen")


@click.command("subscribe")
@click.argument("channels", nargs=-1)
@click.option("--pattern", "patterns", multiple=True, help="Channels that match (* ? [a-c]). May be repeated.")
@click.option("--count", type=click.IntRange(min=1), help=COUNT_HELP)
@with_session
def subscribe(session: Session, *, channels: tuple[str, ...], patterns: tuple[str, ...], count: int | None) -> None:
    """Tell what is published to CHANNELS from now on."""
    if not channels and not patterns:
        message = "give CHANNELS or --pattern"
        raise click.UsageError(message)
    with session.client() as client, client.subscribe(*channels, patterns=patterns) as subscription:
        session.note("listening")
        for told, received in enumerate(subscription, start=1):
            session.write_line(received, f"{text_of(received.channel)}: {text_of(received.message)}")
            if told == count:
                return


@click.command("commit")
@click.argument("file", type=click.File("r", encoding="utf-8"))
@with_session
def commit(session: Session, *, file: IO[str]) -> None:
    """Commit the transaction in FILE (- is standard input): a vecmem.v1.CommitRequest in the JSON mapping of Protocol Buffers.

    Bytes are base64 there: {"compare": [{"key": "aw==", "exists": false}], "then": [{"operation": {"addInteger": {"key": "aw==", "delta":
    "1"}}}]}.
    """
    try:
        request = json_format.Parse(file.read(), transactions_pb2.CommitRequest())
    except json_format.ParseError as error:
        message = f"{file.name} holds no transaction: {error}"
        raise click.UsageError(message) from error
    with session.client() as client:
        result = client.commit(
            compare=[Compare(compare) for compare in request.compare],
            then=[_step(step) for step in request.then],
            otherwise=[_step(step) for step in request.otherwise],
            request_id=request.write.request_id or None,
        )
    session.write(
        {"succeeded": result.succeeded, "results": result.results},
        "then:" if result.succeeded else "otherwise:",
        *(json.dumps(one, ensure_ascii=False) for one in result.results),
    )


def _step(step: transactions_pb2.TransactionStep) -> Step:
    kind = step.WhichOneof("kind")
    if kind is None or (kind == "operation" and step.operation.WhichOneof("kind") is None):
        message = "a step of the transaction does nothing"
        raise click.UsageError(message)
    if kind == "operation":
        return Operation(str(step.operation.WhichOneof("kind")), step.operation, True, json_format.MessageToDict)
    return PointStep(step, kind, _without_header)


def _without_header(response: Message) -> dict[str, Any]:
    document: dict[str, Any] = json_format.MessageToDict(response)
    document.pop("header", None)
    return document

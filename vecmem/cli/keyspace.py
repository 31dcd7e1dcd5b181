"""`vecmem keys`, `strings` and `counters`: the key-value half.

`keys show` shows a value of any type and `keys run` runs any operation there is; what people do most has a command of its own.

Keys and values on the command line are text, taken as UTF-8. What is read and is no UTF-8 is shown as Python writes bytes, and
with --json as `{"base64": ...}`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal

import click
from google.protobuf import json_format

from vecmem.cli.session import Session, confirm, facts, grid, plain, text_of, with_session
from vecmem.errors import KeyNotFoundError
from vecmem.filesystem import write_file
from vecmem.v1 import pipeline_pb2
from vecmem_client import (
    Client,
    Operation,
    VecmemClientError,
    hashes,
    hyperloglog,
    idempotency,
    json_documents,
    lists,
    locks,
    queues,
    rate_limiters,
    sets,
    sorted_sets,
    streams,
)
from vecmem_client import counters as counter_operations
from vecmem_client import keys as key_operations
from vecmem_client import strings as string_operations

TTL_HELP = "Remove the key after so many seconds."


@click.group()
def keys() -> None:
    """What keys of every type have in common."""


@keys.command("scan")
@click.argument("pattern", default="")
@click.option(
    "--type",
    "key_type",
    default="",
    help="Only keys of this type, as describe tells it: string, hash, set, list, sorted_set, lock, rate_limiter, ...",
)
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Keys at most.")
@with_session
def scan(session: Session, *, pattern: str, key_type: str, limit: int) -> None:
    """List keys in order of their bytes, those that match PATTERN (* ? [a-c])."""
    found: list[bytes] = []
    token = ""
    with session.client() as client:
        while len(found) < limit:
            page = client.run(
                key_operations.scan(pattern, type=key_type, page_size=min(10_000, limit - len(found)), page_token=token)
            )
            found += page.keys
            token = page.next_page_token
            if not token:
                break
    session.write({"keys": found, "more": bool(token)}, grid({"key": False}, [[text_of(key)] for key in found]))
    if token:
        session.note("there may be more: raise --limit")


@keys.command("describe")
@click.argument("key")
@with_session
def describe(session: Session, *, key: str) -> None:
    """Tell the type, version, expiry and size of KEY."""
    with session.client() as client:
        found = client.run(key_operations.describe(key))
    if found is None:
        raise KeyNotFoundError(f"no key {key!r}")
    session.write(found, facts(plain(found)))


@keys.command("show")
@click.argument("key")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, help="Items at most.")
@with_session
def show(session: Session, *, key: str, limit: int) -> None:
    """Show the value of KEY, whatever its type: the beginning of it, where it has many items."""
    with session.client() as client:
        found = client.run(key_operations.describe(key))
        if found is None:
            raise KeyNotFoundError(f"no key {key!r}")
        headings, rows = _items(client, key, found.type, limit)
    names = list(headings)
    items = [dict(zip(names, row, strict=True)) for row in rows]
    told = {"type": found.type, "size": found.size, "items": items}
    if found.type == "json":
        session.write(told, *(json.dumps(row[0], ensure_ascii=False, indent=2) for row in rows))
        return
    session.write(told, grid(headings, map(_shown, rows)))
    if found.type not in {"string", "hyperloglog"} and found.size > len(rows):
        session.note(f"{len(rows):,} of {found.size:,} items")


def _items(client: Client, key: str, kind: str, limit: int) -> tuple[dict[str, bool], Sequence[tuple[object, ...]]]:
    """Columns, which of them are numbers, and up to `limit` rows of a value."""
    match kind:
        case "string":
            return {"value": False}, [(client.run(string_operations.get(key)),)]
        case "hash":
            fields = client.run(hashes.page(key, page_size=limit)).fields
            return {"field": False, "value": False}, list(fields.items())
        case "set":
            return {"member": False}, [(member,) for member in client.run(sets.page(key, page_size=limit)).members]
        case "list":
            items = client.run(lists.get_range(key, 0, limit - 1))
            return {"index": True, "item": False}, list(enumerate(items))
        case "stream":
            entries = client.run(streams.get_range(key, limit=limit)).entries
            return {"id": False, "fields": False}, [(str(each.id), each.pairs) for each in entries]
        case "delayed_queue":
            messages = client.run(queues.peek(key, page_size=limit)).messages
            if len(messages) < limit:
                messages += client.run(queues.peek(key, "dead", page_size=limit - len(messages))).messages
            rows = [(each.id, each.state, each.due_at.isoformat(), each.delivery_count, each.body) for each in messages]
            return {"id": True, "state": False, "due_at": False, "delivery_count": True, "body": False}, rows
        case "json":
            document = client.run(json_documents.document(key))
            return {"value": False}, [] if document is None else [(document.value,)]
        case "hyperloglog":
            return {"estimated_count": True}, [(client.run(hyperloglog.count([key])),)]
        case "rate_limiter":
            return {"limit": False, "remaining": True, "reset_after_seconds": True}, [_limiter(client, key)]
        case "lock":
            holder = client.run(locks.describe(key))
            held = [] if holder is None else [(holder.owner, holder.fencing_token, holder.remaining_seconds)]
            return {"owner": False, "fencing_token": True, "remaining_seconds": True}, held
        case "idempotency_key":
            work = client.run(idempotency.describe(key))
            told = [] if work is None else [(work.attempt, work.remaining_seconds, work.fingerprint, work.result)]
            return {"attempt": True, "remaining_seconds": True, "fingerprint": False, "result": False}, told
        case _:
            found = client.run(sorted_sets.get_range(key, limit=limit))
            return {"score": True, "member": False}, [(each.score, each.member) for each in found]


def _limiter(client: Client, key: str) -> tuple[object, ...]:
    found = client.run(rate_limiters.peek(key))
    match found.limit:
        case rate_limiters.TokenBucket(capacity, refill_permits, interval_seconds):
            limit = f"{capacity} at most, {refill_permits} more each {interval_seconds:g} s"
        case rate_limiters.SlidingWindow(permits, window_seconds):
            limit = f"{permits} within {window_seconds:g} s"
    return limit, found.remaining, found.reset_after_seconds


def _shown(row: tuple[object, ...]) -> list[object]:
    return [
        text_of(cell) if isinstance(cell, bytes) else plain(cell) if isinstance(cell, list) else cell for cell in row
    ]


@keys.command("run")
@click.argument("operations", nargs=-1, required=True, metavar="JSON...")
@with_session
def run(session: Session, *, operations: tuple[str, ...]) -> None:
    """Run operations as one pipeline, each a vecmem.v1.Operation in the JSON mapping of Protocol Buffers.

    Bytes are base64 there: '{"pushListItems": {"key": "aw==", "end": "LIST_END_RIGHT", "items": ["YQ=="]}}'.
    """
    parsed = [_parse(operation) for operation in operations]
    with session.client() as client:
        results = client.pipeline(parsed)
    told = [
        {"error": {"reason": result.reason, "message": result.message}}
        if isinstance(result, VecmemClientError)
        else result
        for result in results
    ]
    session.write({"results": told}, *(json.dumps(result, ensure_ascii=False) for result in told))


def _parse(text: str) -> Operation[dict[str, Any]]:
    try:
        message = json_format.Parse(text, pipeline_pb2.Operation())
    except json_format.ParseError as error:
        problem = f"{text!r} is no operation: {error}"
        raise click.UsageError(problem) from error
    kind = message.WhichOneof("kind")
    if kind is None:
        problem = f"{text!r} names no operation"
        raise click.UsageError(problem)
    writes = "write" in getattr(message, kind).DESCRIPTOR.fields_by_name
    return Operation(kind, message, writes, json_format.MessageToDict)


@keys.command("delete")
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_session
def delete(session: Session, *, names: tuple[str, ...], yes: bool) -> None:
    """Remove keys of one hash slot."""
    confirm(session, f"Delete {', '.join(names)}?", yes=yes)
    with session.client() as client:
        deleted_count = client.run(key_operations.delete(names))
    session.write({"deleted_count": deleted_count}, f"{deleted_count} deleted")


@keys.command("rename")
@click.argument("key")
@click.argument("new_key")
@click.option("--only-if-absent", is_flag=True, help="Leave everything as it is where NEW_KEY exists.")
@with_session
def rename(session: Session, *, key: str, new_key: str, only_if_absent: bool) -> None:
    """Move the value of KEY to NEW_KEY of the same hash slot."""
    with session.client() as client:
        renamed = client.run(key_operations.rename(key, new_key, only_if_absent=only_if_absent))
    session.write({"renamed": renamed}, "renamed" if renamed else f"{new_key} exists")


@keys.command("expire")
@click.argument("key")
@click.option("--ttl", "ttl_seconds", type=float, required=True, help=TTL_HELP)
@with_session
def expire(session: Session, *, key: str, ttl_seconds: float) -> None:
    """Set when KEY is removed."""
    with session.client() as client:
        changed = client.run(key_operations.expire(key, ttl_seconds=ttl_seconds))
    if not changed:
        raise KeyNotFoundError(f"no key {key!r}")
    session.write({"changed": changed}, f"goes in {ttl_seconds:g} s")


@keys.command("persist")
@click.argument("key")
@with_session
def persist(session: Session, *, key: str) -> None:
    """Take the expiry of KEY away."""
    with session.client() as client:
        changed = client.run(key_operations.persist(key))
    session.write({"changed": changed}, "stays" if changed else "it had no expiry")


@click.group()
def strings() -> None:
    """Bytes under keys."""


@strings.command("get")
@click.argument("key")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the bytes into a file.")
@with_session
def get(session: Session, *, key: str, output: Path | None) -> None:
    """Show the value of KEY."""
    with session.client() as client:
        found = client.run(string_operations.get_versioned(key))
    if found is None:
        raise KeyNotFoundError(f"no key {key!r}")
    if output is not None:
        write_file(output, [found.value])
    session.write(found, text_of(found.value))


@strings.command("set")
@click.argument("key")
@click.argument("value", required=False)
@click.option("--file", "source", type=click.File("rb"), help="Take the bytes of a file; - is standard input.")
@click.option("--ttl", "ttl_seconds", type=float, help=TTL_HELP)
@click.option("--only-if", "condition", type=click.Choice(["absent", "present"]), help="Write only then.")
@click.option("--expected-version", type=int, help="Write only if the key has this version; 0: only if it is absent.")
@with_session
def set_value(
    session: Session,
    *,
    key: str,
    value: str | None,
    source: BinaryIO | None,
    ttl_seconds: float | None,
    condition: Literal["absent", "present"] | None,
    expected_version: int | None,
) -> None:
    """Write VALUE, or a file, under KEY."""
    if (value is None) == (source is None):
        message = "give one of VALUE and --file"
        raise click.UsageError(message)
    content = source.read() if source is not None else value
    assert content is not None
    with session.client() as client:
        result = client.run(
            string_operations.set(
                key, content, ttl_seconds=ttl_seconds, condition=condition, expected_version=expected_version
            )
        )
    session.write(
        {"written": result.written, "version": result.version},
        f"{'written' if result.written else 'left as it is'}, version {result.version}",
    )


@click.group()
def counters() -> None:
    """Strings that spell numbers."""


@counters.command("add", context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("delta", type=int, default=1)
@click.option("--ttl", "ttl_seconds", type=float, help="Of a counter that this makes: remove it after so many seconds.")
@with_session
def add(session: Session, *, key: str, delta: int, ttl_seconds: float | None) -> None:
    """Add DELTA, which may be below 0, to the counter KEY."""
    with session.client() as client:
        result = client.run(counter_operations.add(key, delta, ttl_seconds=ttl_seconds))
    session.write(result, str(result.value))

"""`vecmem` as a test runs it: with a wall clock that the test can set, and with a defect where it asks for one.

    python node_entry.py serve ...

FAULTS_CLOCK names a file with the milliseconds by which the node's wall clock is wrong. FAULTS_DEFECT names a function of this module.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

from vecmem import clock
from vecmem.cli.main import main
from vecmem.log.record import LogEntry, Record
from vecmem.server import calls
from vecmem.server.routing import Call, Method, Router
from vecmem.store.shard import Shard
from vecmem.store.state_machine import COMMAND_RECORD
from vecmem.store.v1 import command_pb2


def set_clock_by(path: Path) -> None:
    def now_unix_ms(_: clock.SystemClock) -> int:
        return time.time_ns() // 1_000_000 + int(path.read_text() or "0")

    clock.SystemClock.now_unix_ms = now_unix_ms  # type: ignore[method-assign]


def ignores_its_lease() -> None:
    """A node that leads answers until it learns that another one does."""

    def check_leads(shard: Shard) -> None:
        if not shard.leads:
            raise shard._moved()

    Shard.check_leads = check_leads  # type: ignore[method-assign]
    Router.leads = lambda router: router.shard.leads  # type: ignore[method-assign]


def acknowledges_by_itself() -> None:
    """A node that follows changes its own state for whoever asks, and tells nobody."""
    check_answers, submit, at = calls.check_answers, Shard._submit, Router.at

    async def check(servicer: object, request: Any, context: calls.Context) -> None:
        shard: Shard | None = getattr(servicer, "_shard", None)
        is_write = request is not None and "write" in request.DESCRIPTOR.fields_by_name
        if not is_write or shard is None or shard.leads:
            await check_answers(servicer, request, context)

    def submit_by_itself(
        shard: Shard, command: command_pb2.Command, observer: Any = None
    ) -> tuple[asyncio.Future[command_pb2.CommandResult], int]:
        if shard.leads:
            return submit(shard, command, observer)
        command.time_unix_ms = shard.now_unix_ms()
        payload = command.SerializeToString()
        steps = shard.state.apply(LogEntry(shard.applied_sequence + 1, Record(COMMAND_RECORD, payload), 0))
        result: asyncio.Future[command_pb2.CommandResult] = asyncio.get_running_loop().create_future()
        while not result.done():
            try:
                next(steps)
            except StopIteration as stop:
                result.set_result(stop.value)
        return result, len(payload)

    async def at_itself(router: Router, method: Method, request: Any, call: Call, *where: Any, **options: Any) -> Any:
        if method.reads or router.shard.leads or not call.accepts_moved:
            return await at(router, method, request, call, *where, **options)
        return await method.direct(request, call.context)

    Router.at = at_itself  # type: ignore[method-assign]
    calls.check_answers = check
    Shard._submit = submit_by_itself  # type: ignore[method-assign]


DEFECTS = {function.__name__: function for function in (ignores_its_lease, acknowledges_by_itself)}

if __name__ == "__main__":
    set_clock_by(Path(os.environ["FAULTS_CLOCK"]))
    if defect := os.environ.get("FAULTS_DEFECT"):
        DEFECTS[defect]()
    sys.exit(main())

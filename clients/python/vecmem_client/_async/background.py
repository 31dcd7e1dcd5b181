"""Waiting, and doing something beside it again and again. The sync twin of this module is written by hand: here the two differ."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def sleep(seconds: float) -> None:
    """Wait."""
    await asyncio.sleep(seconds)


class Background:
    """A task that runs a step after some seconds, and again after as many as it returns, until it returns None or is stopped."""

    def __init__(self, step: Callable[[], Awaitable[float | None]], first_seconds: float) -> None:
        self._step = step
        self._task = asyncio.create_task(self._run(first_seconds))

    async def stop(self) -> None:
        """End it; a step that runs is cancelled."""
        self._task.cancel()
        # What a step raises is a bug here, and is not hidden.
        [outcome] = await asyncio.gather(self._task, return_exceptions=True)
        if isinstance(outcome, Exception):
            raise outcome

    async def _run(self, first_seconds: float) -> None:
        seconds: float | None = first_seconds
        while seconds is not None:
            await asyncio.sleep(seconds)
            seconds = await self._step()

"""Objects of the client, sync and asyncio, through one asynchronous face."""

from __future__ import annotations

import asyncio
import inspect

import vecmem_client
from vecmem_client import AsyncClient

LONG = 3_600.0
SECONDS_MAX = 60.0


def block(client, name, *args, **kwargs):
    """An object of the client's kind, with the asynchronous face."""
    if isinstance(client, AsyncClient):
        return getattr(vecmem_client, f"Async{name}")(client, *args, **kwargs)
    return type(client)(getattr(vecmem_client, name)(client.sync_client, *args, **kwargs))


async def done(value):
    """What is the same for both, whether it is to be awaited or not."""
    return await value if inspect.isawaitable(value) else value


async def until(condition):
    """Look again and again, for a minute at most."""
    async with asyncio.timeout(SECONDS_MAX):
        while not await done(condition()):  # noqa: ASYNC110  (nobody here sets an event)
            await asyncio.sleep(0.02)


def work_of(client, function):
    """Work as the client's kind takes it."""
    if not isinstance(client, AsyncClient):
        return function

    async def work():
        return function()

    return work

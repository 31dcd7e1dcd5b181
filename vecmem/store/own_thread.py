"""Blocking work beside the event loop, in threads that nobody else holds.

The loop's default executor will not do: the native gRPC engine parks every stream whose client does not read in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


async def in_own_thread(function: Callable[P, R], *arguments: P.args, **named: P.kwargs) -> R:
    """Call a function in a thread made for it, a tenth of a millisecond; when this is cancelled it runs on to its end."""
    executor = ThreadPoolExecutor(1, "vecmem-work")
    try:
        return await asyncio.wrap_future(executor.submit(function, *arguments, **named))
    finally:
        executor.shutdown(wait=False)

"""Waiting, and doing something beside it again and again. The asyncio twin of this module is written by hand: here the two differ."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def sleep(seconds: float) -> None:
    """Wait."""
    time.sleep(seconds)


class Background:
    """A thread that runs a step after some seconds, and again after as many as it returns, until it returns None or is stopped."""

    def __init__(self, step: Callable[[], float | None], first_seconds: float) -> None:
        self._step = step
        self._stopped = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(first_seconds,), name="vecmem-lease", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, after the step that runs."""
        self._stopped.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self, first_seconds: float) -> None:
        seconds: float | None = first_seconds
        try:
            while seconds is not None and not self._stopped.wait(seconds):
                seconds = self._step()
        except Exception as error:  # noqa: BLE001  (a bug here, which `stop` tells of)
            self._failure = error

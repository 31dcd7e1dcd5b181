"""Takes checkpoints of a running shard without stalling it: a forked child writes the image, the parent serves on.

The fork is the snapshot: the child has the whole state as it was between two records, at the cost of copying page tables, and of
the pages that change while it writes. The child loads back what it wrote, collection by collection, before it exits; the parent
compares the running CRC with the log's and publishes. A child never outlives its parent.

Chosen over saving in process, where hnswlib holds the interpreter lock while it writes the whole graph (docs/architecture.md has
the measurements).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path

from vecmem.errors import CheckpointError, VecmemError
from vecmem.filesystem import remove_directory, write_durably
from vecmem.log import checkpoints
from vecmem.log.checkpoints import CheckpointStore
from vecmem.store import image, recovery
from vecmem.store.own_thread import in_own_thread
from vecmem.store.state_machine import StateMachine

CHECKPOINTS_KEPT = 2
"""The newest may turn out damaged; the one before it and the log between them stand in for it."""
CHILD_NICENESS = 10
"""Nobody waits for a checkpoint; calls are served beside it."""
_ERROR_FILE = "error.txt"
_PR_SET_PDEATHSIG = 1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CheckpointReport:
    """What was published and what it cost. `stall_ms`: how long the event loop stood for the fork."""

    sequence: int
    size_bytes: int
    duration_ms: float
    stall_ms: float


class ForkedImage:
    """A child that writes the image of a state. Made between two records, with no maintenance under way."""

    def __init__(self, store: CheckpointStore, state: StateMachine, sequence: int, running_crc: int) -> None:
        """Raises CheckpointError when the system lets no directory or process be made."""
        self._began = time.perf_counter()
        self._store = store
        self._sequence = sequence
        self._running_crc = running_crc
        try:
            self._temporary = store.begin(sequence)
            with warnings.catch_warnings():
                # Python warns that threads do not survive a fork. The child needs none of them: it writes files and exits.
                warnings.simplefilter("ignore", DeprecationWarning)
                parent = os.getpid()
                began = time.perf_counter()
                self._pid = os.fork()
        except OSError as error:
            raise CheckpointError(f"the checkpoint at sequence {sequence} could not be begun: {error}") from error
        if self._pid == 0:
            _run_child(state, self._temporary, sequence, running_crc, parent)
        self.stall_ms = (time.perf_counter() - began) * 1e3

    def abandon(self) -> None:
        """End the child; `publish` then fails, unless the child was done already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    async def publish(self) -> CheckpointReport:
        """Wait for the child and publish what it wrote. Raises CheckpointError; then nothing was published."""
        try:
            _, status = await in_own_thread(os.waitpid, self._pid, 0)
        except asyncio.CancelledError:
            self.abandon()
            raise
        return await in_own_thread(self._publish, status)

    def _publish(self, status: int) -> CheckpointReport:
        try:
            if status:
                raise CheckpointError(self._failure(status))
            manifest = checkpoints.load_manifest(self._temporary)
            if (manifest.sequence, manifest.running_crc) != (self._sequence, self._running_crc):
                raise CheckpointError(f"the image is of sequence {manifest.sequence}, not {self._sequence}")
            self._store.publish(self._temporary)
        except (OSError, VecmemError) as error:
            remove_directory(self._temporary)
            raise CheckpointError(f"the checkpoint at sequence {self._sequence} was not written: {error}") from error
        return CheckpointReport(
            sequence=self._sequence,
            size_bytes=sum(file.size_bytes for file in manifest.files.values()),
            duration_ms=(time.perf_counter() - self._began) * 1e3,
            stall_ms=self.stall_ms,
        )

    def _failure(self, status: int) -> str:
        error_file = self._temporary / _ERROR_FILE
        told = error_file.read_text().strip() if error_file.exists() else ""
        if not told:
            return f"its process ended with {os.waitstatus_to_exitcode(status)}"
        _logger.error("the process that wrote a checkpoint failed:\n%s", told)
        return told.splitlines()[-1]


def _run_child(state: StateMachine, temporary: Path, sequence: int, running_crc: int, parent: int) -> None:
    """Write, load back, exit. Never returns; runs none of the parent's cleanup."""
    code = 1
    try:
        # A collection would run finalizers of objects whose threads are not here, and copy pages for nothing.
        gc.disable()
        # A crash in a library says where on standard error; the parent sees only the signal.
        faulthandler.enable()
        os.nice(CHILD_NICENESS)
        _die_with(parent)
        metadata = image.write_image(state, temporary)
        manifest = checkpoints.seal(temporary, sequence=sequence, running_crc=running_crc, metadata=metadata)
        recovery.check_image(manifest, state)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it was, the parent is told and the child ends here
        write_durably(temporary / _ERROR_FILE, [traceback.format_exc().encode()])
    finally:
        os._exit(code)


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

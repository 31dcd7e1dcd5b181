"""Named places in the code where a crash test may end the process. Without VECMEM_FAILPOINT they do nothing.

`VECMEM_FAILPOINT=NAME` kills the process (SIGKILL) the first time it comes to that place, `NAME:N` the Nth time.
An unknown name is refused when this module is imported, so that a test cannot silently kill nothing.
"""

from __future__ import annotations

import os
import signal
from typing import Final, Literal, get_args

from vecmem.errors import ConfigurationError

Failpoint = Literal[
    "before_tail_repair",
    "before_append_write",
    "before_append_sync",
    "after_append_sync",
    "before_memtable_flush",
    "after_memtable_flush",
    "before_checkpoint_seal",
    "after_checkpoint_seal",
    "before_checkpoint_rename",
    "after_checkpoint_rename",
]
ClusterFailpoint = Literal[
    "after_upload_chunk",
    "before_upload_check",
    "before_upload_publish",
    "after_upload_publish",
    "before_published_trim",
    "after_download_chunk",
    "after_download",
    "before_restore_rename",
    "after_restore_rename",
    "before_restored_log",
    "before_restored_checkpoints",
    "before_restored_cleanup",
]
ENVIRONMENT_VARIABLE: Final = "VECMEM_FAILPOINT"


def _parse(value: str) -> tuple[str, int]:
    name, _, count = value.partition(":")
    if name and (name not in get_args(Failpoint) + get_args(ClusterFailpoint) or not (count or "1").isdecimal()):
        raise ConfigurationError(f"{ENVIRONMENT_VARIABLE}={value}: no such failpoint")
    return name, int(count or "1")


_name, _hits_left = _parse(os.environ.get(ENVIRONMENT_VARIABLE, ""))


def reach(name: Failpoint | ClusterFailpoint) -> None:
    """Say that the code has come to a place; ends the process there if a test asked for it."""
    if name == _name:
        _kill_when_due()


def _kill_when_due() -> None:
    global _hits_left  # noqa: PLW0603 - one counter a process
    _hits_left -= 1
    if _hits_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

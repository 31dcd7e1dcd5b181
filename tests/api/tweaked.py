"""A real server with some of its constants changed, for limits that are otherwise too large to reach in a test."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.server import ServerProcess


class TweakedServer(ServerProcess):
    """`tweaks` are Python statements that run before the server's modules are imported, but for those they import."""

    def __init__(self, data_dir: Path, tweaks: str, *, arguments: Sequence[str] = ()) -> None:
        super().__init__(data_dir, arguments=arguments)
        self._tweaks = tweaks

    def command(self) -> list[str]:
        """Return the command line."""
        start = "import sys; from vecmem.cli.main import main; sys.exit(main())"
        return [sys.executable, "-c", f"{self._tweaks}; {start}", *super().command()[1:]]

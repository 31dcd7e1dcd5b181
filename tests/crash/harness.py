"""A child process under tests/crash/unsynced.c, and the power cut that follows its death.

    machine = Machine(tmp_path)                    # machine.root is the directory that the power cut will hit
    child = machine.start([sys.executable, ...])   # any program: it writes below machine.root
    ...
    child.kill(); child.wait()
    machine.power_cut()                            # machine.root now holds what was synced, and nothing else

The same works for a whole server: start it, talk to it, kill it, cut, start it again on the same root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("unsynced.c")
REPOSITORY = Path(__file__).parents[2]


def compile_shim(directory: Path) -> Path:
    """Compile the shim into a directory, once; skips the test where there is no C compiler."""
    library = directory / "unsynced.so"
    if library.exists():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("the dropped-bytes tests compile a C shim, and there is no C compiler (cc, gcc) here")
    command = [compiler, "-O1", "-Wall", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return library


class Machine:
    """A directory that remembers what was synced. `root` holds the files; `command` steers the shim while a child runs."""

    def __init__(self, directory: Path) -> None:
        directory = directory.resolve()
        self._library = compile_shim(directory)
        self._notes = directory / "notes"
        self._control = directory / "control"
        self.root = directory / "root"
        self.root.mkdir()
        self._notes.mkdir()

    def start(self, command: list[str], **environment: str) -> subprocess.Popen[str]:
        """Start a child with pipes for its input and output; its errors go to the test's."""
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=self.environment(**environment),
        )

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment that puts a process under the shim."""
        return {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "UNSYNCED_ROOT": str(self.root),
            "UNSYNCED_NOTES": str(self._notes),
            "UNSYNCED_CONTROL": str(self._control),
            **extra,
        }

    def command(self, text: str) -> None:
        """Make the shim fail or delay calls from now on (see unsynced.c); empty text: no longer."""
        if text:
            temporary = self._control.with_suffix(".new")
            temporary.write_text(text)
            temporary.replace(self._control)
        else:
            self._control.unlink(missing_ok=True)

    def power_cut(self) -> None:
        """Rebuild root from what was synced. Every process that writes there must have ended."""
        started = self._notes / "root"
        if started.exists():  # otherwise whoever was started died before it had changed anything (see unsynced.c)
            lost = self.root.with_name("lost")
            shutil.rmtree(lost, ignore_errors=True)
            self.root.rename(lost)
            self._rebuild(self.root, started.read_text())
        shutil.rmtree(self._notes)
        self._notes.mkdir()

    def _rebuild(self, directory: Path, key: str) -> None:
        directory.mkdir()
        listing = self._notes / "listing" / key
        for line in listing.read_text().splitlines() if listing.exists() else []:
            kind, child, name = line.split(" ", 2)
            if kind == "d":
                self._rebuild(directory / name, child)
                continue
            content = self._notes / "content" / child
            if content.exists():
                shutil.copyfile(content, directory / name)
            else:
                (directory / name).touch()

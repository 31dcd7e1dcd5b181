"""The one format of every benchmark: what was measured, on which machine, with which parameters."""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Figure:
    """One measured value. `system` is vecmem or a peer's name, so that a ratio is two rows of one run."""

    system: str
    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    cores: int
    cpu: str
    memory_gib: float


def this_machine() -> Machine:
    """Cores that this process may use, the CPU's name, and memory."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text(encoding="utf-8").splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cores, cpu, round(memory_bytes / 1024**3, 1))


@dataclass
class Report:
    """One run of a scenario."""

    scenario: str
    parameters: dict[str, Any]
    figures: list[Figure] = field(default_factory=list)
    version: str = field(default_factory=lambda: version("vecmem"))
    started_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: Machine = field(default_factory=this_machine)

    def add(self, system: str, name: str, value: float, unit: str) -> None:
        """Take one figure, and tell it on standard error as it comes."""
        self.figures.append(Figure(system, name, float(value), unit))
        note(f"{system:>8}  {name:<28} {readable(value):>12} {unit}")


def percentile_ms(seconds: Sequence[float], percentile: float) -> float:
    """A percentile of durations in seconds, in milliseconds; between two samples it is interpolated."""
    return float(np.percentile(np.asarray(seconds), percentile)) * 1e3


def readable(value: float) -> str:
    """Four digits, or all the whole ones."""
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def note(text: str) -> None:
    """Tell progress."""
    print(text, file=sys.stderr, flush=True)


def print_report(report: Report, *, as_json: bool) -> None:
    """Write the report to standard output."""
    if as_json:
        order = ("scenario", "version", "started_at", "machine", "parameters", "figures")
        document = asdict(report)
        print(json.dumps({key: document[key] for key in order}))
        return
    table = Table(
        title=f"{report.scenario}: vecmem {report.version}, {report.machine.cores} cores, {report.machine.cpu}"
    )
    for heading in ("system", "figure"):
        table.add_column(heading)
    table.add_column("value", justify="right")
    table.add_column("unit")
    for figure in report.figures:
        table.add_row(figure.system, figure.name, readable(figure.value), figure.unit)
    Console().print(table)


def stop_on(signal_number: int, _frame: object) -> NoReturn:
    """A signal handler that ends the run through its `finally`s."""
    message = f"signal {signal_number}"
    raise KeyboardInterrupt(message)

"""`python -m bench SCENARIO [--json] [--plot DIR]`: run one scenario and report its figures.

With --json one JSON object goes to standard output and nothing else; progress and tables go to standard error. With --plot
pictures of the figures and a page with all of them, index.html, go into a directory.
A scenario is a module with `add_arguments(parser)` and `run(arguments) -> Report`.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol

from bench import demo, plots
from bench.report import note, print_report, stop_on
from bench.scenarios import ann, churn, cluster, filters, ingest, kernel, kv, memory, peers, rpc, scale, scaling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.report import Report


class Scenario(Protocol):
    """What a scenario module offers."""

    __doc__: str | None

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its own options."""

    def run(self, arguments: argparse.Namespace) -> Report:
        """Measure. Progress goes to standard error."""


SCENARIOS: Mapping[str, Scenario] = {
    "ann": ann,
    "filter": filters,
    "churn": churn,
    "ingest": ingest,
    "memory": memory,
    "peers": peers,
    "scale": scale,
    "kernel": kernel,
    "rpc": rpc,
    "kv": kv,
    "cluster": cluster,
    "scaling": scaling,
}


def main() -> int:
    """Run what the command line says. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="scenario", required=True)
    for name, scenario in SCENARIOS.items():
        command = commands.add_parser(name, description=scenario.__doc__)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--json", action="store_true", help="write one JSON object to standard output")
        command.add_argument("--plot", type=Path, metavar="DIR", help="write pictures and index.html there")
        scenario.add_arguments(command)
    demo.add_arguments(commands.add_parser("demo", description=demo.__doc__))
    arguments = parser.parse_args()
    # SIGTERM ends a run as Ctrl-C does: by way of the `finally`s that stop its servers.
    signal.signal(signal.SIGTERM, stop_on)
    try:
        if arguments.scenario == "demo":
            return demo.run(arguments)
        if arguments.plot and importlib.util.find_spec("matplotlib") is None:
            parser.error("--plot needs matplotlib: pip install 'vecmem[bench]'")
        report = SCENARIOS[arguments.scenario].run(arguments)
        if arguments.plot:
            pictures = plots.write(report, arguments.plot)
            note(f"{len(pictures)} pictures: {arguments.plot / 'index.html'}")
        print_report(report, as_json=arguments.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def entry() -> NoReturn:
    """Run and exit."""
    sys.exit(main())


if __name__ == "__main__":
    entry()

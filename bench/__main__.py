"""`python -m bench SCENARIO [--json]`: run one scenario and report its figures.

With --json one JSON object goes to standard output and nothing else; progress and tables go to standard error.
A scenario is a module with `add_arguments(parser)` and `run(arguments) -> Report`.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, NoReturn, Protocol

from bench import demo
from bench.report import print_report, stop_on
from bench.scenarios import ann

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.report import Report


class Scenario(Protocol):
    """What a scenario module offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare its own options."""

    def run(self, arguments: argparse.Namespace) -> Report:
        """Measure. Progress goes to standard error."""


SCENARIOS: Mapping[str, Scenario] = {"ann": ann}


def main() -> int:
    """Run what the command line says. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="scenario", required=True)
    for name, scenario in SCENARIOS.items():
        command = commands.add_parser(name, description=sys.modules[f"bench.scenarios.{name}"].__doc__)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        command.add_argument("--json", action="store_true", help="write one JSON object to standard output")
        scenario.add_arguments(command)
    demo.add_arguments(commands.add_parser("demo", description=demo.__doc__))
    arguments = parser.parse_args()
    # SIGTERM ends a run as Ctrl-C does: by way of the `finally`s that stop its servers.
    signal.signal(signal.SIGTERM, stop_on)
    try:
        if arguments.scenario == "demo":
            return demo.run(arguments)
        print_report(SCENARIOS[arguments.scenario].run(arguments), as_json=arguments.json)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def entry() -> NoReturn:
    """Run and exit."""
    sys.exit(main())


if __name__ == "__main__":
    entry()

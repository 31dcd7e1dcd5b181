"""The files of deploy/three-machines, started as they are: each machine is a loopback address of its own.

Only addresses and paths are replaced; ports and everything else stay as the guide has them.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

import grpc
import pytest

from bench.server import dying_with_parent
from tests.cluster.support import get
from tests.support.server import ServerProcess
from vecmem.cluster.nats_server import server_program
from vecmem.config import load_settings
from vecmem.log.nats_durability import fetch_page
from vecmem_client import Client, RetryPolicy, VecmemClientError, counters, strings

FILES = Path(__file__).resolve().parents[2] / "deploy" / "three-machines"
SECONDS_MAX = 60.0
LOOK_SECONDS = 0.05

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127.0.0.0/8 on loopback")


class Machine:
    """A NATS server and a node, from the two files of one machine."""

    def __init__(self, files: Path, root: Path, network: str) -> None:
        self._root = root
        root.mkdir()
        for name in ("nats-server.conf", "vecmem.toml"):
            text = (files / name).read_text()
            for old, new in (("10.0.0.", network), ("/var/lib", str(root))):
                assert old in text
                text = text.replace(old, new)
            (root / name).write_text(text)
        self.settings = load_settings(config_file=root / "vecmem.toml")
        self.node = Node(root / "vecmem.toml", self.settings.data_dir)
        self._nats: subprocess.Popen[bytes] | None = None

    def start_nats(self) -> None:
        with (self._root / "nats.log").open("ab") as log:
            command = [server_program(), "--config", str(self._root / "nats-server.conf")]
            self._nats = subprocess.Popen(dying_with_parent(command), stdout=log, stderr=log)

    def kill_nats(self) -> None:
        if self._nats is not None:
            self._nats.kill()
            self._nats.wait()
            self._nats = None

    def kill(self) -> None:
        """As if the power was cut."""
        if self.node.running:
            self.node.kill()
        self.kill_nats()

    def stop(self) -> None:
        if self.node.running:
            self.node.stop()
        self.kill_nats()

    def lose_disk(self) -> None:
        """A new machine has the files of the old one, and nothing else."""
        for name in ("nats", "vecmem"):
            (self._root / name).rename(self._root / f"{name}.lost")

    def nats_page(self, path: str) -> dict:
        host, _, _ = self.settings.listen.rpartition(":")
        return fetch_page(f"http://{host}:8222{path}")


class Node(ServerProcess):
    """`vecmem serve --config FILE`, and nothing further on the command line."""

    def __init__(self, config_file: Path, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._config_file = config_file

    def command(self) -> list[str]:
        program = str(Path(sys.executable).with_name("vecmem"))
        return dying_with_parent([program, "--json", "serve", "--config", str(self._config_file)])


class Machines:
    """Three of them; at the end of the block none of their processes is left."""

    def __init__(self, directory: Path) -> None:
        network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}."
        self.all = [Machine(FILES / f"machine-{n}", directory / f"machine-{n}", network) for n in (1, 2, 3)]

    @property
    def addresses(self) -> str:
        return ",".join(machine.settings.listen for machine in self.all)

    def client(self) -> Client:
        retry = RetryPolicy(attempts_max=1_000, backoff_seconds_max=0.2)
        return Client(self.addresses, retry=retry, timeout_seconds=SECONDS_MAX)

    def command(self, *arguments: str) -> str:
        program = str(Path(sys.executable).with_name("vecmem"))
        command = [program, "--address", self.addresses, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_MAX, check=True).stdout

    def leading(self) -> Machine:
        """The machine whose node leads, as its member says; waits until there is one."""
        found: list[Machine] = []

        def look() -> bool:
            for machine in self.all:
                if machine.node.running:
                    with Client(machine.settings.listen) as client:
                        member = client.server_info().member
                    if member is not None and member.leads:
                        found.append(machine)
            return bool(found)

        wait_until(look)
        return found[0]

    def __enter__(self) -> Self:
        try:
            for machine in self.all:
                machine.start_nats()
            for machine in self.all:
                machine.node.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.all:
            machine.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(int(SECONDS_MAX / LOOK_SECONDS)):
        if condition():
            return
        threading.Event().wait(LOOK_SECONDS)
    raise AssertionError("it did not come to be")


def applied_on(machine: Machine) -> int:
    with Client(machine.settings.listen) as client:
        return client.server_info().log_last_sequence


@pytest.fixture
def machines(tmp_path):
    with Machines(tmp_path) as running:
        yield running


def test_a_machine_may_die_and_another_one_too_once_it_is_back(machines):
    with machines.client() as client:
        assert client.run(counters.add("n")).value == 1
        for value in (2, 4):
            lost = machines.leading()
            lost.kill()
            assert client.run(counters.add("n")).value == value
            assert lost.settings.node in [machine.settings.node for machine in machines.all]
            lost.start_nats()
            lost.node.start()
            wait_until(lambda lost=lost: lost.nats_page("/healthz").get("status") == "ok")
            assert client.run(counters.add("n")).value == value + 1


@pytest.mark.long
def test_a_rolling_restart_as_the_guide_has_it(machines):
    with machines.client() as client:
        for value, machine in enumerate(machines.all):
            if machines.leading() is machine:
                machines.command("cluster", "handover")
            machine.stop()
            machine.start_nats()
            machine.node.start()
            assert machines.command("--address", machine.settings.listen, "health") == "SERVING\n"
            wait_until(lambda machine=machine: machine.nats_page("/healthz").get("status") == "ok")
            assert client.run(counters.add("n")).value == value + 1
    assert machines.command("cluster", "status").count("machine-") == 3


def test_a_new_machine_takes_the_place_of_a_dead_one(machines):
    with machines.client() as client:
        client.run(counters.add("n"))
        lost = machines.leading()
        lost.kill()
        client.run(counters.add("n"))
        lost.lose_disk()
        lost.start_nats()
        lost.node.start()
        client.run(counters.add("n"))
        written = client.last_position.sequence
        wait_until(lambda: applied_on(lost) >= written)
        wait_until(lambda: lost.nats_page("/healthz").get("status") == "ok")
        # It counts for the majority again: with it, another one may die.
        other = next(machine for machine in machines.all if machine is not lost)
        other.kill()
        assert client.run(counters.add("n")).value == 4


def test_the_copied_directory_of_a_node_is_a_backup_that_serves_alone(machines, tmp_path):
    with machines.client() as client:
        client.run(counters.add("n", 7))
        written = client.last_position.sequence
        follower = next(machine for machine in machines.all if machine is not machines.leading())
        wait_until(lambda: applied_on(follower) >= written)
        follower.node.stop()
        shutil.copytree(follower.settings.data_dir, tmp_path / "backup")
        follower.node.start()
    program = str(Path(sys.executable).with_name("vecmem"))
    verify = [program, "verify", str(tmp_path / "backup")]
    assert subprocess.run(verify, capture_output=True, timeout=SECONDS_MAX, check=False).returncode == 0
    with ServerProcess(tmp_path / "backup") as alone, Client(alone.address) as client:
        assert client.run(counters.add("n", 0)).value == 7


@pytest.mark.long
def test_without_a_majority_of_nats_only_reads_that_may_be_old_go_on(machines):
    with machines.client() as client:
        client.run(strings.set("k", "v"))
        written = client.last_position.sequence
    for machine in machines.all:
        wait_until(lambda machine=machine: applied_on(machine) >= written)
    for machine in machines.all[:2]:
        machine.kill_nats()

    def refused(*operations) -> bool:
        with Client(machines.addresses, retry=RetryPolicy(attempts_max=1), timeout_seconds=2.0) as client:
            try:
                for operation in operations:
                    client.run(operation)
            except VecmemClientError as error:
                return error.code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        return False

    wait_until(lambda: refused(strings.get("k")))
    assert refused(strings.set("k", "w"))
    for machine in machines.all:
        with grpc.insecure_channel(machine.settings.listen) as channel:
            assert get(channel, b"k", anywhere=True)[0] == b"v"
    machines.all[0].start_nats()
    with machines.client() as client:
        client.run(strings.set("k", "x"))
        assert client.run(strings.get("k")) == b"x"

"""A full server that evicts under kill -9: what is gone was evicted by a record, and every replay takes the same keys away.

Writers set keys in pipelines under request ids, and send them again after a crash. All rounds use one data directory; checkpoints are taken
all the time and the log is kept whole, so that each round ends with two replays: from the checkpoint and from the first record. `--rounds N` and
`--seed S` choose another length and repeat a run.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.crash.traffic import CALL_SECONDS_MAX, Connection, Traffic, TrafficWriter, seed_of
from tests.store.support import dump
from tests.support.fixtures import later
from tests.support.server import ServerProcess
from vecmem.log.rocks_verify import verify_rocks_log
from vecmem.store.keyspace.keyspace import VERSION_BYTES
from vecmem.store.recovery import recover, replay
from vecmem.store.state_machine import StateMachine
from vecmem.store.v1 import command_pb2
from vecmem.v1 import pipeline_pb2, pipeline_pb2_grpc

LIMIT_BYTES = 300_000
PIPELINE = 40
ROUNDS = 4


class Setter(TrafficWriter):
    """Sets keys that nobody else does, a pipeline at a time, and knows what it was told to have set."""

    def __init__(self, number: int, seed: int) -> None:
        super().__init__()
        self.acknowledged: dict[bytes, bytes] = {}
        self.pending: pipeline_pb2.PipelineRequest | None = None
        self._rng = random.Random(seed)
        self._number = number
        self._requests = 0

    def step(self, connection: Connection) -> None:
        if self.pending is None:
            self._requests += 1
            self.pending = pipeline_pb2.PipelineRequest()
            self.pending.write.request_id = f"{self._number}-{self._requests}"
            for place in self._rng.sample(range(2_000), PIPELINE):
                asked = self.pending.operations.add().set_string
                asked.key = b"%d-%d" % (self._number, place)
                asked.value = b"%d %s" % (self._requests, b"x" * self._rng.randrange(1_000))
                if self._rng.random() < 0.5:
                    asked.expiry.ttl_ms = 10**9 + self._rng.randrange(10**6)
        stub = pipeline_pb2_grpc.PipelineServiceStub(connection.channel)
        reply = stub.Pipeline(self.pending, timeout=CALL_SECONDS_MAX)
        assert all(result.set_string.written for result in reply.results), reply.results[0]
        self.acknowledged |= {one.set_string.key: one.set_string.value for one in self.pending.operations}
        self.pending = None


def _check(data_dir: Path, setters: list[Setter]) -> int:
    """Compare two replays and what the setters know; returns how many keys were evicted so far."""
    recovered = recover(data_dir)
    state, again = recovered.state, StateMachine()
    evicted: dict[bytes, int] = {}
    written: dict[bytes, int] = {}
    try:
        for entry in recovered.log.read(1):
            command = command_pb2.Command.FromString(entry.record.payload)
            for key in command.evict_keys.keys:
                evicted[key] = entry.sequence
            for one in command.run_operations.operations:
                written[one.set_string.key] = entry.sequence
            replay(again, entry)
    finally:
        recovered.log.close()
    assert dump(again) == dump(state)
    for setter in setters:
        unsure = () if setter.pending is None else {one.set_string.key for one in setter.pending.operations}
        for key, value in setter.acknowledged.items():
            found = state.keyspace.values.get(key)
            if found is None:
                assert evicted.get(key, 0) > written[key], f"{key!r} is gone, and was not evicted"
            elif key not in unsure:
                assert found[VERSION_BYTES:] == value
    return len(evicted)


@pytest.mark.parametrize("policy", ["lru", later("volatile-lru"), later("volatile-ttl")])
def test_whenever_the_server_dies_only_evicted_keys_are_gone(
    tmp_path: Path, pytestconfig: pytest.Config, policy: str
) -> None:
    rng = random.Random(seed_of(pytestconfig))
    # Half of the keys expire: more than there is room for would be refused by volatile policies, so that they have room for the other half.
    limit_bytes = LIMIT_BYTES if policy == "lru" else 12 * LIMIT_BYTES
    arguments = ["--memory-limit-bytes", str(limit_bytes), "--eviction-policy", policy]
    arguments += ["--checkpoint-log-bytes", "200000", "--checkpoint-idle-seconds", "0.2"]
    setters = [Setter(number, rng.randrange(2**32)) for number in range(3)]
    evicted_counts = [0]
    with ServerProcess(tmp_path / "data", arguments=arguments) as server:
        for _ in range(pytestconfig.getoption("--rounds", default=None) or ROUNDS):
            with Connection(server.address) as connection:
                traffic = Traffic(setters, connection)
                # Not before this round has evicted something.
                while not connection.info().evicted_key_count and not any(setter.error for setter in setters):
                    time.sleep(0.02)
                time.sleep(rng.uniform(0.0, 0.4))
                server.kill()
                traffic.end()
            assert verify_rocks_log(server.data_dir / "log").damage == []
            evicted_counts.append(_check(server.data_dir, setters))
            server.start()
            with Connection(server.address) as connection:
                # Each pipeline under way, and half a percent, may be on top.
                assert connection.info().data_memory_bytes < limit_bytes + len(setters) * PIPELINE * 1_400 + 65_536
    assert evicted_counts[1] > 0
    assert evicted_counts[-1] > evicted_counts[1]

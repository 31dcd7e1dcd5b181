"""A delayed queue under kill -9: no message that its producer knows of is lost, and each is acknowledged exactly once.

All rounds use one data directory, and checkpoints are taken all the time. `--rounds N` and `--seed S` choose another length and repeat a run.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.queue_workload import KEY, Consumer, Ledger, Producer, Worker, finish
from tests.crash.traffic import CALL_SECONDS_MAX, Connection, seed_of, work_through_deaths
from tests.support.server import ServerProcess
from vecmem.v1 import keys_pb2, keys_pb2_grpc, queues_pb2, queues_pb2_grpc

ARGUMENTS = ["--checkpoint-log-bytes", "5000", "--log-retention-bytes", "0", "--checkpoint-idle-seconds", "0.2"]
ROUNDS = 8


def workers_of(ledger: Ledger, rng: random.Random) -> list[Worker]:
    producers = [Producer(f"producer{number}", ledger, rng.randrange(2**32)) for number in range(2)]
    return [*producers, *(Consumer(f"consumer{number}", ledger, rng.randrange(2**32)) for number in range(3))]


def test_each_message_is_acknowledged_exactly_once_whenever_the_server_dies(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(seed_of(pytestconfig))
    ledger = Ledger()
    workers = workers_of(ledger, rng)
    rounds = pytestconfig.getoption("--rounds", default=None) or ROUNDS
    with ServerProcess(tmp_path / "data", arguments=ARGUMENTS) as server:
        ledger.events += work_through_deaths(server, workers, rng, rounds)
        with Connection(server.address) as connection:
            finish(ledger, workers, connection)
            described = keys_pb2_grpc.KeyServiceStub(connection.channel).DescribeKey(
                keys_pb2.DescribeKeyRequest(key=KEY), timeout=CALL_SECONDS_MAX
            )
            assert described.type == keys_pb2.KEY_TYPE_UNSPECIFIED, "an empty queue is no key"
    print(f"{len(ledger.enqueued)} messages", dict(ledger.events))
    expected = ("delivered again", "acknowledged too late", "pending", "from a checkpoint")
    # What happens in one run is chance; a run in which next to nothing does says nothing.
    happened = sum(bool(ledger.events[event]) for event in expected)
    assert rounds < ROUNDS or happened >= 2, "too little has happened to tell"


@pytest.mark.parametrize("fault", ["lost", "twice", "again"])
def test_the_check_notices_messages_that_are_lost_there_twice_or_delivered_again(tmp_path: Path, fault: str) -> None:
    """Canary: a message vanishes, one is added again by nobody, and one that was acknowledged comes back."""
    ledger = Ledger()
    workers = workers_of(ledger, random.Random(7))
    with ServerProcess(tmp_path / "data") as server, Connection(server.address) as connection:
        stub = queues_pb2_grpc.QueueServiceStub(connection.channel)
        producer, consumer = workers[0], Consumer("careful", ledger, seed=1, careful=True)
        producer.step(connection)
        body, message_id = next(iter(ledger.enqueued.items()))
        match fault:
            case "lost":
                removed = stub.RemoveMessages(queues_pb2.RemoveMessagesRequest(key=KEY, message_ids=[message_id]))
                assert removed.removed_count == 1
            case "twice":
                stub.EnqueueMessages(queues_pb2.EnqueueMessagesRequest(key=KEY, messages=[{"body": body}]))
            case _:
                while body not in ledger.acknowledged:
                    consumer.step(connection)
                ledger.last_receipts[body] += 1  # as a delivery by a server that has forgotten would
        found = {"lost": "are lost", "twice": "there twice", "again": "after it had been"}[fault]
        with pytest.raises(AssertionError, match=found):
            finish(ledger, workers, connection)

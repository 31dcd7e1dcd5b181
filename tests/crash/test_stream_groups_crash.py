"""A stream and its group under kill -9: no entry that its producer knows of is lost, and each is acknowledged exactly once.

All rounds use one data directory, and checkpoints are taken all the time. `--rounds N` and `--seed S` choose another length and repeat a run.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.stream_workload import GROUP, KEY, Consumer, Ledger, Producer, Worker, check, create, finish, parts
from tests.crash.traffic import CALL_SECONDS_MAX, Connection, seed_of, work_through_deaths
from tests.support.server import ServerProcess
from vecmem.v1 import streams_pb2, streams_pb2_grpc

ARGUMENTS = ["--checkpoint-log-bytes", "5000", "--log-retention-bytes", "0", "--checkpoint-idle-seconds", "0.2"]
ROUNDS = 8


def workers_of(ledger: Ledger, rng: random.Random) -> list[Worker]:
    producers = [Producer(f"producer{number}", ledger, rng.randrange(2**32)) for number in range(2)]
    return [*producers, *(Consumer(f"consumer{number}", ledger, rng.randrange(2**32)) for number in range(4))]


def test_each_entry_is_delivered_and_acknowledged_exactly_once_whenever_the_server_dies(
    tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    rng = random.Random(seed_of(pytestconfig))
    ledger = Ledger()
    workers = workers_of(ledger, rng)
    rounds = pytestconfig.getoption("--rounds", default=None) or ROUNDS
    with ServerProcess(tmp_path / "data", arguments=ARGUMENTS) as server:
        with Connection(server.address) as connection:
            create(connection)
        ledger.events += work_through_deaths(server, workers, rng, rounds)
        with Connection(server.address) as connection:
            finish(ledger, workers, connection)
    print(f"{len(ledger.appended)} entries", dict(ledger.events))
    expected = ("delivered again", "claimed", "acknowledged by another one", "pending", "from a checkpoint")
    # What happens in one run is chance; a run in which next to nothing does says nothing.
    happened = sum(bool(ledger.events[event]) for event in expected)
    assert rounds < ROUNDS or happened >= 2, "too little has happened to tell"


@pytest.mark.parametrize("fault", ["lost", "twice", "undelivered", "again", "unacknowledged"])
def test_the_check_notices_what_has_gone_wrong(tmp_path: Path, fault: str) -> None:
    """Canary: an entry vanishes, one is appended again, one goes to nobody, and one that was acknowledged is pending, or only gone."""
    ledger = Ledger()
    workers = workers_of(ledger, random.Random(7))
    named = {"key": KEY, "group": GROUP}
    with ServerProcess(tmp_path / "data") as server, Connection(server.address) as connection:
        stub = streams_pb2_grpc.StreamServiceStub(connection.channel)
        create(connection)
        for _ in range(3):
            workers[0].step(connection)
        if fault == "undelivered":
            stub.SetStreamGroupPosition(streams_pb2.SetStreamGroupPositionRequest(**named, at_end=True))
        if fault == "unacknowledged":
            read = streams_pb2.ReadStreamGroupRequest(**named, consumer=b"nobody", count=1)
            [entry] = stub.ReadStreamGroup(read, timeout=CALL_SECONDS_MAX).entries
            ledger.note_delivered(entry)
            stub.AcknowledgeStreamEntries(streams_pb2.AcknowledgeStreamEntriesRequest(**named, ids=[entry.id]))
        if fault in ("undelivered", "unacknowledged"):
            with pytest.raises(AssertionError, match={"undelivered": "to nobody", "unacknowledged": "neither"}[fault]):
                finish(ledger, workers, connection)
            return
        finish(ledger, workers, connection)
        body, (time_unix_ms, sequence) = next(iter(ledger.appended.items()))
        entry_id = streams_pb2.StreamId(time_unix_ms=time_unix_ms, sequence=sequence)
        match fault:
            case "lost":
                stub.DeleteStreamEntries(streams_pb2.DeleteStreamEntriesRequest(key=KEY, ids=[entry_id]))
            case "twice":
                pair = streams_pb2.StreamField(field=b"body", value=body)
                stub.AppendStreamEntry(streams_pb2.AppendStreamEntryRequest(key=KEY, fields=[pair]))
            case _:
                stub.SetStreamGroupPosition(streams_pb2.SetStreamGroupPositionRequest(**named))
                read = streams_pb2.ReadStreamGroupRequest(**named, consumer=b"again")
                assert parts(stub.ReadStreamGroup(read).entries[0].id) == (time_unix_ms, sequence)
        with pytest.raises(
            AssertionError, match={"lost": "are lost", "twice": "there twice", "again": "were ack"}[fault]
        ):
            check(ledger, connection)

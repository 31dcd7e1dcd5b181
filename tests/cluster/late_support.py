"""A shard whose log was trimmed: what it holds, what is published of it, and how to damage that."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from tests.cluster.support import SECONDS_MAX, Cluster, get
from tests.support.api import Api, connect, params, point
from tests.support.nats import ask_jetstream, send
from tests.support.server import ServerProcess
from vecmem.cluster.published_checkpoints import PublishedCheckpoints, Upload
from vecmem.cluster.replicated import published_checkpoints
from vecmem.config import Settings
from vecmem.v1 import (
    common_pb2,
    counters_pb2,
    counters_pb2_grpc,
    strings_pb2,
    strings_pb2_grpc,
    watch_pb2,
    watch_pb2_grpc,
)

STREAM = "vecmem-vecmem-0"
BUCKET = f"{STREAM}-checkpoints"
ARGUMENTS = ["--checkpoint-log-bytes", "20000", "--checkpoint-idle-seconds", "0.2", "--log-retention-bytes", "0"]
"""Checkpoints often, and a log that is trimmed as soon as it may be."""
KEY_COUNT = 20


def until(condition: Callable[[], Any], what: str = "") -> None:
    """Wait for what other processes bring about."""
    deadline = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.05)


class Writing:
    """Writes keys, counts and points, each call under a request id, by way of the node that leads."""

    def __init__(self, seed: int = 1) -> None:
        self._rng = random.Random(seed)
        self.count = 0
        self.repeatable: list[tuple[counters_pb2.AddIntegerRequest, int]] = []
        """Requests and the value that each was answered with."""
        self.sequence = 0

    def step(self, node: ServerProcess) -> None:
        """Write a little of everything."""
        with grpc.insecure_channel(node.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            api = Api(channel)
            if not self.count:
                api.create("c", params(4, common_pb2.METRIC_COSINE))
            self.count += 1
            ids = [f"p{self._rng.randrange(200)}" for _ in range(8)]
            vectors = [[self._rng.random() for _ in range(4)] for _ in ids]
            api.upsert("c", [point(name, vector) for name, vector in dict(zip(ids, vectors, strict=True)).items()])
            key = b"k%d" % (self.count % KEY_COUNT)
            strings_pb2_grpc.StringServiceStub(api.channel).SetString(
                strings_pb2.SetStringRequest(key=key, value=self._rng.randbytes(4_000)), timeout=SECONDS_MAX
            )
            adding = counters_pb2.AddIntegerRequest(
                key=b"n", delta=self.count, write=common_pb2.WriteOptions(request_id=f"r{self.count}")
            )
            reply = counters_pb2_grpc.CounterServiceStub(api.channel).AddInteger(adding, timeout=SECONDS_MAX)
            self.repeatable.append((adding, reply.value))
            self.sequence = reply.header.position.sequence

    def until(self, node: ServerProcess, condition: Callable[[], Any]) -> None:
        """Write until something has happened."""
        deadline = time.monotonic() + SECONDS_MAX
        while not condition():
            assert time.monotonic() < deadline, condition
            self.step(node)
            time.sleep(0.02)

    def check_repeats(self, node: ServerProcess) -> None:
        """What was written is not written again."""
        with connect(node.address) as api:
            for request, value in self.repeatable:
                reply = counters_pb2_grpc.CounterServiceStub(api.channel).AddInteger(request, timeout=SECONDS_MAX)
                assert reply.value == value


def content_of(node: ServerProcess, sequence: int = 0) -> dict[str, Any]:
    """Points and keys of a node, whether it leads or not, as soon as it has come to a sequence."""
    read = common_pb2.ReadOptions(preference=common_pb2.READ_PREFERENCE_ANY)
    read.min_position.sequence = sequence
    whole = common_pb2.VectorSelector(all=True)
    with connect(node.address) as api:
        keys = [b"n", *(b"k%d" % number for number in range(KEY_COUNT))]
        return {
            "keys": {key: get(api.channel, key, anywhere=True, sequence=sequence)[0] for key in keys},
            "points": [found.SerializeToString() for found in api.scroll("c", with_vectors=whole, read=read)],
        }


def changes_of(node: ServerProcess) -> list[bytes]:
    """The changes that a node still tells, from the oldest on."""
    request = watch_pb2.WatchRequest(earliest=True, heartbeat_ms=100)
    request.targets.add(key_prefix=b"")
    request.targets.add(collection="c")
    found: list[bytes] = []
    with connect(node.address) as api:
        feed = watch_pb2_grpc.WatchServiceStub(api.channel).Watch(request, timeout=SECONDS_MAX)
        for number, response in enumerate(feed):
            if number and not response.changes:
                return found
            found += [change.SerializeToString(deterministic=True) for change in response.changes]
    raise AssertionError("the feed ended")


def log_first_sequence(node: ServerProcess) -> int:
    """Where a node's own copy begins; 0: it holds nothing yet, behind a checkpoint."""
    with connect(node.address) as api:
        return api.info().log_first_sequence


@contextmanager
def bucket_of(cluster: Cluster) -> Iterator[PublishedCheckpoints]:
    """What the cluster has published."""
    settings = Settings(
        cluster=",".join(cluster.nats.urls),
        cluster_monitoring=",".join(cluster.nats.monitoring_urls),
        log_replicas=len(cluster.nats.servers),
    )
    with published_checkpoints(settings) as published:
        assert published is not None
        yield published


def uploads_of(cluster: Cluster) -> list[Upload]:
    """The published checkpoints, newest first."""
    with bucket_of(cluster) as published:
        return list(published.newest_first())


def first_sequence(cluster: Cluster) -> int:
    """Of the log in NATS."""
    while True:
        first = ask_jetstream(cluster.nats, f"STREAM.INFO.{STREAM}")["state"]["first_seq"]
        with contextlib.suppress(AssertionError):  # trimmed meanwhile
            message = ask_jetstream(cluster.nats, f"STREAM.MSG.GET.{STREAM}", {"seq": first})["message"]
            headers = base64.b64decode(message["hdrs"]).decode().split("\r\n")
            return next(int(line.partition(":")[2]) for line in headers if line.startswith("Vecmem-First-Sequence"))


def is_trimmed(cluster: Cluster) -> bool:
    """Whether records are gone from the log in NATS."""
    return bool(ask_jetstream(cluster.nats, f"STREAM.INFO.{STREAM}")["state"]["first_seq"] > 1)


def damage(cluster: Cluster, upload: Upload, what: str = "FILES") -> None:
    """Change a byte in an object's first chunk, as long as it was, so that only its content tells."""
    token = base64.urlsafe_b64encode(f"{upload.name}/{what}".encode()).decode()
    subject, bucket = f"$O.{BUCKET}.C.{token}", f"OBJ_{BUCKET}"
    count = next(
        iter(
            ask_jetstream(cluster.nats, f"STREAM.INFO.{bucket}", {"subjects_filter": subject})["state"][
                "subjects"
            ].values()
        )
    )
    chunks = []
    sequence = 0
    for _ in range(count):
        request = {"next_by_subj": subject, "seq": sequence + 1}
        message = ask_jetstream(cluster.nats, f"STREAM.MSG.GET.{bucket}", request)["message"]
        sequence = message["seq"]
        chunks.append(base64.b64decode(message["data"]))
    ask_jetstream(cluster.nats, f"STREAM.PURGE.{bucket}", {"filter": subject})
    middle = len(chunks[0]) // 2
    chunks[0] = chunks[0][:middle] + bytes([chunks[0][middle] ^ 1]) + chunks[0][middle + 1 :]
    for chunk in chunks:
        answer = send(cluster.nats, subject, chunk)
        assert "error" not in answer, json.dumps(answer)


def hung(node: ServerProcess) -> ServerProcess:
    """A node that does nothing until it gets SIGCONT."""
    node.send_signal(signal.SIGSTOP)
    return node

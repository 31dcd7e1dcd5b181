"""The package as a whole: its names, its twins, its independence of the server, its README."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vecmem_client
import vecmem_client.langchain
from vecmem import errors
from vecmem.server.error_table import status_code
from vecmem_client._errors import _Tables

CLIENT = Path(__file__).resolve().parent.parent

NAMES = {
    "AsyncSubscription", "Subscription", "ChannelMessage", "MemoryLimitError", "SlowConsumerError",
    "AsyncTopic", "AsyncTopicDelivery", "AsyncWatch", "Topic", "TopicDelivery", "TopicMessage",
    "Change", "ChangeKind", "ChangePosition", "InvalidTopologyError", "NotInClusterError", "TopologyConflictError", "Watch",
    "AsyncClient", "AsyncDelivery", "AsyncIdempotency", "AsyncLeaderboard", "AsyncLock", "AsyncQueue",
    "AsyncRateLimiter", "AsyncSessionStore", "BulkProgress", "BulkResult", "CallCancelledError",
    "ChangesNotRetainedError", "CheckpointError", "CheckpointInfo", "Client", "ClientClosedError", "Collection",
    "CollectionDamagedError", "CollectionExistsError", "CollectionNotFoundError", "CollectionStats", "Condition",
    "CorruptionError", "CrossSlotError", "DataLossError", "DeadlineExceededError", "DeleteResult", "Delivery",
    "DimensionMismatchError", "Exclude", "Explanation", "Field", "FilterLike", "Flat", "GraphCode", "Hit", "Hits",
    "Hnsw", "Idempotency", "InternalError", "InvalidArgumentError", "InvalidFilterError", "InvalidIdError",
    "InvalidKeyError", "InvalidPageTokenError", "InvalidPayloadError", "InvalidVectorError", "KeyNotFoundError",
    "KeyspaceDamagedError", "Leaderboard", "LimitExceededError", "Lock", "LockHeldError", "LockLostError",
    "LogConflictError", "MemberInfo", "Metric", "MixedScoresError", "MovedError", "NotANumberError", "NotFoundError", "NumberOverflowError",
    "Operation", "OverloadedError", "PayloadIndexStats", "PayloadLike", "PayloadType", "Point", "PointNotFoundError",
    "Position", "PositionAheadError", "ProgressBar", "Query", "QueryPlan", "Queue", "RateLimitedError", "RateLimiter",
    "RecoveryInfo", "RequestIdReusedError", "ResourceExhaustedError", "RetryPolicy", "ServerInfo", "SessionStore",
    "ShuttingDownError", "SlidingWindow", "SlotMovingError", "Storage", "StoredPoint", "TokenBucket", "UnavailableError",
    "UnimplementedError", "UnknownVectorError", "UnsupportedFormatError", "UpdatePayloadResult", "UpsertResult",
    "ValueMismatchError", "VecmemClientError", "VectorConfig", "VectorLike", "VectorStats", "VersionConflict",
    "VersionConflictError", "WorkInProgressError", "WorkLostError", "WorkMismatchError", "WritesStoppedError",
    "WrongTypeError", "all_of", "any_of", "counters", "field", "has_id", "hashes", "idempotency", "keys", "lists",
    "locks", "none_of", "queues", "rate_limiters", "sets", "sorted_sets", "strings", "transactions",
    "StreamGroupExistsError", "StreamGroupNotFoundError", "StreamIdTooSmallError", "streams",
    "ShardFailure", "ReadPolicy", "ClusterTopology", "Migration",
    "NodeInfo", "RebalancePlan", "ShardInfo", "SlotRange",
    "json_documents", "bitmaps", "hyperloglog", "geo",
}  # fmt: skip

UNSEEN_REASONS = {"CONFIGURATION", "SLOT_STATE"}
"""Reasons that end a server before it serves."""


def test_the_public_names_are_pinned():
    """A new name is a promise: add it here on purpose."""
    assert set(vecmem_client.__all__) == NAMES
    assert vecmem_client.__all__ == sorted(vecmem_client.__all__, key=lambda name: (not name.isupper(), name))
    assert vecmem_client.langchain.__all__ == ["MetadataFilter", "VecmemVectorStore"]
    assert all(hasattr(vecmem_client, name) for name in NAMES)
    assert (CLIENT / "vecmem_client" / "py.typed").exists()


def server_errors(root):
    yield root
    for child in root.__subclasses__():
        yield from server_errors(child)


@pytest.mark.parametrize("cls", sorted(set(server_errors(errors.VecmemError)), key=lambda cls: cls.__name__))
def test_every_reason_of_the_server_has_a_class(cls):
    """Under the same name and with the same ancestors, so that one `except` means the same on both sides."""
    if cls.reason in UNSEEN_REASONS:
        assert cls.reason not in _Tables.by_reason
        return
    mirror = _Tables.by_reason[cls.reason]
    assert mirror.__name__ in vecmem_client.__all__
    if cls is errors.VecmemError:
        assert mirror is vecmem_client.InternalError
        return
    assert mirror.__name__ == cls.__name__
    assert mirror.code is status_code(cls.__new__(cls)), "the code of the class is the code that the server sends"
    for ancestor in cls.__mro__[1:]:
        if ancestor is not errors.VecmemError and issubclass(ancestor, errors.VecmemError):
            assert issubclass(mirror, _Tables.by_reason[ancestor.reason])


def test_reasons_are_unique():
    classes = list(server_errors(vecmem_client.VecmemClientError))
    assert len({cls.reason for cls in classes}) == len(classes)


def test_the_sync_client_is_fresh():
    script = CLIENT / "scripts" / "generate_sync.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def methods(cls):
    return {name: value for name, value in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def test_the_twins_have_the_same_methods_with_the_same_parameters():
    sync, twin = methods(vecmem_client.Client), methods(vecmem_client.AsyncClient)
    assert sync.keys() == twin.keys()
    assert len(sync) >= 18
    for name, method in sync.items():
        assert str(inspect.signature(method)) == re.sub(r"\bAsync(?=[A-Z])", "", str(inspect.signature(twin[name])))


def test_the_async_store_leaves_no_method_to_a_thread():
    """LangChain's defaults run the synchronous method in an executor."""
    store = vecmem_client.langchain.VecmemVectorStore
    base = next(cls for cls in store.__mro__ if cls.__name__ == "VectorStore")
    delegating = {name for name, method in methods(base).items() if "run_in_executor" in inspect.getsource(method)}
    assert {"aadd_texts", "adelete", "asimilarity_search"} <= delegating
    own_fallbacks = {"aadd_documents"}  # tries aadd_texts first, which is there
    assert {name for name in delegating if getattr(store, name) is getattr(base, name)} == own_fallbacks


def test_the_client_imports_nothing_of_the_server():
    """It is a distribution of its own: of the namespace `vecmem` it may use the generated vecmem.v1 alone."""
    for path in (CLIENT / "vecmem_client").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                assert not re.match(r"vecmem\.(?!v1\b)", module), f"{path.name} imports {module}"
                if module.split(".")[0].startswith("langchain"):
                    assert "langchain" in path.name, f"{path.name} imports {module}, which is an extra"


def test_importing_the_client_does_not_import_the_extra_or_the_server():
    code = (
        "import sys, vecmem_client\n"
        "bad = [m for m in sys.modules if m.split('.')[0].startswith('langchain')]\n"
        "bad += [m for m in sys.modules if m.startswith('vecmem.') and not m.startswith('vecmem.v1')]\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_distribution_needs_only_what_it_says():
    needed = importlib.metadata.requires("vecmem-client") or []
    required = {re.split(r"[^\w-]", line)[0] for line in needed if "extra ==" not in line}
    assert required == {"grpcio", "googleapis-common-protos", "protobuf", "numpy"}


def test_the_readme_runs(server, capsys):
    """All code blocks of the README, in their order, against a real server."""
    blocks = re.findall(r"^```python\n(.*?)^```", (CLIENT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 12
    for block in blocks:
        # Nothing of the event loop of pytest-asyncio is touched: asyncio.run makes its own.
        exec(compile(block.replace("127.0.0.1:7700", server.address), "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr()
    lines = [re.sub(r"^(a[12]) \d+$", r"\1 VERSION", line) for line in printed.out.splitlines()]
    assert lines == [
        "a1 1.0 Graphs",
        "['a1']",
        "token is positive: True",
        "{'user': 'ada'}",
        "b'receipt 1'",
        "b'ada@example.com' 1",
        "b'bob@example.com' 1",
        "1",
        "[RankedMember(member=b'ada', score=120.0, rank=0)]",
        "[RankedMember(member=b'bob', score=95.0, rank=1), RankedMember(member=b'cyd', score=90.0, rank=2)]",
        "True b'{doc:7}chunks' written",
        "[]",
        "b'one tea'",
        "0",
        "b'paid' 1",
        "0",
        "2000 2000",
        "['a1', 'a2']",
        "['a2']",
        "a1 VERSION",
        "a2 VERSION",
        "COLLECTION_NOT_FOUND NOT_FOUND",
        "the sea is blue",
    ]
    assert "2,000/2,000" in printed.err

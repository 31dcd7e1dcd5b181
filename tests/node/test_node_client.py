"""A client that is not ours: Node with @grpc/grpc-js drives the server from the .proto files alone."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PROTO = HERE.parent.parent / "proto"
LOCKED = ("package.json", "package-lock.json", ".npmrc")
INSTALL_SECONDS_MAX = 240
RUN_SECONDS_MAX = 120

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="node and npm are not installed on this machine"
)


@pytest.fixture(scope="module")
def installed():
    """The directory with node_modules as the lock names them; installed again only where the lock has changed."""
    digest = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in LOCKED)).hexdigest()
    stamp = HERE / "node_modules" / ".installed-for"
    if not stamp.exists() or stamp.read_text() != digest:
        done = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"],
            cwd=HERE,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_SECONDS_MAX,
        )
        assert done.returncode == 0, f"npm ci failed:\n{done.stdout}\n{done.stderr}"
        stamp.write_text(digest)
    return HERE


@pytest.fixture(scope="module")
def told(installed, server):
    """What the Node client printed, run once for all tests."""
    done = subprocess.run(
        ["node", "client.mjs", server.address, str(PROTO), "from-node"],
        cwd=installed,
        capture_output=True,
        text=True,
        check=False,
        timeout=RUN_SECONDS_MAX,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_collections_are_made_with_defaults_filled_in(told):
    created = told["created"]
    assert created["hnsw"].pop("target_recall") == pytest.approx(0.97, abs=1e-6)
    assert created == {"name": "from-node", "hnsw": {"m": 16, "ef_construction": 200}}, "ef is 0: by target_recall"


@pytest.mark.one_shard(reason="each shard gives its own versions")
def test_points_are_written_in_every_form_that_the_api_takes(told):
    assert told["upserted"] == {"inserted": "3", "version_is_position": True}
    assert told["encodings"] == {"values": [1, 0, 0], "packed": struct.pack("<3f", 1, 0, 0).hex()}


def test_a_stream_acknowledges_every_batch(told):
    assert told["acknowledged"] == [[str(batch), str(20 * batch)] for batch in range(1, 7)]


def test_queries_answer_with_scores_and_payload_bytes(told):
    first, second = told["query"]
    assert first == ["packed", 1, '{"n":9223372036854775807,"tag":"ä"}']
    assert (second[0], second[2]) == ("values", '{"n":2}')
    assert second[1] == pytest.approx(0.6, abs=1e-6)
    assert told["named"] == [["packed", 5]]
    assert told["near"] == ["values"]


def test_filters_select_and_int64_stays_exact(told):
    assert told["filtered"][:2] == ["struct", "bulk-2-19"]
    assert told["int64_count"] == "1"


def test_a_batch_carries_results_and_errors(told):
    assert told["batch"] == [["packed"], [3, "DIMENSION_MISMATCH", "queries[1].nearest.vector"]]


def test_pages_payload_changes_and_deletions_count_right(told):
    assert told["scrolled"] == [50, 50, 23]
    assert told["updated"] == ["1", [["values", True, 2]]]
    assert told["deleted"] == ["1", "20"]
    assert (told["count"], told["collection_deleted"]) == ("102", "102")
    assert told["version"] == version("vecmem")


def test_keys_transactions_and_streams_of_replies(told):
    assert (told["subscribers"], told["news"]) == ("1", ["a", "b"])
    assert told["committed"] == [True, ["set_string", "push_list_items"]]
    assert (told["popped"], told["string"]) == (["job"], "1")
    kinds = [(kind.removeprefix("CHANGE_KIND_"), name.split("}")[1], there) for kind, name, there in told["changes"]]
    assert kinds == [
        ("WRITTEN", "a", True),
        ("WRITTEN", "jobs", True),
        ("DELETED", "jobs", False),
        ("DELETED", "a", False),
    ]


@pytest.mark.parametrize(
    ("name", "code", "reason", "field"),
    [
        ("dimension", "INVALID_ARGUMENT", "DIMENSION_MISMATCH", "points[0].vector"),
        ("nan", "INVALID_ARGUMENT", "INVALID_VECTOR", "points[0].vector"),
        ("missing", "NOT_FOUND", "COLLECTION_NOT_FOUND", None),
        ("exists", "ALREADY_EXISTS", "COLLECTION_EXISTS", None),
    ],
)
def test_errors_carry_error_info(told, name, code, reason, field):
    error = told["errors"][name]
    assert (error["code"], error["reason"], error["domain"]) == (code, reason, "vecmem")
    assert error["type"] == "type.googleapis.com/google.rpc.ErrorInfo"
    assert error["metadata"].get("field") == field


def test_the_lock_pins_every_package_by_digest_and_names_no_host():
    lock = (HERE / "package-lock.json").read_text()
    packages = {name: package for name, package in json.loads(lock)["packages"].items() if name}
    assert "node_modules/@grpc/grpc-js" in packages
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
    assert "://" not in lock

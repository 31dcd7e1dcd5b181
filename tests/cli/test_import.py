"""`vecmem import`: every kind of file arrives whole, and a bad line stops the import where it stands."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from vecmem_client import Client

SLICE = Path(__file__).resolve().parent.parent.parent / "bench" / "data"
ROWS = 300


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="module")
def packages():
    """Some hundred rows of the slice: records, and vectors (rows, 384)."""
    with gzip.open(SLICE / "packages.jsonl.gz", "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in itertools.islice(file, ROWS)]
    return records, np.load(SLICE / "package_vectors.npy", mmap_mode="r")[:ROWS].astype(np.float32)


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def stored(client, collection):
    """Every point: id -> (payload, vector as stored)."""
    return {point.id: (point.payload, point.vector) for point in client.scroll(collection, with_vectors=True)}


def assert_stored(client, collection, ids, payloads, vectors):
    found = stored(client, collection)
    assert set(found) == set(ids)
    for point_id, payload, vector in zip(ids, payloads, vectors, strict=True):
        assert found[point_id][0] == payload
        assert np.allclose(found[point_id][1], vector, atol=1e-6)


def test_json_lines_with_vectors_beside_them(ask, client, collection_name, tmp_path, packages):
    records, vectors = packages
    path = write_lines(tmp_path / "packages.jsonl", records)
    np.save(tmp_path / "vectors.npy", vectors)
    arguments = ("import", path, "--collection", collection_name, "--vectors", tmp_path / "vectors.npy", "--create")
    outcome = ask(*arguments)
    assert (outcome["created"], outcome["imported_count"], outcome["invalid_count"]) == (True, ROWS, 0)
    config = client.get_collection(collection_name).vector
    assert (config.dimension, config.metric) == (384, "cosine")
    payloads = [{key: value for key, value in record.items() if key != "id"} for record in records]
    ids = [record["id"] for record in records]
    assert {point_id: payload for point_id, (payload, _) in stored(client, collection_name).items()} == dict(
        zip(ids, payloads, strict=True)
    )
    # Once more, as after an interruption: nothing is doubled.
    assert ask(*arguments)["created"] is False
    assert client.count(collection_name) == ROWS
    hits = client.query(collection_name, vectors[7], limit=1)
    assert hits[0].id == ids[7]


def test_json_lines_gzipped_with_vectors_inside(ask, client, collection_name, tmp_path):
    records = [{"key": i, "v": [i, 1.5], "exact": 2**62 + i} for i in range(5)]
    path = tmp_path / "points.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    ask(
        *("import", path, "--collection", collection_name, "--create", "--metric", "euclidean"),
        *("--id-field", "key", "--vector-field", "v"),
    )
    payloads = [{"exact": 2**62 + i} for i in range(5)]
    assert_stored(client, collection_name, list("01234"), payloads, [[i, 1.5] for i in range(5)])


def test_npy_alone_and_with_payloads_and_ids(ask, client, collection_name, tmp_path):
    vectors = np.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    np.save(tmp_path / "v.npy", vectors)
    base = ("import", tmp_path / "v.npy", "--collection", collection_name, "--create", "--metric", "dot")
    ask(*base)
    assert_stored(client, collection_name, list("012"), [{}] * 3, vectors)
    (tmp_path / "ids").write_text("a\nb\nc\n")
    payloads = write_lines(tmp_path / "p.jsonl", [{"n": i} for i in range(3)])
    ask("delete", collection_name, "--all", "--yes")
    ask(*base, "--ids", tmp_path / "ids", "--payloads", payloads)
    assert_stored(client, collection_name, list("abc"), [{"n": i} for i in range(3)], vectors)


def test_hdf5_brings_its_metric(ask, client, collection_name, tmp_path):
    vectors = np.arange(1, 9, dtype=np.float32).reshape(4, 2)
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["train"], file["test"] = vectors, vectors[:1]
        file.attrs["distance"] = "euclidean"
    ask("import", tmp_path / "x.hdf5", "--collection", collection_name, "--create")
    assert client.get_collection(collection_name).vector.metric == "euclidean"
    assert_stored(client, collection_name, list("0123"), [{}] * 4, vectors)


def test_parquet(ask, client, collection_name, tmp_path):
    columns = {"id": ["a", "b"], "vector": [[1.0, 2.0], [3.0, 4.0]], "tags": [["x"], None]}
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    ask("import", tmp_path / "p.parquet", "--collection", collection_name, "--create", "--metric", "dot")
    assert_stored(client, collection_name, ["a", "b"], [{"tags": ["x"]}, {"tags": None}], [[1, 2], [3, 4]])


def test_a_named_vector_is_filled_by_name(ask, client, collection_name, tmp_path):
    ask("collections", "create", collection_name, "--vector", "small:2:dot", "--vector", "big:3")
    path = write_lines(tmp_path / "p.jsonl", [{"id": "a", "vector": [1, 2]}])
    ask("import", path, "--collection", collection_name, "--using", "small")
    (point,) = client.get(collection_name, ["a"], with_vectors=True)
    assert point.vectors["small"].tolist() == [1, 2]
    assert set(point.vectors) == {"small"}


BAD_LINES = [
    ('{"id": "bad"', "is not JSON"),
    ('{"id": "bad", "vector": [1, 2, 3]}', "3 elements, not 2"),
    ('{"id": "bad", "vector": [0, 0]}', "zero"),
    ('{"id": "bad", "vector": [1, 2], "number": 9223372036854775808}', ""),
    ('{"id": "bad", "vector": [1, 2], "number": 1e999}', ""),
    ('{"id": "bad", "vector": [1, 2], "deep": ' + "[" * 70 + "]" * 70 + "}", ""),
    ('{"id": "bad", "vector": [1, 2], "large": "' + "x" * 1_100_000 + '"}', ""),
]
"""The first ones the reader sees, the last ones only the server or the client."""


@pytest.fixture
def file_with_a_bad_line(request, tmp_path):
    """Twenty good lines, the bad one as line 8 of 21."""
    lines = [json.dumps({"id": f"p{i:02}", "vector": [i, 1]}) for i in range(20)]
    lines.insert(7, request.param)
    path = tmp_path / "points.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("file_with_a_bad_line", "why"),
    BAD_LINES,
    indirect=["file_with_a_bad_line"],
    ids=["json", "dimension", "zero", "int64", "infinity", "depth", "size"],
)
def test_a_bad_line_is_named_and_nothing_from_there_on_is_changed(
    ask, refused, client, collection_name, file_with_a_bad_line, why
):
    arguments = ("import", file_with_a_bad_line, "--collection", collection_name, "--create")
    result = refused(*arguments)
    assert result.code == 1
    assert f"{file_with_a_bad_line}, line 8: " in result.error["message"]
    assert why in result.error["message"]
    assert result.error["metadata"]["line"] == "8"
    assert [point.id for point in client.scroll(collection_name)] == [f"p{i:02}" for i in range(7)]

    outcome = ask(*arguments, "--skip-invalid")
    assert (outcome["imported_count"], outcome["invalid_count"]) == (20, 1)
    assert "line 8" in outcome["invalid"][0]
    assert [point.id for point in client.scroll(collection_name)] == [f"p{i:02}" for i in range(20)]


def test_a_missing_collection_is_not_made_without_being_asked(refused, collection_name, tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"id": "a", "vector": [1, 2]}])
    result = refused("import", path, "--collection", collection_name)
    assert "--create" in result.error["message"]
    assert refused("collections", "get", collection_name).error["reason"] == "COLLECTION_NOT_FOUND"


def test_a_collection_of_another_shape_refuses_every_line(ask, refused, collection_name, tmp_path):
    ask("collections", "create", collection_name, "--dimension", "3", "--metric", "dot")
    path = write_lines(tmp_path / "p.jsonl", [{"id": "a", "vector": [1, 2]}])
    assert "2 elements, not 3" in refused("import", path, "--collection", collection_name).error["message"]
    other_metric = refused("import", path, "--collection", collection_name, "--metric", "cosine")
    assert "compares by dot" in other_metric.error["message"]
    other_vector = refused("import", path, "--collection", collection_name, "--using", "title")
    assert "has no vector title" in other_vector.error["message"]
    assert ask("count", collection_name) == {"count": 0}


def test_people_see_a_table_and_with_progress_a_bar_on_standard_error(vecmem, server, collection_name, tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"id": "a", "vector": [1, 2]}, {"vector": [1, 2]}])
    arguments = (
        "import",
        path,
        "--collection",
        collection_name,
        "--create",
        "--skip-invalid",
        "--address",
        server.address,
    )
    quiet = vecmem(*arguments)
    assert "imported_count" in quiet.stdout
    assert "left out" in quiet.stderr
    assert "/s" not in quiet.stderr
    loud = vecmem(*arguments, "--progress")
    assert "2/2" in loud.stderr
    assert "/s" in loud.stderr

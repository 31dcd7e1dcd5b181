"""Files become points row by row; what is not a point is named by file and line."""

from __future__ import annotations

import builtins
import gzip
import json
from datetime import UTC, date, datetime

import h5py
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from vecmem.cli.files import is_matrix, metric_of
from vecmem.cli.readers import Batch, InvalidRow, Row, Source, batches, count_rows, read_rows
from vecmem.errors import ConfigurationError, InvalidArgumentError


def write_lines(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture
def matrix():
    return np.arange(1, 13, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize("name", ["points.jsonl", "points.jsonl.gz"])
def test_json_lines_become_points_with_the_rest_as_payload(tmp_path, name):
    records = [{"id": f"p{i}", "vector": [i, 0.5], "deep": {"n": 2**62 + i}, "none": None} for i in range(3)]
    source = Source(write_lines(tmp_path / name, records))
    rows = list(read_rows(source))
    assert [row.id for row in rows] == ["p0", "p1", "p2"]
    assert [row.vector.tolist() for row in rows] == [[0, 0.5], [1, 0.5], [2, 0.5]]
    assert rows[2].payload == {"deep": {"n": 2**62 + 2}, "none": None}
    assert [row.number for row in rows] == [1, 2, 3]
    assert count_rows(source) == 3


def test_fields_are_named_by_the_caller_and_integers_serve_as_ids(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"key": 7, "embedding": [1, 2], "id": "kept", "vector": "kept"}])
    (row,) = read_rows(Source(path, id_field="key", vector_field="embedding"))
    assert (row.id, row.payload) == ("7", {"id": "kept", "vector": "kept"})


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"id": "a", "vector": [1, NaN]}', "is not JSON"),
        ('{"id": "a", "vector": [1, 2], "x": Infinity}', "is not JSON"),
        ('{"vector": [1, 2]}', "has no 'id'"),
        ('{"id": null, "vector": [1, 2]}', "has no 'id'"),
        ('{"id": "", "vector": [1, 2]}', "an id is a string of 1 to 512 bytes"),
        ('{"id": "' + "x" * 513 + '", "vector": [1, 2]}', "an id is a string of 1 to 512 bytes"),
        ('{"id": true, "vector": [1, 2]}', "an id is a string"),
        ('{"id": "\\ud800", "vector": [1, 2]}', "the id is not valid UTF-8"),
        ('{"id": "a"}', "has no 'vector'"),
        ('{"id": "a", "vector": [1, "2"]}', "is not a list of numbers"),
        ('{"id": "a", "vector": [1, true]}', "is not a list of numbers"),
        ('{"id": "a", "vector": {"x": 1}}', "is not a list of numbers"),
        ('{"id": "a", "vector": [1, [2]]}', "is not a list of numbers"),
        ('{"id": "a", "vector": [1, 1' + "0" * 400 + "]}", "too large"),
    ],
)
def test_a_line_that_is_no_point_is_named_and_the_next_one_is_read(tmp_path, line, why):
    path = tmp_path / "p.jsonl"
    path.write_text('{"id": "first", "vector": [1, 2]}\n\n' + line + '\n{"id": "last", "vector": [1, 2]}\n')
    first, bad, last = read_rows(Source(path))
    assert (first.id, last.id) == ("first", "last")
    assert isinstance(bad, InvalidRow)
    assert str(bad).startswith(f"{path}, line 3: ")
    assert why in bad.message


def test_vectors_beside_json_lines_are_taken_row_by_row(tmp_path, matrix):
    path = write_lines(tmp_path / "p.jsonl", [{"id": f"p{i}", "vector": "text"} for i in range(4)])
    np.save(tmp_path / "v.npy", matrix.astype(np.float16))
    source = Source(path, vectors=tmp_path / "v.npy")
    rows = list(read_rows(source))
    assert np.array_equal(np.stack([row.vector for row in rows]), matrix)
    assert rows[0].payload == {"vector": "text"}
    assert count_rows(source) == 4


@pytest.mark.parametrize("count", [3, 5])
def test_row_counts_that_differ_are_refused(tmp_path, matrix, count):
    path = write_lines(tmp_path / "p.jsonl", [{"id": f"p{i}"} for i in range(count)])
    np.save(tmp_path / "v.npy", matrix)
    with pytest.raises(InvalidArgumentError, match="rows"):
        list(read_rows(Source(path, vectors=tmp_path / "v.npy")))


def test_a_npy_file_alone_has_row_numbers_for_ids(tmp_path, matrix):
    np.save(tmp_path / "v.npy", matrix)
    rows = list(read_rows(Source(tmp_path / "v.npy")))
    assert [row.id for row in rows] == ["0", "1", "2", "3"]
    assert [row.payload for row in rows] == [{}] * 4


def test_ids_and_payloads_may_stand_in_files_of_their_own(tmp_path, matrix):
    np.save(tmp_path / "v.npy", matrix)
    (tmp_path / "ids").write_text("ä\nb c\nd\ne")
    payloads = write_lines(tmp_path / "p.jsonl", [{"id": i} for i in range(4)])
    rows = list(read_rows(Source(tmp_path / "v.npy", payloads=payloads, ids=tmp_path / "ids")))
    assert [row.id for row in rows] == ["ä", "b c", "d", "e"]
    assert [row.payload for row in rows] == [{"id": i} for i in range(4)]
    rows = list(read_rows(Source(tmp_path / "v.npy", payloads=payloads)))
    assert [row.id for row in rows] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("text", ["a\nb\nc\n", "a\nb\nc\nd\ne\n"])
def test_a_file_of_ids_of_another_length_is_refused(tmp_path, matrix, text):
    np.save(tmp_path / "v.npy", matrix)
    (tmp_path / "ids").write_text(text)
    with pytest.raises(InvalidArgumentError, match="ids"):
        list(read_rows(Source(tmp_path / "v.npy", ids=tmp_path / "ids")))


@pytest.mark.parametrize(
    ("name", "attributes", "metric"),
    [
        ("x.hdf5", {"distance": "angular"}, "cosine"),
        ("x.hdf5", {"distance": np.bytes_("euclidean")}, "euclidean"),
        ("glove-25-dot.h5", {}, "dot"),
        ("glove-25.hdf5", {}, None),
    ],
)
def test_hdf5_in_the_form_of_ann_benchmarks_declares_its_metric(tmp_path, matrix, name, attributes, metric):
    with h5py.File(tmp_path / name, "w") as file:
        file["train"] = matrix
        file["neighbors"] = np.zeros((1, 1), dtype=np.int32)
        file.attrs.update(attributes)
    assert metric_of(tmp_path / name) == metric
    rows = list(read_rows(Source(tmp_path / name)))
    assert np.array_equal(np.stack([row.vector for row in rows]), matrix)
    assert count_rows(Source(tmp_path / name)) == 4


def test_parquet_rows_become_points_with_json_payloads(tmp_path):
    columns = {
        "id": ["a", "b"],
        "vector": pa.array([[1.0, 2.0], [3.0, 4.0]], type=pa.list_(pa.float32(), 2)),
        "when": [datetime(2024, 5, 1, 12, tzinfo=UTC), None],
        "naive": [datetime(2024, 5, 1), None],  # noqa: DTZ001
        "day": [date(2024, 5, 1), None],
        "tags": [["x"], []],
        "nested": [{"n": 1}, {"n": 2**60}],
    }
    parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
    first, second = read_rows(Source(tmp_path / "p.parquet"))
    assert first.payload == {
        "when": "2024-05-01T12:00:00+00:00",
        "naive": "2024-05-01T00:00:00Z",
        "day": "2024-05-01",
        "tags": ["x"],
        "nested": {"n": 1},
    }
    assert second.payload["nested"] == {"n": 2**60}
    assert second.vector.tolist() == [3, 4]
    assert count_rows(Source(tmp_path / "p.parquet")) == 2


def test_a_parquet_value_that_json_lacks_makes_the_row_invalid(tmp_path):
    parquet.write_table(pa.table({"id": ["a"], "vector": [[1.0]], "raw": [b"\x00"]}), tmp_path / "p.parquet")
    (row,) = read_rows(Source(tmp_path / "p.parquet"))
    assert "type bytes" in row.message


@pytest.mark.parametrize("name", ["x.npy", "x.hdf5", "x.parquet", "x.jsonl.gz"])
def test_a_file_that_is_not_what_its_name_says_is_refused_by_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"something else altogether, and long enough")
    with pytest.raises(InvalidArgumentError) as caught:
        list(read_rows(Source(tmp_path / name)))
    assert name in caught.value.message


def test_a_gzip_file_that_ends_early_is_refused(tmp_path):
    path = write_lines(tmp_path / "p.jsonl.gz", [{"id": str(i), "vector": [i, 1]} for i in range(50)])
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(InvalidArgumentError, match="gzip"):
        list(read_rows(Source(path)))


def test_arrays_of_another_shape_or_type_are_refused(tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(3))
    np.save(tmp_path / "text.npy", np.array([["a"]]))
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file["test"] = np.zeros((1, 1))
    for name in ("flat.npy", "text.npy", "objects.npy", "empty.hdf5"):
        with pytest.raises(InvalidArgumentError, match=name):
            list(read_rows(Source(tmp_path / name)))


def test_sources_that_do_not_go_together_are_refused(tmp_path):
    lines, array = tmp_path / "a.jsonl", tmp_path / "a.npy"
    for source in (
        Source(array, vectors=array),
        Source(array, payloads=array),
        Source(lines, payloads=lines),
        Source(lines, vectors=lines),
        Source(tmp_path / "a.csv"),
    ):
        with pytest.raises(InvalidArgumentError):
            list(read_rows(source))
    assert is_matrix(array)
    assert not is_matrix(lines)


@pytest.mark.parametrize(("name", "package"), [("x.hdf5", "h5py"), ("x.parquet", "pyarrow")])
def test_a_missing_extra_is_named_with_the_way_to_get_it(tmp_path, monkeypatch, name, package):
    real_import = builtins.__import__

    def without(module, *arguments, **keywords):
        if module.partition(".")[0] == package:
            raise ImportError(module)
        return real_import(module, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=r"pip install 'vecmem\[import\]'"):
        list(read_rows(Source(tmp_path / name)))


def row(number, vector, dtype=np.float32):
    return Row(number, f"p{number}", np.array(vector, dtype=dtype), {"n": number})


def test_batches_keep_order_and_end_before_an_invalid_row(tmp_path):
    rows = [row(1, [1, 2]), row(2, [3, 4]), row(3, [5, 6]), InvalidRow(tmp_path, 4, "no"), row(5, [7, 8])]
    gathered = list(batches(iter(rows), size=2, dimension=None, metric="cosine", path=tmp_path))
    assert [type(item) for item in gathered] == [Batch, Batch, InvalidRow, Batch]
    assert [item.numbers for item in gathered if isinstance(item, Batch)] == [[1, 2], [3], [5]]
    assert gathered[0].vectors.dtype == np.float32
    assert gathered[0].vectors.tolist() == [[1, 2], [3, 4]]
    assert gathered[0].payloads == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        ([1, 2, 3], "3 elements, not 2"),
        ([], "0 elements, not 2"),
        ([1, np.nan], "NaN"),
        ([1, np.inf], "infinite"),
        ([1, 1e39], "beyond float32"),
        ([0, 0], "zero"),
        ([0, 1e-60], "zero"),
    ],
)
def test_a_vector_that_the_server_would_refuse_is_an_invalid_row(tmp_path, vector, why):
    rows = [row(1, [1, 2]), row(2, vector, np.float64)]
    first, bad = batches(iter(rows), size=10, dimension=None, metric="cosine", path=tmp_path)
    assert first.ids == ["p1"]
    assert bad.number == 2
    assert why in bad.message


def test_zero_vectors_are_points_where_the_metric_allows_them(tmp_path):
    (batch,) = batches(iter([row(1, [0, 0])]), size=10, dimension=2, metric="dot", path=tmp_path)
    assert batch.ids == ["p1"]

"""Mapped tables: whole or absent, with what is known of their rows."""

import pyarrow as pa
import pytest
from po_dynamics.data.tokens.mapped import open_mapped, write_mapped
from po_dynamics.errors import InputError

SCHEMA = pa.schema([("id", pa.string()), ("ids", pa.list_(pa.int32()))])


def batches(count, about, fail=False):
    for i in range(count):
        yield pa.RecordBatch.from_pylist([{"id": f"{i}a", "ids": [i]}, {"id": f"{i}b", "ids": []}], SCHEMA)
    about["batches"] = count
    if fail:
        raise InputError("no more")


def test_what_is_written_is_read_where_it_lies(tmp_path):
    about = {"dropped": {"é": 1}}
    before = pa.total_allocated_bytes()
    write_mapped(batches(3, about), SCHEMA, tmp_path / "t.arrow", about)
    table, found = open_mapped(tmp_path / "t.arrow", ["ids"])
    assert found == {"dropped": {"é": 1}, "batches": 3}  # what came to light while the rows were written, too
    assert table["id"].to_pylist() == ["0a", "0b", "1a", "1b", "2a", "2b"]
    assert table["ids"].to_pylist() == [[0], [], [1], [], [2], []]
    del table
    assert pa.total_allocated_bytes() <= before + 1024


def test_a_failure_leaves_what_was_there(tmp_path):
    write_mapped(batches(1, {}), SCHEMA, tmp_path / "t.arrow", {})
    before = (tmp_path / "t.arrow").read_bytes()
    with pytest.raises(InputError, match="no more"):
        write_mapped(batches(2, {}, fail=True), SCHEMA, tmp_path / "t.arrow", {})
    assert (tmp_path / "t.arrow").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["t.arrow"]


def test_other_files_are_named(tmp_path):
    path = tmp_path / "t.arrow"
    with pytest.raises(InputError, match=r"t\.arrow does not exist; run the stage that writes it"):
        open_mapped(path, [])
    write_mapped(batches(1, {}), SCHEMA, path, {})
    with pytest.raises(InputError, match=r"has no column x \(columns present: id, ids\)"):
        open_mapped(path, ["id", "x"])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"is not a whole table of rows \(.*\); write it again"):
        open_mapped(path, [])
    with pa.ipc.new_file(str(path), SCHEMA) as writer:
        writer.write_batch(next(batches(1, {})))
    with pytest.raises(InputError, match="is not a whole table of rows"):
        open_mapped(path, [])
    write_mapped(batches(0, {}), SCHEMA, path, {})
    with pytest.raises(InputError, match="is empty"):
        open_mapped(path, [])

"""Tables are read with checks and written completely or not at all; which process writes."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from po_dynamics.errors import InputError
from po_dynamics.storage.distributed import all_in_step, any_process, is_first_process
from po_dynamics.storage.parquet import read_rows, read_table, write_frame, write_table


def test_reading_a_table_names_file_and_columns(tmp_path):
    path = tmp_path / "sft.parquet"
    with pytest.raises(InputError, match="does not exist"):
        read_rows(path, ["id"])
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), path)
    with pytest.raises(InputError, match=r"sft\.parquet has no column prompt \(columns present: id, text\)"):
        read_rows(path, ["id", "prompt"])
    assert read_rows(path, ["text"]) == [{"text": "b"}]
    pq.write_table(pa.table({"id": pa.array([], pa.string())}), path)
    with pytest.raises(InputError, match="is empty; it needs"):
        read_rows(path, ["id"])
    path.write_text("no parquet")
    with pytest.raises(InputError, match="not a Parquet file"):
        read_rows(path, ["id"])


def test_only_the_columns_that_are_asked_for_are_read(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["b"]}), tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ["text"]).column_names == ["text"]


def test_a_frame_is_written_as_pandas_writes_it(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b"], "ids": [[1, 2], []], "x": [0.1, float("nan")]}, index=[3, 4])
    write_frame(frame, tmp_path / "ours.parquet")
    frame.to_parquet(tmp_path / "theirs.parquet", index=False)
    assert (tmp_path / "ours.parquet").read_bytes() == (tmp_path / "theirs.parquet").read_bytes()


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    write_table(pa.table({"id": ["a"]}), path)

    def torn(table, target):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", torn)
    with pytest.raises(OSError, match="disk full"):
        write_table(pa.table({"id": ["b"]}), path)
    assert read_rows(path, ["id"]) == [{"id": "a"}]
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]


@pytest.mark.parametrize(("rank", "first"), [(None, True), ("0", True), ("1", False)])
def test_before_processes_are_connected_the_launcher_tells_who_is_first(monkeypatch, rank, first):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    assert is_first_process() is first


def test_alone_a_process_speaks_for_all():
    assert any_process(True, torch.device("cpu")) is True
    assert any_process(False, torch.device("cpu")) is False
    assert all_in_step(torch.tensor(True)) is True
    assert all_in_step(torch.tensor(False)) is False

"""Local sources by content: what counts, and that a file is read once."""

from __future__ import annotations

import json
import os

from po_dynamics.harness import content


def test_the_content_counts_and_nothing_else(tmp_path):
    known, folder = tmp_path / "known/content.json", tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    for name in ("config.json", "deep/weights", ".hidden"):
        (folder / name).write_text(name)
    before = content.of_path(folder, known)
    assert len(before) == 16
    (folder / ".hidden").write_text("other")
    os.utime(folder / "config.json", (1, 1))  # as a clone does
    assert content.of_path(folder, known) == before
    (folder / "config.json").write_text("CONFIG.json")  # as long as before
    changed = content.of_path(folder, known)
    assert changed != before
    (folder / "config.json").rename(folder / "other.json")
    assert content.of_path(folder, known) not in (before, changed)
    assert content.of_path("some/hub-name", known) == ""


def test_a_file_is_read_once(tmp_path, monkeypatch):
    file, known = tmp_path / "data.jsonl", tmp_path / "content.json"
    file.write_text("{}")
    first = content.of_path(file, known)
    (entry,) = json.loads(known.read_text()).values()
    monkeypatch.setattr(content.hashlib, "file_digest", lambda *_: 1 / 0)
    assert content.of_path(file, known) == first
    assert entry[0] == 2
    known.write_text("torn")
    monkeypatch.undo()
    assert content.of_path(file, known) == first


def test_of_a_data_set_only_the_part_that_is_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("harmless", "helpful"):
        (tmp_path / "hh" / name).mkdir(parents=True)
        (tmp_path / "hh" / name / "test.jsonl").write_text(name)
    source = {"path": "hh", "data_dir": "helpful", "data_files": None}
    before = content.of_data(source)
    (tmp_path / "hh/harmless/test.jsonl").write_text("other")
    assert content.of_data(source) == before != content.of_data({"path": "hh"})
    (tmp_path / "hh/helpful/test.jsonl").write_text("other")
    assert content.of_data(source) != before
    file = {"path": "hh", "data_files": "harmless/test.jsonl"}
    assert content.of_data(file) == content.of_path("hh/harmless/test.jsonl")


def test_a_module_by_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_reward.py").write_text("def score(): ...")
    before = content.of_module("my_reward")
    (tmp_path / "my_reward.py").write_text("def score(): return 1")
    assert "" != before != content.of_module("my_reward")
    assert content.of_module("no_such.module") == content.of_module("") == ""

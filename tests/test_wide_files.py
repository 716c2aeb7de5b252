"""Folders, patterns and parquet: what is read from many files, and results as a table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from test_shards import CALL, LINES, run
from unleak.copies.scan.scan_file import FILE, RECORD, ScanSummary
from unleak.errors import BadInput, BrokenFile
from unleak.files.jsonl import rejects_of
from unleak.files.parquet import growing, read_lines
from unleak.files.prompt_file import count_entries, files_of, read_prompts
from unleak.files.shards import Shard, merge
from unleak.report.scan import file_page
from unleak.words.lint import lint_file
from unleak.words.lint.lint import Linter
from unleak.words.lint.prompt_file import read_files

pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow: pip install 'unleak[cluster]'")
pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files of three formats in two folders, beside what is no file of prompts."""
    folder = tmp_path / "prompts"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x.jsonl").write_text("".join(json.dumps({"caption": line}) + "\n" for line in LINES[3:9]))
    (folder / "c.txt").write_text("\n".join(LINES[9:]) + "\n")
    pq.write_table(pa.table({"id": [0, 1, 2], "prompt": LINES[:3]}), folder / "a.parquet")
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.txt").write_text("no prompt\n")
    return folder


def test_a_folder_and_a_pattern_are_their_files_in_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = list(read_prompts(folder))
    assert [e.text for e in entries] == [*LINES[:13], LINES[13][:200] if entries[13].error else LINES[13], LINES[14]]
    assert [e.place for e in entries][:4] == ["a.parquet:1", "a.parquet:2", "a.parquet:3", "b/x.jsonl:1"]
    assert next(e.place for e in read_prompts(str(folder / "**" / "*.jsonl"))) == "x.jsonl:1"
    monkeypatch.chdir(folder)
    assert files_of("[ac].*") == [Path("a.parquet"), Path("c.txt")] and files_of("c**xt") == [Path("c.txt")]
    assert files_of(".*.txt") == [Path(".hidden.txt")] and next(e.file for e in read_prompts("*" * 300)) == "a.parquet"
    assert count_entries("*.txt") == 6 and count_entries(folder) is None
    assert [e.file for e in read_prompts("c.txt")] == [""] * 6


def test_sources_that_name_nothing_are_refused(folder: Path, tmp_path: Path) -> None:
    (empty := tmp_path / "empty").mkdir()
    patterns = (tmp_path / "*.csv", "2**64", "**[", "[!]-a*", "a\0*", "\ud800*", "/*\0/**", "x" * 300 + "*", "~**")
    for source, says in ((empty, "holds no file of prompts"), *((one, "no file matches") for one in patterns)):
        with pytest.raises(BadInput, match=says):
            list(read_prompts(source))
    (folder / "d.yaml").write_text("a: b\n")
    with pytest.raises(BadInput, match=r"ends in \.yaml"):
        list(read_prompts(folder))
    pq.write_table(pa.table({"id": [1], "words": ["a cat"]}), tmp_path / "p.parquet")
    with pytest.raises(BadInput, match=r"there is no 'prompt' or .* among \['id', 'words'\]; name it with --column"):
        list(read_prompts(tmp_path / "p.parquet"))
    assert [e.text for e in read_prompts(tmp_path / "p.parquet", "words")] == ["a cat"]


def test_a_folder_is_scanned_shared_and_joined(sd1: Any, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.jsonl"
    run(sd1, folder, out)
    records = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert [(r["file"], r["line"]) for r in records[:4]] == [("a.parquet", k) for k in (1, 2, 3)] + [("b/x.jsonl", 1)]
    rejects = [json.loads(line) for line in rejects_of(out).read_text().splitlines()]
    assert {r["reason"] for r in rejects} >= {"the same prompt as line a.parquet:1"}
    before = out.read_bytes()
    assert run(sd1, folder, out).measured == 0 and out.read_bytes() == before
    assert "b/x.jsonl:1" in file_page(out)
    (parts := tmp_path / "parts").mkdir()
    for i in (1, 2):
        run(sd1, folder, parts / f"{i}.jsonl", shard=Shard(i, 2))
    for name in ("lines.jsonl", "table.parquet"):
        merge(parts, tmp_path / name, FILE, RECORD, ascii=True)
        assert b"".join(read_lines(tmp_path / name, RECORD, ascii=True)) == before


def test_results_as_a_table_are_those_of_the_lines(sd1: Any, folder: Path, tmp_path: Path) -> None:
    lines, out = tmp_path / "scan.jsonl", tmp_path / "scan.parquet"
    run(sd1, folder / "b", lines)
    run(sd1, folder / "b", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["prompts", "scan.jsonl", "scan.parquet"]
    assert b"".join(read_lines(out, RECORD, ascii=True)) == lines.read_bytes()
    table = pq.read_table(out)
    assert table.column_names == ["line", "prompt", "score", "memorized", "scores", "images", "file"]
    assert json.loads(table.schema.metadata[b"unleak"])["call"] == CALL
    assert ScanSummary.of(out).highest == ScanSummary.of(lines).highest and "of 6" in file_page(out, 9e9)
    before = out.read_bytes()
    assert run(sd1, folder / "b", out).measured == 0 and out.read_bytes() == before
    with pytest.raises(BadInput, match="another batch"):
        run(sd1, folder / "b", out, batch=2)
    assert out.read_bytes() == before and not growing(out).exists()


def test_a_table_goes_on_after_a_kill(sd1: Any, folder: Path, tmp_path: Path) -> None:
    lines, out = tmp_path / "scan.jsonl", tmp_path / "scan.parquet"
    run(sd1, folder, lines)
    growing(out).write_bytes(lines.read_bytes()[: lines.stat().st_size // 2])
    assert 0 < run(sd1, folder, out).measured < 11
    assert b"".join(read_lines(out, RECORD, ascii=True)) == lines.read_bytes() and not growing(out).exists()
    assert rejects_of(out) == rejects_of(lines)


def test_a_table_of_no_prompt_has_its_columns(sd1: Any, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("\n")
    run(sd1, tmp_path / "p.txt", tmp_path / "scan.parquet")
    assert pq.read_table(tmp_path / "scan.parquet").num_rows == 0


def test_what_is_no_table_of_results_is_left_alone(sd1: Any, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a cat\n")
    out = tmp_path / "scan.parquet"
    pq.write_table(pa.table({"id": [1]}), out)
    before = out.read_bytes()
    for data in (before, b"a diary"):
        out.write_bytes(data)
        with pytest.raises(BrokenFile):
            run(sd1, tmp_path / "p.txt", out)
        assert out.read_bytes() == data and sorted(p.name for p in tmp_path.iterdir()) == ["p.txt", "scan.parquet"]


def test_a_lint_is_shared_and_joined_and_may_be_a_table(sd1: Any, tmp_path: Path) -> None:
    (folder := tmp_path / "prompts").mkdir()
    (folder / "a.txt").write_text("".join(f"a [mouse] and a [{w}]\n" for w in ("cat", "bat", "dog", "hat", "bus")))
    (folder / "b.jsonl").write_text('"a [zebra] and a [horse]"\n"no item"\n{"no": "prompt"}\n')
    linter, lines = Linter(sd1), list(read_files(folder))
    head = lint_file.header(linter, "tiny", "prompts")
    outs = [tmp_path / "lint.jsonl", tmp_path / "lint.parquet"]
    for out in outs:
        summary = lint_file.run(linter, lines, head, out)
        assert (summary.prompts, summary.bad) == (6, 2)
    whole = outs[0].read_bytes()
    assert json.loads(whole.splitlines()[-1])["file"] == "b.jsonl"
    assert b"".join(read_lines(outs[1], lint_file.RECORD)) == whole
    assert pq.read_table(outs[1])["items"][0][0]["text"].as_py() == "mouse"
    (parts := tmp_path / "parts").mkdir()
    for i in range(1, 4):
        lint_file.run(linter, lines, head, parts / f"{i}.jsonl", shard=Shard(i, 3))
    merge(parts, tmp_path / "joined.jsonl", lint_file.FILE, lint_file.RECORD)
    assert (tmp_path / "joined.jsonl").read_bytes() == whole
    assert lint_file.summary_of(outs[1]).riskiest == json.loads(json.dumps(summary.riskiest))
    lint_file.run(linter, lines[:1], head, tmp_path / "none.jsonl", shard=Shard(1, 99))
    assert len((tmp_path / "none.jsonl").read_text().splitlines()) == 1

"""Prompts from files: every line is a prompt or has a reason, by its number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unleak.errors import BadInput
from unleak.files.prompt_file import LONGEST, opened, read_prompts


def read(folder: Path, name: str, data: bytes, column: str | None = None):
    (folder / name).write_bytes(data)
    return [(line.number, line.text, line.error) for line in read_prompts(folder / name, column)]


def good(lines):
    return [(number, text) for number, text, error in lines if error is None]


@pytest.mark.parametrize(("name", "data"), [
    ("a.txt", b"\xef\xbb\xbfa cat\r\na dog\n"),
    ("a.jsonl", b'{"prompt": "a cat", "id": 3}\n"a dog"'),
    ("a.ndjson", b'{"id": 3, "Caption": "a cat"}\n{"TEXT": "a dog"}\n'),
])  # fmt: skip
def test_lines_and_json(tmp_path: Path, name: str, data: bytes):
    assert read(tmp_path, name, data) == [(1, "a cat", None), (2, "a dog", None)]


@pytest.mark.parametrize(("name", "data"), [
    ("a.csv", b'id,caption\r\n1,a cat\r\n2,"a ""big"",\nred dog"\r\n3,x\r\n'),
    ("a.csv", b';Caption;URL\n0;a cat;u\n1;"a ""big"",\nred dog";u\n2;x;u'),
    ("a.tsv", b'prompt\tn\na cat\t1\n"a ""big"",\nred dog"\t2\nx\t3\n'),
])  # fmt: skip
def test_tables_of_any_separator(tmp_path: Path, name: str, data: bytes):
    assert read(tmp_path, name, data) == [(2, "a cat", None), (3, 'a "big",\nred dog', None), (5, "x", None)]


def test_a_column_by_name(tmp_path: Path):
    assert good(read(tmp_path, "a.csv", b"prompt,Title\nx,a cat\n", "title")) == [(2, "a cat")]
    assert good(read(tmp_path, "a.jsonl", b'{"prompt": "x", "Title": "a cat"}', "title")) == [(1, "a cat")]
    with pytest.raises(BadInput, match="--column"):
        read(tmp_path, "a.csv", b"a,b\n1,2\n")
    with pytest.raises(BadInput, match="cannot read"):
        list(read_prompts(tmp_path / "none.txt"))


@pytest.mark.parametrize(("name", "bad", "says"), [
    ("a.txt", b"", "empty"), ("a.txt", b"   ", "empty"), ("a.txt", b"a \xff cat", "UTF-8"),
    ("a.txt", b"a cat " * 3000, "characters"), ("a.txt", b"x" * (LONGEST + 50), "longer than"),
    ("a.txt", b"x" * (3 * LONGEST), "longer than"),
    ("a.jsonl", b"", "empty"), ("a.jsonl", b"{", "no JSON"), ("a.jsonl", b"[1]", "list"), ("a.jsonl", b"7", "int"),
    ("a.jsonl", b'{"other": "a"}', "--column"), ("a.jsonl", b'{"prompt": null}', "NoneType"),
    ("a.jsonl", b"[" * 50_000, "JSON"), ("a.jsonl", b'"a \\ud800 cat"', "UTF-8"),
    ("a.csv", b"", "empty"), ("a.csv", b"1", "1 fields"), ("a.csv", b"1,2,3", "3 fields"),
    ("a.csv", b'1,"x"y', "lines 3"),
    ("a.csv", b"1,a \xff cat", "UTF-8"),
])  # fmt: skip
def test_a_bad_line_is_reported_by_number_and_the_next_is_read(tmp_path: Path, name: str, bad: bytes, says: str):
    start, end = {"a.txt": (b"a cat", b"a dog"), "a.jsonl": (b'"a cat"', b'"a dog"')}.get(
        name, (b"id,prompt\n1,a cat", b"2,a dog")
    )
    lines = read(tmp_path, name, b"\n".join([start, bad, end]))
    first = 2 if name == "a.csv" else 1
    assert good(lines) == [(first, "a cat"), (first + 2, "a dog")]
    (number, _, error) = next(line for line in lines if line[2] is not None)
    assert number == first + 1 and says in error


def test_an_open_quote_costs_its_record_and_says_how_far_it_goes(tmp_path: Path):
    lines = read(tmp_path, "a.csv", b'prompt\na cat\n"open\na dog\n')
    assert good(lines) == [(2, "a cat")]
    assert lines[1][0] == 3 and "lines 3 to 4" in lines[1][2]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff\0"), max_size=40), max_size=12))
def test_nothing_is_lost(tmp_path: Path, texts: list[str]):
    usable = [(i, t) for i, t in enumerate(texts, 1) if t.strip()]
    plain = read(tmp_path, "p.txt", "".join(t + "\n" for t in texts).encode())
    assert [n for n, *_ in plain] == list(range(1, len(texts) + 1)) and good(plain) == usable
    objects = read(tmp_path, "p.jsonl", "".join(json.dumps({"prompt": t}) + "\n" for t in texts).encode())
    assert good(objects) == usable


def test_what_fails_while_a_file_is_open_is_not_called_unreadable(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a dog\na cat")
    with pytest.raises(OSError, match="disk full"), opened(str(tmp_path / "p.txt")) as (_, lines):
        assert lines == 2
        raise OSError("disk full")

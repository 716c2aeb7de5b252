"""Files that others wrote: formats and encodings are read or refused by name; a bad line costs nothing but itself."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import threading
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unleak.cli.console import prompts_of
from unleak.errors import BadInput
from unleak.files.lines import BLOCK, LONGEST, lines
from unleak.files.prompt_file import opened, read, read_prompts
from unleak.text.items import Item, bracketed, parse_items
from unleak.words.lint import prompt_file as of_items

SEVERAL = "".join(f"a cat number {k}\n" for k in range(5))
TEXTS = ["a cat", "ein Füchslein, 猫", "a dog\u2028and a\x0bboat"]


def prompts(folder: Path, name: str, data: bytes, column: str | None = None) -> list[tuple[int, str, str | None]]:
    (folder / name).write_bytes(data)
    return [(entry.number, entry.text, entry.error) for entry in read_prompts(folder / name, column)]


def good(entries: list[tuple[int, str, str | None]]) -> list[str]:
    return [text for _, text, error in entries if error is None]


# -- encodings and line ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.json", "p.csv", "p.tsv"])
def test_encodings_are_read_by_their_mark_and_all_line_ends(tmp_path: Path, encoding: str, end: str, name: str) -> None:
    rows = {
        "p.txt": TEXTS,
        "p.jsonl": [json.dumps({"prompt": t}, ensure_ascii=False) for t in TEXTS],
        "p.json": [json.dumps(TEXTS)],
        "p.csv": ["id;prompt", *(f'1;"{t}"' for t in TEXTS)],
        "p.tsv": ["prompt, and more\tprompt", *(f"1\t{t}" for t in TEXTS)],
    }[name]
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    entries = prompts(tmp_path, name, mark + end.join([*rows, ""]).encode(encoding))
    assert good(entries) == TEXTS and len(entries) == len(TEXTS)


@pytest.mark.parametrize(
    "data, says",
    [
        ("a cat\na dog\n".encode("utf-16-le"), "NUL"),  # no mark
        (b"\xff\xfea\x00\x00\xd8b\x00", "UTF-16"),  # half a surrogate pair
        (b"\xff\xfea", "UTF-16"),  # half a character
        (b"\x00" * 100, "NUL"),
    ],
)
def test_a_file_that_is_no_text_is_refused_in_one_line(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says) as e:
        prompts(tmp_path, "p.txt", data)
    assert "p.txt" in str(e.value) and "\n" not in str(e.value)


def test_a_nul_in_one_line_costs_that_line(tmp_path: Path) -> None:
    entries = prompts(tmp_path, "p.txt", b"a cat\na \x00 dog in a long sentence\na boat\n")
    assert good(entries) == ["a cat", "a boat"] and entries[1][0] == 2 and "NUL" in str(entries[1][2])


# -- kinds of files -----------------------------------------------------------------------------------------------


def archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr("p.txt", "a cat")
    return out.getvalue()


KINDS: list[tuple[bytes, str]] = [
    (gzip.compress(b"a cat\n", mtime=0), "gzip"),
    (archive(), "zip"),
    (b"BZh91AY", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd__", "zstd"),
    (b"%PDF-1.7", "PDF"),
    (b"\x89PNG\r\n", "PNG"),
    (b"PAR1...", "parquet"),
    (b"x" * 257 + b"ustar\x00", "tar"),
]


@pytest.mark.parametrize("data, says", KINDS, ids=[kind for _, kind in KINDS])
@pytest.mark.parametrize("name", ["p.txt", "p.csv", "p.jsonl", "p.json", "p", "p.gz"])
def test_archives_and_other_kinds_are_refused_by_their_name(tmp_path: Path, data: bytes, says: str, name: str) -> None:
    with pytest.raises(BadInput, match=says):
        prompts(tmp_path, name, data)
    with pytest.raises(BadInput, match=says), opened(str(tmp_path / name)) as (stream, _):
        list(read(stream, "json"))


@pytest.mark.parametrize(
    "name", ["p.yaml", "p.YML", "p.md", "p.toml", "p.tex", "prompts.v2", "p.unknown", "p.jsonl.bak"]
)
def test_an_ending_that_is_no_format_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("- a cat\n- a dog\n")
    with pytest.raises(BadInput, match=f"ends in {re.escape(Path(name).suffix.lower())}.* name it .txt .*jsonl"):
        list(read_prompts(tmp_path / name))
    with opened(str(tmp_path / name), "text") as (stream, _):  # the format that is asked for is taken
        assert [entry.text for entry in read(stream)] == ["- a cat", "- a dog"]


@pytest.mark.parametrize("name", ["p", "p.txt", "p.TXT", "p.lst", ".prompts"])
def test_plain_lines_need_no_ending(tmp_path: Path, name: str) -> None:
    assert good(prompts(tmp_path, name, b"a cat\na dog\n")) == ["a cat", "a dog"]


def test_text_that_is_damaged_far_behind_its_beginning_is_refused_before_any_of_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(("a cat\n" * BLOCK).encode("utf-16") + b"\x00\xd8a\x00")
    with pytest.raises(BadInput, match="UTF-16"), opened(str(tmp_path / "p.txt")):
        raise AssertionError("it was opened")


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_pipe_is_read_once_and_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "p")
    writer = threading.Thread(target=lambda: pipe.write_text(SEVERAL), daemon=True)
    writer.start()
    with opened(str(pipe)) as (stream, count):
        assert count is None and [entry.text for entry in read(stream)] == SEVERAL.split("\n")[:-1]
    writer.join()


@pytest.mark.parametrize(
    "document, expected",
    [
        (["a cat", "a dog"], ["a cat", "a dog"]),
        ([{"prompt": "a cat"}, {"Caption": "a dog"}], ["a cat", "a dog"]),
        ({"animals": ["a cat"], "more": [{"prompt": "a dog", "indices": [2]}]}, ["a cat", "a dog"]),
        ({"prompt": "a cat", "id": 3}, ["a cat"]),
    ],
)
def test_json_documents_are_read_and_not_guessed_at(tmp_path: Path, document: Any, expected: list[str]) -> None:
    for indent in (None, 1):
        assert good(prompts(tmp_path, "p.json", json.dumps(document, indent=indent).encode())) == expected


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "no JSON"), (b"{", "no JSON"), (b"7", "int"), (b'"a cat"', "str"), (b"null", "NoneType"),
        (b"[" * 100_000, "nested"), (b'{"a":' * 100_000, "nested"), (b"[" + b"1" * 5000 + b"]", "no JSON"),
        (b'{"prompt": "a"}\n{"prompt": "b"}', ".jsonl"),
    ],
)  # fmt: skip
def test_a_document_that_is_none_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        prompts(tmp_path, "p.json", data)


@pytest.mark.parametrize(
    "data",
    [b'[\n"a cat"\n]', b'["a cat", "a dog"]', b'{"prompt": "a cat"}\n', b"{\n", b"<?xml version='1.0'?>", b"\n\n[{"],
)
@pytest.mark.parametrize("name", ["p.txt", "p", "p.lst"])
def test_a_file_by_its_ending_of_lines_that_holds_none_is_refused(tmp_path: Path, data: bytes, name: str) -> None:
    with pytest.raises(BadInput, match=r"no prompts line by line"):
        prompts(tmp_path, name, data)
    lines = [b"[mouse] and [laptop]", b"{a|b} cat", b"(mouse:1.4)", b'"a cat"']
    assert len(good(prompts(tmp_path, name, b"\n".join(lines)))) == len(lines)


def test_parquet_is_read_or_says_what_it_needs(tmp_path: Path) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        with pytest.raises(BadInput, match=r"unleak\[cluster\]"):
            prompts(tmp_path, "p.parquet", b"PAR1")
        return
    pq.write_table(pa.table({"id": [1, 2], "Caption": ["a cat", None]}), tmp_path / "p.parquet")
    entries = list(read_prompts(tmp_path / "p.parquet"))
    assert [(e.number, e.error is None) for e in entries] == [(1, True), (2, False)] and entries[0].text == "a cat"
    with pytest.raises(BadInput, match="parquet"):
        prompts(tmp_path, "q.parquet", b"a cat")


# -- bad lines ----------------------------------------------------------------------------------------------------

BAD = [
    {"prompt": "a mouse", "items": [f"mouse#{'9' * 5000}"]},
    {"prompt": "a mouse", "items": 5},
    {"prompt": "a mouse", "items": [1]},
    {"prompt": "a mouse", "items": ["mouse"], "sense": []},
    {"prompt": "a mouse", "items": ["mouse"], "sense": {"moose": "elk"}},
    {"prompt": "a mouse", "items": ["laptop"]},
    {"prompt": "a mouse", "items": [""]},
    {"prompt": "a mouse", "items": ["mouse"] * 20},
    {"prompt": "a mouse"},
    {"prompt": "a mouse", "indices": [3]},
    {"prompt": "a mouse", "indices": [0]},
    {"prompt": "a mouse", "indices": ["1"]},
    {"prompt": ["a mouse"]},
    {"prompt": None, "items": ["mouse"]},
    {"text": 7},
]


@pytest.mark.parametrize("record", BAD, ids=range(len(BAD)))
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_one_bad_line_is_rejected_with_its_number_and_its_text(record: Any, form: str) -> None:
    fine = {"prompt": "a cat", "items": ["cat"]}
    every = [fine, record, fine]
    text = json.dumps(every) if form == "json" else "\n".join(map(json.dumps, every))
    found = list(of_items.read_prompts(io.BytesIO(text.encode()), form))
    assert [line.number for line in found] == [1, 2, 3] and [line.error is None for line in found] == [
        True,
        False,
        True,
    ]
    assert found[1].prompt.strip() and len(str(found[1].error)) < 1500
    if isinstance(record.get("prompt"), str):
        assert found[1].prompt == record["prompt"]


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b'"\\ud800"', b"\xff\xfe", b"{]"])
def test_a_line_that_is_no_json_is_rejected_and_keeps_what_it_holds(raw: bytes) -> None:
    entries = list(read(io.BytesIO(b'"a cat"\n' + raw + b'\n"a dog"\n'), "jsonl"))
    assert [e.number for e in entries] == [1, 2, 3] and [e.error is None for e in entries] == [True, False, True]
    assert entries[1].text and len(entries[1].text) <= 200


def test_a_line_of_ten_megabytes_costs_no_memory() -> None:
    class Long(io.RawIOBase):
        parts = iter([b"x" * BLOCK] * 160 + [b"\na cat\n"])

        def read(self, n: int = -1) -> bytes:
            return next(self.parts, b"")

    tracemalloc.start()
    entries = list(read(Long(), "text"))  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [e.error is None for e in entries] == [False, True] and "longer than" in str(entries[0].error)
    assert entries[1].number == 2 and peak < 4 * 2**20


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r\n\ufeff\x00"), max_size=20)),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(1, 7),
)
def test_lines_do_not_depend_on_encoding_ends_or_blocks(texts: list[str], encoding: str, end: str, size: int) -> None:
    class Drip(io.BytesIO):
        first = True

        def read(self, n: int | None = -1) -> bytes:
            n, self.first = (BLOCK if self.first and size > 4 else max(4, size) if self.first else size), False
            return super().read(n)

    data = "".join(text + end for text in texts).encode(encoding)
    if not data[:8].count(0) or encoding != "utf-8":
        assert list(lines(Drip(data), "p")) == texts
        assert list(lines(io.BytesIO(data[: len(data) or None]), "p")) == texts


def test_the_longest_line_is_read_whole() -> None:
    assert [len(x) for x in lines(io.BytesIO(b"x" * LONGEST + b"\n" + b"y" * (LONGEST + 9)), "p")] == [
        LONGEST,
        LONGEST + 1,
    ]


# -- items --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "[mouse:laptop:0.5]",
        "a [mouse|laptop]",
        "[mouse:0.5]",
        "[mouse::10]",
        "[(mouse:1.2)]",
        "a [((mouse:1.2))]",
        r"a \[mouse\]",
        "[a|b|c] and [mouse]",
    ],
)
def test_brackets_of_other_tools_are_no_items(prompt: str) -> None:
    with pytest.raises(BadInput, match=r"other tools|nested or unbalanced"):
        bracketed(prompt)
    (line,) = of_items.read_prompts(io.BytesIO(prompt.encode()), "text", [Item("mouse")])
    assert line.error is not None and not line.items and line.prompt == prompt


def test_known_words_that_brackets_leave_out_are_said() -> None:
    watched = [Item("mouse"), Item("laptop"), Item("key")]
    (line,) = of_items.read_prompts(io.BytesIO(b"a mouse, [laptop], a key"), "text", watched)
    assert [i.text for i in line.items] == ["laptop"] and line.left_out == ("mouse", "key")
    (line,) = of_items.read_prompts(io.BytesIO(b"a [mouse], a [laptop], a [key]"), "text", watched)
    assert line.left_out == ()


def test_an_empty_item_is_refused_and_the_comma_named() -> None:
    for text in ("mouse,laptop,", "mouse,,laptop", ",mouse", ",", "", " , "):
        with pytest.raises(BadInput, match=r"empty.*comma"):
            parse_items(text)


def test_an_occurrence_of_too_many_digits_is_refused() -> None:
    with pytest.raises(BadInput, match="digits"):
        Item.of("mouse#" + "9" * 5000)


def test_indices_name_words_and_their_occurrence() -> None:
    data = json.dumps({"a": [{"prompt": "a dog and a dog, a frog.", "indices": [5, 7]}]}).encode()
    (line,) = of_items.read_prompts(io.BytesIO(data), "json")
    assert [(i.text, i.occurrence) for i in line.items] == [("dog", 2), ("frog", None)]


@pytest.mark.parametrize("indices", [[2, 99], [0], [-1], ["2"], [2.0], [True], 2, "2", {"2": 1}])
def test_indices_that_are_no_words_of_the_prompt_are_refused(indices: Any) -> None:
    data = json.dumps({"a": [{"prompt": "a dog and a frog", "indices": indices}, {"prompt": "a dog", "indices": [2]}]})
    bad, good = of_items.read_prompts(io.BytesIO(data.encode()), "json")
    assert "1 to 5 in this prompt" in (bad.error or "") and bad.prompt == "a dog and a frog" and good.error is None


@pytest.mark.parametrize("items", [{}, 0, False, 5, True, {"mouse": 1}, [1], [None]])
def test_items_of_another_type_are_no_missing_items(items: Any) -> None:
    record = json.dumps({"prompt": "a mouse", "items": items}).encode()
    (line,) = of_items.read_prompts(io.BytesIO(record), "jsonl", [Item("mouse")])
    assert line.prompt == "a mouse" and not line.items and "'items'" in str(line.error)


@pytest.mark.parametrize("name, data", [("p.csv", b"Prompt,prompt\na,b\n"), ("p.tsv", b"prompt\tx\tprompt\na\t1\tb\n")])
def test_a_column_that_stands_there_twice_is_refused(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(BadInput, match="2 columns 'prompt'"):
        prompts(tmp_path, name, data)
    ((_, text, error),) = prompts(tmp_path, "p.jsonl", b'{"prompt": "a", "Prompt": "b"}\n')
    assert text and "2 columns 'prompt'" in str(error)


def test_a_column_of_a_file_without_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no columns"):
        prompts(tmp_path, "p.txt", b"a cat\n", "prompt")
    assert prompts_of(tmp_path / "p.txt", "prompt") == ["a cat"]  # one of several files, of which another has columns


def test_names_of_columns_are_shown_in_short(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="--column") as e:
        prompts(tmp_path, "p.csv", b"a" * 90_000 + b",b\n1,2\n")
    assert len(str(e.value)) < 300

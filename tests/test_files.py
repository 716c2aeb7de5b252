"""Files that survive a kill: JSONL that goes on to the same bytes, files that are whole or not there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from unleak.errors import BadInput, BrokenFile, Conflict
from unleak.files.atomic import write_atomic
from unleak.files.jsonl import Stream, encode

HEADER = {"schema": "unleak/scan/1", "model": "é", "batch": 3, "call": {"size": (8, 8)}}
RECORDS = [{"line": k, "prompt": f"a café {k}"} for k in range(8)]


def run(path: Path, header: dict[str, Any] = HEADER, ascii: bool = True) -> None:
    """Batches of three, of which those are written that are not whole."""
    with Stream(path, header, 3, ascii) as out:
        earlier = list(out.records())
        assert earlier == RECORDS[: out.count]
        for k in range(0, len(RECORDS), 3):
            if min(k + 3, len(RECORDS)) > out.count:
                out.write(*RECORDS[k : k + 3])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("ascii", [True, False])
def test_a_file_that_was_cut_at_any_byte_goes_on_to_the_same_bytes(tmp_path: Path, ascii: bool) -> None:
    path, whole = tmp_path / "x.jsonl", b"".join(encode(r, ascii) for r in [HEADER, *RECORDS])
    assert whole.isascii() == ascii
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        run(path, ascii=ascii)
        assert path.read_bytes() == whole
    assert names(tmp_path) == ["x.jsonl"]


def test_only_the_last_batch_may_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    run(path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'{"line": 6,', b"\0\0\0\0\0\0\0\0\0,"))
    run(path)
    assert path.read_bytes() == whole
    for noise in (b"\0", b"[" * 100_000):
        path.write_bytes(damaged := whole.replace(b'{"line": 5,', noise))
        with pytest.raises(BrokenFile, match=r"line 7 of .* damaged"):
            run(path)
        assert path.read_bytes() == damaged


@pytest.mark.parametrize(("first", "says"), [
    ({**HEADER, "model": "m", "more": 1}, "a scan with another model, more:"),
    ({"schema": "unleak/scan/1", "batch": 3, "call": HEADER["call"]}, "a scan with another model:"),
    ({**HEADER, "schema": "unleak/lint/1"}, "no scan"),
])  # fmt: skip
def test_a_file_with_another_header_is_refused_and_the_key_is_named(tmp_path: Path, first: Any, says: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(encode(first) + b'{"li')
    with pytest.raises(BadInput, match=says):
        run(path)
    assert path.read_bytes() == encode(first) + b'{"li'


def test_a_run_that_fails_before_its_first_batch_changes_nothing(tmp_path: Path) -> None:
    new, empty, cut = (tmp_path / name for name in ("new", "empty", "cut"))
    empty.write_bytes(b"")
    cut.write_bytes(encode(HEADER) + b'{"li')
    for path in (new, empty, cut):
        with pytest.raises(KeyboardInterrupt), Stream(path, HEADER, 3):
            raise KeyboardInterrupt
    assert names(tmp_path) == ["cut", "empty"]
    assert empty.read_bytes() == b"" and cut.read_bytes().endswith(b'{"li')


def test_a_record_that_nobody_asks_for_any_more_is_not_left_half(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    run(path)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"li')
    run(path)
    assert path.read_bytes() == whole


def test_one_run_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with Stream(path, HEADER, 3), pytest.raises(Conflict, match="another scan writes"):
        run(path)
    run(path)


def test_a_full_disk_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadInput, match=r"cannot write .*No space left"):
        run(tmp_path / "x.jsonl")


@pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")
def test_a_file_keeps_its_mode_and_a_link_in_its_part_s_place_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "x.json", tmp_path / "other"
    path.write_text("old")
    path.chmod(0o600)
    write_atomic(path, "new")
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o600
    other.write_text("mine")
    monkeypatch.setattr(secrets, "token_hex", lambda _: "known")
    (link := tmp_path / ".x.json.known.part").symlink_to(other)
    with pytest.raises(BadInput, match="cannot write"):
        write_atomic(path, "newer")
    assert other.read_text() == "mine" and path.read_text() == "new" and link.is_symlink()

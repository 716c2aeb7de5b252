"""Scans by many: the scanner as a class, shards and their joining; what each prompt scores is what one process says."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiny import save_tiny, tiny
from unleak.copies.scan import scanner as module
from unleak.copies.scan.scan import plan
from unleak.copies.scan.scan_file import FILE, RECORD, ScanSummary, scan_file
from unleak.copies.scan.scanner import Scanner
from unleak.errors import BadInput, BrokenFile, NotFinite
from unleak.files.jsonl import rejects_of
from unleak.files.shards import Shard, merge, note_of

CALL = {"height": 64, "width": 64, "num_inference_steps": 2}
WORDS = ["cat", "dog", "bat", "ball", "hat", "bus", "car", "horse", "zebra", "apple", "fruit"]
LONG = "a mouse" + " and a striped squirrel" * 30
LINES = [*(f"a red {word}" for word in WORDS), "", "a red cat", LONG, "a red ball"]
OF = 3


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(sd1: Any, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "scan.jsonl"
    run(sd1, prompts, out)
    return out


@pytest.fixture(scope="module")
def shards(sd1: Any, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    for i in range(1, OF + 1):
        run(sd1, prompts, folder / f"{i}.jsonl", shard=Shard(i, OF))
    return folder


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def run(pipe: Any, path: Path, out: Path, shard: Shard | None = None, **changes: Any) -> ScanSummary:
    return scan_file(pipe, path, out, plan(pipe, 2, **{"batch": 3, "call": CALL, **changes}), model="tiny", shard=shard)


# -- the class -------------------------------------------------------------------------------------------------


def test_a_prompt_scores_the_same_in_any_company(sd1: Any) -> None:
    """To the last digit that is written, whatever the sizes of the batches that arrive, order and repetitions."""
    scanner = Scanner(sd1, seeds=2, batch=3, call=CALL)
    together = scanner({"prompt": [*LINES[:8], LINES[0]]})["images"]
    assert together.pop() == together[0]
    backwards = scanner({"prompt": LINES[:8][::-1]})["images"]
    alone = [scanner({"prompt": [text]})["images"][0] for text in LINES[:8]]
    assert together == backwards[::-1] == alone


def test_a_batch_keeps_its_columns_and_every_row(sd1: Any) -> None:
    scanner = Scanner(sd1, seeds=2, batch=2, call=CALL, column="caption")
    batch = {"id": np.arange(4), "caption": np.array(["a red cat", "", LONG, None], object)}
    done = scanner(batch)
    assert done["id"] is batch["id"] and set(done) == {*batch, "score", "memorized", "scores", "images", "error"}
    assert np.isfinite(done["score"][0]) and np.isnan(done["score"][1:]).all() and done["memorized"] == [None] * 4
    assert done["error"][0] is None and "77 tokens" in done["error"][2]
    assert all("empty" in error for error in done["error"][1::2])
    with pytest.raises(BadInput, match=r"no column 'caption' among .'prompt'"):
        scanner({"prompt": ["a cat"]})


def test_a_scanner_opens_its_model_itself(tmp_path: Path) -> None:
    folder = save_tiny("sd1", tmp_path / "m")
    (folder / "unleak.json").write_text(json.dumps({"call": CALL}))
    scanner = Scanner(str(folder), seeds=2, batch=2, load={"device": "cpu"})
    assert scanner.about()["call"] == CALL and scanner.about()["model"] == str(folder)
    with pytest.raises(BadInput):
        Scanner(str(tmp_path / "none"), seeds=2)


def test_not_a_number_says_of_which_lines(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, measure = tiny("sd1"), module.measure

    def poisoned(pipe: Any, texts: list[str], what: Any) -> Any:
        if "a red bus" in texts:
            raise NotFinite("the prediction is NaN")
        return measure(pipe, texts, what)

    monkeypatch.setattr(module, "measure", poisoned)
    with pytest.raises(NotFinite, match=r"lines 4 to 6: the prediction is NaN"):
        run(pipe, prompts, tmp_path / "scan.jsonl")
    assert len((tmp_path / "scan.jsonl").read_text().splitlines()) == 1 + 3


# -- shards ----------------------------------------------------------------------------------------------------


def test_shards_share_prompts_evenly_and_for_ever() -> None:
    held = Counter(i for k in range(4000) for i in range(1, 9) if Shard(i, 8).holds(f"prompt {k}"))
    assert sum(held.values()) == 4000 and min(held.values()) > 400
    assert [i for i in range(1, 9) if Shard(i, 8).holds("a mouse and a laptop")] == [5]


@pytest.mark.parametrize("text", ["", "2", "0/4", "5/4", "-1/4", "1/0", "1/4/2", "one/two", "1/99999999"])
def test_what_is_no_shard_says_how_to_write_one(text: str) -> None:
    with pytest.raises(BadInput, match="write I/N"):
        Shard.parse(text)


def test_joined_shards_are_the_scan_of_one_process(whole: Path, copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.jsonl"
    assert merge(copied, out, FILE, RECORD, ascii=True) == len(WORDS)
    assert out.read_bytes() == whole.read_bytes()
    assert rejects_of(out).read_bytes() == rejects_of(whole).read_bytes()
    assert ScanSummary.of(out).rejected == 4 and ScanSummary.of(out).highest == ScanSummary.of(whole).highest
    merge(copied, out, FILE, RECORD, ascii=True)
    assert out.read_bytes() == whole.read_bytes()


def test_a_shard_that_was_killed_goes_on(sd1: Any, prompts: Path, whole: Path, copied: Path, tmp_path: Path) -> None:
    shard = copied / "2.jsonl"
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) * 2 // 3])
    note_of(shard).unlink()
    with pytest.raises(BadInput, match=r"shard 2/3 .* is not complete"):
        merge(copied, tmp_path / "o.jsonl", FILE, RECORD, ascii=True)
    run(sd1, prompts, shard, shard=Shard(2, OF))
    merge(copied, tmp_path / "o.jsonl", FILE, RECORD, ascii=True)
    assert (tmp_path / "o.jsonl").read_bytes() == whole.read_bytes()


def test_shards_that_do_not_belong_together_are_refused(
    sd1: Any, prompts: Path, whole: Path, copied: Path, tmp_path: Path
) -> None:
    def refused(error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            merge(copied, tmp_path / "o.jsonl", FILE, RECORD, ascii=True)
        assert not (tmp_path / "o.jsonl").exists()

    two = copied / "2.jsonl"
    shutil.copy(two, copied / "again.jsonl")
    refused(BadInput, "shard 2/3 is there twice, 2.jsonl and again.jsonl|again.jsonl and 2.jsonl")
    (copied / "again.jsonl").unlink()
    shutil.copy(whole, copied / "whole.jsonl")
    refused(BadInput, "is no shard but a whole")
    (copied / "whole.jsonl").unlink()
    data = two.read_bytes()
    two.write_bytes(data.replace(b"red", b"rad", 1))
    refused(BrokenFile, "is not what shard 2/3 wrote")
    two.unlink()
    rejects_of(two).unlink(missing_ok=True)
    refused(BadInput, "lacks the shards 2/3: run them")
    for says, pipe, path, changes in (
        ("another fingerprint", tiny("sd1", seed=1), prompts, {}),
        ("another batch", sd1, prompts, {"batch": 2}),
        ("number of shards", sd1, prompts, {"shard": Shard(2, 4)}),
    ):
        run(pipe, path, two, **{"shard": Shard(2, OF), **changes})
        refused(BadInput, says)
        two.unlink()
        rejects_of(two).unlink(missing_ok=True)
    (other := tmp_path / "prompts.txt").write_text(prompts.read_text() + "a hat\n")
    run(sd1, other, two, shard=Shard(2, OF))
    refused(BadInput, "read other prompts")


def test_a_merge_overwrites_nothing_else(copied: Path, tmp_path: Path) -> None:
    out = tmp_path / "diary.jsonl"
    for text, error in (("a diary\n", BrokenFile), ((copied / "1.jsonl").read_text(), BadInput)):
        out.write_text(text)
        with pytest.raises(error):
            merge(copied, out, FILE, RECORD, ascii=True)
        assert out.read_text() == text


# -- on the command line ---------------------------------------------------------------------------------------


def test_shards_and_their_joining_on_the_command_line(unleak: Any, prompts: Path, tmp_path: Path) -> None:
    folder = save_tiny("sd1", tmp_path / "m")
    (folder / "unleak.json").write_text(json.dumps({"call": CALL}))
    scan = ("scan", str(prompts), "-m", str(folder), "--seeds", "0:2")
    whole = unleak(*scan, "-o", "whole.jsonl")
    assert whole.code == 0
    Path("parts").mkdir()
    for i in (1, 2):
        assert unleak(*scan, "--shard", f"{i}/2", "-o", f"parts/{i}.jsonl").code == 0
    joined = unleak("scan", "--merge", "parts", "-o", "joined.jsonl", "--html", "joined.html")
    assert joined.code == 0 and joined.out == whole.out and "4 lines cannot be used" in joined.err, joined.err
    assert Path("joined.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert unleak("scan", "--merge", "parts", "-o", "joined.jsonl", "--fail-over", "-1e9").code == 3


@pytest.mark.parametrize(("args", "says"), [
    ("scan", "--merge and the folder"),
    ("scan p.txt --merge .", "not both"),
    ("scan --merge none", "is no folder"),
    ("scan --merge .", "holds no output of a shard"),
    ("scan p.txt --shard 3/2 -o x.jsonl", "write I/N"),
    ("scan p.txt --shard 1/2 -o x.json", "ends in .jsonl"),
])  # fmt: skip
def test_bad_use_of_shards_exits_2(unleak: Any, monkeypatch: pytest.MonkeyPatch, args: str, says: str) -> None:
    monkeypatch.setattr("unleak.models.load", lambda *_, **__: pytest.fail("the model was loaded"))
    Path("p.txt").write_text("a cat\n")
    done = unleak(*args.split())
    assert done.code == 2 and says in done.err, done.err

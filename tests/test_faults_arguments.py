"""Arguments of the kinds that were once taken for something else, or not looked at: each is right, or a typed error."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from test_cli import MOUSE
from tiny import tiny
from unleak import models
from unleak.cli.console import prompts_of
from unleak.copies.audit import attack
from unleak.copies.methods.noise import NoisyRows
from unleak.copies.scan.fit import calibrate
from unleak.copies.scan.scan import each_once, scan
from unleak.drawing.generate import MOST_SEED, MOST_SEEDS, check_seed, parse_seeds
from unleak.drawing.images import generate
from unleak.errors import BadInput, PromptTruncated
from unleak.regions.edit import edit
from unleak.regions.plan import Edit
from unleak.text.prompt import each_prompt
from unleak.text.subsets import Subset
from unleak.words.lint.lint_file import lint
from unleak.words.methods.probe import Keep

CALL = {"height": 64, "width": 64, "num_inference_steps": 1}
DEEP = "[" * 100_000
PICTURE = np.zeros((64, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def sd1() -> Any:
    return tiny("sd1")


# -- one text is one prompt ---------------------------------------------------------------------------------------


def test_one_text_is_one_prompt_and_not_its_letters(sd1: Any) -> None:
    assert scan(sd1, "a cat", 2, call=CALL).prompts == ("a cat",)
    assert generate(sd1, "a cat", seeds=1, call=CALL).prompts == ["a cat"]
    assert [one.prompt for one in lint(sd1, "a [cat] and a [mouse]")] == ["a cat and a mouse"]
    made = calibrate(sd1, "a cat", (text for text in ["a dog", "a boat"]), 2, call=CALL)
    assert (made.memorized, made.ordinary) == (1, 2)
    assert Keep(Subset.everything(), pad="mean", bank="a cat").bank == ("a cat",)  # type: ignore[arg-type]


def test_prompts_in_both_lists_are_found_by_the_whole_prompt(sd1: Any) -> None:
    with pytest.raises(BadInput, match="1 prompts are in both lists, such as 'a cat'"):
        calibrate(sd1, "a cat", ["a dog", "a cat"], call=CALL)


@pytest.mark.parametrize("given", [5, None, b"a cat", {"prompt": "a cat"}, ["a cat", 5], [["a cat"]], Path("p.txt")])
def test_what_is_no_text_is_no_prompt(sd1: Any, given: Any) -> None:
    for verb in (scan, generate, lambda pipe, prompts: calibrate(pipe, prompts, ["a dog"])):
        with pytest.raises(BadInput, match="a prompt is text, not "):
            verb(sd1, given)


def test_prompts_may_come_from_anything_that_can_be_gone_through() -> None:
    assert each_prompt(text for text in "ab") == each_prompt(["a", "b"]) == each_prompt(("a", "b")) == ("a", "b")
    assert each_prompt("ab") == ("ab",)


def test_one_detector_by_name_is_not_its_letters() -> None:
    assert [one.name for one in each_once("magnitude")] == ["magnitude"]
    with pytest.raises(BadInput, match="did you mean 'magnitude'"):
        each_once("magnitud")


# -- seeds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "seeds",
    [
        "", "0:0", "4:0", "0:1000000000", f"0:{10**30}", str(2**63), str(2**64), "9" * 5000, "-1", "-3:2", "1.5", "1,1",
        "1:2:3", 0, -1, True, 2**64, 10**5000, 1.5, None, [], [1.5], [2**63], [-1], range(10**30), itertools.count(),
    ],
    ids=range(26),
)  # fmt: skip
def test_seeds_that_no_generator_takes_are_refused_in_one_short_line(seeds: Any) -> None:
    with pytest.raises(BadInput) as e:
        parse_seeds(seeds)
    assert len(str(e.value)) < 300


def test_seeds_are_taken_up_to_the_last() -> None:
    assert parse_seeds(str(MOST_SEED - 1)) == [MOST_SEED - 1] and check_seed(MOST_SEED - 1) == MOST_SEED - 1
    assert len(parse_seeds(MOST_SEEDS)) == MOST_SEEDS and parse_seeds(range(0, 9, 4)) == [0, 4, 8]
    assert parse_seeds(np.arange(2)) == [0, 1] and check_seed(np.int64(3)) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 10**5000, 1.5, True, "1", None], ids=range(8))
def test_one_seed_is_checked_wherever_it_is_given(sd1: Any, seed: Any) -> None:
    for ask in (
        lambda: edit(sd1, PICTURE, [Edit("dog", "cat")], seed=seed),
        lambda: attack(sd1, PICTURE, seed=seed),
        lambda: NoisyRows(seed=seed),
    ):
        with pytest.raises(BadInput, match=r"seed .*: give a whole number of 0 or more, below 2"):
            ask()


@pytest.mark.parametrize("seed", ["-1", str(2**63), str(2**64), "9" * 5000, "1.5", "x"], ids=range(6))
def test_a_seed_of_the_command_line_is_checked_before_a_model_is_loaded(
    unleak: Any,
    no_model: None,
    seed: str,
) -> None:
    for command in (("audit", "p.png"), ("edit", "p.png", "--edit", "dog=cat")):
        done = unleak(*command, "--seed", seed)
        assert done.code == 2 and "--seed" in done.err and not done.out
    done = unleak("generate", MOUSE, "--seeds", seed)
    assert done.code == 2 and "seeds" in done.err and not done.out


# -- words that name nothing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("senses", ["mosue=computer mouse", "mouse=computer mouse,cat=lion", "Mouse=computer mouse"])
@pytest.mark.parametrize("model", ["emoji-sd", "somewhere"])
def test_senses_of_a_word_that_is_no_item_are_refused(
    unleak: Any,
    no_model: None,
    senses: str,
    model: str,
) -> None:
    done = unleak("diagnose", MOUSE, "--items", "mouse,laptop", "--senses", senses, "-m", model)
    assert done.code == 2 and "no item whose senses are given is called" in done.err and "mouse, laptop" in done.err


def test_the_nearest_item_is_named(unleak: Any, no_model: None) -> None:
    done = unleak("diagnose", "a [mouse] and a [laptop]", "--senses", "mosue=computer mouse")
    assert done.code == 2 and "did you mean 'mouse'?" in done.err


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model_index.json", "unleak.json"])
@pytest.mark.parametrize(
    "text", [DEEP, DEEP.replace("[", '{"a":'), "1" * 5000, "[", "[]", "7", "", '{"a": 1, "a": 1}'], ids=range(8)
)
def test_a_document_of_a_model_that_is_none_is_a_typed_error(
    unleak: Any,
    sd1_folder: str,
    tmp_path: Path,
    name: str,
    text: str,
) -> None:
    (tmp_path / "m").mkdir()
    for file in Path(sd1_folder).iterdir():
        (tmp_path / "m" / file.name).symlink_to(file)
    (tmp_path / "m" / name).unlink()
    (tmp_path / "m" / name).write_text(text)
    done = unleak("generate", "a cat", "-m", "m")
    assert done.code == 2 and name in done.err and not done.out
    if name == "model_index.json":
        with pytest.raises(BadInput, match=name):
            models.load(tmp_path / "m")


@pytest.mark.parametrize(
    "data, says", [(gzip.compress(b"a cat", mtime=0), "gzip"), (b"a\0c\0a\0t\0", "NUL"), (b"\n\n", "no prompt")]
)
def test_a_bank_of_texts_is_read_as_prompts_are(
    unleak: Any,
    no_model: None,
    tmp_path: Path,
    data: bytes,
    says: str,
) -> None:
    ask = ("tokens", "a hot dog and a cat", "--items", "cat", "--pad", "mean", "--bank", "bank.txt")
    (tmp_path / "bank.txt").write_bytes(data)
    done = unleak(*ask)
    assert done.code == 2 and says in done.err and not done.out
    (tmp_path / "bank.txt").write_bytes("a cat\ra dog\r".encode("utf-16"))
    assert prompts_of(tmp_path / "bank.txt") == ["a cat", "a dog"]


# -- negative prompts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("negative", ["cat " * 5000, ["cat " * 100]])
def test_a_negative_prompt_that_would_be_cut_is_refused(sd1: Any, negative: Any) -> None:
    with pytest.raises(PromptTruncated, match=r"the negative prompt: .*77 tokens"):
        generate(sd1, "a cat", seeds=1, call=CALL | {"negative_prompt": negative})
    assert generate(sd1, "a cat", seeds=1, call=CALL | {"negative_prompt": "a dog"}).prompts == ["a cat"]


def test_a_negative_prompt_of_an_edit_that_would_be_cut_is_refused(sd1: Any) -> None:
    change = Edit("mouse", "laptop", np.full((64, 64), 255, np.uint8))
    with pytest.raises(PromptTruncated, match="77 tokens"):
        edit(sd1, PICTURE, [change], source_prompt="a mouse", negative_prompt="cat " * 5000, size=(64, 64), steps=2)

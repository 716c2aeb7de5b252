"""Items that nobody named: noun phrases by rules or by spaCy, and the files of public sets of prompts."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

import unleak
from unleak.cli import app
from unleak.errors import BadInput
from unleak.text import noun_phrases
from unleak.text.items import Item
from unleak.text.noun_phrases import by_rules, chunks_of, finder
from unleak.words.diagnosis.diagnose import items_of
from unleak.words.lint.prompt_file import read_prompts

SETS = Path(os.environ.get("UNLEAK_PROMPTS", "nowhere"))  #: a folder with the files of public sets of prompts


@pytest.fixture(autouse=True)
def no_spacy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is installed, rules find the phrases."""
    monkeypatch.setattr(noun_phrases, "find_spec", lambda name: None)
    noun_phrases.finder.cache_clear()


@pytest.mark.parametrize(("prompt", "phrases"), [
    ("a mouse and a laptop", ["mouse", "laptop"]),
    ("A red car, two white sheep and my grandmother's house.", ["red car", "white sheep", "grandmother's house"]),
    ("a photo of a dog left of a teddy bear", ["dog", "teddy bear"]),
    ("The red hat was on top of the brown coat rack.", ["red hat", "brown coat rack"]),
    ("a man wearing a tie is riding a horse", ["man", "tie", "horse"]),
    ("a yellow parking meter and a diamond ring", ["yellow parking meter", "diamond ring"]),
    ("a woman dressed in black, the sky is blue", ["woman", "black", "sky"]),
    ("rubber sole shoes and fluffy clouds", ["rubber sole shoes", "fluffy clouds"]),
    ("a cat beside a cat", ["cat#1", "cat#2"]),
    ("in the, of 3 _ !", []),
    ("", []),
])  # fmt: skip
def test_rules_find_what_stands_between_words_that_name_nothing(prompt: str, phrases: list[str]) -> None:
    found = by_rules(prompt)
    assert [str(item) for item in found] == phrases
    assert all(prompt[slice(*item.find(prompt))] == item.text for item in found)


def word(text: str, start: int, kind: str, tag: str = "") -> SimpleNamespace:
    return SimpleNamespace(text=text, idx=start, pos_=kind, tag_=tag)


def test_chunks_of_spacy_lose_their_articles_and_numbers_and_pronouns_are_none() -> None:
    chunks = [
        [word("my", 0, "PRON", "PRP$"), word("two", 3, "NUM"), word("red", 7, "ADJ"), word("cars", 11, "NOUN")],
        [word("it", 20, "PRON", "PRP")],
        [word("sheep", 24, "NOUN")],
    ]

    class Pipeline:
        meta: ClassVar = {"lang": "en", "name": "core_web_sm", "version": "3.8.0"}

        def __call__(self, prompt: str) -> SimpleNamespace:
            return SimpleNamespace(noun_chunks=chunks)

    found = chunks_of(Pipeline())
    assert found("my two red cars and it, sheep") == (Item("red cars"), Item("sheep"))
    assert found.name == "noun chunks of spaCy's en_core_web_sm 3.8.0"


def test_items_are_found_where_that_is_asked_for_and_only_there() -> None:
    assert items_of("a mouse and a laptop", "auto") == ("a mouse and a laptop", (Item("mouse"), Item("laptop")))
    assert items_of("an auto and a [cat]") == ("an auto and a cat", (Item("cat"),))
    assert items_of("an auto and a cat", "auto#1")[1] == (Item("auto", 1),)
    with pytest.raises(BadInput, match="by simple rules"):
        items_of("in the of", "auto")
    with pytest.raises(BadInput, match="no item is named"):
        items_of("a mouse and a laptop")


def test_diagnosis_lint_and_maps_say_what_was_found_and_how(tmp_path: Path) -> None:
    invoke = CliRunner().invoke
    (tmp_path / "prompts.txt").write_text("a mouse and a laptop\na [mouse] and a laptop\nof the\n")
    done = invoke(app, ["lint", str(tmp_path / "prompts.txt"), "--items", "auto", "-o", str(tmp_path / "out.jsonl")])
    head, *lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert "items, by simple rules" in " ".join(done.stderr.split()), done.output
    assert head["settings"]["items"] == f"auto: {finder().name}"
    named = [[item["text"] for item in line["items"]] for line in lines[:2]]
    assert named == [["mouse", "laptop"], ["mouse"]] and "no item is named" in json.dumps(lines[2])
    with pytest.raises(BadInput, match="no item is named"):
        next(iter(read_errors("of the")))
    done = invoke(app, ["maps", "a mouse and a laptop", "--items", "auto", "--seeds", "0", "--steps", "1",
                        "-o", str(tmp_path / "maps")])  # fmt: skip
    assert done.exit_code == 0 and "is installed: mouse, laptop" in " ".join(done.stderr.split()), done.output


def read_errors(prompt: str) -> Any:
    for line in read_prompts(io.BytesIO(prompt.encode()), "text", finder()):
        if line.error:
            raise BadInput(line.error)
        yield line


def test_a_list_of_prompts_is_linted_by_its_phrases(sd1: Any) -> None:
    found = unleak.lint(sd1, ["a mouse and a laptop"], items="auto")
    assert [item["text"] for item in found[0].to_dict()["items"]] == ["mouse", "laptop"]


@pytest.mark.parametrize(("record", "items"), [
    ({"include": [{"class": "clock", "count": 4}], "prompt": "a photo of four clocks"}, ["clocks"]),
    ({"include": [{"class": "bench"}, {"class": "wine glass"}], "prompt": "two benches and a wine glass"},
     ["benches", "wine glass"]),
    ({"include": [{"class": "orange", "color": "orange"}], "prompt": "an orange orange"}, ["orange"]),
    ({"include": [{"class": "cow"}], "items": ["horse"], "prompt": "a cow and a horse"}, ["horse"]),
    ({"include": [{"class": "cow"}], "prompt": "a horse"}, "'cow', which does not stand in the prompt"),
    ({"include": ["cow"], "prompt": "a cow"}, "list of objects with a class"),
    ({"include": [], "prompt": "a cow"}, "list of objects with a class"),
    ({"include": [{"class": 3}], "prompt": "a cow"}, "list of objects with a class"),
])  # fmt: skip
def test_a_record_of_geneval_names_its_objects(record: dict[str, Any], items: list[str] | str) -> None:
    (line,) = read_prompts(io.BytesIO(json.dumps(record).encode()), "jsonl")
    if isinstance(items, str):
        assert line.error is not None and items in line.error
    else:
        assert line.error is None and [item.text for item in line.items] == items


@pytest.mark.skipif(not SETS.is_dir(), reason="UNLEAK_PROMPTS names no folder of public sets of prompts")
def test_the_public_sets_are_read_and_their_objects_are_found() -> None:
    def lines(name: str, watched: Any = ()) -> list[Any]:
        with (SETS / name).open("rb") as stream:
            return list(
                read_prompts(stream, {".jsonl": "jsonl", ".json": "json"}.get(Path(name).suffix, "text"), watched)
            )

    for name in ("geneval.jsonl", "attend_and_excite.json"):  # these say what their objects are
        for line in lines(name):
            ends = sorted(item.find(line.prompt)[1] for item in by_rules(line.prompt))
            assert line.error is None and sorted(end for _, end in line.spans) == ends, line
    compbench = [f"t2i_compbench/{kind}_val.txt" for kind in ("color", "shape", "texture", "spatial")]
    structure = ["structure_diffusion/CC-500.txt", "structure_diffusion/ABC-6K.txt"]
    for name in (*compbench, *structure):
        usable = [line.error is None for line in lines(name, by_rules)]
        assert sum(usable) >= 0.99 * len(usable) > 0, name

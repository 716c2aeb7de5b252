"""Items are found by whole words, in the user's own characters, or not at all."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unleak.errors import AmbiguousItem, BadInput, ItemNotFound
from unleak.text.items import Item, bracketed, find_all, parse_items
from unleak.text.match import _pieces, locate, occurrences

FOUND = [
    ("a mouse and a laptop", "mouse", "mouse"),
    ("mouse first", "mouse", "mouse"),
    ("the last mouse", "mouse", "mouse"),
    ("a Mouse and a laptop", "mouse", "Mouse"),  # case is ignored only when the exact case is absent
    ("a Mouse and a mouse", "mouse", "mouse"),
    ("a mouse, a laptop", "mouse", "mouse"),
    ("a (mouse)!", "mouse", "mouse"),
    ("the mouse's tail", "mouse", "mouse"),
    ("two bats", "bats", "bats"),
    ("a hot  \n dog on ice", "hot dog", "hot  \n dog"),
    ("a T-shirt and a hat", "T-shirt", "T-shirt"),
    ("a T-shirt and a hat", "t-shirt", "T-shirt"),
    ("San Francisco's Golden Gate Bridge", "Golden Gate Bridge", "Golden Gate Bridge"),
    ("a cafe\u0301 by night", "café", "cafe\u0301"),  # decomposed in the prompt, composed in the item
    ("a café by night", "CAFE\u0301", "café"),
    ("ÅNGSTRÖM lamp", "ångström", "ÅNGSTRÖM"),
    ("a 🐭 and a 💻", "🐭", "🐭"),
    ("一只老鼠和电脑", "老鼠", "老鼠"),
    ("2 mice and 12 cats", "2 mice", "2 mice"),
]


@pytest.mark.parametrize(("prompt", "item", "words"), FOUND)
def test_found(prompt, item, words):
    a, b = locate(prompt, item)
    assert prompt[a:b] == words


@pytest.mark.parametrize(
    ("prompt", "item"),
    [
        ("a scarf and cars", "car"),
        ("a car-park", "car"),
        ("a red-eyed car", "eyed"),
        ("mouse_pad", "mouse"),
        ("a dog2", "dog"),
        ("a cafe\u0301", "cafe"),  # the accent belongs to the last letter
        ("a mouse", "a  laptop"),
        ("👩\u200d💻 at work", "👩"),
        ("👍🏽", "👍"),
    ],
)
def test_part_of_a_word_is_not_found(prompt, item):
    with pytest.raises(ItemNotFound, match="not a whole word"):
        locate(prompt, item)


def test_not_found_names_the_prompt_and_close_words():
    with pytest.raises(ItemNotFound) as error:
        locate("two cars and a scarf", "car")
    assert "'two cars and a scarf'" in str(error.value)
    assert "'cars'" in str(error.value) and "'scarf'" in str(error.value)


def test_several_occurrences_need_a_number():
    prompt = "a red mouse and a blue mouse"
    with pytest.raises(AmbiguousItem) as error:
        locate(prompt, "mouse")
    assert "mouse#1" in str(error.value) and "mouse#2" in str(error.value) and "blue [mouse]" in str(error.value)
    assert locate(prompt, "mouse", 1) == (6, 11)
    assert locate(prompt, "mouse", 2) == (23, 28)
    with pytest.raises(ItemNotFound, match="no #3"):
        locate(prompt, "mouse", 3)


@pytest.mark.parametrize(
    ("prompt", "item", "occurrence"),
    [("", "mouse", None), (" \n", "mouse", None), ("a mouse", " ", None), ("a mouse", "mouse", 0)],
)
def test_blank_or_zero_is_bad_input(prompt, item, occurrence):
    with pytest.raises(BadInput):
        locate(prompt, item, occurrence)


def test_repeats_do_not_overlap():
    assert occurrences("ha ha ha", "ha ha") == [(0, 5)]


@given(st.text())
def test_pieces_tile_the_text_and_compose_to_its_normal_form(text):
    pieces = list(_pieces(text, fold=False))
    assert [at for _, at in pieces] == sorted(at for _, at in pieces)
    assert "".join(text[a:b] for _, (a, b) in pieces) == text
    squeezed = "".join(" " if text[a].isspace() else text[a:b] for _, (a, b) in pieces)
    assert "".join(piece for piece, _ in pieces) == unicodedata.normalize("NFC", squeezed)


WORD = st.text("abcdeéß", min_size=1, max_size=4)


@given(st.lists(WORD, min_size=1, max_size=8), st.data())
def test_every_word_of_a_prompt_is_found_where_it_stands(words, data):
    prompt = " ".join(words)
    k = data.draw(st.integers(0, len(words) - 1))
    start = len(" ".join([*words[:k], ""]))
    assert (start, start + len(words[k])) in occurrences(prompt, words[k])
    assert occurrences(prompt, words[k]) == sorted(occurrences(prompt, words[k]))


@given(WORD, WORD)
def test_never_inside_another_word(item, more):
    assume((item + more).find(item, 1) < 0)
    assert occurrences(f"x {item}{more}", item) == []


def test_items_as_written():
    assert parse_items("mouse,laptop") == (Item("mouse"), Item("laptop"))
    assert parse_items(" mouse#2 , hot dog ") == (Item("mouse", 2), Item("hot dog"))
    assert parse_items("mouse#1=furry mouse") == (Item("mouse", 1, "furry mouse"),)
    assert parse_items(["mouse", Item("bat", 2)]) == (Item("mouse"), Item("bat", 2))
    assert parse_items(Item("bat")) == (Item("bat"),)
    assert Item.of("C#") == Item("C#")
    assert str(Item("mouse", 2, "furry mouse")) == "mouse#2=furry mouse"


@pytest.mark.parametrize("written", ["", "mouse,", "mouse#0", "mouse=", "=furry mouse", []])
def test_unreadable_items(written):
    with pytest.raises(BadInput):
        parse_items(written)


def test_brackets():
    assert bracketed("a [mouse] and a [hot dog].") == (
        "a mouse and a hot dog.",
        (Item("mouse"), Item("hot dog")),
    )
    assert bracketed("a mouse by a [mouse]") == ("a mouse by a mouse", (Item("mouse", 2),))
    assert bracketed("plain") == ("plain", ())


@pytest.mark.parametrize(
    "prompt", ["a [mouse", "a mouse]", "a [[mouse]]", "a [red [mouse]]", "a []", "a [car]s", "][a]["]
)
def test_bad_brackets(prompt):
    with pytest.raises(BadInput):
        bracketed(prompt)


@given(st.lists(st.tuples(WORD, st.booleans()), min_size=1, max_size=6))
def test_a_bracketed_item_is_found_where_its_brackets_were(words):
    marked = " ".join(f"[{word}]" if on else word for word, on in words)
    prompt, items = bracketed(marked)
    assert prompt == " ".join(word for word, _ in words)
    starts = [len(" ".join([*(w for w, _ in words[:k]), ""])) for k, (_, on) in enumerate(words) if on]
    assert [item.find(prompt)[0] for item in items] == starts


def test_overlapping_items_are_refused():
    assert find_all("a yellow car by a dog", parse_items("dog,yellow car")) == [(18, 21), (2, 12)]
    with pytest.raises(BadInput, match="overlap"):
        find_all("a yellow car by a dog", parse_items("yellow car,car"))
    with pytest.raises(BadInput, match="overlap"):
        find_all("a dog", parse_items("dog,dog"))

"""Items of a prompt that nobody named: its noun phrases, without articles and numbers.

Where spaCy and one of its English `MODELS` are installed, its noun chunks are taken. Else `by_rules`: words that name
nothing (articles, numbers, prepositions, conjunctions, pronouns, forms of "be" and "have", and marks) cut the prompt,
and what stands between two cuts is a phrase. That finds "red car" and "white sheep" in "a red car and a white sheep".
It knows no verbs but the most common, no grammar and no language but English; who uses it is told.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

from unleak.text.items import Item, item_at

AUTO = "auto"  #: instead of the items: find them
MODELS = ("en_core_web_sm", "en_core_web_md", "en_core_web_lg", "en_core_web_trf")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words(
    "a an the this that these those my your his her its our their some any each every both several many few no another "
    "all one two three four five six seven eight nine ten eleven twelve"
)
BE = _words("is are was were be been being am isn't aren't has have had having can could will would")
CUTS = _words(
    "of in on at by for from with without to into onto over under above below behind beside besides between among near "
    "next against along across around through inside outside within upon toward towards down up off out about as than "
    "like per via during after before while when where which who whose what and or but nor so if then there here not "
    "also very just only too it he she they them him we us you i me himself herself itself together away "
    "sits sit sitting stands standing lies lying holds wears rides runs walks eats plays looks jumps sleeps hangs "
    "shows sat stood lay held wore rode ran ate made"
)
MEDIA = _words("photo photograph picture image painting drawing sketch close-up closeup illustration render")
PLACES = _words("top side front back left right bottom middle center centre edge")
THINGS_IN_ING = _words(
    "ring earring king wing string spring swing sling thing building painting drawing clothing ceiling pudding icing "
    "evening morning lightning wedding railing awning viking sibling duckling stocking"
)
THINGS_IN_ED = _words("bed seed shed sled weed reed moped red")


@dataclass(frozen=True)
class Finder:
    """Called with a prompt, gives its noun phrases in their order; `name` says how they are found."""

    name: str
    find: Callable[[str], tuple[Item, ...]]

    def __call__(self, prompt: str) -> tuple[Item, ...]:
        return self.find(prompt)


@cache
def finder() -> Finder:
    """spaCy's noun chunks, where one of `MODELS` is installed; else `by_rules`."""
    if find_spec("spacy") is not None:
        import spacy

        for model in MODELS:
            if spacy.util.is_package(model):
                return chunks_of(spacy.load(model))
    return Finder("simple rules, for no English model of spaCy is installed", by_rules)


def chunks_of(nlp: Any) -> Finder:
    """The noun chunks of a pipeline of spaCy."""

    def find(prompt: str) -> tuple[Item, ...]:
        found = []
        for chunk in nlp(prompt).noun_chunks:
            words = list(chunk)
            while words and (words[0].pos_ in ("DET", "NUM", "PRON", "PUNCT") or words[0].tag_ == "PRP$"):
                words.pop(0)
            if words:
                start = words[0].idx
                found.append(item_at(prompt, prompt[start : words[-1].idx + len(words[-1].text)], start))
        return tuple(found)

    return Finder(f"noun chunks of spaCy's {nlp.meta['lang']}_{nlp.meta['name']} {nlp.meta['version']}", find)


def by_rules(prompt: str) -> tuple[Item, ...]:
    """Noun phrases by simple rules.

    >>> [str(item) for item in by_rules("a photo of two red cars and a sheep that is standing on the grass")]
    ['red cars', 'sheep', 'grass']
    """
    found, run, before = [], list[re.Match[str]](), ""
    for word in [*re.finditer(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]|_", prompt), None]:
        text = word.group().lower() if word else ""
        if word is not None and text[0].isalpha() and text not in DETERMINERS | BE | CUTS:
            run.append(word)
            continue
        if phrase := _phrase([one.group().lower() for one in run], before, text):
            start, end = run[0].start(), run[phrase - 1].end()
            found.append(item_at(prompt, prompt[start:end], start))
        run, before = [], text
    return tuple(found)


def _phrase(words: list[str], before: str, after: str) -> int:
    """How many of the words between two cuts are a noun phrase; 0: they are none, such as "red" in "is red"."""
    while after == "of" and words and words[-1] in PLACES | MEDIA:  # "dog left of ...", "photo of ..."
        words = words[:-1]
    if before in BE or {*words} <= PLACES:
        return 0
    doing = bool(words) and words[-1].endswith("ing") and words[-1] not in THINGS_IN_ING  # "dog running"
    done = after in CUTS and len(words) > 1 and words[-1].endswith("ed") and words[-1] not in THINGS_IN_ED
    return len(words) - (doing or done)

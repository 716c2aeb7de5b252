"""Prompts with their items from a file. A bad line is reported by its number, never lost."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from unleak.errors import BadInput
from unleak.files import prompt_file
from unleak.files.lines import open_file
from unleak.text.items import Item, bracketed, find_all, parse_items, present
from unleak.text.match import Chars, occurrences
from unleak.text.prompt import check_prompt

MOST_ITEMS = 12  #: of one prompt

Watched = Sequence[Item] | Callable[[str], Sequence[Item]]
"""Items to look for where a prompt names none, or who finds them in a prompt (`unleak.text.noun_phrases.finder`)."""

NO_ITEMS: tuple[Any, ...] = (None, "", [], ())  #: how a record says that it names none


@dataclass(frozen=True)
class Line:
    """One prompt of a file, or what is wrong with it.

    Attributes:
        number: of its first line in the file, from 1.
        spans: the items' characters in the prompt.
        leaks: for each item, whether it is known to leak; None where the file has no labels.
        left_out: words to look for that stand in the prompt, but not in its [brackets], which name its items.
        error: why there is nothing to work with; None for a usable line. The prompt is then what stands there instead.
        file: of several that are read, which one.
    """

    number: int
    prompt: str = ""
    items: tuple[Item, ...] = ()
    spans: tuple[Chars, ...] = ()
    leaks: tuple[bool, ...] | None = None
    left_out: tuple[str, ...] = ()
    error: str | None = None
    file: str = ""


def read_files(source: str | Path, items: Watched = (), column: str | None = None) -> Iterator[Line]:
    """`read_prompts` of all files that a folder or a pattern names; see `unleak.files.prompt_file.files_of`."""
    for name, file in prompt_file.named_files(source):
        with open_file(file) as stream:
            for one in read_prompts(stream, prompt_file.format_of(file), items, column, repr(str(file))):
                yield replace(one, file=name)


def read_prompts(
    stream: BinaryIO,
    form: str = "text",
    items: Watched = (),
    column: str | None = None,
    name: str = "the file of prompts",
) -> Iterator[Line]:
    """Every prompt of a file; empty lines are skipped.

    A prompt's items are those of its record, else those in [brackets] in it, else those of `items` that occur in it. An
    item without a sense has that of the same word in `items`.

    Args:
        form, column, name: see `prompt_file.read`. Beside the prompt, a record may hold ``"items": [...]`` and
            ``"leaks": [...]`` (in a table: separated by commas) and the intended sense of an item: as
            ``"sense": {"mouse": "furry mouse"}``, or among the items as ``"mouse=furry mouse"``. Instead of items there
            may be "indices" of words, counted from 1, as Attend-and-Excite has them, or "include" with a "class" for
            each object, as GenEval has them.
    """
    for entry in prompt_file.read(stream, form, column, name):
        if entry.blank:
            continue
        try:
            if entry.error is not None:
                raise BadInput(entry.error)
            fields = entry.fields
            named = _by_index(entry.text, fields) or _by_class(entry.text, fields) or _with_senses(fields)
            yield line(entry.number, entry.text, named, entry.fields.get("leaks"), items)
        except BadInput as e:
            yield Line(entry.number, entry.text, error=str(e))


def line(number: int, prompt: Any, items: Any = None, leaks: Any = None, watched: Watched = ()) -> Line:
    """A usable line, checked. Raises BadInput (and its kinds) for whatever cannot be used."""
    check_prompt(prompt)
    left_out: tuple[str, ...] = ()
    if items not in NO_ITEMS:
        named = parse_items(_names("items", items))
    else:
        prompt, named = bracketed(prompt) if "[" in prompt else (prompt, ())
        if named:
            inside = find_all(prompt, named)
            others = [one for one in _found(prompt, watched) if not _overlaps(one.find(prompt), inside)]
            left_out = tuple(dict.fromkeys(one.text for one in others))
        named = named or _found(prompt, watched)
    if not named:
        raise BadInput("no item is named: give items in the file, in [brackets] or with --items")
    if len(named) > MOST_ITEMS:
        raise BadInput(f"{len(named)} items; at most {MOST_ITEMS} can be compared")
    senses = {} if callable(watched) else {item.text: item.sense for item in watched}
    named = tuple(replace(item, sense=item.sense or senses.get(item.text)) for item in named)
    spans = tuple(find_all(prompt, named))
    if leaks is None:
        return Line(number, prompt, named, spans, left_out=left_out)
    wrong = set(_names("leaks", leaks))
    if unknown := wrong - {item.text for item in named}:
        raise BadInput(f"'leaks' names {sorted(unknown)}, which are no items of this prompt")
    return Line(number, prompt, named, spans, tuple(item.text in wrong for item in named), left_out)


def _found(prompt: str, watched: Watched) -> tuple[Item, ...]:
    return tuple(watched(prompt)) if callable(watched) else present(prompt, watched)


def _overlaps(span: Chars, spans: Sequence[Chars]) -> bool:
    return any(a < span[1] and span[0] < b for a, b in spans)


def _by_index(prompt: str, record: Mapping[str, Any]) -> list[str]:
    """The items that the record's "indices" name, as "word#occurrence"; none where it has items of its own."""
    indices = record.get("indices")
    if indices is None or record.get("items") is not None:
        return []
    words = [(m.group(), m.start()) for m in re.finditer(r"\S+", prompt)]
    if not isinstance(indices, list) or not all(type(i) is int and 1 <= i <= len(words) for i in indices):
        raise BadInput(f"'indices' must be numbers of words, 1 to {len(words)} in this prompt, not {str(indices)[:80]}")
    named = []
    for word, start in (words[i - 1] for i in indices):
        text = word.strip(".,;:!?\"'()")
        at = start + word.find(text)
        places = [a for a, _ in occurrences(prompt, text)] if text else []
        if at not in places:
            raise BadInput(f"'indices' name {word!r}, which is no word")
        named.append(f"{text}#{places.index(at) + 1}" if len(places) > 1 else text)
    return named


def _by_class(prompt: str, record: Mapping[str, Any]) -> list[str]:
    """The items that the record's "include" names by class, as they stand in the prompt: "clock" as "clocks"."""
    include = record.get("include")
    if include is None or record.get("items") is not None:
        return []
    include = include if isinstance(include, list) else []
    classes = [one["class"] for one in include if isinstance(one, dict) and isinstance(one.get("class"), str)]
    if not classes or len(classes) < len(include):
        raise BadInput('\'include\' must be a list of objects with a class, such as [{"class": "clock"}]')
    named = list[str]()
    for name in dict.fromkeys(classes):
        there = present(prompt, [Item(form) for form in (name, f"{name}s", f"{name}es")])
        if not there:
            raise BadInput(f"'include' names {name!r}, which does not stand in the prompt")
        named.append(str(there[-1]))  # "an orange orange": the first one is a colour
    return named


def _with_senses(record: Mapping[str, Any]) -> Any:
    """The record's items, with the senses that it names."""
    items, senses = record.get("items"), record.get("sense")
    if senses in (None, "", {}):
        return items
    if not isinstance(senses, dict) or not all(isinstance(text, str) for pair in senses.items() for text in pair):
        raise BadInput('\'sense\' must name items and their intended senses: {"mouse": "furry mouse"}')
    named = _names("items", list(senses) if items in NO_ITEMS else items)
    if unknown := [text for text in senses if text not in named]:
        raise BadInput(f"'sense' names {unknown}, which are no items of this prompt: they are {named}")
    return [f"{text}={senses[text]}" if text in senses else text for text in named]


def _names(field: str, value: Any) -> list[str]:
    names = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{field!r} must be a list of texts")
    return names

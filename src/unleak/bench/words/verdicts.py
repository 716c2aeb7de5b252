"""The diagnosis half of `unleak bench words`: is an item called ok, leak, neglect or unknown for the right reason?

The reason is known because it is made. In each prompt one item is in question:

    ok       a word with two senses in a context that triggers none
    leak     such a word in a held-out context that triggers the other sense
    unknown  an object under an invented word ("a blicket and a boat"), by which the model has never learnt it: it
             is not drawn even alone
    neglect  a held-out pair, drawn by a denoiser from which one item is hidden: where it is given the rows of the whole
             prompt it reads those of the prompt without the item (`hide_item`). The encoder knows the item,
             and any part of its rows is read as ever; only together with all others it is not drawn.

A label counts where other seeds than those of the diagnosis confirm it (`confirmed`); the others are left out, and
a note says how many. Labels are of the usual image: where the diagnosis sees the item on half of them or more, it
says ok. The diagnosis knows nothing of this: neither the label nor what was done to the denoiser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import wraps
from typing import Any

import numpy as np
import torch

from unleak.bench.rows import Row, balanced_accuracy, share
from unleak.bench.run import Run
from unleak.bench.words.flow import of_world
from unleak.core.anatomy import Anatomy
from unleak.drawing.generate import generate, rehearse
from unleak.errors import UnsupportedModel
from unleak.judges.glyphs import GlyphJudge, glyph_judge
from unleak.text.items import Item
from unleak.text.phrases import phrase, rename
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.diagnosis.neglect import VERDICTS
from unleak.words.repair.automatic import held_out_seeds
from unleak.world import World
from unleak.world.prompts import Case, prompts

METHODS = DEFAULT = ("diagnosis",)
MOST = 60  #: prompts of each label
#: words that the world does not have
INVENTED = ("blicket", "dax", "wug", "toma", "fep", "zorp", "gazzer", "modi")


class Glossary(GlyphJudge):
    """The judge of the world for prompts whose invented words stand for its objects."""

    def __init__(self, judge: GlyphJudge, intended: dict[str, str]) -> None:
        super().__init__(judge.world, judge.detector, judge.threshold)
        self.intended = intended

    def senses(self, items: Sequence[Item]) -> list[str]:
        return super().senses([Item(i.text, sense=i.sense or self.intended.get(i.text)) for i in items])


@dataclass(frozen=True)
class Labelled:
    """A prompt, its items of which the first is in question, their other senses, and why the first is not drawn.

    ``intended``: the object's name, where the first item is called by an invented word.
    """

    label: str
    prompt: str
    items: tuple[Item, ...]
    senses: dict[str, list[str]]
    intended: str | None = None

    @property
    def judge(self) -> GlyphJudge:
        return Glossary(glyph_judge(), {self.items[0].text: self.intended} if self.intended else {})


def labelled(run: Run) -> list[Labelled]:
    """Prompts of each label."""
    by_label = {
        "ok": [
            _polyseme(run.world, "ok", c)
            for c in prompts(run.world, "neutral", run.split, 2 * MOST)
            if len(c.things) == 2
        ],
        "leak": [_polyseme(run.world, "leak", c) for c in run.cases("trigger", MOST)],
        "unknown": [_invented(c, INVENTED[i % len(INVENTED)]) for i, c in enumerate(_plain(run))],
        "neglect": [_pair(c) for c in _plain(run)],
    }
    return [one for cases in by_label.values() for one in cases[: min(run.limit or MOST, MOST)]]


def _plain(run: Run) -> list[Case]:
    """Held-out pairs without words of two senses or colours."""
    return [
        c for c in prompts(run.world, "pair", run.split, 4 * MOST) if all(t.phrase in run.world.nouns for t in c.things)
    ]


def _polyseme(world: World, label: str, case: Case) -> Labelled:
    items, senses = of_world(world, case)
    items.sort(key=lambda item: item.text != case.polyseme)
    plain = tuple(Item(item.text) for item in items)  # by their words, as a user names them
    return Labelled(label, case.prompt, plain, senses)


def _pair(case: Case) -> Labelled:
    return Labelled("neglect", case.prompt, tuple(Item(t.phrase) for t in case.things), {})


def _invented(case: Case, word: str) -> Labelled:
    first, *others = (Item(t.phrase) for t in case.things)
    text, _ = rename(case.prompt, [(first.find(case.prompt), word)])
    return Labelled("unknown", text, (Item(word), *others), {}, intended=first.text)


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """`diagnosis_balanced_accuracy`, `diagnosis_recall` of each label, and the confusion matrix: `diagnosis_share`
    in "label/verdict", of the prompts with that label those with that verdict."""
    cases = labelled(run)
    tick, unconfirmed = run.ticking("diagnosis", len(cases)), 0
    by_label: dict[str, list[str]] = {}
    for i, case in enumerate(cases):
        compute = lambda c=case: _verdict(run, c)  # noqa: E731
        verdict = run.part(
            f"diagnosis-{i:04d}", [case.label, case.prompt, list(map(str, case.items))], compute, [diagnose]
        )
        tick(1)
        if verdict is None:
            unconfirmed += 1
        else:
            by_label.setdefault(case.label, []).append(verdict)
    if unconfirmed:
        run.notes.append(
            f"diagnosis: {unconfirmed} of {len(cases)} labels were not confirmed by other seeds and are left out"
        )
    return figures(by_label)


def figures(by_label: dict[str, list[str]]) -> list[Row]:
    """The rows of the verdicts on the prompts of each label."""
    rows = []
    if set(by_label) == set(VERDICTS):  # balance over fewer labels would be another figure
        right = [np.array([verdict == label for verdict in by_label[label]]) for label in VERDICTS]
        rows.append(balanced_accuracy(right, "diagnosis", "all", "diagnosis_balanced_accuracy"))
    for label, verdicts in by_label.items():
        for verdict in VERDICTS:
            hits = [v == verdict for v in verdicts]
            rows.append(share(hits, "diagnosis", f"{label}/{verdict}", "diagnosis_share"))
    return rows


def _verdict(run: Run, case: Labelled) -> str | None:
    """The verdict on the item in question; None where its label is not confirmed."""
    seeds = held_out_seeds(run.seeds)

    def shown(prompt: str) -> bool:
        images = generate(run.pipe, prompt, seeds, **run.call)[0]
        item = Item(case.items[0].text, sense=case.judge.senses(case.items)[0])
        return bool(case.judge.present(images, [item]).mean() >= 0.5)

    with hindrance(run, case):
        whole = shown(case.prompt)
    if not confirmed(case, whole, shown):
        return None
    with hindrance(run, case):
        diagnosis = diagnose(run.pipe, case.prompt, case.items, seeds=run.seeds, judge=case.judge, senses=case.senses,
                         after=False, call=run.call)  # fmt: skip
    found = diagnosis.findings[0]
    return "ok" if found.present is not None and found.present.yes else found.verdict


def confirmed(case: Labelled, whole: bool, shown: Callable[[str], bool]) -> bool:
    """Is the item drawn, or not, as its label says?

    Args:
        whole: it is there in the whole prompt, as the diagnosis will see it drawn.
        shown: whether it is there in a prompt, drawn without hindrance.
    """
    if case.label == "neglect":
        return not whole and shown(case.prompt)
    alone = phrase(case.prompt, case.items[0].find(case.prompt)).text
    return whole if case.label == "ok" else not whole and shown(alone) == (case.label == "leak")


def hindrance(run: Run, case: Labelled) -> Any:
    """What makes the denoiser fail on this prompt."""
    if case.label != "neglect":
        return nullcontext()
    others = [phrase(case.prompt, item.find(case.prompt)).text for item in case.items[1:]]
    return hide_item(run.pipe, case.prompt, " and ".join(others), **run.call)


@contextmanager
def hide_item(pipe: Any, prompt: str, instead: str, **call: Any) -> Iterator[None]:
    """Let the denoiser read the rows of `instead` wherever it is given exactly those of `prompt`.

    Raises UnsupportedModel for a denoiser that is not given text rows by name.
    """
    given, read = (rehearse(pipe, text, **call).prompts.encoded.cond for text in (prompt, instead))
    assert given is not None and read is not None
    denoiser = Anatomy.of(pipe).denoiser
    original = denoiser.forward

    @wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        rows = kwargs.get("encoder_hidden_states")
        if rows is None:
            raise UnsupportedModel("the denoiser is given no `encoder_hidden_states`: it cannot be hindered")
        # the same text in another batch differs by rounding
        swapped = [read[0] if torch.allclose(row, given[0], rtol=1e-3, atol=1e-4) else row for row in rows]
        return original(*args, **{**kwargs, "encoder_hidden_states": torch.stack(swapped)})

    denoiser.forward = forward
    try:
        yield
    finally:
        del denoiser.forward

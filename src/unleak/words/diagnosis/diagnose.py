"""`unleak.diagnose`: why is an item of the prompt wrong or missing, and what repairs it?

The prompt is drawn and judged. For every item that is missing, in its intended sense, from more than half of
the images, what its text rows say and the item alone are drawn from the same seeds, and give its verdict
(`unleak.words.diagnosis.neglect`). The flow between items (`unleak.words.diagnosis.flow`) tells which item changed it.
Without a judge the flow is the only evidence: there is no verdict, and the images are for the reader to judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from unleak.drawing.drawing import Drawing
from unleak.drawing.generate import Seeds
from unleak.errors import BadInput, UnleakError, choose
from unleak.judges import Judge
from unleak.stats.rate import Rate
from unleak.text.call import Encoded
from unleak.text.items import Item, bracketed, find_all, parse_items
from unleak.text.match import Chars
from unleak.text.prompt import check_prompt
from unleak.text.scene import Scene
from unleak.words.diagnosis.diagnosis import Diagnosis, Finding
from unleak.words.diagnosis.flow import flow_of
from unleak.words.diagnosis.flow_images import image_flow
from unleak.words.diagnosis.neglect import flags, judge_images, nothing, probes, verdict
from unleak.words.methods.lens import Lens, reads_as
from unleak.words.presets import Trial, suggested, trials

MOST_ITEMS = 12
EVIDENCE = ("failures", "all")


def items_of(prompt: str, items: str | Iterable[str | Item] | None = None) -> tuple[str, tuple[Item, ...]]:
    """The prompt without brackets, and its items: those named, else those in brackets.

    Raises:
        BadInput: there are none, or more than `MOST_ITEMS`, or two overlap. ItemNotFound, AmbiguousItem.
    """
    check_prompt(prompt)
    if items is None:
        prompt, named = bracketed(prompt)
    else:
        named = parse_items(items)
    if not named:
        raise BadInput(f"no item is named in {prompt!r}: list them, or use brackets, 'a [mouse] and a [laptop]'")
    if len(named) > MOST_ITEMS:
        raise BadInput(f"{len(named)} items are named and a diagnosis takes {MOST_ITEMS}: name those in doubt")
    find_all(prompt, named)
    return prompt, named


def senses_of(text: str) -> dict[str, list[str]]:
    """``"mouse=computer mouse,bat=cricket bat"`` -> the other senses of each word. Raises BadInput."""
    senses: dict[str, list[str]] = {}
    for item in parse_items(text) if text else ():
        if item.sense is None:
            raise BadInput(f"{text!r} names no sense of '{item}': write '{item}=its other sense'")
        senses.setdefault(item.text, []).append(item.sense)
    return senses


def check_senses(senses: Iterable[str], items: Sequence[Item]) -> None:
    """Refuse senses of a word that is no item. Raises BadInput; it names the nearest item."""
    for word in senses:
        choose("item whose senses are given", word, dict.fromkeys(item.text for item in items))


def check_evidence(evidence: str) -> str:
    """`evidence`, if it is one of `EVIDENCE`. Raises BadInput."""
    return choose("evidence", evidence, EVIDENCE)


def diagnose(
    pipe: Any,
    prompt: str,
    items: str | Iterable[str | Item] | None = None,
    *,
    seeds: Seeds = 4,
    judge: Judge | None = None,
    senses: Mapping[str, Sequence[str]] | None = None,
    evidence: str = "failures",
    lens: Sequence[float] = (),
    flow_images: bool = False,
    after: bool = True,
    model: str = "",
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Diagnosis:
    """Find out for every item of a prompt whether it is drawn in its intended sense; if not, why, and what repairs it.

    Args:
        items: every item, "mouse,laptop" or a list; "mouse=furry mouse" names the intended sense. Without
            it those in brackets: "a [mouse] and a [laptop]".
        judge: who looks for the items; one that it cannot read gets no verdict and the judge's words as its note.
        senses: for the text of an item, the names of its other senses: ``{"mouse": ["computer mouse"]}``. Those of
            other words only join the names that a row is compared with; `check_senses` refuses them.
        evidence: ``"failures"``: draw what explains an item where it is missing; ``"all"``: for every item.
        lens: depths 0..1 of the encoder's layers to draw, too, e.g. (0.25, 0.5, 0.75).
        flow_images: draw how each item changes the image of every other (`unleak.words.diagnosis.flow_images`).
        after: draw the suggested repair, too; with a judge, suggest the next one where it does not help.
        call: arguments of the pipeline. progress: is told how many images each call made.

    Raises:
        BadInput, ItemNotFound, AmbiguousItem, PromptTruncated: before anything is drawn.
    """
    prompt, named = items_of(prompt, items)
    check_evidence(evidence)
    senses, drawing = senses or {}, Drawing(pipe, seeds, call, judge, progress)
    findings = [_finding(judge, *pair, senses) for pair in zip(named, find_all(prompt, named), strict=True)]
    watched = [_watched(judge, findings, i) for i in range(len(findings))]
    intended = [f.intended for f in findings]

    encoded = drawing.rehearse(prompt).encoded
    causal = _causal(encoded, named)
    for depth in lens:
        drawing.rehearse(prompt, Lens(depth))
    bank = dict.fromkeys((*(m.sense or m.text for m in intended), *(n for names in senses.values() for n in names)))
    for i, item in enumerate(named):
        if len(bank) > 1:
            findings[i].reads = reads_as(encoded, named, i, bank)
        for _, text, interventions in probes(prompt, item, _others(named, i), causal).values():
            drawing.rehearse(text, *interventions)

    flow = flow_of(encoded, prompt, intended, senses)
    who = judge.name if judge else None
    diagnosis = Diagnosis(prompt, model, findings, flow, drawing.seeds, who, drawing.call, drawing.images(prompt))
    for i, (f, things) in enumerate(zip(findings, watched, strict=True)):
        full = judge_images(judge, diagnosis.images, things, "The prompt")
        f.present, f.instead = full.rate, tuple(name for name in full.instead if name in f.senses)
        if evidence == "all" or (f.present and not f.present.yes):
            f.evidence = {
                name: judge_images(judge, drawing.images(text, *interventions), things, title, len(f.senses))
                for name, (title, text, interventions) in probes(prompt, f.item, _others(named, i), causal).items()
            }
        if f.present:
            f.verdict, f.flags = _judged(f)
    every = list(dict.fromkeys(thing for things in watched for thing in things))
    if any(f.evidence for f in findings) and judge:
        title, interventions = nothing()
        diagnosis.control = judge_images(judge, drawing.images(prompt, *interventions), every, title)
    if flow_images and len(intended) > 1:
        diagnosis.image_flow = image_flow(
            pipe, prompt, intended, seeds=seeds, judge=judge, senses=senses, call=call, progress=progress
        )
    for depth in lens:
        title = f"The rows at {100 * depth:.0f} % of the encoder's depth"
        diagnosis.layers[depth] = judge_images(judge, drawing.images(prompt, Lens(depth)), every, title)
    _suggest(diagnosis, drawing, after)
    return diagnosis


@torch.no_grad()
def _causal(encoded: Encoded, items: Sequence[Item]) -> bool:
    """Does an encoder whose rows the denoiser reads look to the left only?"""
    return any(Scene(call, items).causal for name, call in encoded.calls.items() if encoded.layer(name))


def _others(items: Sequence[Item], i: int) -> Sequence[Item]:
    return [*items[:i], *items[i + 1 :]]


def _finding(judge: Judge | None, item: Item, span: Chars, senses: Mapping[str, Sequence[str]]) -> Finding:
    """The item and what is looked for; the judge's objection where it cannot read the item."""
    sense, note = item.sense or item.text, ""
    if judge is not None:
        try:
            sense = judge.senses([item])[0]
        except BadInput as e:
            note = f"not judged: {e}"
    return Finding(item, span, sense, tuple(s for s in senses.get(item.text, ()) if s != sense), note=note)


def _watched(judge: Judge | None, findings: Sequence[Finding], i: int) -> list[Item]:
    """What the judge looks for on the images of item i: the item, its other senses, the other items it can read."""
    f = findings[i]
    if judge is None or f.note:
        return []
    others = [o.intended for j, o in enumerate(findings) if j != i and not o.note]
    things = [f.intended, *(Item(f.item.text, sense=name) for name in f.senses), *others]
    judge.senses(things)  # refuses a sense that it cannot read
    return things


def _judged(f: Finding) -> tuple[str, tuple[str, ...]]:
    assert f.present is not None
    shows = {name: bool(e.rate and e.rate.yes) for name, e in f.evidence.items()}
    encoded = shows.get("encoded", False) and shows.get("gathered", True)  # the latter in causal encoders
    result = verdict(f.present.yes, encoded, shows.get("alone", False))
    return result, flags(f.evidence["encoded"], f.senses) if result == "ok" and f.evidence else ()


def _suggest(diagnosis: Diagnosis, drawing: Drawing, after: bool) -> None:
    """Add a repair, and with `after` what it draws: the cheapest that treats the verdicts and that this
    pipeline and prompt allow; where a judge still misses the items that it acts on, the next one, of any kind. Where
    none brings them back, the first."""
    judge, drawn = drawing.judge, list[tuple[Trial, np.ndarray | None, dict[int, Rate | None]]]()
    for trial in (trials if judge and after else suggested)(diagnosis.task):
        try:
            drawing.rehearse(diagnosis.prompt, trial.repair)
            images = drawing.images(diagnosis.prompt, trial.repair) if after else None
        except UnleakError as e:
            diagnosis.failed[trial.name] = str(e)
            continue
        readable = {k: f.intended for k, f in enumerate(diagnosis.findings) if judge and not f.note}
        rates = (
            {} if images is None else {k: judge_images(judge, images, [m], "After").rate for k, m in readable.items()}
        )
        drawn.append((trial, images, rates))
        acted = {m.text: rate for k, m in readable.items() if m in trial.items and (rate := rates.get(k))}
        if all(rate.yes for rate in acted.values()):
            break
        diagnosis.failed[trial.name] = "with it " + ", ".join(f"“{name}” is there on {r}" for name, r in acted.items())
    else:
        drawn = drawn[:1]
    if drawn:
        trial, diagnosis.after, rates = drawn[-1]
        diagnosis.method, diagnosis.repair = trial.name, trial.repair
        diagnosis.failed.pop(trial.name, None)
        for k, f in enumerate(diagnosis.findings):
            f.repaired, f.after = f.intended in trial.items, rates.get(k)

"""`unleak.diagnose`: why is an item of the prompt wrong or missing, and what repairs it?

The prompt is drawn and judged. For every item that is missing, in its intended sense, from some of the images, what
its text rows say and the item alone are drawn from the seeds of those, and give its verdict
(`unleak.words.diagnosis.neglect`). What mends those that fail is tried at other seeds (`unleak.words.repair.automatic`)
and suggested. The flow between items (`unleak.words.diagnosis.flow`) tells which item changed it.
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
from unleak.text.noun_phrases import AUTO, finder
from unleak.text.prompt import check_prompt
from unleak.text.scene import Scene
from unleak.words.diagnosis.diagnosis import Diagnosis, Finding
from unleak.words.diagnosis.flow import flow_of
from unleak.words.diagnosis.flow_images import image_flow
from unleak.words.diagnosis.more_seeds import batches
from unleak.words.diagnosis.neglect import Sighting, decide, flags, judge_images, nothing, probes, spared
from unleak.words.methods.lens import Lens, reads_as
from unleak.words.presets import suggested
from unleak.words.repair.automatic import Looks, mend

MOST_ITEMS = 12
EVIDENCE = ("failures", "all")


def items_of(prompt: str, items: str | Iterable[str | Item] | None = None) -> tuple[str, tuple[Item, ...]]:
    """The prompt without brackets, and its items: those named, else those in brackets; `AUTO`: its noun phrases.

    Raises:
        BadInput: there are none, or more than `MOST_ITEMS`, or two overlap. ItemNotFound, AmbiguousItem.
    """
    check_prompt(prompt)
    if items == AUTO:
        named = finder()(prompt)
        if not named:
            raise BadInput(f"no noun phrase is found in {prompt!r} by {finder().name}: name the items")
    elif items is None:
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
            it those in brackets: "a [mouse] and a [laptop]". ``"auto"``: the prompt's noun phrases, see
            `unleak.text.noun_phrases`; a word "auto" is the item "auto#1".
        seeds: ``"auto"`` draws until every verdict is sure, `unleak.words.diagnosis.more_seeds.MOST` images at most.
        judge: who looks for the items; one that it cannot read gets no verdict and the judge's words as its note.
        senses: for the text of an item, the names of its other senses: ``{"mouse": ["computer mouse"]}``. Those of
            other words only join the names that a row is compared with; `check_senses` refuses them.
        evidence: ``"failures"``: draw what explains an item at the seeds where it is missing; ``"all"``: for every
            item, at every seed.
        lens: depths 0..1 of the encoder's layers to draw, too, e.g. (0.25, 0.5, 0.75).
        flow_images: draw how each item changes the image of every other (`unleak.words.diagnosis.flow_images`).
        after: draw the suggested repair where an item is missing, too; with a judge, suggest what mends images that
            fail at other seeds.
        call: arguments of the pipeline. progress: is told how many images each call made.

    Raises:
        BadInput, ItemNotFound, AmbiguousItem, PromptTruncated: before anything is drawn.
    """
    prompt, named = items_of(prompt, items)
    check_evidence(evidence)
    senses, rounds = senses or {}, batches(seeds, judge)
    drawing = Drawing(pipe, rounds[0], call, judge, progress)
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
    who, seen = judge.name if judge else None, [Sighting("The prompt", np.empty(0))] * len(findings)
    diagnosis = Diagnosis(prompt, model, findings, flow, [], who, drawing.call, np.empty(0))
    for batch in rounds:
        images = drawing.images(prompt, seeds=batch)
        for i, (f, things) in enumerate(zip(findings, watched, strict=True)):
            full = judge_images(judge, images, things, "The prompt", len(f.senses), batch)
            seen[i] = seen[i].joined(full) if diagnosis.seeds else full
            if explained := batch if evidence == "all" else full.failing:
                for name, (title, text, interventions) in probes(prompt, f.item, _others(named, i), causal).items():
                    drawn = drawing.images(text, *interventions, seeds=explained)
                    more = judge_images(judge, drawn, things, title, len(f.senses), explained)
                    f.evidence[name] = f.evidence[name].joined(more) if name in f.evidence else more
        diagnosis.images = np.concatenate([diagnosis.images, images]) if diagnosis.seeds else images
        diagnosis.seeds = [*diagnosis.seeds, *batch]
        for f, whole in zip(findings, seen, strict=True):
            _judge(f, whole)
        if not diagnosis.open:
            break
    drawing.seeds = diagnosis.seeds
    every = list(dict.fromkeys(thing for things in watched for thing in things))
    if any(f.evidence for f in findings) and judge:
        title, interventions = nothing()
        at = sorted({seed for f in findings for e in f.evidence.values() for seed in e.seeds})
        images = drawing.images(prompt, *interventions, seeds=at)
        diagnosis.control = judge_images(judge, images, every, title, seeds=at)
    if flow_images and len(intended) > 1:
        diagnosis.image_flow = image_flow(
            pipe, prompt, intended, seeds=drawing.seeds, judge=judge, senses=senses, call=call, progress=progress
        )
    for depth in lens:
        title = f"The rows at {100 * depth:.0f} % of the encoder's depth"
        diagnosis.layers[depth] = judge_images(
            judge, drawing.images(prompt, Lens(depth)), every, title, seeds=drawing.seeds
        )
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


def _judge(f: Finding, seen: Sighting) -> None:
    """Give an item its verdict from what is seen on the prompt's images and on its evidence."""
    f.present, f.failing = seen.rate, seen.failing
    if f.present is None:
        return
    if not f.failing:
        f.verdict, f.open = spared(f.present)
        f.flags = flags(f.evidence["encoded"], f.senses) if f.evidence else ()
        return
    failed = seen.at(f.failing)
    f.others = {name: rate for name, rate in failed.seen.items() if name in f.senses and rate.k}
    f.instead = tuple(name for name in failed.instead if name in f.senses)
    other = None
    if f.senses:
        assert failed.hits is not None
        other = Rate.of(np.asarray(failed.hits[:, 1 : 1 + len(f.senses)].any(1)))
    rates = {name: rate for name, e in f.evidence.items() if (rate := e.at(f.failing).rate)}
    encoded = [rates[name] for name in ("encoded", "gathered") if name in rates]  # the latter in causal encoders
    f.verdict, f.open = decide(f.present, other, encoded, rates["alone"])


def _suggest(diagnosis: Diagnosis, drawing: Drawing, after: bool) -> None:
    """Add a repair. Where a judge looks, and `after`, the one that images of other seeds confirm, with what it makes
    of the images that fail; else the cheapest that treats the verdicts and that this pipeline and prompt allow."""
    readable = [f for f in diagnosis.findings if not f.note] if drawing.judge else []
    others = {f.item.text: f.senses for f in readable}
    looks = Looks(drawing.judge, [f.intended for f in readable], others) if drawing.judge and readable else None
    if looks is None or not after or not diagnosis.task.broken:
        return _first(diagnosis, drawing, readable, looks, after)
    done = mend(drawing, diagnosis.prompt, diagnosis.task, looks, diagnosis.images, looks(diagnosis.images))
    diagnosis.tried = done.tried
    for one in done.tried:
        if not one.kept:
            diagnosis.failed[one.trial.name] = one.failed or f"with it {one.mended_text}"
    trial = done.kept
    if trial is None:  # none helps: the one that is meant for the verdicts stays
        return _first(diagnosis, drawing, readable, looks, after)
    diagnosis.method, diagnosis.repair, diagnosis.after = trial.name, trial.repair, done.best.images
    for k, f in enumerate(readable):
        f.repaired, f.after = f.intended in trial.items, Rate.of(done.best.present[:, k])


def _first(
    diagnosis: Diagnosis, drawing: Drawing, readable: Sequence[Finding], looks: Looks | None, after: bool
) -> None:
    """Suggest the first repair that is possible, and with `after` draw it at the seeds that fail."""
    for trial in suggested(diagnosis.task):
        try:
            drawing.rehearse(diagnosis.prompt, trial.repair)
            rows = diagnosis.failing_rows
            if after:
                diagnosis.after = diagnosis.images.copy()
                seeds = [diagnosis.seeds[row] for row in rows]
                diagnosis.after[rows] = drawing.images(diagnosis.prompt, trial.repair, seeds=seeds)
        except UnleakError as e:
            diagnosis.failed[trial.name] = str(e)
            continue
        diagnosis.method, diagnosis.repair = trial.name, trial.repair
        diagnosis.failed.pop(trial.name, None)
        for f in diagnosis.findings:
            f.repaired = f.intended in trial.items
        if looks is not None and diagnosis.after is not None:
            for f, hits in zip(readable, looks(diagnosis.after).T, strict=True):
                f.after = Rate.of(hits)
        break

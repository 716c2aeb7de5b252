"""`unleak.repair`: draw a prompt before and after a repair, at the same seeds, and let a judge compare.

Which items are repaired is decided by the judge: those that are missing, in its intended sense, from more
than half of the images. Which repair is taken is decided by trial (`unleak.words.repair.automatic`), or by the user.
Without a judge every named item is patched, and no rate is claimed.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, ClassVar

import numpy as np

from unleak import models
from unleak.core.intervention import Intervention
from unleak.core.result import WIDEST, Result
from unleak.drawing.drawing import Drawing
from unleak.drawing.generate import Seeds, written_seeds
from unleak.errors import BadInput, UnleakError, choose
from unleak.judges import Judge
from unleak.text.items import Item, find_all, parse_items
from unleak.text.match import Chars
from unleak.text.prompt import check_prompt
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.diagnosis.diagnosis import Diagnosis, code, described
from unleak.words.methods.prune import Prune
from unleak.words.presets import DEFAULT, REPAIRS, RepairTask, Trial, check_parameters, trials
from unleak.words.repair.automatic import Attempt, Best, try_repairs, untried
from unleak.words.tokens.classifier import Classifier


@dataclass
class ItemOutcome:
    """One item: its characters in the prompt, its intended sense, and on how many seeds it is there."""

    text: str
    sense: str | None
    span: tuple[int, int]
    repaired: bool
    before: np.ndarray | None  #: [S] bool, None without a judge
    after: np.ndarray | None
    verdict: str | None = None  #: of the diagnosis, where there was one

    @property
    def name(self) -> str:
        """The item with its intended sense, where that has another name."""
        return self.text if self.sense in (None, self.text) else f"{self.text} ({self.sense})"

    @property
    def counts(self) -> str:
        """On how many seeds it is there, before and after."""
        if self.before is None or self.after is None:
            return "not judged"
        n = len(self.before)
        return f"{self.before.sum()}/{n} -> {self.after.sum()}/{n}"


@dataclass(repr=False, eq=False)
class Repaired(Result):
    """Images before and after [S,H,W,3] uint8 at the same seeds, and what the judge says of each item.

    ``method`` is the repair that was kept, "none" if nothing was repaired. Where it was chosen by trial, ``diagnosis``
    says why, ``tried`` what each repair did on held-out seeds, ``not_tried`` what stood behind the one that was kept,
    and ``drawn_by`` which one drew each image of ``after``: another repair where the kept one left an item out and the
    other did not, "none" where the original shows more. ``command`` draws before and after with the kept repair once
    more, None where a command line cannot say it.
    """

    verb: ClassVar[str] = "repair"
    prompt: str
    model: str
    method: str
    settings: dict[str, Any]
    items: list[ItemOutcome]
    seeds: list[int]
    before: np.ndarray
    after: np.ndarray
    judge: str | None
    log: Any = field(default=None, repr=False)
    diagnosis: Diagnosis | None = field(default=None, repr=False)
    tried: list[Attempt] = field(default_factory=list)
    drawn_by: list[str] = field(default_factory=list)
    repair: Intervention | None = None
    not_tried: list[str] = field(default_factory=list)
    command: str | None = None

    @property
    def code(self) -> str | None:
        """Lines of Python that draw with the repair that was kept; None if nothing was repaired."""
        if self.repair is None:
            return None
        return code(self.repair, self.prompt, self.seeds, self.settings["call"], self.model)

    @property
    def why(self) -> list[str]:
        """Why this repair was kept, or none, one sentence each."""
        chosen, judged = next((one for one in self.tried if one.kept), None), self.judge is not None
        if chosen is not None:
            how = (
                "The first repair after which each item that it acts on is on half of the held-out images or more."
                if chosen.works
                else "None of the repairs brings every item back; this one gains most."
            )
            left = f"Not tried, since they come after it: {', '.join(self.not_tried)}."
            return [how, "What treats the verdict comes first, then what costs least.", *[left] * bool(self.not_tried)]
        if self.tried:
            return ["None of the repairs that were tried shows more items on held-out images, so nothing is changed."]
        if self.repair is not None:
            asked = self.settings["with"] != "auto"
            how = "It was asked for, so no other was tried." if asked else "Without a judge no repair can be tried."
            return [how] if judged or asked else [how, "Every item that is named is repaired."]
        missing = [i for i in self.items if i.before is not None and i.before.mean() < 0.5]
        if missing:
            known = ", ".join(f"“{i.text}” is {i.verdict}" if i.verdict else f"“{i.text}” is missing" for i in missing)
            return [f"No repair is known for what is missing: {known}."]
        return ["Every item is on half of the images or more, so nothing needs a repair."]

    @property
    def drawings(self) -> dict[str, int]:
        """How many images were drawn, and what for."""
        evidence = [e for f in self.diagnosis.findings for e in f.evidence.values()] if self.diagnosis else []
        if self.diagnosis is not None and self.diagnosis.control is not None:
            evidence.append(self.diagnosis.control)
        trials = [one for one in self.tried if not one.redraw]
        counts = {
            "the prompt": len(self.before),
            "the diagnosis": sum(len(e.images) for e in evidence),
            "the prompt at held-out seeds": len(trials[0].seeds) if trials else 0,
            "repairs at held-out seeds": sum(one.drawings for one in trials),
            "the kept repair": 0 if self.repair is None else len(self.after),
            "single images again": sum(one.drawings for one in self.tried if one.redraw),
        }
        return {what: count for what, count in counts.items() if count}

    @property
    def undone(self) -> list[int]:
        """Seeds whose image is the original, though a repair was kept."""
        return [seed for seed, name in zip(self.seeds, self.drawn_by, strict=False) if self.changed and name == "none"]

    @property
    def changed(self) -> bool:
        """Whether any item was repaired."""
        return any(i.repaired for i in self.items)

    def lines(self) -> list[str]:
        who = f"judge {self.judge}" if self.judge else "no judge, so no rate is claimed: look at the pictures"
        lines = [self.prompt, f"  {who}; seeds {', '.join(map(str, self.seeds))}"]
        for i in self.items:
            verdict = f", {i.verdict}" if i.verdict else ""
            lines.append(f"  {i.name:<24} {'repaired' if i.repaired else 'left':<9}{i.counts}{verdict}".rstrip())
        lines += [f"  tried {attempt}" for attempt in self.tried]
        for name in dict.fromkeys(name for name in self.drawn_by if self.changed and name != self.method):
            seeds = ", ".join(str(seed) for seed, one in zip(self.seeds, self.drawn_by, strict=True) if one == name)
            lines.append(f"  seed {seeds}: " + ("the original image" if name == "none" else f"{name} shows more"))
        lines.append(
            f"  kept: {self.method}, {described(self.repair)}" if self.repair else "  kept: the original images"
        )
        lines += [f"  why: {sentence}" for sentence in self.why]
        lines.append(f"  drawn: {sum(self.drawings.values())} images: " + said_of(self.drawings))
        if self.code and all(
            len(line) <= WIDEST - 4 for line in self.code.splitlines()
        ):  # a line that is cut is no code
            lines += ["  in Python:", *(f"    {line}" for line in self.code.splitlines() if line)]
        if self.command and len(self.command) <= WIDEST - 4:
            lines += ["  as a command:", f"    {self.command}"]
        return lines

    def views(self) -> dict[str, np.ndarray]:
        return {"before": self.before, "after": self.after}

    def data(self) -> dict[str, Any]:
        total = lambda hits: None if hits is None else int(hits.sum())  # noqa: E731
        return {
            "prompt": self.prompt,
            "model": self.model,
            "method": self.method,
            "settings": self.settings,
            "judge": self.judge,
            "seeds": self.seeds,
            "items": [
                {
                    "text": i.text, "sense": i.sense, "span": list(i.span), "repaired": i.repaired,
                    "verdict": i.verdict,
                    "present_before": total(i.before), "present_after": total(i.after), "seeds": len(self.seeds),
                }
                for i in self.items
            ],
            "verdicts": None if self.diagnosis is None else [f.verdict for f in self.diagnosis.findings],
            "tried": [
                {
                    "method": t.trial.name, "repair": t.trial.repair.to_dict(), "works": t.works, "kept": t.kept,
                    "present_before": t.before.sum(0).tolist(),
                    "present_after": None if t.after is None else t.after.sum(0).tolist(),
                    "seeds": len(t.before), "drawn_at": list(t.seeds), "drawings": t.drawings, "redraw": t.redraw,
                    "better": list(t.better), "reason": t.reason, "failed": t.failed or None,
                }
                for t in self.tried
            ],
            "not_tried": self.not_tried, "why": self.why, "drawings": self.drawings,
            "repair": None if self.repair is None else self.repair.to_dict(), "code": self.code,
            "command": self.command, "by": self.drawn_by, "undone": self.undone,
            "images": self.file_names(),
        }  # fmt: skip


def said_of(drawings: Mapping[str, int]) -> str:
    """``{"the prompt": 4}`` as text."""
    return ", ".join(f"{count} of {what}" for what, count in drawings.items())


@dataclass(frozen=True)
class RepairPlan:
    """Which items of the prompt there are, and which are repaired whatever the judge says (None: it decides)."""

    items: tuple[Item, ...]
    spans: list[Chars]
    forced: list[bool] | None
    method: str
    parameters: dict[str, Any]
    redundant: Prune | None = None

    @property
    def name(self) -> str:
        """The repair; `DEFAULT` where it is yet to be chosen by trial."""
        return DEFAULT if self.method == "auto" else self.method

    def task(self, target: Sequence[bool]) -> RepairTask:
        """The items that `target` marks are to be repaired; the others are their context."""
        broken = tuple(i for i, t in zip(self.items, target, strict=True) if t)
        others = tuple(i for i, t in zip(self.items, target, strict=True) if not t)
        return RepairTask(broken, others, (None,) * len(broken), self.redundant)

    def build(self, target: Sequence[bool]) -> Intervention:
        """The repair of the items that `target` marks. Raises BadInput where it has nothing to act on."""
        built = REPAIRS[self.name].build(self.task(target), self.parameters)
        if built is None:
            raise BadInput(f"{self.name} has nothing to act on: no token of these items is known to be redundant")
        return built

    def to_rehearse(self) -> list[Intervention]:
        """Repairs that must work before anything is drawn: the forced one, or that of each single item."""
        if self.forced is not None:
            return [self.build(self.forced)]
        return [self.build([i is item for i in self.items]) for item in self.items]


def plan(
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    with_: str = "auto",
    only: str | Iterable[str | Item] | None = None,
    redundant: Prune | Classifier | None = None,
    **parameters: Any,
) -> RepairPlan:
    """Everything of a repair that can be checked without a pipeline; arguments are those of `repair`.

    Raises BadInput, ItemNotFound, AmbiguousItem: an item is not in the prompt, or is there twice, or overlaps
    another; `only` is none of them; the repair has no such parameter; "prune" is not told what is redundant.
    """
    choose("repair", with_, ("auto", *REPAIRS))
    check_parameters(with_, parameters)
    if with_ == "prune" and redundant is None:
        raise BadInput("prune drops redundant tokens: give a classifier of `unleak redundancy`, or tokens(...).prune()")
    check_prompt(prompt)
    named = parse_items(items)
    forced = None if only is None else _among(named, parse_items(only))
    prune = redundant if isinstance(redundant, Prune) else None
    planned = RepairPlan(named, find_all(prompt, named), forced, with_, parameters, prune)
    if redundant is prune:  # a classifier must read the rows first
        planned.to_rehearse()
    return planned


def _among(named: Sequence[Item], only: Sequence[Item]) -> list[bool]:
    """Which of `named` are in `only`; an occurrence or a sense may be left out there."""
    hits = [
        [n.text == o.text and o.occurrence in (None, n.occurrence) and o.sense in (None, n.sense) for n in named]
        for o in only
    ]
    for o, row in zip(only, hits, strict=True):
        if sum(row) != 1:
            raise BadInput(f"only='{o}' must be one of the items {', '.join(map(repr, map(str, named)))}")
    return [any(column) for column in zip(*hits, strict=True)]


def repair(
    pipe: Any,
    prompt: str,
    items: str | Iterable[str | Item],
    *,
    with_: str = "auto",
    seeds: Seeds = 8,
    judge: Judge | None = None,
    only: str | Iterable[str | Item] | None = None,
    redundant: Prune | Classifier | None = None,
    model: str = "",
    call: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> Repaired:
    """Draw `prompt` at `seeds`, repair what the judge misses, draw it again at the same seeds.

    Args:
        items: every item of the prompt, "mouse,laptop" or a list; "mouse=furry mouse" names the sense. An
            item without one has the sense that the judge looks for, and is repaired by that name.
        with_: the repair, one of `REPAIRS`. ``"auto"``: what the diagnosis suggests, if the judge confirms it on
            held-out seeds, else the next one, also for single images that still miss an item; without a judge
            ``"patch"``.
        only: of the items, repair these, whatever the judge says.
        redundant: which tokens may go: ``tokens(...).prune()``, or a classifier that tells without drawing. It is
            tried as a repair, too.
        call: arguments of the pipeline (steps, guidance, size).
        parameters: of the repair, as `unleak.methods()` lists them (`isolation`, `eos_pads`, ... of "patch").

    Raises BadInput, ItemNotFound, AmbiguousItem, PromptTruncated, SpanMismatch before anything is drawn.
    """
    todo = plan(prompt, items, with_=with_, only=only, redundant=redundant, **parameters)
    given = todo.items
    senses: Sequence[str | None] = judge.senses(given) if judge else [i.sense for i in given]
    named = tuple(replace(i, sense=s if s != i.text else None) for i, s in zip(given, senses, strict=True))
    todo = replace(todo, items=named)
    drawing = Drawing(pipe, seeds, call, judge, progress)
    if isinstance(redundant, Classifier):
        todo = replace(todo, redundant=redundant.prune(pipe, prompt, given, **drawing.call))
    if judge is None and todo.forced is None:
        todo = replace(todo, forced=[True] * len(named))
    for trial in todo.to_rehearse():
        drawing.rehearse(prompt, trial)

    if with_ == "auto" and judge is not None:
        diagnosis = diagnose(
            pipe, prompt, given, seeds=drawing.seeds, judge=judge, after=False, model=model, call=call,
            progress=progress,
        )  # fmt: skip
        drawn = _by_trial(drawing, prompt, todo, diagnosis)
    else:
        drawn = _by_chosen_repair(drawing, prompt, todo)
    before, after = drawn.present_before, drawn.present_after
    outcomes = [
        ItemOutcome(
            item.text, sense, span, hit,
            None if before is None else before[:, k], None if after is None else after[:, k],
            None if drawn.diagnosis is None else drawn.diagnosis.findings[k].verdict,
        )
        for k, (item, sense, span, hit) in enumerate(zip(named, senses, todo.spans, drawn.target, strict=True))
    ]  # fmt: skip
    kept = next((one.trial.repair for one in drawn.tried if one.kept), None)
    if kept is None and any(drawn.target):
        kept = todo.build(drawn.target)
    dropped = {"redundant": todo.redundant.to_dict()} if todo.redundant else {}
    written = todo.to_rehearse()[0].to_dict()
    settings = {"with": with_, **{name: written[name] for name in parameters}, **dropped, "call": drawing.call}
    return Repaired(
        prompt, model, drawn.method, settings, outcomes, drawing.seeds, drawn.before, drawn.after,
        judge.name if judge else None, drawing.log, drawn.diagnosis, drawn.tried, drawn.drawn_by, kept, drawn.not_tried,
        None if kept is None else _command(prompt, todo, drawn, kept, model, drawing),
    )  # fmt: skip


def _command(
    prompt: str, todo: RepairPlan, drawn: _Drawn, kept: Intervention, model: str, drawing: Drawing
) -> str | None:
    """`unleak repair` with the kept repair; None where a command line cannot say the items, the call or the repair."""
    repair, texts = REPAIRS[drawn.method], [str(item) for item in todo.items]
    items, only = (",".join(compress(texts, which)) for which in ([True] * len(texts), drawn.target))
    taken = todo.method != "auto" or repair.method is REPAIRS[DEFAULT].method  # its parameters are for these
    try:
        options = _call_options(model, drawing.call)
        sets = [f"{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in todo.parameters.items() if taken]
        again = plan(prompt, items, with_=drawn.method, only=only, **repair.parse(sets))
        if not model or options is None or again.items != todo.items or again.build(again.forced or []) != kept:
            return None
    except (UnleakError, TypeError):
        return None
    words = ["--items", items, "-m", model, "--with", drawn.method, "--only", only]
    words += ["--seeds", written_seeds(drawing.seeds), *options, *(word for one in sets for word in ("--set", one))]
    return "unleak repair " + shlex.join([*words, "--", prompt] if prompt.startswith("-") else [prompt, *words])


def _call_options(model: str, call: Mapping[str, Any]) -> list[str] | None:
    """Options of the command line that call the pipeline so; None where it has none for an argument of the call."""
    recommended, size = models.settings(model), ("height", "width")
    flags = {"num_inference_steps": "--steps", models.guidance(model): "--guidance", **dict.fromkeys(size, "--size")}
    changed = {key: value for key, value in call.items() if recommended.get(key) != value}
    numbers = all(isinstance(value, int | float) for value in changed.values())
    if not numbers or changed.keys() - flags.keys() or recommended.keys() - call.keys():
        return None
    options = [word for key in changed if key not in size for word in (flags[key], str(changed[key]))]
    return [*options, "--size", f"{call['height']}x{call['width']}"] if changed.keys() & {*size} else options


@dataclass
class _Drawn:
    """Before and after: images, what is seen, which items were repaired and how."""

    before: np.ndarray
    after: np.ndarray
    present_before: np.ndarray | None
    present_after: np.ndarray | None
    method: str
    target: Sequence[bool]
    diagnosis: Diagnosis | None = None
    tried: list[Attempt] = field(default_factory=list)
    drawn_by: list[str] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)


def _by_chosen_repair(drawing: Drawing, prompt: str, todo: RepairPlan) -> _Drawn:
    """By the repair that was asked for: of the items that were named, or that are missing from half of the images."""
    before = drawing.images(prompt)
    present = drawing.present(before, todo.items)
    target = todo.forced or [bool(rate < 0.5) for rate in (() if present is None else present.mean(0))]
    if not any(target):
        drawing.skip(len(before))
        return _Drawn(before, before, present, present, "none", target)
    drawing.log.clear()
    after = drawing.images(prompt, todo.build(target))
    return _Drawn(before, after, present, drawing.present(after, todo.items), todo.name, target)


def _by_trial(drawing: Drawing, prompt: str, todo: RepairPlan, diagnosis: Diagnosis) -> _Drawn:
    """By what the judge confirms on held-out seeds; each seed then by what shows most, see `Best`."""
    assert drawing.judge is not None
    judge, seeds, items, before = drawing.judge, drawing.seeds, todo.items, diagnosis.images
    present = judge.present(before, items)
    task = _reasoned(todo.task(todo.forced or diagnosis.suspects), diagnosis)
    held_out = held_out_seeds(seeds)
    judged = lambda *them: judge.present(drawing.images(prompt, *them, seeds=held_out), items)  # noqa: E731
    tried = try_repairs(task, items, held_out, judged, **todo.parameters) if task.broken else []
    kept = next((t.trial for t in tried if t.kept), None)
    best = Best(before.copy(), present.copy(), ["none"] * len(seeds))
    if kept is None:
        drawing.skip(len(seeds))
    else:
        drawing.log.clear()
        after = drawing.images(prompt, kept.repair)
        best.consider(range(len(seeds)), after, judge.present(after, items), kept.name, ties=True)
    for other in untried(task, tried, **todo.parameters):
        if not best.incomplete:
            break
        _redraw(drawing, prompt, items, best, other, tried)
    target = [kept is not None and item in kept.items for item in items]
    method = kept.name if kept else "none"
    seen = [one.trial.repair for one in tried]
    not_tried = [trial.name for trial in trials(task, **todo.parameters) if trial.repair not in seen] if kept else []
    return _Drawn(
        before, best.images, present, best.present, method, target, diagnosis, tried, best.drawn_by, not_tried
    )


def held_out_seeds(seeds: Sequence[int]) -> list[int]:
    """As many other seeds: the smallest that are not among these."""
    return [seed for seed in range(2 * len(seeds)) if seed not in seeds][: len(seeds)]


def _reasoned(task: RepairTask, diagnosis: Diagnosis) -> RepairTask:
    """The task with the reasons that were found for its broken items."""
    reasons = {f.intended: f.verdict for f in diagnosis.findings}
    return replace(task, verdicts=tuple(reasons[item] for item in task.broken))


def _redraw(
    drawing: Drawing, prompt: str, items: Sequence[Item], best: Best, trial: Trial, tried: list[Attempt]
) -> None:
    """Draw by another repair what still misses an item; `tried` learns of it."""
    assert drawing.judge is not None
    rows = best.incomplete
    seeds, before = [drawing.seeds[row] for row in rows], best.present[rows]
    try:
        images = drawing.images(prompt, trial.repair, seeds=seeds)
    except UnleakError as e:
        tried.append(Attempt(trial, items, seeds, before, None, failed=str(e), redraw=True))
        return
    present = drawing.judge.present(images, items)
    taken = best.consider(rows, images, present, trial.name)
    better = [drawing.seeds[row] for row in taken]
    tried.append(Attempt(trial, items, seeds, before, present, redraw=True, better=better))

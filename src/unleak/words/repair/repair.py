"""`unleak.repair`: draw a prompt before and after a repair, at the same seeds, and let a judge compare.

Which items are repaired is decided by the judge: those that are missing, in their intended sense, from any of the
images. Only the images that lack one are drawn again; the others stay what they are, bit by bit. Which repair is taken
is decided by trial (`unleak.words.repair.automatic`), or by the user. Without a judge every named item is patched, and
no rate is claimed.
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
from unleak.stats.rate import Rate
from unleak.text.items import Item, find_all, parse_items
from unleak.text.match import Chars
from unleak.text.prompt import check_prompt
from unleak.words.diagnosis.diagnose import diagnose
from unleak.words.diagnosis.diagnosis import Diagnosis, code, described
from unleak.words.diagnosis.more_seeds import batches, until_sure
from unleak.words.methods.prune import Prune
from unleak.words.presets import DEFAULT, REPAIRS, RepairTask, check_parameters, trials
from unleak.words.repair.automatic import Attempt, Looks, mend
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
    def rates(self) -> tuple[Rate, Rate] | None:
        """On how many seeds it is there, before and after, with intervals; None without a judge."""
        return None if self.before is None or self.after is None else (Rate.of(self.before), Rate.of(self.after))

    @property
    def name(self) -> str:
        """The item with its intended sense, where that has another name."""
        return self.text if self.sense in (None, self.text) else f"{self.text} ({self.sense})"

    @property
    def counts(self) -> str:
        """On how many seeds it is there, before and after, with the interval of each share."""
        if self.rates is None:
            return "not judged"
        before, after = (f"{r} ({100 * r.low:.0f} to {100 * r.high:.0f} %)" for r in self.rates)
        return f"{before} -> {after}"


@dataclass(repr=False, eq=False)
class Repaired(Result):
    """Images before and after [S,H,W,3] uint8 at the same seeds, and what the judge says of each item.

    ``method`` is the repair that was kept, "none" if nothing was repaired. Where it was chosen by trial, ``diagnosis``
    says why, ``tried`` what each repair did on held-out seeds, ``not_tried`` what stood behind the one that was kept,
    and ``drawn_by`` which one drew each image of ``after``: another repair where the kept one left an item out and the
    other did not, "none" where the original stays: it lacks nothing that is repaired, or shows more. ``failing``: the
    seeds whose image was to be mended. ``drawn``: images at held-out seeds that were drawn to find some that fail.
    ``command`` draws the images that failed, before and after the kept repair, once more; None where a command line
    cannot say it.
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
    failing: list[int] = field(default_factory=list)
    drawn: int = 0

    @property
    def code(self) -> str | None:
        """Lines of Python that draw the images that failed with the repair that was kept; None if none was."""
        if self.repair is None:
            return None
        return code(self.repair, self.prompt, self.failing, self.settings["call"], self.model)

    @property
    def why(self) -> list[str]:
        """Why this repair was kept, or none, one sentence each."""
        chosen, judged = next((one for one in self.tried if one.kept), None), self.judge is not None
        if chosen is not None:
            how = (
                "The first repair that brings each item that it acts on back on half of the images without it or more."
                if chosen.works
                else "None of the repairs brings every item back; this one gains most."
            )
            how += "" if chosen.held_out else f" {self._none_failed}"
            left = f"Not tried, since they come after it: {', '.join(self.not_tried)}."
            return [how, "What treats the verdict comes first, then what costs least.", *[left] * bool(self.not_tried)]
        if self.tried:
            which = "held-out images" if self.tried[0].held_out else "them"
            why = f"None of the repairs that were tried shows more items on {which}, so nothing is changed."
            return [why] if self.tried[0].held_out else [self._none_failed, why]
        if self.repair is not None:
            asked = self.settings["with"] != "auto"
            how = "It was asked for, so no other was tried." if asked else "Without a judge no repair can be tried."
            return [how] if judged or asked else [how, "Every item that is named is repaired."]
        missing = [i for i in self.items if i.before is not None and not i.before.all()]
        if missing:
            known = ", ".join(f"“{i.text}” is {i.verdict}" if i.verdict else f"“{i.text}” is missing" for i in missing)
            return [f"No repair is known for what is missing: {known}."]
        return ["Every item is on every image, so nothing needs a repair."]

    @property
    def _none_failed(self) -> str:
        return f"None of {self.drawn} held-out images lacks an item, so repairs were tried on the images that fail."

    @property
    def drawings(self) -> dict[str, int]:
        """How many images were drawn, and what for."""
        evidence = [e for f in self.diagnosis.findings for e in f.evidence.values()] if self.diagnosis else []
        if self.diagnosis is not None and self.diagnosis.control is not None:
            evidence.append(self.diagnosis.control)
        trials = [one for one in self.tried if not one.redraw]
        where = "held-out seeds" if all(one.held_out for one in trials) else "the seeds that fail"
        counts = {
            "the prompt": len(self.before),
            "the diagnosis": sum(len(e.images) for e in evidence),
            "the prompt at held-out seeds": self.drawn,
            f"repairs at {where}": sum(one.drawings for one in trials),
            "the kept repair": 0 if self.repair is None else len(self.failing),
            "single images again": sum(one.drawings for one in self.tried if one.redraw),
        }
        return {what: count for what, count in counts.items() if count}

    @property
    def undone(self) -> list[int]:
        """Seeds whose image is the original, though it lacks an item and a repair was kept."""
        return [s for s, by in self._drawn_otherwise if by == "none" and s in self.failing]

    @property
    def left(self) -> list[int]:
        """Seeds whose image lacks nothing that is repaired, and stays as it is."""
        return [s for s, by in self._drawn_otherwise if by == "none" and s not in self.failing]

    @property
    def _drawn_otherwise(self) -> list[tuple[int, str]]:
        pairs = zip(self.seeds, self.drawn_by, strict=False)
        return [(seed, name) for seed, name in pairs if self.changed and name != self.method]

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
        said = {"none": "the original image shows more"}
        if self.left:
            lines.append(f"  seed {', '.join(map(str, self.left))}: nothing is missing, so the image stays as it is")
        for name in dict.fromkeys(by for seed, by in self._drawn_otherwise if seed not in self.left):
            seeds = ", ".join(str(s) for s, by in self._drawn_otherwise if by == name and s not in self.left)
            lines.append(f"  seed {seeds}: {said.get(name, f'{name} shows more')}")
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
                    "intervals": None if i.rates is None else [[r.low, r.high] for r in i.rates],
                    "present_before": total(i.before), "present_after": total(i.after), "seeds": len(self.seeds),
                }
                for i in self.items
            ],
            "verdicts": None if self.diagnosis is None else [f.verdict for f in self.diagnosis.findings],
            "tried": [attempt.to_dict() for attempt in self.tried],
            "failing": self.failing, "left": self.left,
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
    seeds: Seeds = 8,
    only: str | Iterable[str | Item] | None = None,
    redundant: Prune | Classifier | None = None,
    **parameters: Any,
) -> RepairPlan:
    """Everything of a repair that can be checked without a pipeline; arguments are those of `repair`.

    Raises BadInput, ItemNotFound, AmbiguousItem: an item is not in the prompt, or is there twice, or overlaps
    another; `only` is none of them; the repair has no such parameter; "prune" is not told what is redundant; seeds
    are "auto" where no diagnosis is made.
    """
    choose("repair", with_, ("auto", *REPAIRS))
    check_parameters(with_, parameters)
    if with_ != "auto" and until_sure(seeds):
        raise BadInput(f"seeds 'auto' draws until a diagnosis is sure, and {with_!r} needs none: say how many")
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
    senses: Mapping[str, Sequence[str]] | None = None,
    only: str | Iterable[str | Item] | None = None,
    redundant: Prune | Classifier | None = None,
    model: str = "",
    call: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> Repaired:
    """Draw `prompt` at `seeds`, repair what the judge misses, draw the images that miss it again at their seeds.

    Args:
        items: every item of the prompt, "mouse,laptop" or a list; "mouse=furry mouse" names the sense. An
            item without one has the sense that the judge looks for, and is repaired by that name.
        with_: the repair, one of `REPAIRS`. ``"auto"``: what the diagnosis suggests, if the judge confirms it on
            held-out seeds, else the next one, also for single images that still miss an item; without a judge
            ``"patch"``.
        seeds: ``"auto"``: as many as the diagnosis needs to be sure, with a judge and ``with_="auto"``.
        senses: for the text of an item, the names of its other senses: an image that shows one of them is a leak,
            and beside it the item does not count.
        only: of the items, repair these, whatever the judge says. ``"auto"`` leaves images that lack none.
        redundant: which tokens may go: ``tokens(...).prune()``, or a classifier that tells without drawing. It is
            tried as a repair, too.
        call: arguments of the pipeline (steps, guidance, size).
        parameters: of the repair, as `unleak.methods()` lists them (`isolation`, `eos_pads`, ... of "patch").

    Raises BadInput, ItemNotFound, AmbiguousItem, PromptTruncated, SpanMismatch before anything is drawn.
    """
    todo = plan(prompt, items, with_=with_, seeds=seeds, only=only, redundant=redundant, **parameters)
    given = todo.items
    sought: Sequence[str | None] = judge.senses(given) if judge else [i.sense for i in given]
    named = tuple(replace(i, sense=s if s != i.text else None) for i, s in zip(given, sought, strict=True))
    todo = replace(todo, items=named)
    drawing = Drawing(pipe, batches(seeds, judge)[0], call, judge, progress)
    looks = None if judge is None else Looks(judge, named, senses)
    if isinstance(redundant, Classifier):
        todo = replace(todo, redundant=redundant.prune(pipe, prompt, given, **drawing.call))
    if judge is None and todo.forced is None:
        todo = replace(todo, forced=[True] * len(named))
    for trial in todo.to_rehearse():
        drawing.rehearse(prompt, trial)

    if with_ == "auto" and looks is not None:
        diagnosis = diagnose(
            pipe, prompt, given, seeds=seeds, judge=judge, senses=senses, after=False, model=model, call=call,
            progress=progress,
        )  # fmt: skip
        drawing.seeds = diagnosis.seeds
        drawn = _by_trial(drawing, prompt, todo, diagnosis, looks)
    else:
        drawn = _by_chosen_repair(drawing, prompt, todo, looks)
    before, after = drawn.present_before, drawn.present_after
    outcomes = [
        ItemOutcome(
            item.text, sense, span, hit,
            None if before is None else before[:, k], None if after is None else after[:, k],
            None if drawn.diagnosis is None else drawn.diagnosis.findings[k].verdict,
        )
        for k, (item, sense, span, hit) in enumerate(zip(named, sought, todo.spans, drawn.target, strict=True))
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
        [drawing.seeds[row] for row in drawn.rows], drawn.held_out,
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
    words += [
        "--seeds",
        written_seeds([drawing.seeds[row] for row in drawn.rows]),
        *options,
        *(word for one in sets for word in ("--set", one)),
    ]
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
    """Before and after: images, what is seen, which items were repaired and how, and the ``rows`` to mend."""

    before: np.ndarray
    after: np.ndarray
    present_before: np.ndarray | None
    present_after: np.ndarray | None
    method: str
    target: Sequence[bool]
    rows: Sequence[int]
    diagnosis: Diagnosis | None = None
    tried: list[Attempt] = field(default_factory=list)
    drawn_by: list[str] = field(default_factory=list)
    not_tried: list[str] = field(default_factory=list)
    held_out: int = 0


def _by_chosen_repair(drawing: Drawing, prompt: str, todo: RepairPlan, looks: Looks | None) -> _Drawn:
    """By the repair that was asked for: of the items that were named, on every image; or of those that the judge
    misses on an image, where it misses one."""
    before = drawing.images(prompt)
    present = None if looks is None else looks(before)
    missing = np.zeros((len(before), 0), bool) if present is None else ~present
    target = todo.forced or [bool(column.any()) for column in missing.T]
    rows = [row for row in range(len(before)) if todo.forced or missing[row].any()]
    drawing.skip(len(before) - len(rows))
    if not any(target):
        return _Drawn(before, before, present, present, "none", target, rows)
    drawing.log.clear()
    after, present_after = before.copy(), None if present is None else present.copy()
    after[rows] = drawing.images(prompt, todo.build(target), seeds=[drawing.seeds[row] for row in rows])
    if looks is not None and present_after is not None:
        present_after[rows] = looks(after[rows])
    by = [todo.name if row in rows else "none" for row in range(len(before))]
    return _Drawn(before, after, present, present_after, todo.name, target, rows, drawn_by=by)


def _by_trial(drawing: Drawing, prompt: str, todo: RepairPlan, diagnosis: Diagnosis, looks: Looks) -> _Drawn:
    """By what the judge confirms on held-out seeds; each image that fails then by what shows most, see `mend`."""
    before = diagnosis.images
    present = looks(before)
    task = _reasoned(todo.task(todo.forced or diagnosis.suspects), diagnosis)
    done = mend(drawing, prompt, task, looks, before, present, again=True, **todo.parameters)
    drawing.skip(len(before) - done.redrawn)
    target = [done.kept is not None and item in done.kept.items for item in todo.items]
    tried = [one.trial.repair for one in done.tried]
    left = [trial.name for trial in trials(task, **todo.parameters) if trial.repair not in tried]
    return _Drawn(
        before, done.best.images, present, done.best.present, done.kept.name if done.kept else "none", target,
        done.rows, diagnosis, done.tried, done.best.drawn_by, left if done.kept else [], done.drawn,
    )  # fmt: skip


def _reasoned(task: RepairTask, diagnosis: Diagnosis) -> RepairTask:
    """The task with the reasons that were found for its broken items."""
    reasons = {f.intended: f.verdict for f in diagnosis.findings}
    return replace(task, verdicts=tuple(reasons[item] for item in task.broken))

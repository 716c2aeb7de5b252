"""What `unleak.diagnose` returns: verdicts, evidence and the suggested repair, to read, to save and to act on."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from unleak.core.intervention import ALL, Intervention, Window
from unleak.core.result import Result
from unleak.drawing.generate import written_seeds
from unleak.stats.rate import Rate
from unleak.text.items import Item
from unleak.text.match import Chars
from unleak.words.diagnosis.flow import Flow
from unleak.words.diagnosis.flow_images import ImageFlow
from unleak.words.diagnosis.more_seeds import advice
from unleak.words.diagnosis.neglect import Sighting
from unleak.words.presets import RepairTask
from unleak.words.repair.automatic import Attempt


@dataclass
class Finding:
    """One item of the prompt.

    Attributes:
        item: as the user named it. span: its characters in the prompt.
        sense: what was looked for: the judge's name for it, else the user's; ``senses``: its other known senses.
        verdict: one of `unleak.words.diagnosis.neglect.VERDICTS`; None where nobody judged; ``note`` then says why.
        flags: ``"latent leak"``, ``"carried elsewhere"`` (`unleak.words.diagnosis.neglect.flags`).
        open: what more images must tell before the verdict is sure (`unleak.words.diagnosis.neglect.Verdict`); "" if it
            is, or nobody judged.
        present: on how many images of the prompt it is there in its intended sense; ``after``: with the repair of those
            that fail. ``failing``: the seeds of those on which it is not.
        others: its other senses that are seen on images that fail, and on how many of them; ``instead``: those that are
            on half of them or more.
        evidence: what was drawn beside the prompt, by name: ``encoded``, ``alone``, and in
            a causal encoder ``own`` and ``gathered``.
        reads: what its own last row reads as, names with their cosines, nearest first (`unleak.words.methods.lens`).
        repaired: the suggested repair acts on it.
    """

    item: Item
    span: Chars
    sense: str
    senses: tuple[str, ...] = ()
    verdict: str | None = None
    note: str = ""
    flags: tuple[str, ...] = ()
    open: str = ""
    present: Rate | None = None
    failing: tuple[int, ...] = ()
    after: Rate | None = None
    others: dict[str, Rate] = field(default_factory=dict)
    instead: tuple[str, ...] = ()
    evidence: dict[str, Sighting] = field(default_factory=dict)
    reads: list[tuple[str, float]] = field(default_factory=list)
    repaired: bool = False

    @property
    def intended(self) -> Item:
        """The item with its intended sense, where that has another name."""
        return replace(self.item, sense=self.sense if self.sense != self.item.text else None)


@dataclass(repr=False, eq=False)
class Diagnosis(Result):
    """What `diagnose` found.

    Attributes:
        findings: one for each item, in the order given. flow: between the items.
        images: [S, H, W, 3] uint8 of the prompt. after: with the suggested ``repair`` where an item that it acts on is
            missing, from the same noise; every other image as it is.
        control: images from pad rows alone, and what the judge found there by mistake.
        image_flow: between the images of the items' rows, where it was asked for.
        layers: by depth 0..1, what the rows of earlier encoder layers draw (`unleak.words.methods.lens.Lens`).
        method: the name of the suggested repair in `unleak.words.presets.REPAIRS`; None if there is none.
        failed: repairs that were considered first, and why they are not suggested: this pipeline cannot make them, or
            with them the judge still misses what they act on.
        tried: what each repair did at held-out seeds, until one was chosen or none was left.
    """

    verb: ClassVar[str] = "diagnose"
    prompt: str
    model: str
    findings: list[Finding]
    flow: Flow
    seeds: list[int]
    judge: str | None
    call: dict[str, Any]
    images: np.ndarray
    control: Sighting | None = None
    image_flow: ImageFlow | None = None
    layers: dict[float, Sighting] = field(default_factory=dict)
    method: str | None = None
    repair: Intervention | None = None
    failed: dict[str, str] = field(default_factory=dict)
    after: np.ndarray | None = None
    tried: list[Attempt] = field(default_factory=list)

    @property
    def suspects(self) -> list[bool]:
        """Which items are to be repaired: those with the verdict leak or neglect; where nobody judged, those that
        another item leaks into."""
        return [
            bool(self.flow.leaks_into(i)) if f.verdict is None else f.verdict in ("leak", "neglect")
            for i, f in enumerate(self.findings)
        ]

    @property
    def task(self) -> RepairTask:
        """What a repair is asked to do."""
        marked = list(zip(self.findings, self.suspects, strict=True))
        return RepairTask(
            tuple(f.intended for f, broken in marked if broken),
            tuple(f.intended for f, broken in marked if not broken),
            tuple(f.verdict for f, broken in marked if broken),
        )

    @property
    def open(self) -> bool:
        """Whether more images may change a verdict."""
        return any(f.open for f in self.findings)

    @property
    def failing_rows(self) -> list[int]:
        """Of `images` those that lack an item which is to be repaired; all where nobody judged."""
        broken = [f for f, suspect in zip(self.findings, self.suspects, strict=True) if suspect]
        if any(f.verdict is None for f in broken):
            return list(range(len(self.seeds)))
        return [k for k, seed in enumerate(self.seeds) if any(seed in f.failing for f in broken)]

    def leak_sources(self, i: int) -> list[tuple[str, str, float]]:
        """(other item, name, share): what leaks into item i, and the share of the way to that name it went."""
        sources = [(self.findings[j].item.text, *self.flow.meaning(i, j)) for j in self.flow.leaks_into(i)]
        return [(item, name, share) for item, name, share in sources if name]

    def verdict_text(self, i: int) -> str:
        """The verdict in a word or two."""
        verdict = self.findings[i].verdict
        return verdict or ("suspect" if self.suspects[i] else "unjudged")

    def reasons(self, i: int) -> list[str]:
        """Why item i has its verdict, one sentence each."""
        f = self.findings[i]
        out = [f.note] if f.note else []
        out += [f"instead of it: {name}, on {rate} of the images that fail" for name, rate in f.others.items()]
        for e in f.evidence.values():
            if e.rate is not None:
                out.append(f"{e.title}: {e.rate}" + (f", {' and '.join(e.instead)} instead" if e.instead else ""))
        if self.suspects[i]:
            out += [
                f"“{j}” moves its rows {100 * share:.0f} % of the way to “{n}”" for j, n, share in self.leak_sources(i)
            ]
        if f.open:
            out.append(f"not sure: {f.open}")
        if f.reads and (self.suspects[i] or f.evidence):
            out.append("its own last row reads as " + ", ".join(f"“{n}” ({c:.2f})" for n, c in f.reads[:3]))
        return out

    def lines(self) -> list[str]:
        seeds = ", ".join(map(str, self.seeds))
        who = f"judge {self.judge}" if self.judge else "no judge: only the text rows were read, so there is no verdict"
        lines = [self.prompt, f"  {who}; seeds {seeds}"]
        for i, f in enumerate(self.findings):
            lines.append(f"  {f.item.text:<14} {self.verdict_text(i):<9}{_counts(f)}".rstrip())
            lines += [f"      {reason}" for reason in self.reasons(i)]
        lines += [f"  {name} is not suggested: {why}" for name, why in self.failed.items()]
        lines.append(f"  suggested repair: {described(self.repair) if self.repair else 'none'}")
        lines += [f"  {attempt}" for attempt in self.tried if attempt.kept]
        if self.open:
            lines.append(f"  to be sure: {advice(self.seeds)}")
        return lines

    def views(self) -> dict[str, np.ndarray]:
        """What was drawn: ``before``, ``after`` the repair, the evidence of each item, layers, and nothing."""
        views = {"before": self.images} | ({} if self.after is None else {"after": self.after})
        for k, f in enumerate(self.findings):
            views |= {f"{name}-item{k + 1}": e.images for name, e in f.evidence.items()}
        views |= {f"depth-{100 * depth:.0f}": e.images for depth, e in self.layers.items()}
        return views | ({} if self.control is None else {"nothing": self.control.images})

    def seeds_of(self, kind: str) -> list[int]:
        """Evidence is drawn at the seeds that it explains, all else at all."""
        seen = {f"{name}-item{k + 1}": e for k, f in enumerate(self.findings) for name, e in f.evidence.items()}
        if self.control is not None:
            seen["nothing"] = self.control
        return list(seen[kind].seeds) if kind in seen else self.seeds

    def data(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "model": self.model,
            "judge": self.judge,
            "seeds": self.seeds,
            "open": self.open,
            "settings": {"call": self.call},
            "items": [self._item(i) for i in range(len(self.findings))],
            "control": None if self.control is None else _rates(self.control),
            "layers": [{"depth": depth, "seen": _rates(e)} for depth, e in self.layers.items()],
            "flow": self.flow.to_dict(),
            "image_flow": None if self.image_flow is None else self.image_flow.to_dict(),
            "repair": None if self.repair is None else {"method": self.method, **self.repair.to_dict()},
            "failed": self.failed,
            "tried": [attempt.to_dict() for attempt in self.tried],
            "images": self.file_names(),
        }

    def _item(self, i: int) -> dict[str, Any]:
        f = self.findings[i]
        return {
            "text": f.item.text,
            "sense": f.sense,
            "span": list(f.span),
            "verdict": f.verdict,
            "suspect": self.suspects[i],
            "flags": list(f.flags),
            "note": f.note,
            "open": f.open,
            "present": _rate(f.present),
            "failing": list(f.failing),
            "others": {name: _rate(rate) for name, rate in f.others.items()},
            "present_after": _rate(f.after),
            "repaired": f.repaired,
            "instead": list(f.instead),
            "evidence": {
                name: {"title": e.title, "seeds": list(e.seeds), "seen": _rates(e)} for name, e in f.evidence.items()
            },
            "reads": [{"name": name, "cosine": cosine} for name, cosine in f.reads],
            "because": [{"item": item, "towards": name, "share": share} for item, name, share in self.leak_sources(i)],
            "reasons": self.reasons(i),
        }


def _rate(rate: Rate | None) -> dict[str, Any] | None:
    return None if rate is None else {"k": rate.k, "n": rate.n, "low": rate.low, "high": rate.high}


def _rates(e: Sighting) -> dict[str, Any]:
    return {name: _rate(rate) for name, rate in e.seen.items()}


def described(repair: Intervention) -> str:
    """A repair as it is written in Python, without what is default."""
    name, plain, items = f"unleak.{type(repair).__name__}", repair.to_dict(), list(getattr(repair, "items", ()))
    default = {"window": Window(), "sites": ALL}
    changed = {
        key: value for key, value in plain.items()
        if key not in ("type", "items") and getattr(repair, key) != getattr(type(repair), key, default.get(key))
    }  # fmt: skip
    parts = [part for value in changed.values() for part in (value if isinstance(value, list) else [value])]
    if any(isinstance(part, dict) for part in parts):
        return f"{name}.from_dict({plain!r})"
    alone = len(items) == 1 and "," not in items[0]  # a text is read as items with commas between
    given = [repr(items[0] if alone else items)] * bool(items)
    return f"{name}({', '.join([*given, *(f'{key}={value!r}' for key, value in changed.items())])})"


def code(repair: Intervention, prompt: str, seeds: Sequence[int], call: Mapping[str, Any], model: str = "") -> str:
    """Lines of Python that draw a prompt with a repair.

    They load `model` if it is named, else they are for a `pipe`. Arguments of the call that cannot be written, such as
    functions and tensors, are named in a comment.
    """
    values = {key: value.item() if isinstance(value, np.generic) else value for key, value in call.items()}
    written = {key: value for key, value in values.items() if _is_literal(value)}
    own = [key for key in call if key not in written]
    return "\n".join(
        [
            "import unleak",
            "",
            *([f"pipe = unleak.models.load({model!r})"] if model else []),
            *([f"# add to call, of your own: {', '.join(own)}"] if own else []),
            f"prompt, call = {prompt!r}, {written}",
            f"with unleak.attach(pipe, {described(repair)}):",
            f"    result = unleak.generate(pipe, prompt, seeds={written_seeds(seeds)!r}, call=call)",
        ]
    )


def _is_literal(value: Any) -> bool:
    """Whether Python reads back what it writes of a value."""
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, RuntimeError):
        return False


def _counts(f: Finding) -> str:
    if f.present is None:
        return ""
    sense = f" as “{f.sense}”" if f.sense != f.item.text else ""
    after = f", with the repair {f.after}" if f.after else ""
    interval = f" ({100 * f.present.low:.0f} to {100 * f.present.high:.0f} %)"
    return f"{f.present}{sense}{interval}{after}" + "".join(f", {flag}" for flag in f.flags)

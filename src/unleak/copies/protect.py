"""`unleak guard`: draw a prompt before and after a mitigation, at the same seeds, and say what was done to it.

Similarity is evidence, not proof: a mitigation at inference time changes what is drawn, not what the weights hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from unleak.copies.methods.attenuate import ATTENUATED
from unleak.copies.methods.gate import Gated
from unleak.copies.presets import MITIGATIONS
from unleak.copies.scan.calibrate import Calibration
from unleak.core.intervention import Intervention
from unleak.core.result import Result
from unleak.drawing.drawing import Drawing
from unleak.drawing.generate import Seeds
from unleak.engine.run import Run
from unleak.errors import BadInput
from unleak.judges import Judge
from unleak.judges.copies import CopyJudge, PartsJudge
from unleak.text.items import Item, parse_items
from unleak.text.positions import prompt_tokens
from unleak.text.prompt import check_prompt
from unleak.text.spans import Tokens


@dataclass(frozen=True)
class Attenuated:
    """Where attention was turned down: the share of heads and images in which a position was a spike.

    shares     [steps, sites, positions] in 0..1
    positions  what each text position holds: a piece of the prompt, "(start)", "(end)" or "(pad)"
    """

    steps: list[int]
    sites: list[str]
    positions: list[str]
    shares: np.ndarray

    def by_position(self) -> list[tuple[str, float]]:
        """Mean share of each position, with the pads as one."""
        mean, pads = self.shares.mean((0, 1)), [k for k, p in enumerate(self.positions) if p == "(pad)"]
        by_position = [(p, float(mean[k])) for k, p in enumerate(self.positions) if p != "(pad)"]
        return [*by_position, (f"({len(pads)} pads)", float(mean[pads].mean()))] if pads else by_position

    def data(self) -> dict[str, Any]:
        """Plain data: mean shares by step, by site and by position."""
        mean = lambda axes: [round(float(x), 4) for x in self.shares.mean(axes)]  # noqa: E731
        return {
            "steps": self.steps, "sites": self.sites, "positions": self.positions,
            "share_by_step": mean((1, 2)), "share_by_site": mean((0, 2)), "share_by_position": mean((0, 1)),
        }  # fmt: skip


@dataclass(frozen=True)
class Remains:
    """What is left of the copies: parts of each training image that an image before copies, and still in their place.

    parts          "objects" of a scene, or "cells" of a picture
    before, after  for each seed the parts [P] of bool that stand in their place; None where nothing is copied before
    """

    parts: str
    before: list[np.ndarray | None]
    after: list[np.ndarray | None]

    @property
    def counts(self) -> tuple[int, int, int]:
        """(in their place before, after, of how many), over all copies."""
        before, after = ([side for side in sides if side is not None] for sides in (self.before, self.after))
        return int(sum(map(np.sum, before))), int(sum(map(np.sum, after))), sum(map(len, before))

    @property
    def shares(self) -> tuple[float, float] | None:
        """Shares (before, after), 0 to 1, over all copies; None where nothing is copied."""
        before, after, of = self.counts
        return (before / of, after / of) if of else None

    def sentence(self) -> str:
        """In words."""
        before, after, of = self.counts
        if not of:
            return "What is left of a copy: nothing to measure, no image copies a training image before."
        return (f"What is left of the copies: {after} of {of} {self.parts} of the training images still stand in their "
                f"place ({100 * after / of:.0f} %), {before} before.")  # fmt: skip

    def data(self) -> dict[str, Any]:
        """Plain data; null where nothing is copied before."""
        before, after, of = self.counts
        by_seed = [None if b is None or a is None else {"before": int(b.sum()), "after": int(a.sum()), "of": len(b)}
                   for b, a in zip(self.before, self.after, strict=True)]  # fmt: skip
        shares = self.shares and [round(share, 4) for share in self.shares]
        return {"parts": self.parts, "before": before, "after": after, "of": of, "shares": shares, "by_seed": by_seed}


def remains(judge: CopyJudge | None, before: np.ndarray, after: np.ndarray) -> Remains | None:
    """What is left of the copies among images [S,H,W,3] uint8; None where the judge does not know parts."""
    if not isinstance(judge, PartsJudge):
        return None
    copied = judge.similarity(before) >= judge.threshold
    scenes = judge.scene(before).tolist()
    sides = [[parts if hit else None for parts, hit in zip(judge.in_place(images, scenes), copied, strict=True)]
             for images in (before, after)]  # fmt: skip
    return Remains(judge.parts, *sides)


@dataclass(repr=False, eq=False)
class Protection(Result):
    """Images before and after [S,H,W,3] uint8 at the same seeds; what acted where; what judges say.

    gate        score of each image at the first step and whether it was acted on; None without a gate
    similarity  (before, after) [S] to the nearest training image by the judge of copies, None without one
    remains     what still stands in its place of the training images that were copied before; None where not measured
    present     (before, after) [S, items] of bool: are the named items there; None without a judge or items
    rows        denoiser rows (before, after)
    """

    verb: ClassVar[str] = "guard"
    prompt: str
    model: str
    preset: str
    method: Intervention
    call: dict[str, Any]
    seeds: list[int]
    before: np.ndarray
    after: np.ndarray
    gate: list[dict[str, Any]] | None
    attenuated: Attenuated | None
    rows: tuple[int, int]
    copy_judge: CopyJudge | None
    similarity: tuple[np.ndarray, np.ndarray] | None
    judge: str | None
    items: tuple[Item, ...]
    present: tuple[np.ndarray, np.ndarray] | None
    remains: Remains | None = None
    log: Any = field(default=None, repr=False)

    @property
    def touched(self) -> bool:
        """Whether any image differs from the unmitigated one."""
        return not np.array_equal(self.before, self.after)

    def copies(self) -> tuple[int, int] | None:
        """How many images copy a training image, before and after."""
        if self.similarity is None or self.copy_judge is None:
            return None
        before, after = (int((side >= self.copy_judge.threshold).sum()) for side in self.similarity)
        return before, after

    def sentences(self) -> list[str]:
        """What happened, in words: one line per finding."""
        n, sentences = len(self.seeds), []
        if self.gate is not None:
            acted = sum(g["acted"] for g in self.gate)
            sentences.append(f"The gate acted on {acted} of {n} images; the others are left alone.")
        if not self.touched:
            sentences.append("Nothing was changed: every image is bitwise the same.")
        copies = self.copies()
        if copies is not None:
            sentences.append(f"Copies of a training image: {copies[0]} of {n} before, {copies[1]} of {n} after.")
        sentences.append(self._left())
        if self.present is not None:
            before, after = (int(hits.all(1).sum()) for hits in self.present)
            sentences.append(
                f"Everything that the prompt names is there on {before} of {n} seeds before, {after} of {n} after."
            )
        sentences.append(f"Denoiser rows: {self.rows[1] / self.rows[0]:.2f} times those without it.")
        return sentences

    def _left(self) -> str:
        if self.remains is not None:
            return self.remains.sentence()
        if self.copy_judge is None:
            return "Copies, and what is left of them, are not measured: no training images are known here."
        return f"What is left of a copy is not measured: the judge {self.copy_judge.name!r} knows no parts of an image."

    def lines(self) -> list[str]:
        seeds = ", ".join(map(str, self.seeds))
        sentences = [f"{self.preset or type(self.method).__name__}; seeds {seeds}", *self.sentences()]
        return [self.prompt, *(f"  {sentence}" for sentence in sentences)]

    def views(self) -> dict[str, np.ndarray]:
        return {"before": self.before, "after": self.after}

    def data(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "model": self.model,
            "preset": self.preset,
            "method": self.method.to_dict(),
            "call": self.call,
            "seeds": self.seeds,
            "touched": self.touched,
            "gate": self.gate,
            "attenuated": None if self.attenuated is None else self.attenuated.data(),
            "denoiser_rows": {"before": self.rows[0], "after": self.rows[1]},
            "similarity": self._similarity(),
            "left_of_copies": None if self.remains is None else self.remains.data(),
            "alignment": self._alignment(),
            "images": self.file_names(),
        }

    def _similarity(self) -> dict[str, Any] | None:
        if self.similarity is None or self.copy_judge is None:
            return None
        before, after = ([round(float(x), 4) for x in side] for side in self.similarity)
        return {
            "judge": self.copy_judge.name, "copy_from": self.copy_judge.threshold, "before": before, "after": after
        }  # fmt: skip

    def _alignment(self) -> dict[str, Any] | None:
        if self.present is None:
            return None
        before, after = (hits.sum(0).tolist() for hits in self.present)
        items = [{"text": i.text, "present_before": b, "present_after": a, "seeds": len(self.seeds)}
                 for i, b, a in zip(self.items, before, after, strict=True)]  # fmt: skip
        return {"judge": self.judge, "items": items}


def guard(
    pipe: Any,
    prompt: str,
    preset: str | Intervention = "detour",
    *,
    gate: Calibration | float | None = None,
    seeds: Seeds = 4,
    judge: Judge | None = None,
    items: str | Item | Iterable[str | Item] = (),
    copies: CopyJudge | None = None,
    model: str = "",
    call: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
    **parameters: Any,
) -> Protection:
    """Draw a prompt without and with a mitigation of copying, from the same noise, and compare.

    Args:
        preset: the mitigation, one of `unleak.methods("mitigation")`, or an intervention.
        gate: mitigate only a prompt that this calibration flags, or whose score at the first step reaches a number.
        seeds: how many, which, or text such as "0:4".
        judge, items: are these items in the images, before and after?
        copies: how near do images come to training images?
        model: its name, for the record. call: arguments of the pipeline. progress: is told of every call's images.
        parameters: of the preset, such as ``tau=2.0``.

    Raises BadInput, PromptTruncated, NoSite before anything is drawn.
    """
    named = parse_items(items) if items else ()
    if isinstance(preset, str):
        name, method = preset, MITIGATIONS[preset].make(gate=gate, **parameters)
    elif gate is None and not parameters:
        name, method = type(preset).__name__, preset
    else:
        raise BadInput("an intervention has its gate and parameters already: give a preset's name, or leave them out")
    check_prompt(prompt)
    drawing = Drawing(pipe, seeds, call, judge, progress)
    made_at = method.made_at if isinstance(method, Gated) else None
    if made_at is not None:
        made_at.check(pipe, len(drawing.seeds), drawing.call)
    drawing.rehearse(prompt, method)
    batch = None if made_at is None else made_at.seeds  # a prompt's images are judged together
    (before, plain), (after, run) = (
        (drawing.images(prompt, one, batch=batch), drawing.run) for one in (_CountRows(), method)
    )
    assert plain is not None and run is not None
    rows = [sum(entry["denoiser_rows"] for entry in one.log) for one in (plain, run)]
    present = (judge.present(before, named), judge.present(after, named)) if judge is not None and named else None
    return Protection(
        prompt, model, name, method, drawing.call, drawing.seeds, before, after,
        run.results.get("gate"), _attenuated(run), (rows[0], rows[1]),
        copies, None if copies is None else (copies.similarity(before), copies.similarity(after)),
        None if judge is None else judge.name, named, present, remains(copies, before, after), run.log,
    )  # fmt: skip


class _CountRows(Intervention):
    """Changes nothing, so that the session counts denoiser rows."""


def _attenuated(run: Run) -> Attenuated | None:
    means = run.results.get(ATTENUATED)
    if means is None:
        return None
    keys = list(means)
    steps, sites = sorted({step for step, _ in keys}), list(dict.fromkeys(site for _, site in keys))
    shares = torch.stack([torch.stack([means.mean((step, site)) for site in sites]) for step in steps])
    names = _names(prompt_tokens(run.encoded)[0])
    rest = shares.shape[-1] - len(names)  # rows of further encoders
    return Attenuated(steps, sites, names + ["(other encoder)"] * rest, shares.float().cpu().numpy())


def _names(tokens: Tokens) -> list[str]:
    """What each text position holds."""
    start, end = tokens.body
    names = ["(start)"] * start + [tokens.text[a:b] for a, b in tokens.offsets[start:end]] + ["(end)"]
    return names + ["(pad)"] * (tokens.length - len(names))

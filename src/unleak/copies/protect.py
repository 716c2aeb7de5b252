"""`unleak guard`: draw a prompt before and after a mitigation, at the same seeds, and say what was done to it.

Similarity is evidence, not proof: a mitigation at inference time changes what is drawn, not what the weights hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from unleak.copies.methods.attenuate import ATTENUATED
from unleak.copies.methods.positions import prompt_tokens
from unleak.core.intervention import Intervention
from unleak.drawing.generate import generate, rehearse
from unleak.engine.session import Session, attach
from unleak.judges import Judge
from unleak.judges.copies import CopyJudge
from unleak.text.items import Item
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
        found = [(p, float(mean[k])) for k, p in enumerate(self.positions) if p != "(pad)"]
        return [*found, (f"({len(pads)} pads)", float(mean[pads].mean()))] if pads else found


@dataclass
class Protection:
    """Images before and after [S,H,W,3] uint8 at the same seeds; what acted where; what judges say.

    gate        score of each image at the first step and whether it was acted on; None without a gate
    similarity  (before, after) [S] to the nearest training image by the judge of copies, None without one
    present     (before, after) [S, items] of bool: are the named items there; None without a judge or items
    rows        denoiser rows (before, after)
    """

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


def protect(
    pipe: Any,
    prompt: str,
    method: Intervention,
    *,
    preset: str = "",
    seeds: Sequence[int] = range(4),
    judge: Judge | None = None,
    items: Sequence[Item] = (),
    copies: CopyJudge | None = None,
    model: str = "",
    call: dict[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Protection:
    """Draw `prompt` at `seeds` without and with `method`, and compare.

    Args:
        method: any mitigation, see `unleak.copies.presets`.
        judge, items: are these items in the images, before and after?
        copies: how near do images come to training images?
        call: arguments of the pipeline (steps, guidance, size).

    Raises BadInput, PromptTruncated, NoSite before anything is drawn.
    """
    check_prompt(prompt)
    seeds, call = list(seeds), dict(call or {})
    rehearse(pipe, prompt, method, **call)
    drawn, runs = [], []
    for methods in ((_Look(),), (method,)):
        with attach(pipe, *methods) as run:
            drawn.append(generate(pipe, prompt, seeds, progress=progress, **call)[0])
        runs.append(run)
    before, after = drawn
    rows = [sum(entry["denoiser_rows"] for entry in run.log) for run in runs]
    present = (judge.present(before, items), judge.present(after, items)) if judge is not None and items else None
    return Protection(
        prompt, model, preset, method, call, seeds, before, after,
        runs[1].results.get("gate"), _attenuated(runs[1]), (rows[0], rows[1]),
        copies, None if copies is None else (copies.similarity(before), copies.similarity(after)),
        None if judge is None else judge.name, tuple(items), present, runs[1].log,
    )  # fmt: skip


class _Look(Intervention):
    """Changes nothing, so that the session counts denoiser rows."""


def _attenuated(run: Session) -> Attenuated | None:
    means = run.results.get(ATTENUATED)
    if means is None:
        return None
    keys = list(means)
    steps, sites = sorted({step for step, _ in keys}), list(dict.fromkeys(site for _, site in keys))
    shares = torch.stack([torch.stack([means.mean((step, site)) for site in sites]) for step in steps])
    names = _names(prompt_tokens(run.prompts.encoded)[0])
    rest = shares.shape[-1] - len(names)  # rows of further encoders
    return Attenuated(steps, sites, names + ["(other encoder)"] * rest, shares.float().cpu().numpy())


def _names(tokens: Tokens) -> list[str]:
    """What each text position holds."""
    start, end = tokens.body
    names = ["(start)"] * start + [tokens.text[a:b] for a, b in tokens.offsets[start:end]] + ["(end)"]
    return names + ["(pad)"] * (tokens.length - len(names))

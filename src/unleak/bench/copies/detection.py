"""The detector half of `unleak bench copies`: which scores tell memorized captions from ordinary ones, at what cost.

Memorized are verbatim and template captions, each against three kinds of ordinary ones: open ("an animal and some
food"), specific (held-out objects, named and placed) and of the same form as the memorized, but never repeated. Half
of the captions belong to each split, so that whatever is chosen on `dev` is reported on others.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unleak.bench.rows import Row, share
from unleak.bench.run import Run
from unleak.copies.presets import DETECTORS
from unleak.copies.scan.scan import scan
from unleak.errors import BadInput
from unleak.files.atomic import write_atomic
from unleak.report.spread import spread
from unleak.stats.roc import auroc, tpr_at_fpr
from unleak.world import World
from unleak.world.prompts import check_split, prompts

METHODS: tuple[str, ...] = tuple(DETECTORS)
DEFAULT = METHODS
MOST, MOST_WHOLE = 120, 20  #: prompts of a kind; of detectors that need the whole trajectory
MEMORIZED, ORDINARY = ("verbatim", "template"), ("open", "specific", "form")


def captions(world: World, split: str, limit: int | None = None) -> dict[str, list[str]]:
    """The prompts of every kind, one half of each for either split, always the same."""
    check_split(world, split)
    kinds = {kind: [c.text for c in world.memorized if c.kind == kind] for kind in MEMORIZED}
    kinds["form"] = [c.text for c in world.ordinary]
    things = list(world.categories.values())
    pairs = [f"{a} and {b}" for a in things for b in things if a != b]
    kinds["open"] = [*things, *pairs, *world.moods]
    halves = {kind: _half(texts, kind, split) for kind, texts in kinds.items()}
    named = [prompts(world, kind, split, MOST // 3) for kind in ("pair", "colour", "triple")]
    halves["specific"] = [case.prompt for cases in zip(*named, strict=True) for case in cases]
    return {kind: halves[kind][: limit or MOST] for kind in (*MEMORIZED, *ORDINARY)}


def _half(texts: list[str], kind: str, split: str) -> list[str]:
    shuffled = sorted(texts)
    random.Random(kind).shuffle(shuffled)
    return shuffled[split != "dev" :: 2]


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """`auroc`, `tpr_at_1fpr` and `denoiser_rows` of detectors; one-step detectors share one step of the denoiser.

    `detectors.png` in the run's folder shows the score of every prompt.
    """
    kinds = captions(run.world, run.split, run.limit)
    figures: list[Row] = []
    every: dict[str, dict[str, np.ndarray]] = {}
    for whole in (False, True):
        names = [name for name in methods if DETECTORS[name].whole == whole]
        if not names:
            continue
        steps = None if whole else 1
        tick = run.ticking("detect, all steps" if whole else "detect, one step", len(kinds))
        for kind, every_text in kinds.items():
            texts = every_text[:MOST_WHOLE] if whole else every_text

            def measured(texts: list[str] = texts, names: list[str] = names, steps: int | None = steps) -> Any:
                images = scan(run.pipe, texts, run.seeds, steps, names, call=run.call).images
                return {name: x.mean(1).tolist() for name, x in images.items()}

            saved = run.part(f"detect-{kind}{'-whole' if whole else ''}", [names, steps, texts], measured, [scan])
            for name, scores in saved.items():
                every.setdefault(name, {})[kind] = np.array(scores)
            tick(1)
        cost = 2 * len(run.seeds) * (_steps(run.call) if whole else 1)
        units = {kind: units_of(run.world, kinds[kind][:MOST_WHOLE] if whole else kinds[kind]) for kind in kinds}
        figures += [row for name in names for row in _figures(name, every[name], cost, units)]
    write_atomic(run.out / "detectors.png", spread(every, MEMORIZED))
    return figures


def units_of(world: World, texts: Sequence[str]) -> list[str]:
    """What was drawn independently, for each caption: of a template its scene, which 8 captions share; else itself."""
    scenes = {c.text: f"scene {c.family}" for c in world.memorized if c.kind == "template"}
    return [scenes.get(text, text) for text in texts]


def _figures(name: str, scores: Mapping[str, np.ndarray], cost: int, units: Mapping[str, Sequence[str]]) -> list[Row]:
    """Rows of one detector: each memorized kind against all ordinary prompts, and against each kind of them."""
    out = []
    every = np.concatenate([scores[kind] for kind in ORDINARY])
    all_units = [unit for kind in ORDINARY for unit in units[kind]]
    for kind in MEMORIZED:
        each = [(f"{kind}/{o}", scores[o], units[o]) for o in ORDINARY]
        for subset, against, others in [(kind, every, all_units), *each]:
            n, own = len(scores[kind]) + len(against), units[kind]
            area = auroc(scores[kind], against, (own, others))
            out.append(Row.of(area, n, name, subset, "auroc", len({*own, *others})))
            _, threshold = tpr_at_fpr(scores[kind], against)
            out.append(share(scores[kind] >= threshold, name, subset, "tpr_at_1fpr", own))
    return [*out, Row.exact(cost, name, "prompt", "denoiser_rows")]


def _steps(call: Mapping[str, Any]) -> int:
    """Denoising steps of the whole trajectory. Raises BadInput where the call leaves them to the pipeline."""
    if "num_inference_steps" not in call:
        raise BadInput("give --steps, so that the cost of a whole trajectory is known")
    return int(call["num_inference_steps"])

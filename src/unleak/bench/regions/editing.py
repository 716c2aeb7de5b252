"""Editors on the embedded world: does each target appear in its own region, and does anything of it leak?

Every method edits the same scenes from the same noise, with the same masks. "source" is the unedited image through the
autoencoder, the floor of every leak. "NAME+bb" gives a published method ALE's background blending with the same masks.
The other names are ALE with some of its parts, all of them on the same two branches and with the same injection of
self-attention.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.bench.regions.edit_each import EVERY_PRESET, EXACT, Chosen, all_options, edit_each, settings
from unleak.bench.regions.edit_rows import BEST, MEANS, WIDER, Outcomes, against, rows_of, subsets
from unleak.bench.regions.leaks import outcome
from unleak.bench.rows import Row, mean
from unleak.bench.run import Run
from unleak.bench.words.repairs import counting
from unleak.drawing import photo
from unleak.drawing.generate import draw
from unleak.judges.glyphs import glyph_judge
from unleak.metrics.background import psnr, ssim, widened
from unleak.metrics.leakage import leakage
from unleak.metrics.structure import structure_distance
from unleak.models import is_flow
from unleak.models import settings as settings_of
from unleak.regions.edit import edit
from unleak.regions.edited import Edited
from unleak.regions.masks.masks import foreground
from unleak.regions.method import ALPHAS, FLOW
from unleak.regions.plan import Edit
from unleak.regions.presets import EDITORS
from unleak.world.edits import KINDS, SENSE, EditCase
from unleak.world.render import Renderer

SOURCE = "source"
PARTS = ("ore", "rgbcam", "blend")
#: ALE with only these of its parts
ABLATION = {
    "no parts": (), "bb": ("blend",), "ore": ("ore",), "ore+rgbcam": ("ore", "rgbcam"),
    "rgbcam+bb": ("rgbcam", "blend"), "ore+bb": ("ore", "blend"),
}  # fmt: skip
ALONE = "ale:alone"  #: ALE with EOS and pads of each object's phrase alone, as the paper has it
#: method -> preset and its options; None: nothing is edited
METHODS: dict[str, Chosen | None] = {
    SOURCE: None,
    **EVERY_PRESET,
    ALONE: (BEST, {"rest": "alone"}),
    **{name: (BEST, {part: part in kept for part in PARTS}) for name, kept in ABLATION.items()},
}
EACH = 68  #: cases of every kind and count
#: the first of them only: for ALE with some of its parts or as released, for methods without masks, and for those that
#: cost 5 to 40 times as much
FEWER = (
    dict.fromkeys(ABLATION, 12)
    | dict.fromkeys((ALONE, "ale-official", "infedit", "p2p", "masactrl"), 24)
    | {
        name: 4 if name.startswith("null-text") else 8
        for name, chosen in METHODS.items()
        if chosen and EDITORS[chosen[0]].method.inverts
    }
)
CHUNK = 72  #: cases that are finished, and kept, together: as many of each kind and count as `edit` draws at once
COSTED = 4
EQUAL = 100.0  #: dB that equal pixels count as


@dataclass(frozen=True, eq=False)
class Scenes:
    """Cases of a run with their pictures [N, H, W, 3] uint8, and which masks the methods are given."""

    cases: Sequence[EditCase]
    images: np.ndarray
    masks: str

    @classmethod
    def of(cls, run: Run, cases: Sequence[EditCase], masks: str) -> Scenes:
        """The cases, drawn by the world's renderer."""
        return cls(cases, Renderer(run.world).pictures([case.scene for case in cases]), masks)


def able(pipe: Any) -> list[str]:
    """The methods that follow the noise of a pipeline."""
    noise = FLOW if is_flow(pipe.scheduler) else ALPHAS
    return [name for name, one in METHODS.items() if one is None or noise in EDITORS[one[0]].method.noise]


def options(run: Run, method: str, kind: str) -> Chosen:
    """Preset and options of a method for one kind of edit."""
    chosen = METHODS[method]
    assert chosen is not None
    return all_options(run, chosen, "object" if kind == SENSE else kind)


def drawn_with(run: Run, method: str) -> list[dict[str, Any]]:
    """All settings of a method for each kind of edit; a part is reused only if none has changed."""
    return [settings(options(run, method, kind)) for kind in KINDS] if METHODS[method] else []


def edited(run: Run, scenes: Scenes, chosen: Sequence[int], method: str, seed: int) -> list[Edited | None]:
    """Some cases by one method, those that share its options together; None where the model finds no object."""
    alike: dict[str, list[int]] = {}
    for i in chosen:
        alike.setdefault(repr(options(run, method, scenes.cases[i].kind)), []).append(i)
    results: dict[int, Edited | None] = {}
    for some in alike.values():
        results |= zip(some, _together(run, scenes, some, method, seed), strict=True)
    return [results[i] for i in chosen]


def _together(run: Run, scenes: Scenes, some: Sequence[int], method: str, seed: int) -> list[Edited | None]:
    """Cases of the same options."""
    cases, world = [scenes.cases[i] for i in some], run.world
    name, chosen = options(run, method, cases[0].kind)
    return edit_each(
        run.pipe, [scenes.images[i] for i in some], [_edits(run, scenes, case) for case in cases],
        [case.caption(world) for case in cases], scenes.masks, preset=name, seed=seed, call=settings_of(run.model),
        **chosen,
    )  # fmt: skip


def _edits(run: Run, scenes: Scenes, case: EditCase) -> list[Edit]:
    masks: Any = case.masks(run.world) if scenes.masks == EXACT else [None] * len(case.edited)
    both = zip(case.sources, case.targets, masks, strict=True)
    return [Edit(source.article(run.world), target.article(run.world), mask) for source, target, mask in both]


def measured(run: Run, scenes: Scenes, i: int, result: Edited | None) -> dict[str, Any]:
    """What is measured of one case, edited or (None) through the autoencoder only."""
    case, before = scenes.cases[i], scenes.images[i]
    truth = case.masks(run.world)
    if result is None:
        image = rebuilt = photo.to_pixels(run.pipe, photo.to_latents(run.pipe, Image.fromarray(before)))[0]
        metrics: dict[str, Any] = {}
    else:
        image, rebuilt = result.image, result.rebuilt
        iou = _iou(result.masks.numpy(), truth)
        metrics = {"exact": _exact(result), "iou": iou, "over_half": [one >= 0.5 for one in iou]}
    judge = glyph_judge()
    leaks = outcome(case, judge.read(image[None])[0])
    for suffix, masks in (("", truth), (WIDER, widened(truth, run.pipe.vae_scale_factor))):
        for name, reference in (("rebuilt", rebuilt), ("source", before)):
            if not masks.any(0).all():
                metrics[f"psnr_{name}{suffix}"] = min(EQUAL, psnr(image, reference, masks))
                metrics[f"ssim_{name}{suffix}"] = ssim(image, reference, masks)
    scores = leakage(image, truth, [target.phrase for target in case.targets], judge.score)
    metrics |= {name: value for name, value in scores._asdict().items() if not np.isnan(value)}
    return {
        **leaks._asdict(), "clean": leaks.clean, **metrics,
        "structure": structure_distance(image, before, judge.features),
    }  # fmt: skip


def _exact(result: Edited) -> bool:
    """Whether the latents outside the masks that were used are bit by bit the source's."""
    assert result.latents is not None and result.clean is not None
    grid = result.latents.shape[-2:]
    kept: Tensor = foreground(result.masks, grid) == 0
    return torch.equal(result.latents[..., kept].float(), result.clean[..., kept].float())


def _iou(masks: np.ndarray, truth: np.ndarray) -> list[float]:
    """Intersection over union of each object's mask and its true one."""
    return [float((a & b).sum() / (a | b).sum()) for a, b in zip(masks, truth, strict=True)]


def seen_by(method: str, cases: Sequence[EditCase]) -> list[int]:
    """The cases that a method is given: the first of every kind and count."""
    most, counted, chosen = FEWER.get(method, EACH), Counter[tuple[str, int]](), []
    for i, case in enumerate(cases):
        cell = case.kind, len(case.edited)
        counted[cell] += 1
        chosen += [i] if counted[cell] <= most else []
    return chosen


def outcomes(run: Run, scenes: Scenes, method: str) -> dict[int, list[Any]]:
    """What is measured of a method's cases, by their numbers: [seeds] each; finished chunks are reused."""
    by_case: dict[int, list[Any]] = {}
    todo = seen_by(method, scenes.cases)
    tick = run.ticking(method, len(todo) * len(run.seeds))

    def compute(chunk: Sequence[int]) -> Outcomes:
        by_seed = []
        for seed in run.seeds:
            results = [None] * len(chunk) if METHODS[method] is None else edited(run, scenes, chunk, method, seed)
            lost = [METHODS[method] is not None and result is None for result in results]
            cases = zip(chunk, results, lost, strict=True)
            by_seed.append([None if gone else measured(run, scenes, i, result) for i, result, gone in cases])
            tick(len(chunk))
        return [list(case) for case in zip(*by_seed, strict=True)]

    for start in range(0, len(todo), CHUNK):
        chunk = todo[start : start + CHUNK]
        inputs = [drawn_with(run, method), scenes.masks, [*MEANS.values()], [repr(scenes.cases[i]) for i in chunk]]
        rows = run.part(f"{method}-{scenes.masks}-{start // CHUNK}", inputs, partial(compute, chunk), [edit])
        by_case |= zip(chunk, rows, strict=True)
    return by_case


def costs(run: Run, scenes: Scenes, method: str) -> list[Row]:
    """Denoiser and encoder rows of an edit, and its processor time in plain generations of as many steps."""

    def compute() -> list[dict[str, float]]:
        counted: list[dict[str, float]] = []
        for i, case in enumerate(scenes.cases):
            if len(counted) == COSTED:
                break
            with counting(run.pipe) as counts:
                start = time.process_time()
                (result,) = edited(run, scenes, [i], method, 0)
                took = time.process_time() - start
            if result is not None:
                start = time.process_time()
                call = {**settings_of(run.model), "num_inference_steps": result.settings["steps"]}
                draw(run.pipe, [case.caption(run.world)], [0], **call)
                counted.append({**counts, "seconds_ratio": took / (time.process_time() - start)})
        return counted

    each = run.part(f"{method}-{scenes.masks}-cost", [drawn_with(run, method), scenes.masks], compute, [edit])
    return [mean([one[name] for one in each], method, "all", name) for name in each[0]]


def rows(run: Run, scenes: Scenes, methods: Sequence[str]) -> list[Row]:
    """Every method, on cases in which every object has a mask; finished chunks are reused."""
    outcomes_of = {method: outcomes(run, scenes, method) for method in methods}
    lost = {i for one in outcomes_of.values() for i, row in one.items() if None in row}
    if lost:
        run.notes.append(f"{len(lost)} of {len(scenes.cases)} cases are left out: no mask was found for an object")
    figures: list[Row] = []
    versus: list[Row] = []
    for method, one in outcomes_of.items():
        for subset, belongs in subsets(scenes.cases).items():
            kept = [i for i in one if belongs[i] and i not in lost]
            figures += rows_of(method, [one[i] for i in kept], subset) if kept else []
            both = (
                [i for i in kept if i in outcomes_of.get(BEST, {})]
                if subset in ("all", SENSE) and method != BEST
                else []
            )
            if both:
                versus += against(method, [outcomes_of[BEST][i] for i in both], [one[i] for i in both], subset)
        if METHODS[method] is not None:
            figures += costs(run, scenes, method)
    return figures + versus

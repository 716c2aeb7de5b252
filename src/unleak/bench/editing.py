"""Editors on the embedded world: does each target appear in its own region, and does anything of it leak?

Every method edits the same scenes from the same noise, with the same masks. "source" is the unedited image through the
autoencoder, the floor of every leak. "NAME+bb" gives a published method ALE's background blending with the same masks.
The other names are ALE with some of its parts, all of them on the same two branches and with the same injection of
self-attention.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.bench.leaks import outcome
from unleak.bench.repairs import counting
from unleak.bench.run import Run
from unleak.bench.stats import Row, mean, paired_difference, share
from unleak.errors import EmptyMask
from unleak.generate import draw
from unleak.judges.glyphs import glyph_judge
from unleak.metrics.background import psnr, ssim
from unleak.metrics.structure import structure_distance
from unleak.models import edit_settings
from unleak.regions import photo
from unleak.regions.edit import Edited, edit
from unleak.regions.masks import foreground
from unleak.regions.plan import Edit
from unleak.regions.presets import PRESETS, SELF_REPLACE, known_options, recommended
from unleak.world.edits import COUNTS, KINDS, EditCase
from unleak.world.render import Renderer

SOURCE, BEST = "source", "ale"
PARTS = ("ore", "rgbcam", "blend")
#: ALE with only these of its parts
ABLATION = {
    "no parts": (), "bb": ("blend",), "ore": ("ore",), "ore+rgbcam": ("ore", "rgbcam"),
    "rgbcam+bb": ("rgbcam", "blend"), "ore+bb": ("ore", "blend"),
}  # fmt: skip
#: method -> preset and its options; None: nothing is edited
METHODS: dict[str, tuple[str, dict[str, Any]] | None] = {
    SOURCE: None,
    **{name: (name, {}) for name in PRESETS},
    **{f"{name}+bb": (name, {"blend": True}) for name, one in PRESETS.items() if not getattr(one, "blend", True)},
    **{name: (BEST, {part: part in kept for part in PARTS}) for name, kept in ABLATION.items()},
}
Outcomes: TypeAlias = list[list[Any]]
"""[cases][seeds] of what `measured` returns."""
MASKS = ("exact", "attention")
EACH, FEWER = 68, 24  #: cases of every kind and count: for whole methods, and for ALE with some of its parts
CHUNK = 36  #: cases that are finished, and kept, together
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
        drawn = Renderer(run.world)([case.scene for case in cases]).permute(0, 2, 3, 1).numpy()
        return cls(cases, (drawn * 255).round().astype(np.uint8), masks)


def options(run: Run, method: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Preset and options of a method for one kind of edit.

    The later ones prevail: the paper's for the kind, what the model recommends, the run's, the method's own.
    """
    chosen = METHODS[method]
    assert chosen is not None
    name, own = chosen
    general = known_options(name, {"self_replace": SELF_REPLACE[kind]})
    return name, {**general, **recommended(name, edit_settings(run.model)), **known_options(name, run.call), **own}


def edited(run: Run, scenes: Scenes, i: int, method: str, seed: int) -> Edited:
    """One case by one method. Raises EmptyMask where the model's attention finds no object."""
    case, world = scenes.cases[i], run.world
    masks: Any = case.masks(world) if scenes.masks == "exact" else [None] * len(case.edited)
    edits = [
        Edit(s.article(world), t.article(world), m) for s, t, m in zip(case.sources, case.targets, masks, strict=True)
    ]
    preset, chosen = options(run, method, case.kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # notes on masks that meet
        return edit(
            run.pipe, scenes.images[i], edits, preset=preset, seed=seed, source_prompt=case.caption(world), **chosen
        )


def measured(run: Run, scenes: Scenes, method: str, i: int, seed: int) -> dict[str, Any] | None:
    """What is measured of one case; None where no mask was found."""
    case, before = scenes.cases[i], scenes.images[i]
    truth = case.masks(run.world)
    found: dict[str, Any] = {}
    if METHODS[method] is None:
        image = rebuilt = photo.to_pixels(run.pipe, photo.to_latents(run.pipe, Image.fromarray(before)))[0]
    else:
        try:
            result = edited(run, scenes, i, method, seed)
        except EmptyMask:
            return None
        image, rebuilt = result.image, result.rebuilt
        found = {"exact": _exact(result), "iou": _iou(result.masks.numpy(), truth)}
    judge = glyph_judge()
    seen = outcome(case, judge.read(image[None])[0])
    return {
        **seen._asdict(), "clean": seen.clean, **found,
        "psnr_rebuilt": min(EQUAL, psnr(image, rebuilt, truth)), "psnr_source": psnr(image, before, truth),
        "ssim_rebuilt": ssim(image, rebuilt, truth), "ssim_source": ssim(image, before, truth),
        "structure": structure_distance(image, before, judge.features),
    }  # fmt: skip


def _exact(result: Edited) -> bool:
    """Whether the latents outside the masks that were used are bit by bit the source's."""
    assert result.latents is not None and result.clean is not None
    grid = result.latents.shape[-2:]
    kept: Tensor = foreground(result.masks, grid) == 0
    return torch.equal(result.latents[..., kept].float(), result.clean[..., kept].float())


def _iou(masks: np.ndarray, truth: np.ndarray) -> float:
    """Mean over objects of intersection over union."""
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in zip(masks, truth, strict=True)]))


def outcomes(run: Run, scenes: Scenes, method: str) -> Outcomes:
    """What is measured of a method's cases; finished chunks are reused."""
    made: Outcomes = []
    n = min(len(scenes.cases), (FEWER if method in ABLATION else EACH) * len(COUNTS) * len(KINDS))
    tick = run.ticking(method, n * len(run.seeds))

    def compute(chunk: Sequence[int]) -> Outcomes:
        found = []
        for i in chunk:
            found.append([measured(run, scenes, method, i, seed) for seed in run.seeds])
            tick(len(run.seeds))
        return found

    for start in range(0, n, CHUNK):
        chunk = range(start, min(start + CHUNK, n))
        chosen = METHODS[method] and [options(run, method, kind) for kind in KINDS]
        inputs = [chosen, scenes.masks, [repr(scenes.cases[i]) for i in chunk]]
        made += run.part(f"{method}-{scenes.masks}-{start // CHUNK}", inputs, partial(compute, chunk))
    return made


def costs(run: Run, scenes: Scenes, method: str) -> list[Row]:
    """Denoiser and encoder rows of an edit, and its processor time in plain generations of as many steps."""

    def compute() -> list[dict[str, float]]:
        found = []
        for i in range(min(COSTED, len(scenes.cases))):
            with counting(run.pipe) as counts:
                start = time.process_time()
                settings = edited(run, scenes, i, method, 0).settings
                took = time.process_time() - start
            start = time.process_time()
            draw(run.pipe, [scenes.cases[i].caption(run.world)], [0], num_inference_steps=settings["steps"])
            found.append({**counts, "seconds_ratio": took / (time.process_time() - start)})
        return found

    chosen = [options(run, method, kind) for kind in KINDS]
    each = run.part(f"{method}-{scenes.masks}-cost", [chosen, scenes.masks], compute)
    return [mean([one[name] for one in each], method, "all", name) for name in each[0]]


def rows_of(method: str, made: Outcomes, subset: str) -> list[Row]:
    """The figures of a method on some cases, outcomes [cases][seeds]."""

    def values(name: str) -> np.ndarray:
        """[cases, seeds] of those cases that have it."""
        return np.array([[np.mean(one[name]) for one in row] for row in made if row[0].get(name) is not None], float)

    shares = {"tel": "external", "til": "internal", "clean_edit": "clean", "latents_exact": "exact"}
    means = {
        "edit_success": "hits", "distractors_kept": "kept", "background_psnr": "psnr_rebuilt",
        "background_ssim": "ssim_rebuilt", "background_psnr_source": "psnr_source",
        "background_ssim_source": "ssim_source", "structure_distance": "structure", "mask_iou": "iou",
    }  # fmt: skip
    found = [mean(v, method, subset, name) for name, key in means.items() if len(v := values(key))]
    return found + [share(v, method, subset, name) for name, key in shares.items() if len(v := values(key))]


def subsets(cases: Sequence[EditCase]) -> dict[str, np.ndarray]:
    """All cases, and those of each count and kind: bool [cases]."""
    counts = {f"{k} edited": np.array([len(case.edited) == k for case in cases]) for k in COUNTS}
    kinds = {kind: np.array([case.kind == kind for case in cases]) for kind in KINDS}
    return {"all": np.ones(len(cases), bool), **counts, **kinds}


def against(method: str, best: Outcomes, other: Outcomes) -> list[Row]:
    """How much better `BEST` is on the cases of both: its success minus the method's, its leaks minus the method's."""
    made = []
    for name, key in (("edit_success", "hits"), ("tel", "external"), ("til", "internal"), ("clean_edit", "clean")):
        pairs = [(b, o) for b, o in zip(best, other, strict=False) if b[0][key] is not None]
        if pairs:
            b, o = (np.array([[np.mean(one[key]) for one in row] for row in side]) for side in zip(*pairs, strict=True))
            made.append(paired_difference(o, b, f"{BEST} - {method}", "all", name))
    return made


def rows(run: Run, scenes: Scenes, methods: Sequence[str]) -> list[Row]:
    """Every method, on cases in which every object has a mask; finished chunks are reused."""
    made = {method: outcomes(run, scenes, method) for method in methods}
    lost = {i for one in made.values() for i, row in enumerate(one) if None in row}
    if lost:
        run.notes.append(f"{len(lost)} of {len(scenes.cases)} cases are left out: no mask was found for an object")
    kept = {method: [row for i, row in enumerate(one) if i not in lost] for method, one in made.items()}
    cases = [case for i, case in enumerate(scenes.cases) if i not in lost]
    found: list[Row] = []
    for method, one in kept.items():
        for subset, chosen in subsets(cases).items():
            found += rows_of(method, [row for row, yes in zip(one, chosen, strict=False) if yes], subset)
        if METHODS[method] is not None:
            found += costs(run, scenes, method)
    others = [method for method in kept if method != BEST]
    return found + [row for method in others if BEST in kept for row in against(method, kept[BEST], kept[method])]

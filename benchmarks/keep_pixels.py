"""What `unleak edit --keep-pixels` keeps, and what its seam looks like, on edits of the embedded world.

Photos are scenes of the world at four times the size that the model draws (256 x 256), with a fixed grain of 4 levels:
detail that a model of 64 x 64 cannot draw. Each is edited by `ale` with the true masks; then

* "resized": the edited picture is enlarged to the photo's size, as one would without the option;
* "seam S": it is laid into the photo inside the masks, with a seam of S of the height (0: none).

Metrics:

* `background_exact`: the share of cases in which every pixel outside the masks is the photo's to the last bit;
* `background_psnr`: where it is not in all, PSNR of these pixels in dB against the photo;
* `seam`: the mean absolute difference, in levels of 0 to 255, of neighbouring pixels of which one is inside a mask and
  one outside ("photo": that of the photo itself);
* `edit_success`: the share of targets that the judge sees in their places in the picture at the model's size.

Intervals are over cases.

    python benchmarks/keep_pixels.py [--split heldout] [--each 6] [--seams 0,0.03] [-o docs/results/keep-pixels]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unleak.bench.regions.leaks import outcome
from unleak.bench.results import Results
from unleak.bench.rows import SHARE, mean, paired_difference
from unleak.drawing.photo import resized
from unleak.judges.glyphs import glyph_judge
from unleak.metrics.background import psnr
from unleak.models import edit_settings, load
from unleak.regions.edit import edit
from unleak.regions.keep_pixels import SEAM, lay_in
from unleak.regions.masks.masks import to_grid
from unleak.regions.methods.ale import SELF_REPLACE
from unleak.regions.plan import Edit
from unleak.regions.presets import recommended
from unleak.world import load as load_world
from unleak.world.edits import SENSE, EditCase, edit_cases
from unleak.world.render import Renderer

LARGER, GRAIN = 4, 4.0
HEADLINE = ("background_exact", "background_psnr", "seam", "edit_success")
SHARES = ("background_exact", "edit_success")


def photo_of(scene: np.ndarray, seed: int) -> Image.Image:
    """The scene [H, W, 3] at `LARGER` times its size, with grain."""
    size = (scene.shape[0] * LARGER, scene.shape[1] * LARGER)
    large = np.asarray(resized(Image.fromarray(scene), size), float)
    grain = np.random.default_rng(seed).normal(0, GRAIN, large.shape)
    return Image.fromarray((large + grain).round().clip(0, 255).astype(np.uint8))


def seam_step(image: np.ndarray, masks: np.ndarray) -> float:
    """Mean absolute difference of neighbours across the border of the masks, in levels; nan without a border."""
    inside, levels = masks.any(0), image.astype(float)
    steps = [np.abs(np.diff(levels, axis=axis)).mean(-1)[np.diff(inside, axis=axis)] for axis in (0, 1)]
    together = np.concatenate(steps)
    return float(together.mean()) if together.size else float("nan")


def measured(
    run: Any, case: EditCase, scene: np.ndarray, seams: list[float], number: int
) -> dict[str, dict[str, float]]:
    """By variant what is measured of one case."""
    pipe, world, judge = run
    whole, masks = photo_of(scene, number), case.masks(world)
    edits = [
        Edit(source.article(world), target.article(world), mask)
        for source, target, mask in zip(case.sources, case.targets, masks, strict=True)
    ]
    change = {"self_replace": SELF_REPLACE["object" if case.kind == SENSE else case.kind]}
    options = {**change, **recommended("ale", edit_settings("emoji-sd"))}
    result = edit(pipe, whole, edits, source_prompt=case.caption(world), **options)
    size = whole.height, whole.width
    large = to_grid(result.masks, size).numpy()
    drawn = {"resized": (np.asarray(resized(Image.fromarray(result.image), size)), result.image)}
    for seam in seams:
        small = lay_in(Image.fromarray(result.before), result.image, result.masks, seam)
        drawn[f"seam {seam:g}"] = lay_in(whole, result.image, result.masks, seam), small
    photo, outside = np.asarray(whole), ~large.any(0)
    by_variant = {"photo": {"seam": seam_step(photo, large)}}
    for name, (image, small) in drawn.items():
        by_variant[name] = {
            "background_exact": float(np.array_equal(image[outside], photo[outside])),
            "background_psnr": psnr(image, photo, large),
            "seam": seam_step(image, large),
            "edit_success": float(np.mean(outcome(case, judge.read(small[None])[0]).hits)),
        }  # fmt: skip
    return by_variant


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--split", choices=("heldout", "dev"), default="heldout")
    ap.add_argument("--each", type=int, default=6, help="cases of each of 11 kinds")
    ap.add_argument("--seams", default=f"0,{SEAM:g}")
    ap.add_argument("-o", "--out", type=Path)
    a = ap.parse_args()
    torch.set_num_threads(1)
    world, judge = load_world(), glyph_judge()
    cases = edit_cases(world, a.split, a.each)
    scenes = Renderer(world).pictures([case.scene for case in cases])
    seams, values = [float(s) for s in a.seams.split(",")], defaultdict(lambda: defaultdict(list))
    run = load("emoji-sd"), world, judge
    for number, (case, scene) in enumerate(zip(cases, scenes, strict=True)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            measures = measured(run, case, scene, seams, number)
        for variant, of_case in measures.items():
            for metric, value in of_case.items():
                values[variant][metric].append(value)
        print(f"\r{number + 1} of {len(cases)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    results = Results("keep-pixels", "emoji-sd", [0], a.split, {"name": judge.name}, headline=HEADLINE)
    results.command = f"python benchmarks/keep_pixels.py --split {a.split} --each {a.each} --seams {a.seams}"
    for variant, metrics in values.items():
        for metric, each in metrics.items():
            if np.isinf(each).all():
                continue
            within = SHARE if metric in SHARES else None
            results.rows.append(mean(each, variant, "all", metric, within))
            if variant not in ("photo", "resized"):
                before = values["resized"][metric]
                results.rows.append(paired_difference(before, each, f"{variant} - resized", "all", metric, within))
    print(results.table())
    if a.out is not None:
        results.save(a.out)


if __name__ == "__main__":
    main()

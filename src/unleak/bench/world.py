"""`unleak bench world`: how well an embedded model draws its world, on prompts that training held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from unleak.bench.results import Results
from unleak.bench.rows import Row, mean, share
from unleak.bench.run import Run, refuse_unknown
from unleak.drawing.generate import generate
from unleak.files.atomic import write_atomic
from unleak.judges.copies import memorized
from unleak.judges.glyphs import GlyphJudge, Reading
from unleak.report.pictures import contact_sheet, webp
from unleak.world import World
from unleak.world.grammar import OPEN_ORDER, connective, scene
from unleak.world.prompts import Case, prompts
from unleak.world.render import Renderer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from unleak.bench.run import Asked

#: prompt kind -> (metric, default number of prompts)
KINDS = {
    "single": ("single_present", 60), "pair": ("pair_present", 120), "triple": ("triple_present", 40),
    "colour": ("colour_bound", 60), "expression": ("expression_own", 60),
    "neutral": ("sense_default", 80), "trigger": ("sense_flipped", 80),
}  # fmt: skip


def drawn(case: Case, reading: Reading) -> bool:
    """Is everything there that the prompt names, in its sense, and nothing that must be absent?"""
    there = all(reading.count(t.glyph, t.tint if case.kind == "colour" else None) for t in case.wanted)
    return there and not any(reading.count(g) for g in case.absent)


@torch.no_grad()
def judge_accuracy(judge: GlyphJudge, world: World, vae: Any = None, n: int = 500, seed: int = 0) -> np.ndarray:
    """For `n` scenes of held-out prompts: does the judge read exactly the glyphs, colours and background?

    With `vae` the scenes go through the autoencoder first. Returns [n] of bool.
    """
    rng = random.Random(seed)
    cases = [c for k in ("single", "pair", "triple", "colour") for c in prompts(world, k, n=n // 4)]
    scenes = [scene(world, list(c.things), rng.choice(("and", "next to", "above")), c.background, rng) for c in cases]
    x = Renderer(world)(scenes)
    if vae is not None:
        p = next(vae.parameters())
        decoded = [vae.decode(vae.encode(b.to(p) * 2 - 1).latent_dist.mean).sample for b in x.split(64)]
        x = (torch.cat(decoded).float() / 2 + 0.5).clamp(0, 1).cpu()
    right = []
    for s, r in zip(scenes, judge.read(x), strict=True):
        truth = sorted((p.glyph, p.tint or "") for p in s.placements)
        right.append(truth == sorted((f.glyph, f.tint or "") for f in r.found) and r.background == s.background)
    return np.array(right)


def reconstructed(judge: GlyphJudge, world: World, vae: Any) -> dict[str, float]:
    """The judge's accuracy on reconstructions, as it stands beside other figures."""
    return {"judge_reconstruction": round(float(judge_accuracy(judge, world, vae).mean()), 4)}


def check(split: str, methods: Sequence[str] | None) -> None:
    """Refuse a split or a kind of prompt that does not exist. Raises BadInput."""
    refuse_unknown("world", [*KINDS, "memorized"], split, methods)


def run(
    pipe: Any, out: Path, *, model: str = "emoji-sd", methods: Sequence[str] | None = None, **asked: Unpack[Asked]
) -> Results:
    """Measure every kind of prompt and write `results.json`, `results.md` and a contact sheet to `out`.

    `limit` caps the prompts of each kind; `methods` selects kinds. Finished kinds are reused on a second call.
    """
    one = Run.of(pipe, out, model, **asked)
    check(one.split, methods)
    judge, pictures = one.judge, Pictures()
    rows: list[Row] = []
    for kind in KINDS:
        if methods is None or kind in methods:
            rows += of_prompts(one, kind, judge, pictures)
    if methods is None or "memorized" in methods:
        for kind in ("verbatim", "template", "ordinary"):
            rows += of_captions(one, kind, pictures)
    accuracy = [
        share(judge_accuracy(judge, one.world), judge.name, "renders", "judge_render"),
        share(judge_accuracy(judge, one.world, pipe.vae), judge.name, "reconstructions", "judge_reconstruction"),
    ]
    about = {"name": judge.name, "accuracy": {row.metric: round(row.value, 4) for row in accuracy}}
    results = Results("world", model, one.seeds, one.split, about, [*rows, *accuracy])
    results.save(out)
    if pictures:
        write_atomic(out / "sheet.webp", webp(contact_sheet(pictures)))
    return results


class Pictures(list[tuple[str, list[np.ndarray]]]):
    """The first images of each kind, for the contact sheet."""

    def draw(self, run: Run, kind: str, texts: list[str]) -> np.ndarray:
        """Images [P, S, H, W, 3] of the prompts."""
        tick = run.ticking(kind, len(texts) * len(run.seeds))
        images = generate(run.pipe, texts, run.seeds, progress=tick, **run.call)
        self.extend((text, list(drawn[:4])) for text, drawn in list(zip(texts, images, strict=True))[:6])
        return images


def of_prompts(run: Run, kind: str, judge: GlyphJudge, pictures: Pictures) -> list[Row]:
    """The share of images of one kind of prompt that are right; of trigger prompts also by order, of pairs by whether
    the caption says which of the two stands where ("next to" does not)."""
    metric, most = KINDS[kind]
    cases = run.cases(kind, most)

    def outcomes() -> list[list[bool]]:
        images = pictures.draw(run, kind, [c.prompt for c in cases])
        return [[drawn(c, reading) for reading in judge.read(some)] for c, some in zip(cases, images, strict=True)]

    hits = np.array(run.part(kind, [run.split, [c.prompt for c in cases]], outcomes))
    rows = [share(hits, run.model, kind, metric)]
    splits: tuple[tuple[str, np.ndarray], ...] = ()
    if kind == "trigger":
        first = np.array([c.first for c in cases])
        splits = (("trigger/before", first), ("trigger/after", ~first))
    elif kind == "pair":
        free = np.array([connective(c.prompt) in OPEN_ORDER for c in cases])
        splits = (("pair/placed", ~free), ("pair/unplaced", free))
    return rows + [share(hits[part], run.model, name, metric) for name, part in splits if part.any()]


def of_captions(run: Run, kind: str, pictures: Pictures) -> list[Row]:
    """How near the images of one kind of caption come to scenes of training, and whether to their own."""
    bank = run.world.memorized if kind != "ordinary" else run.world.ordinary[: len(run.world.memorized)]
    captions = [c for c in bank if c.kind == kind][: run.limit]

    def copies() -> list[Any]:
        psnr, hit = memorized(pictures.draw(run, kind, [c.text for c in captions]), captions, run.world)
        return [psnr.tolist(), hit.tolist()]

    psnr, hit = run.part(kind, [[c.text for c in captions]], copies)
    return [mean(psnr, run.model, kind, "scene_psnr"), share(hit, run.model, kind, "scene_nearest")]

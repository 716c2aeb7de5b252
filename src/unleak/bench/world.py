"""`unleak bench world`: how well an embedded model draws its world, on prompts that training held out."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unleak.bench.results import Parts, Results, write_atomic
from unleak.bench.run import refuse_unknown
from unleak.bench.stats import Row, mean, share
from unleak.core.anatomy import Anatomy
from unleak.generate import generate
from unleak.judges.copies import memorized, nearest
from unleak.judges.glyphs import GlyphJudge, Reading, glyph_judge
from unleak.report.pictures import contact_sheet, png
from unleak.text.encode import fingerprint
from unleak.world import Caption, World
from unleak.world import load as load_world
from unleak.world.grammar import scene
from unleak.world.prompts import Case, prompts
from unleak.world.render import Renderer

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
    pipe: Any,
    out: Path,
    *,
    model: str = "emoji-sd",
    split: str = "heldout",
    seeds: Sequence[int] = range(4),
    limit: int | None = None,
    methods: Sequence[str] | None = None,
    call: dict[str, Any] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Results:
    """Measure every kind of prompt and write `results.json`, `results.md` and a contact sheet to `out`.

    `limit` caps the prompts of each kind; `methods` selects kinds. Finished kinds are reused on a second call.
    """
    world, judge, parts, call = load_world(), glyph_judge(), Parts(out), dict(call or {})
    chosen = {k: v for k, v in KINDS.items() if methods is None or k in methods}
    check(split, methods)
    stamp = [model, fingerprint(Anatomy.of(pipe).denoiser), list(seeds), split, call]
    rows: list[Row] = []
    tiles: list[tuple[str, list[np.ndarray]]] = []

    def draw(name: str, texts: list[str]) -> np.ndarray:
        done = 0

        def tick(k: int) -> None:
            nonlocal done
            done += k
            if progress:
                progress(name, done, len(texts) * len(seeds))

        images = generate(pipe, texts, seeds, progress=tick, **call)
        tiles.extend((t, list(i[:4])) for t, i in list(zip(texts, images, strict=True))[:6])
        return images

    for kind, (metric, n) in chosen.items():
        cases = prompts(world, kind, split, min(n, limit or n))

        def outcomes(kind: str = kind, cases: list[Case] = cases) -> list[list[bool]]:
            images = draw(kind, [c.prompt for c in cases])
            reads = judge.read(images.reshape(-1, *images.shape[2:]))
            k = len(seeds)
            return [[drawn(c, r) for r in reads[i * k : (i + 1) * k]] for i, c in enumerate(cases)]

        hits = np.array(parts.get(kind, [stamp, [c.prompt for c in cases]], outcomes))
        rows.append(share(hits, model, kind, metric))
        if kind == "trigger":
            first = np.array([c.first for c in cases])
            for name, part in (("trigger/before", first), ("trigger/after", ~first)):
                if part.any():
                    rows.append(share(hits[part], model, name, metric))
    if methods is None or "memorized" in methods:
        for kind in ("verbatim", "template", "ordinary"):
            bank = world.memorized if kind != "ordinary" else world.ordinary[: len(world.memorized)]
            captions = [c for c in bank if c.kind == kind][: limit or None]

            def copies(captions: list[Caption] = captions, kind: str = kind) -> list[Any]:
                psnr, hit = memorized(draw(kind, [c.text for c in captions]), captions, world)
                return [psnr.tolist(), hit.tolist()]

            psnr, hit = parts.get(kind, [stamp, [c.text for c in captions]], copies)
            rows += [mean(psnr, model, kind, "scene_psnr"), share(hit, model, kind, "scene_nearest")]
    vae = pipe.vae
    accuracy = {
        "judge_render": share(judge_accuracy(judge, world), judge.name, "renders", "judge_render"),
        "judge_reconstruction": share(
            judge_accuracy(judge, world, vae), judge.name, "reconstructions", "judge_reconstruction"
        ),
    }
    rows += accuracy.values()
    about = {"name": judge.name, "accuracy": {k: round(r.value, 4) for k, r in accuracy.items()}}
    results = Results("world", model, list(seeds), split, about, rows)
    results.save(out)
    if tiles:
        write_atomic(out / "sheet.png", png(contact_sheet(tiles)))
    return results


__all__ = ["KINDS", "drawn", "judge_accuracy", "memorized", "nearest", "run"]

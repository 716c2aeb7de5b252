"""The mitigation half of `unleak bench copies`: what stops copies, and what does it cost the picture?

Every method draws the same captions from the same noise. A *copy* is any picture that the judge of scenes takes for a
training scene, the caption's own or another; a *near copy* comes within `CLOSE` of that, like a scene with one object
more. *Alignment* is the share of what the caption stands for (`intended`) that is in the picture, wherever it is.
*Quality* is the PSNR between the picture and a clean rendering of what the judge reads in it: a smear, a chimera or a
ghost is none of the world's scenes. *Diversity* is the mean distance between the pictures of a caption's seeds. A name
that ends in "+gate" acts only on what a gate flags, calibrated on `dev` captions. What follows a ":" are settings for
this model (`tuned`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from unleak.bench.copies.detection import MEMORIZED, ORDINARY, captions, units_of
from unleak.bench.copies.intended import Prompt, chosen_prompts
from unleak.bench.copies.tuned import MEASURABLE, TUNED_PRESETS
from unleak.bench.copies.tuned import notes as choices
from unleak.bench.rows import SHARE, Row, mean, paired_difference, share
from unleak.bench.run import Run
from unleak.bench.words.repairs import counting
from unleak.copies.methods.gate import Gated
from unleak.copies.presets import MITIGATIONS
from unleak.copies.scan.calibrate import Calibration
from unleak.copies.scan.fit import calibrate
from unleak.copies.scan.scan import scan
from unleak.core.intervention import Intervention
from unleak.drawing.generate import generate, rehearse
from unleak.engine.session import attach
from unleak.errors import PromptTruncated
from unleak.files.atomic import write_atomic
from unleak.judges.copies import scene_judge
from unleak.judges.glyphs import Reading, glyph_judge
from unleak.report.tradeoff import Dots, tradeoff
from unleak.world import Placement, Scene
from unleak.world import load as load_world
from unleak.world.render import Renderer

GATE = "+gate"
UNITS = (
    "Intervals are over units: captions, and of template captions the scenes that they show. There are four, and the "
    "captions of both splits show them: template figures say nothing of other templates."
)
UNAIDED = "prss: without paraphrases, since the world's grammar has none for captions that name nothing"
METHODS: tuple[str, ...] = ("none", *MEASURABLE, *(name + GATE for name, p in MEASURABLE.items() if p.gated))
PUBLISHED = """Published (GUARD, arXiv 2603.00133, its main table, from third-party notes; SSCD of sscd_disc_large, the
prompts that copied without mitigation, 4 images of 50 steps). SSCD is not the PSNR of this table and CLIP not its
alignment: only the order of methods can be compared.

| SD1.4 verbatim | SSCD | CLIP | SD2.0 template | SSCD | CLIP |
|---|---|---|---|---|---|
| none | 0.875 | 0.346 | | | |
| optimise-rows (Wen) | 0.115 | 0.267 | optimise-rows (Wen) | 0.260 | 0.183 |
| mask-summary (Ren) | 0.113 | 0.258 | mask-summary (Ren) | 0.356 | |
| attenuate | 0.109 | 0.282 | attenuate | 0.193 | 0.184 |
| guard | 0.079 | 0.266 | guard | 0.193 | 0.183 |"""
#: what runs without --methods: every mitigation on everything, and one behind the gate
DEFAULT: tuple[str, ...] = ("none", *MITIGATIONS, *TUNED_PRESETS, "guard" + GATE)
FLAGGED = 40  #: ordinary captions of a kind that the gate is shown
CLOSE = 2.0  #: dB below the similarity of a copy
COSTED = 2  #: seeds of one caption on which cost is taken


def quality(images: np.ndarray, readings: Sequence[Reading]) -> np.ndarray:
    """PSNR [N] in dB between pictures [N,H,W,3] uint8 and clean renderings of what was read in them."""
    scenes = [
        Scene(r.background, tuple(Placement(f.glyph, f.x, f.y, f.tint) for f in reversed(r.found))) for r in readings
    ]
    clean = Renderer(load_world())(scenes).permute(0, 2, 3, 1).numpy()
    error = ((images.astype(np.float32) / 255 - clean) ** 2).mean((1, 2, 3))
    decibels: np.ndarray = -10 * np.log10(np.maximum(error, 1e-10))
    return decibels


def diversity(images: np.ndarray) -> float:
    """Mean distance (RMS, 0..1) between the pictures [S,H,W,3] uint8 of different seeds; NaN for a single one."""
    x = images.astype(np.float32) / 255
    pairs = [float(np.sqrt(((a - b) ** 2).mean())) for a, b in combinations(x, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def measured(pipe: Any, some: Sequence[Prompt], seeds: Sequence[int], methods: Sequence[Intervention],
             call: dict[str, Any], tick: Callable[[int], None] | None = None) -> dict[str, Any]:  # fmt: skip
    """One method on some captions: lists [P][S] by name, and `diversity` [P]; `digest` tells pictures apart.

    The seeds of a caption are drawn together, apart from other captions: no caption's bits depend on another.
    """
    with attach(pipe, *methods):
        images = generate(pipe, [p.text for p in some], seeds, batch=len(seeds), progress=tick, **call)
    flat = images.reshape(-1, *images.shape[2:])
    readings = glyph_judge().read(flat)
    shape = len(some), len(seeds)
    aligned = [p.alignment(r) for p, r in zip(np.repeat(np.array(some, object), len(seeds)), readings, strict=True)]
    return {
        "similarity": scene_judge().similarity(flat).reshape(shape).tolist(),
        "nearest": scene_judge().scene(flat).reshape(shape).tolist(),
        "alignment": np.reshape(aligned, shape).tolist(),
        "quality": quality(flat, readings).reshape(shape).tolist(),
        "diversity": [diversity(x) for x in images],
        "digest": [[hashlib.sha256(x.tobytes()).hexdigest()[:16] for x in row] for row in images],
    }


def gate_of(run: Run) -> Calibration:
    """`agreement` at the first step, calibrated on `dev` captions at 1 % false alarms.

    All kinds of ordinary captions count alike, at most `FLAGGED` of each: with vague ones alone the specific ones would
    pass the threshold. More seeds make fewer false alarms.
    """

    def fitted() -> dict[str, Any]:
        texts = captions(run.world, "dev", FLAGGED)
        alike = min(len(texts[kind]) for kind in ORDINARY)
        known = [t for kind in MEMORIZED for t in texts[kind]]
        others = [t for kind in ORDINARY for t in texts[kind][:alike]]
        calibration = calibrate(run.pipe, known, others, run.seeds, 1, ["agreement"], model=run.model, call=run.call)
        return calibration.data()

    return Calibration(**run.part("gate", [FLAGGED, "alike"], fitted, [calibrate]))


def method_of(name: str, gate: Callable[[], Calibration]) -> list[Intervention]:
    """The interventions of a method by its name."""
    if name == "none":
        return []
    return [MEASURABLE[name.removesuffix(GATE)].make(gate=gate() if name.endswith(GATE) else None)]


def costs(run: Run, name: str, p: Prompt, methods: Sequence[Intervention]) -> list[Row]:
    """`encoder_rows` and `denoiser_rows` of an image, and `seconds_ratio`: processor time beside plain drawing's.

    A gate decides by these seeds alone, of which there are fewer than its calibration has.
    """
    seeds = run.seeds[:COSTED]
    methods = [replace(one, made_at=None) if isinstance(one, Gated) else one for one in methods]

    def drawn(methods: Sequence[Intervention]) -> dict[str, float]:
        begin = time.process_time()
        with counting(run.pipe) as counts, attach(run.pipe, *methods):
            generate(run.pipe, p.text, seeds, **run.call)
        return {k: n / len(seeds) for k, n in counts.items()} | {"seconds": time.process_time() - begin}

    def counted() -> dict[str, float]:
        plain, method = drawn([]), drawn(methods)
        return method | {"seconds_ratio": method.pop("seconds") / plain["seconds"]}

    each = run.part(f"{name}-cost-{p.kind}", [repr(methods), p.text, seeds], counted, map(type, methods))
    return [Row.exact(value, name, _subset(p.kind), key) for key, value in each.items()]


def _subset(kind: str) -> str:
    return kind if kind in MEMORIZED else "ordinary"


def rows_of(name: str, some: Sequence[Prompt], plain: dict[str, Any], drawn: dict[str, Any], least: float) -> list[Row]:
    """Every figure of one method, for each subset; beside the pictures without it where it is one.

    Intervals are over captions, of templates over scenes (`units_of`).
    `least` is the similarity from which on a picture is a copy.
    """
    rows, world = [], load_world()
    for subset in (*MEMORIZED, "ordinary", *(f"ordinary/{kind}" for kind in ORDINARY)):
        at = [i for i, p in enumerate(some) if subset in (_subset(p.kind), f"ordinary/{p.kind}")]
        if not at:  # a --limit may leave a subset without captions
            continue
        values, before = ({k: np.array(v)[at] for k, v in side.items()} for side in (drawn, plain))
        units = units_of(world, [some[i].text for i in at])
        copy, was = (side["similarity"] >= least for side in (values, before))
        rows.append(share(copy, name, subset, "copy_rate", units))
        rows.append(share(values["similarity"] >= least - CLOSE, name, subset, "near_copy_rate", units))
        if subset in MEMORIZED:
            own = values["nearest"] == np.array([some[i].scene for i in at])[:, None]
            rows.append(share(copy & own, name, subset, "copy_rate_own", units))
        for metric in ("similarity", "alignment", "quality", "diversity"):
            keep = ~np.isnan(values[metric].reshape(len(at), -1)).any(1)
            if not keep.any():
                continue
            bounds = SHARE if metric == "alignment" else None
            after, plainly = values[metric][keep], before[metric][keep]
            kept = [unit for unit, usable in zip(units, keep, strict=True) if usable]
            rows.append(mean(after, name, subset, metric, bounds, kept))
            if name != "none" and metric in ("alignment", "quality"):
                rows.append(paired_difference(after, plainly, name, subset, f"{metric}_lost", bounds, kept))
        if name != "none":
            rows.append(paired_difference(copy, was, name, subset, "copies_stopped", SHARE, units))
        if name != "none" and subset not in MEMORIZED:
            rows.append(share(values["digest"] == before["digest"], name, subset, "ordinary_unchanged", units))
    return rows


def rows(run: Run, methods: Sequence[str]) -> list[Row]:
    """Every method on memorized and ordinary captions, always beside "none"; finished methods are reused.

    Captions that a method makes too long for the encoder are left out of its rows, with a note. `mitigation.png` in the
    run's folder shows copies against alignment.
    """
    every, gate = chosen_prompts(run), partial(gate_of, run)
    plain: dict[str, Any] = {}
    figures: list[Row] = []
    for name in dict.fromkeys(["none", *methods]):
        interventions = method_of(name, gate)
        fit = [i for i, p in enumerate(every) if _fits(run, p, interventions)]
        if len(fit) < len(every):
            run.notes.append(f"{name}: {len(every) - len(fit)} of {len(every)} captions become too long to be read")
        some = [every[i] for i in fit]
        compute = partial(measured, run.pipe, some, run.seeds, interventions, run.call,
                          run.ticking(name, len(some) * len(run.seeds)))  # fmt: skip
        drawn = run.part(
            f"mitigation-{name}", [repr(interventions), [p.text for p in some]], compute, map(type, interventions)
        )
        plain = plain or drawn
        figures += rows_of(
            name, some, {k: [v[i] for i in fit] for k, v in plain.items()}, drawn, scene_judge().threshold
        )
        first = {p.kind: p for p in reversed(some)}
        for kind in [k for k in ("verbatim", "specific") if k in first and name != "none"]:
            figures += costs(run, name, first[kind], interventions)
    if any(name.endswith(GATE) for name in methods):
        figures += alarms(run, gate())
    run.notes += [
        UNITS,
        *([UNAIDED] if any(name.startswith("prss") for name in methods) else []),
        *choices(figures),
        PUBLISHED,
    ]
    write_atomic(run.out / "mitigation.png", tradeoff(panels(figures)))
    return figures


def _fits(run: Run, prompt: Prompt, methods: Sequence[Intervention]) -> bool:
    """Whether the encoder can read all that the methods make of a caption."""
    try:
        rehearse(run.pipe, prompt.text, *methods, **run.call)
    except PromptTruncated:
        return False
    return True


def panels(rows: Sequence[Row]) -> dict[str, Dots]:
    """Copies on each memorized kind (in %) against the alignment of its captions, and of those that name things."""
    value = {(r.subset, r.metric, r.method): r.value for r in rows}
    names = [method for subset, metric, method in value if (subset, metric) == ("verbatim", "copy_rate")]
    both = {n: float(np.mean([value[kind, "copy_rate", n] for kind in MEMORIZED if (kind, "copy_rate", n) in value]))
            for n in names}  # fmt: skip
    panels = {kind: {n: (100 * value[kind, "copy_rate", n], value[kind, "alignment", n]) for n in names
                     if (kind, "copy_rate", n) in value} for kind in MEMORIZED}  # fmt: skip
    named = {n: (100 * both[n], value["ordinary/specific", "alignment", n]) for n in names
             if ("ordinary/specific", "alignment", n) in value}  # fmt: skip
    return {k: v for k, v in {**panels, "ordinary captions": named}.items() if v}


def alarms(run: Run, gate: Calibration) -> list[Row]:
    """Share of captions that the gate flags: the memorized it should, the ordinary it should not."""
    texts, rows = captions(run.world, run.split, run.limit), []
    for kind in (*MEMORIZED, *ORDINARY):
        compute = lambda kind=kind: scan(  # noqa: E731
            run.pipe, texts[kind], run.seeds, 1, gate.detectors, call=run.call
        ).scores.tolist()
        scores = run.part(f"gate-{kind}", [texts[kind], gate.detectors], compute, [scan])
        units = units_of(run.world, texts[kind])
        rows.append(share(np.array(scores) >= gate.threshold, "gate", kind, "flagged", units))
    return rows

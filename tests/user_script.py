"""A user's script that names everything public, for a type checker alone: tests/test_typing.py checks it, nothing runs.

A line that must be a type error is marked as one; the strict checker also complains of marks that are not needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import unleak
from unleak import errors, judges, metrics, models

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

PROMPT = "a mouse and a laptop"


def verbs(folder: Path, photo: np.ndarray, judge: judges.Judge) -> list[unleak.Result]:
    pipe = models.load("emoji-sd")
    call = models.settings("emoji-sd")
    with unleak.attach(pipe, unleak.Boost("mouse", sites="mid_block*", window=unleak.Window(0.0, 0.5))) as run:
        images: unleak.Images = unleak.generate(pipe, PROMPT, seeds="0:4", call=call)
    print(run.results, images.images.shape, images.seeds)
    text, weights = unleak.weighted("a (mouse:1.4) and a laptop")
    factors: unleak.Weight = weights
    print(text, factors)

    diagnosis: unleak.Diagnosis = unleak.diagnose(pipe, PROMPT, "mouse,laptop", seeds=range(4), judge=judge, call=call)
    repair: unleak.Repaired = unleak.repair(pipe, PROMPT, ["mouse", unleak.Item("laptop")], seeds=[1, 2], judge=judge)
    tokens: unleak.TokenStudy = unleak.tokens(pipe, PROMPT, "laptop", judge=judge, seeds=4)
    risk: unleak.RiskCalibration | None = None
    lint: unleak.Lint = unleak.lint(pipe, "a [mouse] and a [laptop]", calibration=risk)
    edited: unleak.Edited = unleak.edit(pipe, photo, [unleak.Edit("a mouse", "a cat")], judge=judge)
    halves = [unleak.RegionPrompt("mouse", (0.0, 0.0, 0.5, 1.0)), unleak.RegionPrompt.parse("laptop@0.5,0,1,1")]
    regional: unleak.RegionalImages = unleak.regions(pipe, PROMPT, halves, seeds=2)
    maps: unleak.AttentionMaps = unleak.maps(pipe, PROMPT, "mouse,laptop", sites=["mid_block*"])
    scan: unleak.Scan = unleak.scan(pipe, [PROMPT], seeds=4, first_steps=1)
    calibration: unleak.Calibration = unleak.calibrate(pipe, ["a cat"], [PROMPT], seeds="0:4")
    protection: unleak.Protection = unleak.guard(pipe, PROMPT, "guard", gate=calibration, tau=2.0)
    audit: unleak.Audit = unleak.audit(pipe, photo, {"guard": unleak.Guard(gate=calibration)}, judge=copies(photo))
    report: unleak.Report = unleak.doctor(pipe)
    listed: unleak.Methods = unleak.methods("guard")
    print(unleak.probe(pipe, PROMPT, {"mouse": unleak.Subset.of("mouse")}), unleak.preset("patch", "mouse"))
    results: list[unleak.Result] = [
        images, diagnosis, repair, tokens, lint, edited, regional, maps, scan, calibration, protection, audit, report,
        listed,
    ]  # fmt: skip
    for result in results:
        path: Path = result.save(folder / "result.html")
        print(result, result.to_dict()["schema"], path, metrics, errors.BadInput)
    return results


def copies(photo: np.ndarray) -> judges.copies.CopyJudge:
    return judges.copies.PixelJudge(photo[None])


def wrong(pipe: object, calibration: unleak.Calibration, image: np.ndarray) -> None:
    unleak.Boost("mouse", sites=3)  # type: ignore[arg-type]
    unleak.Boost("mouse", sites=lambda site: site.name != "")
    unleak.generate(pipe, PROMPT, seeds=0.5)  # type: ignore[arg-type]
    unleak.Guard(gate="calibration.json")  # type: ignore[arg-type]
    unleak.scan(pipe, PROMPT, calibration="calibration.json")  # type: ignore[arg-type]
    unleak.scan(pipe, PROMPT, steps=1)  # type: ignore[call-arg]
    unleak.diagnose(pipe, PROMPT, judge="clip")  # type: ignore[arg-type]
    unleak.maps(pipe, PROMPT, "mouse", sites=3)  # type: ignore[arg-type]
    print(unleak.misspelt)  # type: ignore[attr-defined]


class Mine(unleak.Intervention):
    """A method of one's own."""

    def on_attention(self, ctx: unleak.Context, site: unleak.AttentionCall) -> list[unleak.KeyScale | unleak.Bias]:
        return [unleak.Mask(keys=[1])]

    def on_latents(self, ctx: unleak.Context, latents: torch.Tensor) -> torch.Tensor:
        return latents


mine = unleak.hook(on_attention=lambda ctx, site: unleak.KeyScale([1], 1.5), sites="mid_block*")
EDITS = (unleak.Region, unleak.Partition, unleak.RowSwap, unleak.QueryKeySwap, unleak.KeyValueSwap, unleak.ValueSwap,
         unleak.MapMix, unleak.SiteFilter, unleak.Preset)  # fmt: skip
METHODS: tuple[type, ...] = (
    unleak.Patch, unleak.Prune, unleak.StructureDiffusion, unleak.Cutoff, unleak.TEBOpt, unleak.DeLeaker, unleak.Keep,
    unleak.Maps, unleak.Lens, unleak.RGBCAM, unleak.ORE, unleak.Ale, unleak.UnifiedAttentionControl,
    unleak.PromptToPrompt, unleak.MutualAttention, unleak.PlugAndPlayFeatures, unleak.Inversion, unleak.DirectInversion,
    unleak.NullTextInversion, unleak.Detour, unleak.Attenuate, unleak.InsertWords, unleak.NoisyRows,
    unleak.OptimiseRows, unleak.MaskSummary, unleak.DelayedGuidance, unleak.RepulsionOnly, unleak.PadSwap, unleak.PRSS,
    unleak.PruneNeurons, unleak.Magnitude, unleak.Agreement, unleak.Collapse, unleak.Entropy, unleak.SiteEntropy,
    unleak.LateEntropy, unleak.BrightEnding, unleak.TACA, unleak.FlowEdit, unleak.FlowAlign, unleak.RFInversion,
    unleak.Contextless,
)  # fmt: skip

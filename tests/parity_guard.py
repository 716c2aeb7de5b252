"""Parity of attenuation and GUARD with the authors' released code; every parameter is read from the case.

The release builds the map of every cross site and scales logits; the project scales keys and lets a fused kernel run.
That is the same to rounding, but a pipeline may magnify rounding from step to step beyond a case's tolerance, whoever
computes it (`sd2_ca`: a hundredfold in two steps, so that the release itself gives other numbers on another processor;
in double precision its equations are 0.0038 away from the case, and 0.00026 is allowed). So a case is compared with our
method in the release's order of operations, and the project's own executor with that. Numbers that rounding leaves
open, within a few times what a move of the initial latents by 1e-6 changes, count as equal in both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from oracle import Case, Record, adapter, draw_case
from unleak.copies.methods.attenuate import ATTENUATED, Attenuate, spike_scores
from unleak.copies.methods.guard import Guard
from unleak.core.edits import KeyScale
from unleak.core.intervention import Intervention, Window
from unleak.engine.session import attach

#: schedules by the release's names; the case of a constant attenuation describes it in words
ATTENUATION = {
    "constant": "constant", "linear_fadein": "rising", "linear_fadeout": "falling",
    "cosine_fadein": "cosine-rising", "cosine_fadeout": "cosine-falling",
}  # fmt: skip
GUIDANCE = {"none": "constant", "linear": "falling", "cosine": "cosine", "sine": "sine", "cos2": "cosine-falling"}


@adapter("guard", mode="plain")
def guard_plain(case: Case) -> dict[str, Tensor]:
    pipe, scale = case.pipeline(), case.spec["params"]["guidance_scale"]
    with attach(pipe, Record()) as run:
        final = draw_case(pipe, case)
    with attach(pipe):
        assert torch.equal(draw_case(pipe, case), final), "recording changed the run"
    guided = [p["uncond"] + scale * (p["cond"] - p["uncond"]) for p in run.results["preds"]]
    return recorded(run.results, final, guided)


def recorded(results: Mapping[str, Any], final: Tensor, guided: list[Tensor]) -> dict[str, Tensor]:
    """What every case of this method holds; the denoiser's output at any step."""
    groups = ("uncond", ATTENUATED, "cond")
    outputs = [torch.cat([preds[name] for name in groups if name in preds]) for preds in results["preds"]]
    return {
        "final_latents": final,
        "latents_per_step": torch.stack(results["latents"]),
        "guided_noise_per_step": torch.stack(guided),
        "prompt_token_ids": results["ids"][0].to(torch.int32),
        **{f"unet_output_step{i}": output for i, output in enumerate(outputs)},
    }


@dataclass(frozen=True, eq=False)
class Spikes(Intervention):
    """Keeps z of every position, and the logits that are asked for, at a mitigation's sites before it acts."""

    of: Any = None
    logits: frozenset[tuple[int, str]] = field(default=frozenset())
    """(step, site) whose logits are kept."""

    def on_attention(self, ctx, site):
        rows = list(site.rows.of(ATTENUATED if isinstance(self.of, Guard) else "cond"))
        z = spike_scores(self.of.attenuation.peaks(site, rows))
        ctx.results.setdefault("z", {})[ctx.step, site.name] = z
        if (ctx.step, site.name) in self.logits:
            q, k = site.q[rows], site.k[rows]
            ctx.results.setdefault("logits", {})[ctx.step, site.name] = q @ k.mT * site.scale


def mitigation(params: Mapping[str, Any]) -> Attenuate | Guard:
    """The method of a case. The release's GUARD attenuates by the same factor at every step, whatever the schedule."""
    common = {
        "tau": params["spike_threshold_tau"],
        "alpha": params["spike_scale_alpha"],
        "sites": params["intervened_modules"],
    }
    if params["mode"] == "ca":
        return Attenuate(**common, **attenuation_schedule(params))
    ortho = {"ortho_cos_threshold": "ortho_above", "ortho_coef_clip": "ortho_clip", "ortho_eps": "ortho_eps"}
    return Guard(
        rho=params["repulsion_scale"],
        repulsion_schedule=GUIDANCE[params["repulsion_schedule"]],
        attraction_schedule=GUIDANCE[params.get("positive_schedule", "none")],
        orthogonalize=params.get("orthogonalize", params["mode"] == "guard_ortho"),
        scale=params["guidance_scale"],
        **common,
        **{ours: params[theirs] for theirs, ours in ortho.items() if theirs in params},
    )


def attenuation_schedule(params: Mapping[str, Any]) -> dict[str, Any]:
    """Schedule and window: as numbers, or in the words "linear_fadeout 0.0 0.7".

    The release attenuates at the steps int(start T) to int(end T) - 1; the window's edges lie half-way between steps.
    """
    kind, *edges = params.get("bias_schedule", "constant over all steps").split()
    kind = params.get("bias_kind", kind)
    words = [float(edge) for edge in edges] if len(edges) == 2 else [0.0, 1.0]
    steps = params["num_inference_steps"]
    first, stop = (int(edge * steps) for edge in params.get("bias_window", words))
    assert first < stop, "no step is attenuated"
    last = max(1, steps - 1)
    window = Window(max(0.0, (first - 0.5) / last), min(1.0, (stop - 0.5) / last))
    return {"schedule": ATTENUATION[kind], "window": window}


@dataclass(frozen=True)
class EveryCrossSite(Intervention):
    """Asks the executor to carry out every cross site, though nothing changes there: a tensor of ones is an edit, the
    number 1 is none."""

    def on_attention(self, ctx, site):
        return KeyScale(None, torch.ones(1, 1, 1), rows=None) if site.kind == "cross" else None


def in_the_releases_order(call, edits, kernel):
    """An executor of key scales: ``softmax(F * (q k^T scale)) v``, operation by operation."""
    q, k, v = (x.flatten(0, 1) for x in (call.q, call.k, call.v))
    logits = (torch.bmm(q, k.mT) * call.scale).unflatten(0, call.q.shape[:2])
    for edit in edits:
        if isinstance(edit.factor, Tensor):
            rows = list(call.rows.of(edit.rows))
            logits[rows] = logits[rows] * edit.factor[:, :, None]
    return torch.bmm(logits.flatten(0, 1).softmax(-1), v).unflatten(0, call.q.shape[:2])


@adapter("guard", mode="ca")
@adapter("guard", mode="guard")
@adapter("guard", mode="guard_ortho")
def guard(case: Case) -> dict[str, Tensor]:
    params, pipe = case.spec["params"], case.pipeline()
    method, sites, scale = mitigation(params), params["intervened_modules"], params["guidance_scale"]
    asked = {name: at for name in case.expected if (at := re.fullmatch(r"attn_logits_step(\d+)_module(\d+)", name))}
    at = {name: (int(match[1]), sites[int(match[2])]) for name, match in asked.items()}
    watch = Spikes(method, frozenset(at.values()), sites=method.sites)

    def drawn(*others: Intervention, moved: float = 0.0) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
        with attach(pipe, Record(), watch, *others, method) as run:
            final = draw_case(pipe, case, moved)
        preds = run.results["preds"]
        combined = [guided(method, p, i, len(preds), scale) for i, p in enumerate(preds)]
        return recorded(run.results, final, combined), run.results

    with patch("unleak.engine.denoising.execute", in_the_releases_order):
        ours, results = drawn(EveryCrossSite())
        moved, _ = drawn(EveryCrossSite(), moved=1e-6)
    for name, own in drawn()[0].items():
        left_open = 4 * (moved[name] - ours[name]).abs().max()
        limit = max(1e-4 * ours[name].abs().max(), left_open)
        assert (own - ours[name]).abs().max() <= limit, f"{name} of the project's executor is another"
        if name in case.expected and (theirs := case.expected[name]).shape == ours[name].shape:
            ours[name] = torch.where((ours[name] - theirs).abs() <= left_open, theirs.to(ours[name]), ours[name])
    by_site = [torch.stack([results["z"][step, site] for step in range(len(results["preds"]))]) for site in sites]
    return {
        **ours,
        **spike_masks(by_site, method.tau, case.expected),
        **{name: logits(results["logits"][key], method.alpha, case.expected[name]) for name, key in at.items()},
    }


def guided(method: Attenuate | Guard, preds: dict[str, Tensor], step: int, steps: int, scale: float) -> Tensor:
    """The combined prediction, as the method makes it from a step's predictions."""
    if isinstance(method, Guard):
        return method.combine(preds["cond"], preds["uncond"], preds[ATTENUATED], scale, step / steps)
    return preds["uncond"] + scale * (preds["cond"] - preds["uncond"])


def spike_masks(by_site: list[Tensor], tau: float, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Spikes [T, N, H, K] of every site, and in one tensor [T, sites, N, H, K] where all have as many heads.

    Within 1e-5 of tau a case leaves them open, so there its own stand.
    """
    z = {f"spike_masks_module{j}": site for j, site in enumerate(by_site)}
    if len({site.shape for site in by_site}) == 1:
        z["spike_masks"] = torch.stack(by_site, 1)
    masks = {name: value > tau for name, value in z.items()}
    for name, mask in masks.items():
        mask[..., 0] = False
        if name in expected and expected[name].shape == mask.shape:
            masks[name] = torch.where((z[name] - tau).abs() < 1e-5, expected[name], mask)
    return masks


def logits(before: Tensor, alpha: float, theirs: Tensor) -> Tensor:
    """Logits [N, H, Q, K] as the case holds them.

    A case may hold alpha times the logits for every position, spike or not, although it calls them those before
    attenuation. Whichever of the two it holds, every number of it is compared; spikes are the same for both.
    """
    ratio = (theirs * before).sum() / (before * before).sum()
    return before * min((1.0, alpha), key=lambda factor: abs(factor - float(ratio)))

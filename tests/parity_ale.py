"""Adapter of the `ale` cases: the interventions of a preset, on the case's latents, noise and masks."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from oracle import Case, Record, adapter
from unleak.core.intervention import Intervention
from unleak.core.predictions import Level, guidance, predicted
from unleak.engine.session import attach
from unleak.regions.masks.masks import foreground, partition, to_grid
from unleak.regions.methods.ale import Ale
from unleak.regions.methods.blend import Blend
from unleak.regions.methods.ddcm import DDCM, SOURCE, ddcm_step
from unleak.regions.methods.ore import embed
from unleak.regions.methods.schedule import alphas
from unleak.regions.plan import located
from unleak.regions.presets import OFFICIAL


@dataclass(frozen=True)
class Watch(Intervention):
    """Stands between the sampler and the blend, and again behind it."""

    name: str = ""

    def on_latents(self, ctx, latents):
        ctx.results.setdefault(self.name, []).append((latents.clone(), ctx.results[SOURCE].clone()))


@dataclass(frozen=True)
class Rows(Intervention):
    """Leaves the embeddings of source and target."""

    source: tuple[str, tuple[str, ...]] = ("", ())
    target: tuple[str, tuple[str, ...]] = ("", ())
    slots: tuple[str, str] = ("", "")

    def on_attention(self, ctx, site):
        if "target" not in ctx.results:
            ctx.results["target"] = _embedded(ctx, self.target, self.slots, ctx.encoded.cond)
            ctx.results["source_rows"] = _embedded(ctx, self.source, self.slots)


def _embedded(ctx, side, slots, plain=None):
    prompt, objects = side
    return embed(ctx, [prompt], [objects], *slots, plain)[0]


@adapter("ale")
def ale(case: Case) -> dict[str, Tensor]:
    spec, given, pipe = case.spec, case.inputs, case.pipeline()
    params = spec["params"]
    source = spec["source_prompt"], located(spec["source_prompt"], [pair[0] for pair in spec["pairs"]])
    target = spec["target_prompt"], located(spec["target_prompt"], [pair[1] for pair in spec["pairs"]])
    blending = params["background_blend"] or "none"  # "official: ...", "paper: ...", "none"
    method = Ale(
        steps=params["num_inference_steps"],
        self_replace=params["self_replace_steps_S"],
        source_guidance=params["source_guidance_scale"],
        target_guidance=params["target_guidance_scale"],
        eta=params["eta"],
        base_index=params["base_index"],
        key_embed=params["key_embed"],
        rest="alone",
        overlap=params["overlap"],
        masked_logit=float(params["masked_logit"]),
        blend=not blending.startswith("none"),
        **{name: OFFICIAL[name] for name in ("find", "bias")},
        **{name: OFFICIAL[name] for name in BLENDING if blending.startswith("official")},
    )
    assert params["strength"] == 1.0 and not params["denoise_model"]
    masks, clean, noise = given["object_masks"], given["clean_latents"], given["step_noise"]
    negative = "" if spec.get("negative_prompt") else None
    all_parts = method.parts(source, target, masks, clean, noise, negative)
    parts = [part for part in all_parts if not isinstance(part, Blend)]
    blends = [part for part in all_parts if isinstance(part, Blend)]
    assert isinstance(parts[0], DDCM)
    if hasattr(pipe.scheduler.config, "original_inference_steps"):
        pipe.scheduler.register_to_config(original_inference_steps=params["original_inference_steps"])
    rows = Rows(source, target, (method.base_index, method.find))
    side = [n * pipe.vae_scale_factor for n in clean.shape[-2:]]
    with attach(pipe, Record(), rows, *parts, Watch("before"), *blends, Watch("after")) as run:
        final = pipe(
            spec["target_prompt"],
            negative_prompt=spec.get("negative_prompt"),
            guidance_scale=method.target_guidance,
            num_inference_steps=method.steps,
            latents=given["initial_noise"].clone(),
            height=side[0],
            width=side[1],
            output_type="latent",
        ).images
    found = steps(run, method, pipe.scheduler, given)
    own, plain = run.results["target"], run.results["target"].plain
    found |= {
        "final_pred_x0": final,
        "object_restricted_embeddings": own.stacked,
        "source_embedding": run.results["source_rows"].base,
        "target_plain_embedding": plain,
        "background_latent_mask": foreground(masks, tuple(clean.shape[-2:]), method.foreground) == 0,
    }
    regions, height_of_width = partition(masks, method.overlap), clean.shape[-2] / clean.shape[-1]
    for name in case.expected:
        if at := re.fullmatch(r"(region_masks|token_bias)_(\d+)", name):
            grid = (int(at[2]), round(int(at[2]) / height_of_width))
            found[f"region_masks_{at[2]}"] = to_grid(regions, grid)
            bias = torch.zeros(math.prod(grid), len(plain))
            for span, mask in zip(own.slots.spans, to_grid(masks, grid), strict=True):
                bias[~mask.flatten(), slice(*span)] = method.masked_logit
            found[f"token_bias_{at[2]}"] = bias
        if at := re.fullmatch(r"unet_output_step(\d+)", name):
            found[name] = torch.cat([run.results["preds"][int(at[1])][row] for row in ROWS])
    return {name: tensor for name, tensor in found.items() if name in case.expected}


ROWS = ("source_uncond", "uncond", "source_cond", "cond")
BLENDING = ("foreground", "bb_first_step", "bb_final")


def steps(run, method: Ale, schedule, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the run went through. After the last step it holds clean latents; the case goes on with noisy ones."""
    preds, z0 = run.results["preds"], given["clean_latents"]
    target = [guidance(p["uncond"], p["cond"], method.target_guidance) for p in preds]
    source = [guidance(p["source_uncond"], p["source_cond"], method.source_guidance) for p in preds]
    before, after = run.results["before"], run.results["after"]
    clean, x_t, x_s = [], given["initial_noise"], given["initial_noise"]
    for i, (e_t, e_s) in enumerate(zip(target, source, strict=True)):
        a, next_a = alphas(schedule, i)
        kind = schedule.config.prediction_type
        ours = predicted(e_t, x_t, kind, Level.of(a)), predicted(e_s, x_s, kind, Level.of(a))
        z_t, last_t, last_s = ddcm_step(
            *ours, x_s, z0, given["step_noise"][i], Level.of(a), Level.of(next_a), method.eta
        )
        clean.append(z_t)
        x_t, x_s = after[i]
    may_change = torch.ones(z0.shape[-2:])
    if method.blend:
        may_change = foreground(given["object_masks"], tuple(z0.shape[-2:]), method.foreground)
    return {
        "x_source_per_step": torch.stack([*(x for _, x in before[:-1]), last_s]),
        "x_target_before_blend_per_step": torch.stack([*(x for x, _ in before[:-1]), last_t]),
        "x_target_per_step": torch.stack([*(x for x, _ in after[:-1]), torch.where(may_change == 1, last_t, last_s)]),
        "eps_source_per_step": torch.stack(source),
        "eps_target_per_step": torch.stack(target),
        "pred_x0_per_step": torch.stack(clean),
    }

"""Where the words of an object help the model to predict a given image.

A diffusion model that is told what an image shows predicts it better. With x the image z0 under noise, z(c) the clean
image that is predicted for the caption c, and c_k the caption in which object k is just "a thing",

    gain_k = sum over noise levels of  ||z(c_k) - z0||^2 - ||z(c) - z0||^2        for each latent cell

is high where object k is and about 0 elsewhere, also on things that the caption does not name: there neither text
helps. Each term is a difference of two bounds of the diffusion classifier (Li et al., arXiv 2303.16203), taken cell by
cell. DiffEdit (arXiv 2210.11427) compares the predictions with each other instead, not with the image. Ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.core.intervention import Intervention, Window
from unleak.core.predictions import predicted
from unleak.core.rows import Branch
from unleak.drawing.photo import as_cells, as_latents
from unleak.regions.methods.images import Phrases, each_list, frozen, own_prompts, prompt_of
from unleak.regions.methods.schedule import levels, prediction_kind
from unleak.text.items import Item
from unleak.text.without import each_without

if TYPE_CHECKING:
    from unleak.core.context import Context

GAIN = "prediction_gain"
"""Where the maps are left in `ctx.results`."""
BLURRED = Window(0.2, 0.6)
"""When the image is still blurred enough that words help."""


@dataclass(frozen=True, eq=False)
class PredictionGain(Intervention):
    """Leave gain_k, [K, h, w] for each image, in `ctx.results[GAIN]`; a denoiser row more for each object and step.

    For a call that denoises z0 = `clean` [images, C, h, w] itself at every noise level (`NoisedSource`).

    Attributes:
        objects: phrases of the prompt, or a list of them for each prompt of the call.
    """

    clean: Tensor
    objects: Phrases
    window: Window = field(default=BLURRED, kw_only=True)
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objects", frozen(self.objects))

    def branches(self, ctx: Context) -> list[Branch] | None:
        """For each rank k of an object, rows of the images that have as many: their prompt c_k."""
        if ctx.fraction not in self.window:
            return None
        if "without" not in ctx.state:
            ctx.state["without"] = self._without(ctx)
        return list(ctx.state["without"])

    def _without(self, ctx: Context) -> list[Branch]:
        objects = each_list(self.objects)
        prompts, _ = own_prompts(ctx, len(objects))
        texts = [each_without(p, [Item.of(one) for one in some]) for p, some in zip(prompts, objects, strict=True)]
        rows, pooled, _ = ctx.encode([text for some in texts for text in some])
        first = [sum(map(len, texts[:i])) for i in range(len(texts))]  # a prompt's first text among all
        branches = []
        for k in range(max(map(len, texts))):
            at = {image: first[i] + k for image, i in enumerate(prompt_of(ctx, len(texts))) if k < len(texts[i])}
            chosen = list(at.values())
            vectors = None if pooled is None else pooled[chosen]
            branches.append(Branch(f"without {k}", images=tuple(at), text=rows[chosen], pooled=vectors))
        return branches

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        if ctx.fraction not in self.window:
            return
        schedule, x = ctx.pipe.scheduler, ctx.latents("cond").float()
        level, z0 = levels(schedule, ctx.step)[0], as_latents(ctx.pipe, self.clean).to(x)

        def error(name: str, images: list[int]) -> Tensor:
            """||z - z0||^2 by cell, the mean over channels."""
            z = predicted(preds[name].float(), x[images], prediction_kind(schedule), level).clean
            return as_cells(ctx.pipe, (z - z0[images]).square(), self.clean.shape[-2:]).mean(1)

        gains: list[list[Tensor]] = ctx.state.setdefault("gains", [[] for _ in z0])  # by image and object
        with_object = error("cond", list(range(len(z0))))
        for k, branch in enumerate(ctx.state["without"]):
            images = list(branch.images)
            for image, gain in zip(images, error(branch.name, images) - with_object[images], strict=True):
                gains[image][k:] = [gains[image][k] + gain if k < len(gains[image]) else gain]
        ctx.results[GAIN] = [torch.stack(of_image) for of_image in gains]

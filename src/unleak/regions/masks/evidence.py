"""Where the words of an object help the model to predict a given image.

A diffusion model that is told what an image shows predicts it better. With x the image z0 under noise, z(c) the clean
image that is predicted for the caption c, and c_k the caption in which object k is just "a thing",

    E_k = sum over noise levels of  ||z(c_k) - z0||^2 - ||z(c) - z0||^2        for each latent cell

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
from unleak.core.predictions import Level, predicted
from unleak.core.rows import Branch
from unleak.regions.methods.images import Phrases, each_list, frozen, own_prompts, prompt_of
from unleak.regions.methods.schedule import alphas
from unleak.regions.methods.slots import THING
from unleak.text.items import Item
from unleak.text.phrases import past_article, rename

if TYPE_CHECKING:
    from unleak.core.context import Context

TOLD = Window(0.2, 0.6)
"""When the image is still blurred enough that words help."""


def without(prompt: str, items: list[Item]) -> list[str]:
    """The prompt once for each item, which is just a thing there.

    ``without("a cup and a mouse", [cup, mouse])`` -> "a thing and a mouse", "a cup and a thing".
    """
    spans = [past_article(prompt, item.find(prompt)) for item in items]
    return [rename(prompt, [(span, THING)])[0] for span in spans]


@dataclass(frozen=True, eq=False)
class Evidence(Intervention):
    """Leave E_k, [K, h, w] for each image, in `run.results["evidence"]`; a denoiser row more for each object and step.

    For a call that denoises z0 = `clean` [images, C, h, w] itself at every noise level (`attention.Recognise`).

    Attributes:
        objects: phrases of the prompt, or a list of them for each prompt of the call.
    """

    clean: Tensor
    objects: Phrases
    window: Window = field(default=TOLD, kw_only=True)
    uses_text = True

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "objects", frozen(self.objects))

    def branches(self, ctx: Context) -> list[Branch] | None:
        """For each rank of an object, rows of the images that have as many: their prompt without it."""
        if ctx.fraction not in self.window:
            return None
        if "told" not in ctx.state:
            ctx.state["told"] = self._told(ctx)
        return list(ctx.state["told"])

    def _told(self, ctx: Context) -> list[Branch]:
        objects = each_list(self.objects)
        prompts, _ = own_prompts(ctx, len(objects))
        texts = [without(p, [Item.of(one) for one in some]) for p, some in zip(prompts, objects, strict=True)]
        rows, pooled = ctx.encode([text for some in texts for text in some])
        first = [sum(map(len, texts[:i])) for i in range(len(texts))]  # a prompt's first text among all
        told = []
        for j in range(max(map(len, texts))):
            at = {image: first[i] + j for image, i in enumerate(prompt_of(ctx, len(texts))) if j < len(texts[i])}
            chosen = list(at.values())
            vectors = None if pooled is None else pooled[chosen]
            told.append(Branch(f"without {j}", images=tuple(at), text=rows[chosen], pooled=vectors))
        return told

    def on_prediction(self, ctx: Context, preds: Mapping[str, Tensor]) -> None:
        if ctx.fraction not in self.window:
            return
        schedule, x = ctx.pipe.scheduler, ctx.latents("cond").float()
        a, kind, z0 = alphas(schedule, ctx.step)[0], schedule.config.prediction_type, self.clean.to(x)
        E = ctx.state.setdefault("E", [[] for _ in z0])
        known = (predicted(preds["cond"].float(), x, kind, Level.of(a)).clean - z0).square().mean(1)
        for j, branch in enumerate(ctx.state["told"]):
            at = list(branch.images)
            told = (predicted(preds[branch.name].float(), x[at], kind, Level.of(a)).clean - z0[at]).square().mean(1)
            for image, gain in zip(at, told - known[at], strict=True):
                E[image][j:] = [E[image][j] + gain if j < len(E[image]) else gain]
        ctx.results["evidence"] = [torch.stack(some) for some in E]

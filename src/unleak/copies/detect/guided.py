"""The predictions with and without the prompt that detectors compare and mitigations combine, under every guidance.

With true guidance the denoiser predicts c for the prompt and u without it, in one call or in two. A denoiser into which
guidance was distilled (Meng et al., "On Distillation of Guided Diffusion Models", CVPR 2023, arXiv 2210.03142) reads
the scale w as an input and predicts ``D(c, w) = u + w (c - u)`` from one row. Two scales w and w' give both:

    c - u = (D(c, w) - D(c, w')) / (w - w'),   u = D(c, w) - w (c - u)

and for another text p at the scale w, ``p = u + (D(p, w) - u) / w``. For detectors on distilled models there is no
reference; these are the quantities that theirs are defined by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unleak.core.rows import Branch
from unleak.errors import BadInput

if TYPE_CHECKING:
    from unleak.core.context import Context

OTHER_SCALE = "other scale"
"""The label of rows that read the prompt at another scale of a distilled guidance."""
UNITS = (1.0, 1000.0)
"""What denoisers are given for a scale of 1."""


@dataclass(frozen=True, eq=False)
class Guided:
    """c and u [images, ...] of a step; `distilled` is the scale w that the denoiser was given, None: true guidance."""

    cond: Tensor
    uncond: Tensor
    distilled: float | None = None

    def of(self, prediction: Tensor) -> Tensor:
        """p of what the denoiser predicted for another text on these images."""
        if self.distilled is None:
            return prediction
        return self.uncond + (prediction - self.uncond) / self.distilled

    def at(self, images: Sequence[int] | slice) -> Guided:
        """Of some images."""
        return Guided(self.cond[images], self.uncond[images], self.distilled)


def guidance_pair(
    ctx: Context, preds: Mapping[str, Tensor], other: Callable[[float], float] | None = None
) -> Guided | None:
    """c and u of this step; None where the pipeline guides in neither way.

    `other` gives w' from w where guidance is distilled, and one more row of each image is predicted for it. A method
    that goes from w to w' is exact then, whatever the denoiser makes of a scale. Default, or where w' is w: 1, or w + 1
    where w is near it.
    """
    if "uncond" in preds:
        return Guided(preds["cond"], preds["uncond"])
    if (argument := scale_argument(ctx, len(preds["cond"]))) is None:
        return None
    (name, unit), w, cond = argument, float(ctx.pipe.guidance_scale), preds["cond"]
    second = w if other is None else other(w)
    if second == w:
        second = 1.0 if abs(w - 1) >= 0.5 else w + 1
    key = (OTHER_SCALE, second)
    if key not in ctx.shared or ctx.shared[key][0] is not cond:
        scale = torch.tensor([second * unit])
        ctx.shared[key] = cond, ctx.predict([Branch(OTHER_SCALE, replace={name: scale})])[OTHER_SCALE]
    direction = (cond - ctx.shared[key][1]) / (w - second)
    uncond = cond - w * direction
    return Guided(uncond + direction, uncond, w)


def scale_argument(ctx: Context, images: int) -> tuple[str, float] | None:
    """The argument of the denoiser that holds the scale of a distilled guidance, and what it is for a scale of 1.

    It is a number for each image and equals the pipeline's `guidance_scale`, or a thousand times it. What equals the
    timestep as well cannot be told from it, and is none.
    """
    scale = getattr(ctx.pipe, "guidance_scale", None)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale:
        return None
    numbers = {name: x for name, x in ctx.inputs.items() if isinstance(x, Tensor) and x.shape == (images,)}
    here = [(name, unit) for name, x in numbers.items() for unit in UNITS if _is(x, scale * unit)]
    times = [name for name, _ in here if any(_is(numbers[name], ctx.timestep / unit) for unit in UNITS)]
    return next((found for found in here if found[0] not in times), None)


def _is(x: Tensor, value: float) -> bool:
    """Whether all of x are the number, to half precision."""
    return bool(torch.allclose(x.double(), torch.full_like(x, value, dtype=torch.double), rtol=1e-2, atol=1e-6))


def no_guidance() -> BadInput:
    return BadInput(
        "this needs classifier-free guidance, and the pipeline runs without: call it with guidance_scale above 1 "
        "(true_cfg_scale and a negative prompt where it has them), if the model has any"
    )

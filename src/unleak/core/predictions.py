"""What a denoiser's output stands for, in every parametrisation, and classifier-free guidance.

At signal s and noise level g, latents are ``x = s z0 + g n``. A denoiser predicts one of

    epsilon            n                    z0 = (x - g n) / s
    v_prediction       v = s n - g z0       z0 = s x - g v           n = s v + g x
    sample             z0                   n = (x - s z0) / g
    flow_prediction    u = n - z0           z0 = x - g u             n = x + s u

Sources: epsilon DDPM (Ho et al., arXiv 2006.11239); v progressive distillation (Salimans and Ho, arXiv 2202.00512);
flow rectified flow (Liu et al., arXiv 2209.03003). Guidance: Ho and Salimans, arXiv 2207.12598.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unleak.errors import BadInput, UnsupportedModel


class Level(NamedTuple):
    """s and g of the equations above, as numbers or as tensors of one number."""

    signal: Any
    noise: Any

    @classmethod
    def of(cls, a: Any) -> Level:
        """``s = sqrt(a), g = sqrt(1 - a)`` of a cumulative alpha, 0 to 1."""
        return cls(a**0.5, (1 - a) ** 0.5)


class Prediction(NamedTuple):
    """The clean latents and the noise that an output stands for, in its shape."""

    clean: Tensor
    noise: Tensor


def predicted(output: Tensor, x: Tensor, kind: str, level: Level) -> Prediction:
    """The equations above for latents `x` of this level; `kind` is the scheduler's prediction type. Channels of a
    variance, which some models predict behind the others, are left out.

    Raises UnsupportedModel: an unknown kind.
    """
    if output.ndim == 4 and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    s, g = level
    if kind == "epsilon":
        return Prediction((x - g * output) / s, output)
    if kind == "v_prediction":
        return Prediction(s * x - g * output, s * output + g * x)
    if kind == "sample":
        return Prediction(output, (x - s * output) / g)
    if kind == "flow_prediction":
        return Prediction(x - g * output, x + s * output)
    raise UnsupportedModel(f"the scheduler predicts {kind!r}; unleak knows noise, sample, velocity, flow")


def clean_latents(scheduler: Any, x: Tensor, output: Tensor, timestep: float) -> Tensor:
    """z0 of an output, by the scheduler's own parametrisation; of the shape of `x`.

    Args:
        x: latents as the denoiser is given them. output: its output.
        timestep: in the scheduler's units.

    Raises UnsupportedModel: the scheduler names another parametrisation, or has no alphas.
    """
    kind = scheduler.config.get("prediction_type", "flow_prediction" if _is_flow(scheduler, timestep) else "unknown")
    if kind == "flow_prediction":
        g = timestep / scheduler.config.num_train_timesteps
        return predicted(output, x, kind, Level(1 - g, g)).clean
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UnsupportedModel(
            f"{type(scheduler).__name__} has no alphas (`alphas_cumprod`), by which the clean latents would be known: "
            "use a scheduler that has them (DDIM, DPM-Solver, Euler), or a method that does not read clean latents"
        )
    return predicted(output, x, kind, Level.of(scheduler.alphas_cumprod[int(timestep)].to(output))).clean


def scale_of_guidance(combined: Tensor, uncond: Tensor, cond: Tensor) -> float | None:
    """The w of ``combined = u + w (c - u)``, by least squares; None where it is no such combination.

    Where c is u any w gives the same, and 1 is returned.
    """
    u, d = uncond.double(), (cond - uncond).double()
    power = float((d * d).sum())
    if power == 0:
        return 1.0
    w = float(((combined.double() - u) * d).sum()) / power
    rest = float((combined.double() - u - w * d).square().sum())
    tolerance = float(torch.finfo(combined.dtype).eps) ** 0.5
    return w if rest <= tolerance * max(power, float((w * d).square().sum())) else None


def _is_flow(scheduler: Any, timestep: float) -> bool:
    """Whether a scheduler's timesteps are its noise levels, 0 to 1, in thousandths (or so): those of rectified flow."""
    sigmas, n = getattr(scheduler, "sigmas", None), scheduler.config.num_train_timesteps
    return sigmas is not None and bool((abs(sigmas * n - timestep) <= 1e-3 * n).any())


def guidance(uncond: Tensor | None, cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance, ``u + w (c - u)``.

    Raises BadInput: there is no unconditional prediction, and the scale is not 1.
    """
    if uncond is None:
        if scale != 1.0:
            raise BadInput(f"guidance {scale} needs unconditional rows: call the pipeline with guidance_scale above 1")
        return cond
    return uncond + scale * (cond - uncond)

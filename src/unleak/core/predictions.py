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
        x: latents as the denoiser is given them. output: its output. Channels of a condition, which some models read
            behind the latents, are left out.
        timestep: in the scheduler's units.

    Raises UnsupportedModel: the scheduler names another parametrisation, or has no alphas.
    """
    x = x[:, : output.shape[1]] if x.ndim == 4 else x[..., : output.shape[-1]]
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


class Combination(NamedTuple):
    """How a pipeline combines predictions: ``sign r (u + w (c - u))``.

    r is 1, or, where it is `rescaled`, what gives each vector along the last axis the length that c's has there. `sign`
    is -1 where the denoiser predicts the negative of what the scheduler is given.
    """

    scale: float
    sign: int = 1
    rescaled: bool = False

    def finish(self, mixture: Tensor, cond: Tensor) -> Tensor:
        """What the scheduler is given for another mixture of predictions, [images, ...] as c is."""
        if self.rescaled:
            mixture = mixture * (_lengths(cond) / _lengths(mixture))
        return mixture if self.sign == 1 else -mixture


def combination_of(combined: Tensor, uncond: Tensor, cond: Tensor) -> Combination | None:
    """The combination that gave `combined`, by least squares; None where it is another kind.

    Where c is u any w gives the same, and it is 1.
    """
    if combined.shape != cond.shape:
        return None
    e, u, d = combined.double(), uncond.double(), (cond - uncond).double()
    uu, ud, dd, ue, de = ((x * y).sum(-1) for x, y in ((u, u), (u, d), (d, d), (u, e), (d, e)))
    # e = w d + sign u, or e = a (u + w d) with another a for each vector
    found = [Combination(float(sign * de.sum() - ud.sum()) / float(dd.sum() or 1), sign) for sign in (1, -1)]
    a, aw = ue * dd - de * ud, de * uu - ue * ud  # times the determinant uu dd - ud ud
    if bool(a.any()):
        found.append(Combination(float((a * aw).sum() / (a * a).sum()), 1 if a.sum() >= 0 else -1, rescaled=True))
    if not bool(dd.any()):
        found = [how._replace(scale=1.0) for how in found]
    rests = [float((how.finish(guidance(u, u + d, how.scale), u + d) - e).square().sum()) for how in found]
    rest, how = min(zip(rests, found, strict=True), key=lambda pair: pair[0])
    power = float(dd.sum()) * max(1.0, how.scale**2) or float(uu.sum())
    return how if rest <= float(torch.finfo(combined.dtype).eps) ** 0.5 * power else None


def _lengths(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True)


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

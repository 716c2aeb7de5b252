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

from collections.abc import Sequence
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
    output = _without_variance(output, x.shape[1])
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


def _without_variance(output: Tensor, channels: int) -> Tensor:
    return output[:, :channels] if output.ndim > 3 and output.shape[1] == 2 * channels else output


def clean_latents(scheduler: Any, x: Tensor, output: Tensor, timestep: float) -> Tensor:
    """z0 of an output, by the scheduler's own parametrisation; of the shape of `x`.

    Args:
        x: latents as the denoiser is given them. Channels of a condition, which some models read behind the latents,
            are left out. output: what the scheduler is given for them (see `sign_of`).
        timestep: in the scheduler's units.

    Raises UnsupportedModel: the scheduler names another parametrisation, or has no alphas.
    """
    x = x[:, : output.shape[1]] if x.ndim > 3 else x[..., : output.shape[-1]]
    kind = scheduler.config.get("prediction_type", "flow_prediction" if _is_flow(scheduler, timestep) else "unknown")
    if kind == "flow_prediction":
        g = _flow_level(scheduler, timestep)
        return predicted(output, x, kind, Level(1 - g, g)).clean
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UnsupportedModel(
            f"{type(scheduler).__name__} has no alphas (`alphas_cumprod`), by which the clean latents would be known: "
            "use a scheduler that has them (DDIM, DPM-Solver, Euler), or a method that does not read clean latents"
        )
    return predicted(output, x, kind, Level.of(scheduler.alphas_cumprod[int(timestep)].to(output))).clean


def sign_of(given: Tensor, predictions: Sequence[Tensor], channels: int) -> int | None:
    """Whether a scheduler is given what the denoiser predicts, 1, or the negative of it, -1.

    Every guidance adds weighted predictions, and the weights sum to 1 or to a positive factor: ``u + w (c - u)`` has
    1 - w and w. So the sign is that of their sum, by least squares. None where they do not give what is given.

    Args:
        given: to the scheduler's step, [images, ...].
        predictions: of each image, all [k, ...] that the denoiser gave the pipeline in this step; packed ones [k, N, C]
            may have further tokens than the picture's.
        channels: of the latents; a variance behind them is left out.
    """
    if len(given) != len(predictions):
        return None
    signs = set()
    for e, rows in zip(_without_variance(given, channels), predictions, strict=True):
        each = _without_variance(rows, channels)
        each = each[:, : len(e)] if each.ndim == 3 and e.ndim == 2 else each
        if each[0].numel() != e.numel():
            return None
        e, each = e.flatten().double().cpu(), each.flatten(1).double().cpu()
        basis = torch.cat([each[:1], each[1:] - each[:1]])  # the weight of the first is the sum of all weights
        weights = torch.linalg.pinv(basis @ basis.T, rtol=1e-12, hermitian=True) @ (basis @ e)
        if (e - weights @ basis).square().sum() > 1e-3 * e.square().sum() or not weights[0]:
            return None
        signs.add(1 if weights[0] > 0 else -1)
    return signs.pop() if len(signs) == 1 else None


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


def _flow_level(scheduler: Any, timestep: float) -> float:
    """The noise level of a flow at a timestep: the scheduler's own sigma, where it has one for it."""
    n, sigmas = scheduler.config.num_train_timesteps, getattr(scheduler, "sigmas", None)
    if sigmas is None or not len(sigmas):
        return timestep / n
    near = float(sigmas[int(abs(sigmas * n - timestep).argmin())])
    return near if abs(near * n - timestep) <= 1e-3 * n else timestep / n


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

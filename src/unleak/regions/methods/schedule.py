"""The noise schedule of an edit: alphas of each step, and a scheduler whose latents are sqrt(a) z + sqrt(1 - a) n."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch

from unleak.errors import BadInput, UnsupportedModel


def alphas(schedule: Any, step: int) -> tuple[float, float]:
    """Cumulative alphas of this step's timestep and of the next; the last has none after it and repeats its own."""
    times, table = schedule.timesteps.long().tolist(), schedule.alphas_cumprod
    return float(table[times[step]]), float(table[times[min(step + 1, len(times) - 1)]])


def last_alpha(schedule: Any) -> float:
    """The cumulative alpha of the clean end, where DDIM arrives."""
    return float(getattr(schedule, "final_alpha_cumprod", 1.0))


@contextlib.contextmanager
def variance_preserving(pipe: Any, steps: int, reversible: bool = False) -> Iterator[None]:
    """Let the pipeline use a scheduler that edits can follow: its own if it will do, else DDIM of the same noise.

    The pipeline's own is put back afterwards, whatever happened. `reversible` asks for DDIM in any case, whose
    timesteps can be walked backwards.

    Raises:
        UnsupportedModel: the model has no noise schedule of alphas (flow matching).
        BadInput: the scheduler takes no such number of steps.
    """
    own = pipe.scheduler
    if not hasattr(own, "alphas_cumprod"):
        raise UnsupportedModel(f"{type(own).__name__} has no alphas: editing knows models that predict noise")
    if reversible or not follows(own, steps):
        from diffusers import DDIMScheduler

        pipe.scheduler = DDIMScheduler.from_config(own.config)
    try:
        yield
    finally:
        pipe.scheduler = own


def follows(scheduler: Any, steps: int) -> bool:
    """Whether its latents keep unit variance, unscaled, and each step has one timestep of its own."""
    trial = copy.deepcopy(scheduler)
    try:
        trial.set_timesteps(steps)
    except ValueError as e:
        raise BadInput(f"{type(scheduler).__name__} takes no {steps} steps: {e}") from e
    times = trial.timesteps.tolist()
    probe = torch.ones(1, 1, 1, 1)
    own_times = len(times) == steps and all(t == int(t) and t > u for t, u in zip(times, [*times[1:], -1], strict=True))
    return (
        own_times
        and float(trial.init_noise_sigma) == 1.0
        and torch.equal(trial.scale_model_input(probe, trial.timesteps[0]), probe)
    )

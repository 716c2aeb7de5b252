"""The noise schedule of an edit: the levels of each step, and a scheduler whose latents are s z + g n at each of them.

Schedules of alphas preserve variance, s = sqrt(a) and g = sqrt(1 - a); flows mix, s = 1 - sigma and g = sigma.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from unleak.core.predictions import Level
from unleak.errors import BadInput, UnsupportedModel
from unleak.models import is_flow


def alphas(schedule: Any, step: int) -> tuple[float, float]:
    """Cumulative alphas of this step's timestep and of the next; the last has none after it and repeats its own."""
    times, table = schedule.timesteps.long().tolist(), schedule.alphas_cumprod
    return float(table[times[step]]), float(table[times[min(step + 1, len(times) - 1)]])


def levels(schedule: Any, step: int) -> tuple[Level, Level]:
    """The levels of this step and of the next. After the last step a flow is clean, and alphas repeat their own."""
    if is_flow(schedule):
        here, after = (float(schedule.sigmas[i]) for i in (step, step + 1))
        return Level(1 - here, here), Level(1 - after, after)
    a, next_a = alphas(schedule, step)
    return Level.of(a), Level.of(next_a)


def prediction_kind(schedule: Any) -> str:
    """What the denoiser's output is, as `core.predictions.predicted` calls it."""
    return "flow_prediction" if is_flow(schedule) else str(schedule.config.prediction_type)


def last_alpha(schedule: Any) -> float:
    """The cumulative alpha of the clean end, where DDIM arrives."""
    return float(getattr(schedule, "final_alpha_cumprod", 1.0))


@contextlib.contextmanager
def followed(pipe: Any, steps: int, reversible: bool = False, skipped: int = 0) -> Iterator[None]:
    """Let the pipeline use a scheduler that edits can follow: its own if it will do, else DDIM of the same noise, or
    Euler's of the same flow.

    The pipeline's own is put back afterwards, whatever happened. `reversible` asks for DDIM in any case, whose
    timesteps can be walked backwards; a flow's can always be. `skipped`: so many of the first steps are left out.

    Raises:
        UnsupportedModel: the model has neither a noise schedule of alphas nor a flow.
        BadInput: the scheduler takes no such number of steps.
    """
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    own = scheduler = pipe.scheduler
    if is_flow(own):
        if not follows_flow(own, steps):
            shift = own.config.get("flow_shift", own.config.get("shift", 1.0))
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(own.config, shift=shift)
    elif not hasattr(own, "alphas_cumprod"):
        raise UnsupportedModel(f"{type(own).__name__} has neither alphas nor a flow: use DDIM or a flow's scheduler")
    elif reversible or not follows(own, steps):
        scheduler = DDIMScheduler.from_config(own.config)
    try:
        pipe.scheduler = retimed(scheduler, lambda times: times[skipped:]) if skipped else scheduler
        yield
    finally:
        pipe.scheduler = own


def retimed(scheduler: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a scheduler whose noise levels are changed once they are set: the sigmas of a flow with the clean end,
    or the timesteps of alphas."""
    other = copy.copy(scheduler)
    own = other.set_timesteps

    @functools.wraps(own)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        own(*args, **kwargs)
        if is_flow(other):
            other.sigmas = change(other.sigmas)
            other.timesteps = (other.sigmas[:-1] * other.config.num_train_timesteps).to(other.timesteps)
        else:
            other.timesteps = change(other.timesteps)

    other.set_timesteps = set_timesteps
    return other


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


def follows_flow(scheduler: Any, steps: int) -> bool:
    """Whether each step of a flow's scheduler goes from one noise level to the next lower one, and at last to 0."""
    trial = copy.deepcopy(scheduler)
    takes_mu = "mu" in inspect.signature(trial.set_timesteps).parameters
    shifting = {"mu": 1.0} if takes_mu and trial.config.get("use_dynamic_shifting") else {}
    trial.set_timesteps(steps, **shifting)
    sigmas = trial.sigmas.tolist()
    return (
        len(sigmas) == steps + 1 and sigmas[-1] == 0 and all(a > b for a, b in itertools.pairwise([1 + 1e-6, *sigmas]))
    )

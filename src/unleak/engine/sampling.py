"""Around the denoiser: the pipeline's call begins, its prompts are encoded, its scheduler steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unleak.engine.denoising import Denoising, blind
from unleak.engine.run import Run
from unleak.errors import BadInput, NotFinite


class Sampling:
    """What happens at the shadowed methods of a pipeline and its scheduler: each gets the original and its arguments.

    `shadow(owner, name, method)` lets the owner's method call ours until the session ends.
    """

    def __init__(self, run: Run, denoising: Denoising, shadow: Callable[[Any, str, Callable[..., Any]], None]) -> None:
        self.run, self.denoising, self.shadow = run, denoising, shadow
        self._schedulers: list[Any] = []

    def watch(self) -> None:
        """Shadow the methods of the pipeline and of its scheduler."""
        self.shadow(self.run.pipe, "encode_prompt", self._encode_prompt)
        if hasattr(self.run.pipe, "check_inputs"):
            self.shadow(self.run.pipe, "check_inputs", self._check_inputs)
        self._watch_scheduler()

    def _watch_scheduler(self) -> None:
        """Follow the scheduler that the pipeline has now; users exchange it at will."""
        scheduler = self.run.pipe.scheduler
        if not any(scheduler is other for other in self._schedulers):
            self._schedulers.append(scheduler)
            self.shadow(scheduler, "set_timesteps", self._set_timesteps)
            self.shadow(scheduler, "step", self._step)

    def _check_inputs(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """The pipeline is called."""
        self._watch_scheduler()
        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        self.run.begin(called=True, pixels=(given.get("height"), given.get("width")))
        return original(*args, **kwargs)

    def _encode_prompt(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        run = self.run
        unannounced = not hasattr(run.pipe, "check_inputs") and run.clock.done > 0
        if not run.log or unannounced:
            self._watch_scheduler()
            run.begin(called=unannounced)
        returned = run.prompts.encode_prompt(original, args, kwargs)
        run.log[-1]["prompts"] = list(run.encoded.prompts)
        return returned

    def _set_timesteps(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        returned = original(*args, **kwargs)
        self.run.clock.restart(self.run.pipe.scheduler.timesteps)
        return returned

    def _step(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        run = self.run
        if not run.log and not run.steps_in:
            run.begin()
        if not run.drawing:  # another pipeline draws with the same scheduler
            return original(*args, **kwargs)
        if not run.clock.calls and run.steps_in:
            raise blind(run.anatomy)
        if run.predictions:
            given = inspect.signature(original).bind(*args, **kwargs)
            combined = self.denoising.combine(given.arguments.get("model_output"))
            if combined is not None:
                given.arguments["model_output"] = combined.to(given.arguments["model_output"].dtype)
                args, kwargs = given.args, given.kwargs
        returned = original(*args, **kwargs)
        latents, watching = returned[0], run.dispatch("on_latents")
        if watching and not torch.isfinite(latents).all():
            raise NotFinite(f"the latents hold NaN or infinity after step {run.clock.step}; use a wider dtype")
        for label, ask in watching:
            answer = ask(latents)
            latents = latents if answer is None else _checked(label, answer, latents)
        run.log[-1]["steps"] = run.clock.step + 1
        run.begin_step()
        run.clock.after_step()
        run.drawing = not run.clock.over
        if latents is returned[0]:
            return returned
        if isinstance(returned, tuple):
            return (latents, *returned[1:])
        returned.prev_sample = latents
        return returned


def _checked(label: str, latents: Tensor, before: Tensor) -> Tensor:
    if latents.shape != before.shape:
        raise BadInput(f"{label} returned latents {tuple(latents.shape)}, not {tuple(before.shape)}")
    if not torch.isfinite(latents).all():
        raise NotFinite(f"{label} returned latents with NaN or infinity")
    return latents.to(before.dtype)

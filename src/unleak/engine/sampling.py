"""Around the denoiser: the pipeline's call begins, its prompts are encoded, its scheduler steps."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unleak.engine.denoising import Denoising, blind
from unleak.engine.run import Run, first
from unleak.engine.undo import Undo
from unleak.errors import BadInput, NotFinite, UnsupportedModel
from unleak.text.blocks import BlockEncoder, encoding_blocks


class Sampling:
    """What happens at the shadowed methods of a pipeline and its scheduler: each gets the original and its arguments.

    A modular pipeline has blocks in the place of its methods, and is called by calling the outermost one.
    """

    def __init__(self, run: Run, denoising: Denoising, undo: Undo) -> None:
        self.run, self.denoising, self.undo = run, denoising, undo
        self._schedulers: list[Any] = []

    def watch(self) -> None:
        """Shadow the methods of the pipeline and of its scheduler."""
        pipe, undo = self.run.pipe, self.undo
        if (blocks := getattr(pipe, "_blocks", None)) is not None:
            for block in encoding_blocks(blocks, [encoder.name for encoder in self.run.anatomy.encoders]):
                undo.shadow_call(block, partial(self._encode_in, block))
            undo.shadow_call(blocks, self._call_blocks)
            for part in pipe.components.values():
                if is_guider(part):
                    undo.shadow(part, "forward", partial(self._guide, part))
        elif hasattr(pipe, "encode_prompt"):
            undo.shadow(pipe, "encode_prompt", self._encode_prompt)
        else:
            raise UnsupportedModel(
                f"{type(pipe).__name__} encodes its prompt inside its own call: without an `encode_prompt` nothing "
                "tells which rows are the prompt's"
            )
        if hasattr(pipe, "check_inputs"):
            undo.shadow(pipe, "check_inputs", self._check_inputs)
        if hasattr(pipe, "prepare_latents"):
            undo.shadow(pipe, "prepare_latents", self._prepare_latents)
        self._watch_scheduler()

    def _watch_scheduler(self) -> None:
        """Follow the scheduler that the pipeline has now; users exchange it at will."""
        scheduler = self.run.pipe.scheduler
        if not any(scheduler is other for other in self._schedulers):
            self._schedulers.append(scheduler)
            self.undo.shadow(scheduler, "set_timesteps", self._set_timesteps)
            self.undo.shadow(scheduler, "step", self._step)

    def _check_inputs(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """The pipeline is called."""
        self._watch_scheduler()
        given = inspect.signature(original).bind_partial(*args, **kwargs).arguments
        self.run.begin(called=True, pixels=(given.get("height"), given.get("width")))
        return original(*args, **kwargs)

    def _call_blocks(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """A modular pipeline is called."""
        _, state = args
        self._watch_scheduler()
        self.run.begin(called=True, pixels=(state.get("height"), state.get("width")))
        try:
            return original(*args, **kwargs)
        except BaseException:
            self.denoising.perturbations.remove()
            raise

    def _guide(self, guider: Any, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """A guider combines the predictions of this step. An intervention that changes some of them is asked at the
        scheduler's step; then the guider combines them once more, from the state that it has now."""
        run = self.run
        if not run.dispatch("on_prediction"):
            return original(*args, **kwargs)
        state = copy.deepcopy({name: value for name, value in vars(guider).items() if name != "forward"})
        own = {name: run.predictions[name] for name in ("cond", "uncond") if name in run.predictions}
        labels = {
            name: label
            for name, value in kwargs.items()
            for label, prediction in own.items()
            if isinstance(value, Tensor) and torch.equal(value, prediction)
        }
        returned = original(*args, **kwargs)
        combined = first(returned)

        def again(predictions: dict[str, Tensor]) -> Tensor:
            if run.pipeline_combined is None or not torch.equal(
                combined.to(run.pipeline_combined), run.pipeline_combined
            ):
                raise UnsupportedModel(
                    f"{type(run.pipe).__name__} changes what its {type(guider).__name__} combines: return one combined "
                    "prediction"
                )
            if lost := {name for name in own if predictions[name] is not own[name]} - set(labels.values()):
                raise UnsupportedModel(
                    f"the {type(guider).__name__} is not given the predictions of {sorted(lost)} as the denoiser made "
                    "them, so changed ones cannot be put in their place: return one combined prediction"
                )
            vars(guider).update(state)
            return first(original(**{**kwargs, **{name: predictions[label] for name, label in labels.items()}}))

        run.guided = again
        return returned

    def _encode_in(self, block: Any, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """A block of a modular pipeline encodes the prompt."""
        pipe, state = args
        encode = BlockEncoder(block, pipe, state, original)
        self._encode_prompt(encode, (), encode.given)
        return pipe, encode.after

    def _prepare_latents(self, original: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        returned = original(*args, **kwargs)
        parts = returned if isinstance(returned, tuple | list) else (returned,)
        self.run.drawn += [part for part in parts if isinstance(part, Tensor)]
        return returned

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
        if run.predictions or run.returned:
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


def is_guider(part: Any) -> bool:
    """Whether a component combines predictions as the guiders of diffusers do."""
    return all(callable(getattr(part, name, None)) for name in ("forward", "prepare_inputs", "set_state"))


def _checked(label: str, latents: Tensor, before: Tensor) -> Tensor:
    if latents.shape != before.shape:
        raise BadInput(f"{label} returned latents {tuple(latents.shape)}, not {tuple(before.shape)}")
    if not torch.isfinite(latents).all():
        raise NotFinite(f"{label} returned latents with NaN or infinity")
    return latents.to(before.dtype)

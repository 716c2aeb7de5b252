"""Run a pipeline for its first denoising steps only, and pay for no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.engine.run import Run
from unleak.engine.session import attach
from unleak.errors import UnsupportedModel


class _Enough(Exception):
    """The steps that were asked for are done."""


@dataclass(frozen=True)
class _Until(Intervention):
    """Ends the call after the scheduler's step `steps` (None: never); 0 ends it before the denoiser runs."""

    steps: int | None = None
    uses_text = True  # so that a prompt that does not fit is an error

    def branches(self, ctx: Context) -> None:
        if self.steps == 0:
            raise _Enough

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        if ctx.step + 1 == self.steps:
            raise _Enough


def first_steps(pipe: Any, steps: int | None, *interventions: Intervention, **call: Any) -> Run:
    """`pipe(**call)` under interventions, ended after its first `steps` steps.

    Nothing is decoded. None runs the whole trajectory; 0 only encodes the prompt. The pipeline is left as it was.

    Returns:
        The run, with its `results` and `log`.

    Raises:
        UnsupportedModel: it never called its denoiser.
        PromptTruncated: an encoder would drop the end of a prompt; and whatever pipeline and interventions raise.
    """
    session = attach(pipe, *interventions, _Until(steps))
    try:
        with session:
            pipe(**call, output_type="latent")
        if steps == 0:
            raise UnsupportedModel(f"{type(pipe).__name__} returned without calling its denoiser")
    except _Enough:
        if hasattr(pipe, "maybe_free_model_hooks"):  # what the pipeline's own last line does for offloaded parts
            pipe.maybe_free_model_hooks()
    return session.run

"""What a seam may know while it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from unleak.core.anatomy import Grid
from unleak.core.rows import Branch, Rows, Which
from unleak.text.call import Encoded
from unleak.text.prompts import TextRows

if TYPE_CHECKING:
    from unleak.engine.session import Session


class Context:
    """What a seam may know. One per intervention; `state` is its own scratch space, emptied when a
    generation begins, and `run.results` is where it leaves what the user should find."""

    def __init__(self, run: Session) -> None:
        self.run = run
        self.state: dict[str, Any] = {}

    @property
    def pipe(self) -> Any:
        return self.run.pipe

    @property
    def step(self) -> int:
        """Number of the current denoising step (distinct timesteps), from 0."""
        return self.run.clock.step

    @property
    def steps(self) -> int:
        return self.run.clock.steps

    @property
    def fraction(self) -> float:
        """Trajectory fraction: 0 at the first step, 1 at the last."""
        return self.run.clock.fraction

    @property
    def timestep(self) -> float:
        """Current timestep in the scheduler's units."""
        return self.run.clock.timestep

    @property
    def rows(self) -> Rows:
        """Labels of the batch rows of the current denoiser call."""
        return self.run.denoising.rows

    @property
    def grid(self) -> Grid | None:
        """Latent height and width of the current generation."""
        return self.run.denoising.grid

    @property
    def encoded(self) -> Encoded:
        """Prompts, encoder calls and encoded rows of the current generation."""
        return self.run.prompts.encoded

    def prompt_of(self, image: int) -> int:
        """The number of the prompt that an image of this generation belongs to."""
        return image // self.encoded.images_per_prompt

    def encode(self, texts: Sequence[str]) -> TextRows:
        """Other texts as the pipeline encodes its prompt, in one batched call, kept during a generation."""
        return self.run.prompts.encode(texts)

    def latents(self, rows: Which = "cond") -> Tensor:
        """What the denoiser is given for these rows in this call, [rows, ...], scaled as the scheduler scales its
        input; for `on_prediction`."""
        return self.run.denoising.latents[list(self.rows.of(rows))]

    def predict(self, branches: Sequence[Branch], posing: bool = False) -> dict[str, Tensor]:
        """One more denoiser call on these rows only; for `on_prediction`.

        `posing` rows pass for those that their branch is like: other interventions do to them what they do to those.
        """
        return self.run.denoising.predict(branches, posing)

"""What an intervention may ask about the generation that runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from unleak.core.anatomy import Anatomy, Grid
from unleak.core.predictions import clean_latents
from unleak.core.rows import GUIDANCE, Branch, Rows, Which
from unleak.errors import UnsupportedModel
from unleak.text.call import Encoded
from unleak.text.prompts import TextRows


class Context:
    """Every seam gets one. Each intervention has its own.

    Attributes:
        label: how errors and the log name the intervention ("0.Patch": the first one, a Patch).
        state: scratch space of the intervention. It is emptied when a generation begins.
    """

    def __init__(self, run: Any, label: str) -> None:
        self._run = run
        self.label = label
        self.state: dict[str, Any] = {}

    @property
    def pipe(self) -> Any:
        """The user's pipeline."""
        return self._run.pipe

    @property
    def anatomy(self) -> Anatomy:
        """Its denoiser, text encoders and attention sites."""
        return self._run.anatomy

    @property
    def results(self) -> dict[str, Any]:
        """What the user finds as `run.results`; shared by all interventions, kept over generations."""
        return self._run.results

    @property
    def log(self) -> dict[str, Any]:
        """The entry of this generation in `run.log`: plain JSON data."""
        return self._run.log[-1]

    @property
    def generation(self) -> int:
        """Number of this generation in the session, from 0."""
        return len(self._run.log) - 1

    @property
    def step(self) -> int:
        """Number of the current denoising step (distinct timesteps), from 0."""
        return self._run.clock.step

    @property
    def steps(self) -> int:
        """How many denoising steps this generation has."""
        return self._run.clock.steps

    @property
    def fraction(self) -> float:
        """Trajectory fraction: 0 at the first step, 1 at the last."""
        return self._run.clock.fraction

    @property
    def timestep(self) -> float:
        """Current timestep in the scheduler's units."""
        return self._run.clock.timestep

    @property
    def rows(self) -> Rows:
        """Labels of the batch rows of the current denoiser call."""
        return self._run.rows

    @property
    def grid(self) -> Grid | None:
        """Latent height and width of the current generation."""
        return self._run.grid

    @property
    def pixels(self) -> tuple[int | None, int | None]:
        """Height and width of the image that the pipeline was asked for; None where it does not tell."""
        return self._run.pixels

    @property
    def encoded(self) -> Encoded:
        """Prompts, encoder calls and encoded rows of the current generation."""
        return self._run.encoded

    def prompt_of(self, image: int) -> int:
        """The number of the prompt that an image of this generation belongs to."""
        return image // self.encoded.images_per_prompt

    def encode(self, texts: Sequence[str]) -> TextRows:
        """Other texts as the pipeline encodes its prompt, in one batched call, kept during a generation."""
        return self._run.prompts.encode(texts)

    def latents(self, rows: Which = "cond") -> Tensor:
        """What the denoiser is given for these rows in this step, [images, ...] as the predictions are, scaled as the
        scheduler scales its input; for `on_prediction`. A pipeline may call the denoiser once per branch: `rows` are
        then those of a label."""
        call = self._run.calls.get(rows) if isinstance(rows, str) else None
        latents, known = (self._run.latents, self.rows) if call is None else (call.latents, call.rows)
        return self._run.of_picture(latents[list(known.first(rows))], self._run.predictions.get("cond"))

    @property
    def sign(self) -> int | None:
        """-1 where the pipeline negates what the denoiser predicts before its scheduler steps, else 1.

        None while no step has shown it: up to `on_latents` of a session's first step, where one call of the denoiser
        has all branches; and where what the scheduler is given is no combination of predictions.
        """
        sign: int | None = self._run.sign
        return sign

    def clean_latents(self, output: Tensor) -> Tensor:
        """z0 that predictions for the prompt stand for in this step, [images, ...]; tokens of reference images are left
        out. For `on_prediction` and `on_latents`.

        While the sign is None in `on_prediction` it is taken as 1. The scheduler's step raises UnsupportedModel if it
        shows another: a method that can wait reads in `on_latents`.

        Raises:
            UnsupportedModel: the step does not show the sign, or the scheduler's parametrisation is not known.
        """
        if self.sign is None and self._run.sign_sought:
            raise UnsupportedModel(
                f"what {type(self.pipe).__name__} gives its scheduler is no combination of what its denoiser predicts, "
                "so the clean latents of a prediction are not known: leave out what combines them otherwise (a guider "
                "of another kind, a callback), or use a method that does not read clean latents"
            )
        self._run.sign_trusted |= self.sign is None
        x = self.latents().to(output)
        cells = self._run.cells_of(x)
        x, output = (x, output) if cells is None else (x[:, :cells], output[:, :cells])
        return clean_latents(self.pipe.scheduler, x, output if self.sign != -1 else -output, self.timestep)

    @property
    def distilled(self) -> bool:
        """Whether the denoiser is given the scale of guidance as a number and guides by itself; in its calls."""
        return any(isinstance(self._run.inputs.get(name), Tensor) for name in GUIDANCE)

    @property
    def inputs(self) -> Mapping[str, Any]:
        """Arguments of the denoiser in the pipeline's current call, by name, without the rows of branches."""
        inputs: Mapping[str, Any] = self._run.inputs
        return inputs

    @property
    def shared(self) -> dict[Any, Any]:
        """Scratch space of all interventions, emptied after each step."""
        shared: dict[Any, Any] = self._run.shared
        return shared

    @property
    def pipeline_combined(self) -> Tensor | None:
        """The pipeline's own combination of this step's predictions, [images, ...]; for `on_prediction`.

        None where the denoiser reads all branches in one call, since the pipeline combines them afterwards.
        """
        return self._run.pipeline_combined

    def predict(self, branches: Sequence[Branch], as_source: bool = False) -> dict[str, Tensor]:
        """One more denoiser call on the rows of these branches alone; for `on_prediction`. Where the pipeline calls its
        denoiser once per branch, it repeats that call of this step whose rows a branch is `like`.

        Args:
            as_source: the rows carry the label that their branch is `like`, so that the other interventions treat
                them as those rows.

        Returns:
            By the branch's name, each [images, ...].
        """
        return self._run.predict(branches, as_source)

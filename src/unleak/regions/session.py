"""How images are edited together: what is wanted of each, how the model sees it, and one call that draws them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.drawing import photo
from unleak.drawing.generate import for_each, memory_errors, rehearse
from unleak.engine.session import attach
from unleak.errors import BadInput, NotFinite
from unleak.regions.edited import Edited
from unleak.regions.masks import masks as masking
from unleak.regions.masks.own_masks import own_masks
from unleak.regions.masks.text_masks import Masker
from unleak.regions.method import Method
from unleak.regions.plan import Edit, Plan, plan


@dataclass(frozen=True, eq=False)
class Job:
    """One image at its working size, what becomes of it, and the masks that the user gave."""

    picture: Image.Image
    edits: tuple[Edit, ...]
    plan: Plan
    masks: list[Tensor | None]

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.height, self.picture.width


@dataclass(frozen=True, eq=False)
class Scenes:
    """Jobs that are drawn together, as the model sees them: `clean` latents [images, C, h, w], masks [images, K, H, W]
    as they are used, the generator of all noise, alike for every image, and what is remarkable about each."""

    jobs: Sequence[Job]
    clean: Tensor
    masks: Tensor
    random: torch.Generator
    notes: list[list[str]]


@dataclass(frozen=True)
class _Keep(Intervention):
    """Keeps the latents that are decoded."""

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        ctx.results["final"] = latents


def alike(jobs: Sequence[Job], most: int) -> list[list[int]]:
    """Numbers of the jobs that can be drawn together: of one size and one number of edits, at most so many."""
    found: dict[tuple[tuple[int, int], int], list[int]] = {}
    for i, job in enumerate(jobs):
        if job.edits:
            found.setdefault((job.size, len(job.edits)), []).append(i)
    return [some[k : k + most] for some in found.values() for k in range(0, len(some), most)]


@dataclass(frozen=True, eq=False)
class EditSession:
    """What the images of one call have in common."""

    pipe: Any
    name: str
    method: Method
    seed: int
    negative_prompt: str | None
    masks_from: Masker | str
    interventions: Sequence[Intervention]

    def call(self, size: tuple[int, int]) -> dict[str, Any]:
        """The pipeline's arguments. Methods guide by themselves; the scale only says whether there are rows for it."""
        return {
            "negative_prompt": self.negative_prompt, "height": size[0], "width": size[1],
            "num_inference_steps": self.method.steps, "guidance_scale": 2.0 if self.method.guided else 1.0,
        }  # fmt: skip

    def prepare(self, image: Any, edits: Sequence[Any], caption: str | None, size: tuple[int, int] | None) -> Job:
        """What can be wrong with an image, its edits and its masks by themselves."""
        if any(not isinstance(one, Edit) for one in edits):
            raise BadInput('edits are a list of unleak.Edit("yellow car", "red car", mask=...)')
        whole = photo.read(image)
        picture = photo.resized(whole, photo.working_size(self.pipe, whole, size))
        todo = plan(edits, caption)
        sizes = (picture.height, picture.width), (whole.height, whole.width)
        masks = [
            None if one.mask is None else masking.read(one.mask, sizes[0], f"the mask of {one.source!r}", sizes[1])
            for one in edits
        ]
        return Job(picture, tuple(edits), todo, masks)

    def untouched(self, job: Job) -> Edited:
        """An image of which nothing is to be edited."""
        before, nothing = np.asarray(job.picture), torch.zeros(0, *job.size, dtype=torch.bool)
        notes, settings = ["no edit is given: the image stays as it is"], asdict(self.method)
        return Edited(before, before, before, (), None, nothing, (), self.name, settings, self.seed, notes)

    def look(self, jobs: Sequence[Job]) -> Scenes:
        """Latents and masks of jobs that are `alike`.

        Raises:
            PromptTruncated, UnsupportedModel, BadInput: the pipeline would not draw their prompts.
            EmptyMask: the source is not seen in an image, or a mask holds no cell of the latent grid.
        """
        prompts = dict.fromkeys(prompt for job in jobs for prompt in (job.plan.source, job.plan.target))
        rehearse(self.pipe, [*prompts], **self.call(jobs[0].size))
        latents = []
        for job in jobs:
            random = torch.Generator("cpu").manual_seed(self.seed)
            sample = random if self.method.posterior == "sample" else None
            latents.append(photo.to_latents(self.pipe, job.picture, sample))
        clean = torch.cat(latents)
        masks = self._masks(jobs, clean)
        notes = [self._notes(job, some, clean.shape[-2:]) for job, some in zip(jobs, masks, strict=True)]
        return Scenes(jobs, clean, masks, random, notes)

    def _notes(self, job: Job, masks: Tensor, grid: Sequence[int]) -> list[str]:
        notes = masking.check(masks, [one.source for one in job.edits], grid)
        return notes + [f"{one.source!r} is to become itself" for one in job.edits if one.source == one.target]

    def _masks(self, jobs: Sequence[Job], clean: Tensor) -> Tensor:
        """The masks [images, K, H, W], widened; those that were not given are where the source is seen."""
        wanted = [i for i, job in enumerate(jobs) if any(mask is None for mask in job.masks)]
        seen = dict(zip(wanted, self._seen([jobs[i] for i in wanted], clean[wanted]), strict=True))
        made = []
        for i, job in enumerate(jobs):
            masks = [seen[i][k] if mask is None else mask for k, mask in enumerate(job.masks)]
            made.append(masking.dilate(torch.stack(masks), self.method.dilation))
        return torch.stack(made)

    def _seen(self, jobs: Sequence[Job], clean: Tensor) -> Sequence[Mapping[int, Tensor] | Tensor]:
        """Where the sources of each job are seen, by their numbers; at least of those without a mask."""
        if not jobs:
            return []
        if isinstance(self.masks_from, str):
            prompts, objects = [job.plan.source for job in jobs], [job.plan.sources for job in jobs]
            return own_masks(
                self.pipe, clean, prompts, objects, jobs[0].size, seed=self.seed, masks_from=self.masks_from
            )
        found = []
        for job in jobs:
            wanted = [k for k, mask in enumerate(job.masks) if mask is None]
            masks = self.masks_from.masks(job.picture, [job.edits[k].source for k in wanted])
            found.append(dict(zip(wanted, masks, strict=True)))
        return found

    def draw(self, scenes: Scenes) -> list[Edited]:
        """The edited images, by one call of the pipeline."""
        jobs, clean, size = scenes.jobs, scenes.clean, scenes.jobs[0].size
        plans = [job.plan for job in jobs]
        source = tuple(one.source for one in plans), tuple(one.sources for one in plans)
        target = tuple(one.target for one in plans), tuple(one.targets for one in plans)
        start, way = self.method.begin(self.pipe, clean, source, size, scenes.random)
        parts = self.method.parts(source, target, scenes.masks, clean, way, "" if self.negative_prompt else None)
        dtype = next(Anatomy.of(self.pipe).denoiser.parameters()).dtype
        call = for_each(self.call(size), len(jobs))
        with memory_errors(len(jobs)), attach(self.pipe, *self.interventions, *parts, _Keep()) as run:
            drawn = self.pipe(prompt=[*target[0]], latents=start.to(dtype), output_type="np", **call)
        pixels = np.asarray(drawn.images)
        if not np.isfinite(pixels).all():
            raise NotFinite("the pipeline returned NaN pixels; load it in float32 or bfloat16")
        for notes, black in zip(scenes.notes, getattr(drawn, "nsfw_content_detected", None) or (), strict=False):
            notes += ["the pipeline's safety checker blackened the image"] if black else []
        images, rebuilt = (pixels * 255).round().astype(np.uint8), photo.to_pixels(self.pipe, clean)
        masker = self.masks_from if isinstance(self.masks_from, str) else self.masks_from.name
        return [
            Edited(
                images[i], np.asarray(job.picture), rebuilt[i], job.edits, job.plan, scenes.masks[i],
                tuple(mask is not None for mask in job.masks), self.name, asdict(self.method), self.seed,
                scenes.notes[i], masker, run.results["final"][i : i + 1], clean[i : i + 1], run.log, len(jobs),
            )
            for i, job in enumerate(jobs)
        ]  # fmt: skip

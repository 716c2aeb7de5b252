"""How images are edited together: the edits of each, its latents and masks, and one call of the pipeline for all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.core.anatomy import Anatomy
from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.core.predictions import Level
from unleak.drawing import photo
from unleak.drawing.generate import for_each, images_of, memory_errors, rehearse
from unleak.engine.session import attach
from unleak.errors import BadInput, UnsupportedModel
from unleak.files import pictures
from unleak.regions.edited import Edited
from unleak.regions.keep_pixels import lay_in
from unleak.regions.masks import masks as masking
from unleak.regions.masks.own_masks import own_masks
from unleak.regions.masks.text_masks import Masker
from unleak.regions.method import Method
from unleak.regions.methods.schedule import levels
from unleak.regions.plan import Edit, EditPlan, plan


@dataclass(frozen=True, eq=False)
class ImageEdits:
    """One image, at its own and at its working size, its edits, and the masks that the user gave."""

    photo: Image.Image
    picture: Image.Image
    edits: tuple[Edit, ...]
    plan: EditPlan
    masks: list[Tensor | None]

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.height, self.picture.width


@dataclass(frozen=True, eq=False)
class Batch:
    """Images that are drawn together: their cells [images, C, h, w], `clean` latents as the denoiser is given them,
    masks [images, K, H, W] as they are used, the generator of all noise, alike for every image, the noise level of the
    first step, and the notes on each."""

    images: Sequence[ImageEdits]
    cells: Tensor
    clean: Tensor
    masks: Tensor
    random: torch.Generator
    level: Level
    notes: list[list[str]]


@dataclass(frozen=True)
class _KeepLatents(Intervention):
    """Keeps the latents that are decoded."""

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        ctx.results["final"] = latents


@dataclass(frozen=True)
class _Shape(Intervention):
    """Keeps the shape of what the denoiser is given as latents."""

    def branches(self, ctx: Context) -> None:
        latents = next(iter(ctx.inputs.values()))
        ctx.results["shape"] = tuple(latents.shape) if isinstance(latents, Tensor) else ()


def _fits(latents: Sequence[int], drawn: Sequence[int]) -> bool:
    """Whether latents [n, C, h, w] or [n, N, c] can stand in for those that a denoiser is given; these may have a
    condition's channels and the tokens of reference images as well."""
    alike = len(latents) == len(drawn)
    return alike and (latents[-2:] == drawn[-2:] if len(drawn) == 4 else latents[1] <= drawn[1])


def drawn_together(images: Sequence[ImageEdits], most: int) -> list[list[int]]:
    """Numbers of the images that one call can draw: of one size and one number of edits, at most so many."""
    groups: dict[tuple[tuple[int, int], int], list[int]] = {}
    for i, image in enumerate(images):
        if image.edits:
            groups.setdefault((image.size, len(image.edits)), []).append(i)
    return [group[k : k + most] for group in groups.values() for k in range(0, len(group), most)]


@dataclass(frozen=True, eq=False)
class Editor:
    """A method at work on a pipeline: what all images of a call have in common."""

    pipe: Any
    name: str
    method: Method
    seed: int
    negative_prompt: str | None
    masks_from: Masker | str
    interventions: Sequence[Intervention]
    keep_pixels: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def call(self, size: tuple[int, int]) -> dict[str, Any]:
        """The pipeline's arguments."""
        negative = {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        return {
            **self.arguments, **negative, "height": size[0], "width": size[1],
            "num_inference_steps": self.method.steps, "guidance_scale": self.method.scale,
        }  # fmt: skip

    def prepare(
        self, image: Any, edits: Sequence[Any], caption: str | None, size: tuple[int, int] | None
    ) -> ImageEdits:
        """An image at its working size. Raises what can be wrong with it, its edits and its masks by themselves."""
        if any(not isinstance(one, Edit) for one in edits):
            raise BadInput('edits are a list of unleak.Edit("yellow car", "red car", mask=...)')
        whole = pictures.photo(image)
        picture = photo.resized(whole, photo.working_size(self.pipe, whole, size, self.arguments))
        planned = plan(edits, caption)
        sizes = (picture.height, picture.width), (whole.height, whole.width)
        masks = [
            None if one.mask is None else masking.read_mask(one.mask, sizes[0], f"the mask of {one.source!r}", sizes[1])
            for one in edits
        ]
        return ImageEdits(whole, picture, tuple(edits), planned, masks)

    def untouched(self, image: ImageEdits) -> Edited:
        """An image without edits."""
        before, masks = np.asarray(image.picture), torch.zeros(0, *image.size, dtype=torch.bool)
        notes, settings = ["no edit is given: the image stays as it is"], asdict(self.method)
        full = np.asarray(image.photo) if self.keep_pixels else None
        return Edited(before, before, before, (), None, masks, (), self.name, settings, self.seed, notes, full=full)

    def batch(self, images: Sequence[ImageEdits]) -> Batch:
        """Latents and masks of images that are `drawn_together`.

        Raises:
            PromptTruncated, UnsupportedModel, BadInput: the pipeline would not draw their prompts.
            EmptyMask: the source is not seen in an image, or a mask holds no cell of the latent grid.
        """
        prompts = dict.fromkeys(prompt for image in images for prompt in (image.plan.source, image.plan.target))
        seen = rehearse(self.pipe, [*prompts], _Shape(), **self.call(images[0].size))
        latents = []
        for image in images:
            random = torch.Generator("cpu").manual_seed(self.seed)
            sample = random if self.method.posterior == "sample" else None
            latents.append(photo.to_latents(self.pipe, image.picture, sample))
        cells = torch.cat(latents)
        clean, level = photo.as_latents(self.pipe, cells), levels(self.pipe.scheduler, 0)[0]
        if (drawn := seen.results["shape"]) and not _fits(clean.shape, drawn):
            raise UnsupportedModel(
                f"{type(self.pipe).__name__} draws latents {list(drawn[1:])}, and the image has "
                f"{list(clean.shape[1:])} at {images[0].size[0]}x{images[0].size[1]} pixels: it draws videos, or sizes "
                "of its own choice, which call={'use_resolution_binning': False} ends where it takes that"
            )
        masks = self._masks(images, cells)
        notes = [self._notes(image, of_image, cells.shape[-2:]) for image, of_image in zip(images, masks, strict=True)]
        return Batch(images, cells, clean, masks, random, level, notes)

    def _notes(self, image: ImageEdits, masks: Tensor, grid: Sequence[int]) -> list[str]:
        notes = masking.mask_notes(masks, [one.source for one in image.edits], grid)
        return notes + [f"{one.source!r} is to become itself" for one in image.edits if one.source == one.target]

    def _masks(self, images: Sequence[ImageEdits], clean: Tensor) -> Tensor:
        """The masks [images, K, H, W], widened; those that were not given are where the source is seen."""
        missing = [i for i, image in enumerate(images) if any(mask is None for mask in image.masks)]
        model_masks = dict(zip(missing, self._source_masks([images[i] for i in missing], clean[missing]), strict=True))
        widened = []
        for i, image in enumerate(images):
            masks = [model_masks[i][k] if mask is None else mask for k, mask in enumerate(image.masks)]
            widened.append(masking.dilate(torch.stack(masks), self.method.dilation))
        return torch.stack(widened)

    def _source_masks(self, images: Sequence[ImageEdits], clean: Tensor) -> Sequence[Mapping[int, Tensor] | Tensor]:
        """Where the sources of each image are seen, by their numbers; at least of those without a mask."""
        if not images:
            return []
        if isinstance(self.masks_from, str):
            prompts, objects = [image.plan.source for image in images], [image.plan.sources for image in images]
            settings: dict[str, Any] = {"seed": self.seed, "masks_from": self.masks_from, "call": self.arguments}
            return own_masks(self.pipe, clean, prompts, objects, images[0].size, **settings)
        by_image = []
        for image in images:
            missing = [k for k, mask in enumerate(image.masks) if mask is None]
            masks = self.masks_from.masks(image.picture, [image.edits[k].source for k in missing])
            by_image.append(dict(zip(missing, masks, strict=True)))
        return by_image

    def draw(self, batch: Batch) -> list[Edited]:
        """The edited images, by one call of the pipeline."""
        images, clean, size = batch.images, batch.clean, batch.images[0].size
        each = [image.plan for image in images]
        source = tuple(one.source for one in each), tuple(one.sources for one in each)
        target = tuple(one.target for one in each), tuple(one.targets for one in each)
        call = self.call(size)
        start, trajectory = self.method.begin(self.pipe, clean, source, call, batch.random, batch.level)
        negative = "" if self.negative_prompt else None
        parts = self.method.parts(source, target, batch.masks, clean, trajectory, negative)
        dtype = next(Anatomy.of(self.pipe).denoiser.parameters()).dtype
        call = for_each(call, len(images))
        with memory_errors(len(images)), attach(self.pipe, *self.interventions, *parts, _KeepLatents()) as run:
            drawn = self.pipe(prompt=[*target[0]], latents=start.to(dtype), output_type="np", **call)
        after, rebuilt = images_of(self.pipe, drawn), photo.to_pixels(self.pipe, batch.cells)
        latents = photo.as_cells(self.pipe, run.results["final"], batch.cells.shape[-2:])
        for notes, black in zip(batch.notes, getattr(drawn, "nsfw_content_detected", None) or (), strict=False):
            notes += ["the pipeline's safety checker blackened the image"] if black else []
        full: list[np.ndarray | None] = [None] * len(images)
        if self.keep_pixels:
            full = [lay_in(one.photo, after[i], batch.masks[i]) for i, one in enumerate(images)]
            after = np.stack([lay_in(one.picture, after[i], batch.masks[i]) for i, one in enumerate(images)])
        masker = self.masks_from if isinstance(self.masks_from, str) else self.masks_from.name
        return [
            Edited(
                after[i], np.asarray(image.picture), rebuilt[i], image.edits, image.plan, batch.masks[i],
                tuple(mask is not None for mask in image.masks), self.name, asdict(self.method), self.seed,
                batch.notes[i], masker, latents[i : i + 1], batch.cells[i : i + 1], run.log, len(images),
                full=full[i],
            )
            for i, image in enumerate(images)
        ]  # fmt: skip

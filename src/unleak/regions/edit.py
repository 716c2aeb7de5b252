"""`unleak.edit`: turn objects of an image into others and change nothing else, with the user's own pipeline.

The pipeline draws the target's prompt while the interventions of a preset carry the source along; the last step's
clean prediction is what it decodes. Nothing of the pipeline is copied, and its scheduler is its own again afterwards.
"""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unleak.core.anatomy import Anatomy, eager
from unleak.core.context import Context
from unleak.core.intervention import Intervention
from unleak.core.session import attach
from unleak.errors import BadInput, NotFinite, UnsupportedModel
from unleak.generate import rehearse
from unleak.regions import masks as masking
from unleak.regions import photo
from unleak.regions.attention import attention_masks
from unleak.regions.method import Method
from unleak.regions.ore import choose
from unleak.regions.plan import Edit, Plan, plan
from unleak.regions.presets import POSTERIOR, preset
from unleak.regions.schedule import variance_preserving
from unleak.regions.text_masks import Masker


@dataclass(eq=False)
class Edited:
    """One edited image, and everything that led to it.

    `image` (after), `before` (the photo) and `rebuilt` (the photo through the autoencoder, which is what an edit can
    keep at best) are [H, W, 3] uint8 at the working size; `masks` bool [K, H, W] as they were used (widened), one for
    each edit; `given` says which of them the user gave, and `masker` who found the others; `latents` and `clean` are
    the final latents of the target and those of the source, [1, C, h, w]; `notes` is what a person should know
    (overlaps, full masks).
    """

    image: np.ndarray
    before: np.ndarray
    rebuilt: np.ndarray
    edits: tuple[Edit, ...]
    plan: Plan | None
    masks: Tensor
    given: tuple[bool, ...]
    preset: str
    settings: dict[str, Any]
    seed: int
    notes: list[str] = field(default_factory=list)
    masker: str = "attention"
    latents: Tensor | None = field(default=None, repr=False)
    clean: Tensor | None = field(default=None, repr=False)
    log: Any = field(default=None, repr=False)

    @property
    def regions(self) -> Tensor:
        """The masks made disjoint, bool [K + 1, H, W], the background last."""
        return masking.partition(self.masks, self.settings["overlap"])

    @property
    def leak(self) -> np.ndarray:
        """How much each pixel outside the masks differs from the rebuilt photo, [H, W] in 0..1; 0 inside them."""
        change = np.abs(self.image.astype(np.float64) - self.rebuilt).mean(-1) / 255
        return np.where(self.masks.any(0).numpy(), 0.0, change)


def edit(
    pipe: Any,
    image: Any,
    edits: Sequence[Edit] | Sequence[Sequence[Edit]],
    *,
    preset: str = "ale",
    steps: int | None = None,
    seed: int = 0,
    source_prompt: str | None = None,
    negative_prompt: str | None = None,
    size: tuple[int, int] | None = None,
    masks_from: Masker | None = None,
    interventions: Sequence[Intervention] = (),
    **options: Any,
) -> Any:
    """Edit objects of an image.

    Args:
        pipe: a text-to-image pipeline with a noise-predicting UNet (SD1, SD2, SDXL); left as it was.
        image: a file, a PIL image or an array, of any size; a list of them is edited one by one.
        edits: what becomes what; for a list of images one list for all, or one for each.
        preset: ``"ale"``, or ``"ale-official"``: as the authors' release computes it; to compare with, ``"p2p"``
            (Prompt-to-Prompt), ``"masactrl"``, ``"infedit"``, and from inverted latents ``"ddim"``, ``"pnp"``
            (Plug-and-Play) and ``"null-text"``. They know no masks; ``blend=True`` gives them the background.
        steps: denoising steps; default: the preset's.
        seed: of all noise; the same for every image.
        source_prompt: a caption of the image that names every source; default: the sources, joined by "and".
        negative_prompt: of the target.
        size: (height, width) to work at; default: the image's proportions at the model's own area.
        masks_from: who finds the masks that are not given (`text_masks.load_masker`); default: the model's attention.
        interventions: more to attach, before the preset's (a repair of the target's prompt).
        options: of the preset (`presets.Ale`, `baselines.presets`): ``target_guidance=3.0, self_replace=1.0``.

    Returns:
        `Edited`, or a list of them for a list of images.

    Raises (before anything is drawn):
        BadInput, EmptyMask: a picture or a mask cannot be used. ItemNotFound, AmbiguousItem: a source is not in
        the caption, or twice. PromptTruncated. UnsupportedModel: the pipeline is no such model.
    """
    several = isinstance(image, list | tuple)
    images = list(image) if several else [image]
    if not images:
        raise BadInput("no image is given")
    each: list[Any] = list(edits) if several and edits and not isinstance(edits[0], Edit) else [edits] * len(images)
    if len(each) != len(images):
        raise BadInput(f"{len(images)} images and {len(each)} lists of edits: give one list for all, or one for each")
    run = _Run(
        pipe, preset, _method(preset, steps, options), seed, source_prompt, negative_prompt, masks_from, interventions
    )
    with _editable(pipe, run.method):
        jobs = [run.prepare(one, some, size) for one, some in zip(images, each, strict=True)]
        done = [run.draw(job) for job in jobs]
    return done if several else done[0]


def _method(name: str, steps: int | None, options: dict[str, Any]) -> Method:
    method = preset(name, **({} if steps is None else {"steps": steps}), **options)
    if not isinstance(method.steps, int) or method.steps < 1:
        raise BadInput(f"steps={method.steps}: give 1 or more")
    choose("posterior", method.posterior, POSTERIOR)
    return method


@dataclass(frozen=True, eq=False)
class _Job:
    """One image at its working size, what becomes of it, and the masks that the user gave."""

    picture: Image.Image
    edits: tuple[Edit, ...]
    plan: Plan | None
    masks: list[Tensor | None]

    @property
    def size(self) -> tuple[int, int]:
        return self.picture.height, self.picture.width


@dataclass(frozen=True)
class _Keep(Intervention):
    """Keeps the latents that are decoded."""

    def on_latents(self, ctx: Context, latents: Tensor) -> None:
        ctx.run.results["final"] = latents


@dataclass(frozen=True, eq=False)
class _Run:
    """What the images of one call have in common."""

    pipe: Any
    name: str
    method: Method
    seed: int
    source_prompt: str | None
    negative_prompt: str | None
    masks_from: Masker | None
    interventions: Sequence[Intervention]

    def call(self, picture: Image.Image) -> dict[str, Any]:
        """The pipeline's arguments. Methods guide by themselves; the scale only says whether there are rows for it."""
        return {
            "negative_prompt": self.negative_prompt, "height": picture.height, "width": picture.width,
            "num_inference_steps": self.method.steps, "guidance_scale": 2.0 if self.method.guided else 1.0,
        }  # fmt: skip

    def prepare(self, image: Any, edits: Sequence[Any], size: tuple[int, int] | None) -> _Job:
        """Everything that can be wrong with an image, its edits and its masks."""
        if any(not isinstance(one, Edit) for one in edits):
            raise BadInput('edits are a list of unleak.Edit("yellow car", "red car", mask=...)')
        whole = photo.read(image)
        picture = photo.resized(whole, photo.working_size(self.pipe, whole, size))
        if not edits:
            return _Job(picture, (), None, [])
        todo = plan(edits, self.source_prompt)
        for prompt in (todo.source, todo.target):
            rehearse(self.pipe, prompt, **self.call(picture))
        sizes = (picture.height, picture.width), (whole.height, whole.width)
        masks = [
            None if one.mask is None else masking.read(one.mask, sizes[0], f"the mask of {one.source!r}", sizes[1])
            for one in edits
        ]
        return _Job(picture, tuple(edits), todo, masks)

    def draw(self, job: _Job) -> Edited:
        before = np.asarray(job.picture)
        if job.plan is None:
            nothing, notes = torch.zeros(0, *job.size, dtype=torch.bool), ["no edit is given: the image stays as it is"]
            _tell(notes)
            settings = asdict(self.method)
            return Edited(before, before, before, (), None, nothing, (), self.name, settings, self.seed, notes)
        random = torch.Generator("cpu").manual_seed(self.seed)
        clean = photo.to_latents(self.pipe, job.picture, random if self.method.posterior == "sample" else None)
        masks = self._masks(job, clean)
        notes = masking.check(masks, [one.source for one in job.edits], clean.shape[-2:])
        notes += [f"{one.source!r} is to become itself" for one in job.edits if one.source == one.target]
        _tell(notes)
        source, target = (job.plan.source, job.plan.sources), (job.plan.target, job.plan.targets)
        start, way = self.method.begin(self.pipe, clean, source, job.size, random)
        parts = self.method.parts(source, target, masks, clean, way, "" if self.negative_prompt else None)
        dtype = next(Anatomy.of(self.pipe).denoiser.parameters()).dtype
        with attach(self.pipe, *self.interventions, *parts, _Keep()) as run:
            drawn = self.pipe(
                prompt=job.plan.target, latents=start.to(dtype), output_type="np", **self.call(job.picture)
            )
        pixels = np.asarray(drawn.images[0])
        if not np.isfinite(pixels).all():
            raise NotFinite("the pipeline returned NaN pixels; load it in float32 or bfloat16")
        if any(getattr(drawn, "nsfw_content_detected", None) or ()):
            notes.append("the pipeline's safety checker blackened the image")
        return Edited(
            (pixels * 255).round().astype(np.uint8), before, photo.to_pixels(self.pipe, clean)[0], job.edits, job.plan,
            masks, tuple(mask is not None for mask in job.masks), self.name, asdict(self.method), self.seed, notes,
            "attention" if self.masks_from is None else self.masks_from.name, run.results["final"], clean, run.log,
        )  # fmt: skip

    def _masks(self, job: _Job, clean: Tensor) -> Tensor:
        """The masks [K, H, W], widened; those that were not given are where the source is seen."""
        masks = list(job.masks)
        missing = [i for i, mask in enumerate(masks) if mask is None]
        if missing and self.masks_from is not None:
            found = self.masks_from.masks(job.picture, [job.edits[i].source for i in missing])
            masks = [found[missing.index(i)] if mask is None else mask for i, mask in enumerate(masks)]
        elif missing and job.plan is not None:
            seen = attention_masks(self.pipe, clean, job.plan.source, job.plan.sources, job.size, seed=self.seed)
            masks = [seen[i] if mask is None else mask for i, mask in enumerate(masks)]
        return masking.dilate(torch.stack([mask for mask in masks if mask is not None]), self.method.dilation)


def _tell(notes: Sequence[str]) -> None:
    for note in notes:
        warnings.warn(note, stacklevel=4)


@contextlib.contextmanager
def _editable(pipe: Any, method: Method) -> Iterator[None]:
    """The pipeline as an edit needs it, and as it was afterwards.

    A UNet that was distilled to take the guidance scale as an embedding (LCM) is guided by rows instead; its embedding
    is then left out, which such a UNet allows. ALE's release runs it so.

    Raises UnsupportedModel for a pipeline that no edit can follow yet.
    """
    denoiser: Any = eager(Anatomy.of(pipe).denoiser)
    if "sample" not in inspect.signature(denoiser.forward).parameters:
        raise UnsupportedModel(
            f"{type(pipe).__name__} has a transformer ({type(denoiser).__name__}); editing knows UNets that predict "
            "noise (SD1, SD2, SDXL) and not yet transformers"
        )
    own = denoiser.config.get("time_cond_proj_dim")
    with variance_preserving(pipe, method.steps, reversible=method.inverts):
        try:
            if own is not None:
                denoiser.register_to_config(time_cond_proj_dim=None)
            yield
        finally:
            if own is not None:
                denoiser.register_to_config(time_cond_proj_dim=own)

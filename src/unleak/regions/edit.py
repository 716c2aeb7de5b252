"""`unleak.edit`: turn objects of an image into others and change nothing else, with the user's own pipeline.

The pipeline draws the target's prompt while the interventions of a preset carry the source along; the last step's
clean prediction is what it decodes. Nothing of the pipeline is copied, and its scheduler is its own again afterwards.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unleak.core.anatomy import Anatomy, eager
from unleak.core.intervention import Intervention
from unleak.drawing.generate import check_seed
from unleak.errors import BadInput, UnsupportedModel, choose
from unleak.judges import Judge
from unleak.models import is_flow
from unleak.regions.batch import Editor, drawn_together
from unleak.regions.check import add_checks
from unleak.regions.edited import Edited
from unleak.regions.masks.own_masks import FROM
from unleak.regions.masks.text_masks import Masker
from unleak.regions.method import ALPHAS, FLOW, Method
from unleak.regions.methods.schedule import followed
from unleak.regions.plan import Edit
from unleak.regions.presets import EDITORS


def edit(
    pipe: Any,
    image: Any,
    edits: Sequence[Edit] | Sequence[Sequence[Edit]],
    *,
    preset: str = "ale",
    steps: int | None = None,
    seed: int = 0,
    source_prompt: str | Sequence[str | None] | None = None,
    negative_prompt: str | None = None,
    size: tuple[int, int] | None = None,
    masks_from: Masker | str = "own",
    interventions: Sequence[Intervention] = (),
    judge: Judge | None = None,
    model: str = "",
    batch: int = 8,
    keep_pixels: bool = False,
    call: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Edit objects of an image.

    Args:
        pipe: a text-to-image pipeline whose latents are cells or packed cells: UNets (SD1, SD2, SDXL) and
            transformers that predict a flow (SD3, FLUX); left as it was.
        image: a file, a PIL image or an array, of any size, or a list of them.
        edits: what becomes what; for a list of images one list for all, or one for each.
        preset: the name of an editor in `presets.EDITORS`. The published methods beside ALE know no masks;
            ``blend=True`` gives them the background.
        steps: denoising steps; default: the preset's.
        seed: of all noise; the same for every image.
        source_prompt: a caption of the image that names every source; default: the sources, joined by "and". For a
            list of images one for all, or one for each.
        negative_prompt: of the target.
        size: (height, width) to work at; default: the image's proportions at the model's own area.
        masks_from: who finds the masks that are not given: ``"own"``, the model itself (`own_masks`), by its
            ``"attention"`` alone, or a model of yours (`text_masks.load_masker`).
        interventions: more to attach, before the preset's (a repair of the target's prompt); they see the images of a
            batch in one call.
        judge: who says whether each target is there and its source gone; a phrase that it cannot read is a note.
        model: its name, for the record.
        batch: images of one working size and one number of edits are drawn together, at most so many; null-text
            inversion draws one at a time.
        keep_pixels: lay what was drawn into the photo, inside the masks, with a blended seam (`keep_pixels.SEAM`);
            outside them every pixel is the photo's. `Edited.full` is that at the photo's own size.
        call: further arguments of the pipeline (``max_sequence_length``; ``true_cfg_scale`` above 1 with a
            ``negative_prompt``, where rows are guided by that). Steps, size and guidance are those of the edit; without
            `size`, height and width tell the area.
        options: parameters of the preset, such as ``target_guidance=3.0``.

    Returns:
        `Edited`, or a list of them for a list of images.

    Raises (before anything is edited):
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
    captions = [source_prompt] * len(images) if isinstance(source_prompt, str | None) else list(source_prompt)
    if len(captions) != len(images):
        raise BadInput(f"{len(images)} images and {len(captions)} captions: give one for all, or one for each")
    if not isinstance(batch, int) or batch < 1:
        raise BadInput(f"batch={batch}: give the number of images that are drawn together, 1 or more")
    check_seed(seed)
    method: Method = EDITORS[preset].make(**({} if steps is None else {"steps": steps}), **options)
    if isinstance(masks_from, str):
        choose("masks_from", masks_from, FROM)
    editor = Editor(pipe, preset, method, seed, negative_prompt, masks_from, interventions, keep_pixels, call or {})
    with _editable(pipe, method):
        prepared = [editor.prepare(*one, size) for one in zip(images, each, captions, strict=True)]
        groups = drawn_together(prepared, batch if method.together else 1)
        batches = [editor.batch([prepared[i] for i in group]) for group in groups]
        done: dict[int, Edited] = {i: editor.untouched(one) for i, one in enumerate(prepared) if not one.edits}
        notes = [one.notes for one in done.values()] + [of_image for one in batches for of_image in one.notes]
        for note in (note for of_image in notes for note in of_image):
            warnings.warn(note, stacklevel=2)
        for group, one_batch in zip(groups, batches, strict=True):
            done |= zip(group, editor.draw(one_batch), strict=True)
    for one in done.values():
        one.model = model
        if judge is not None:
            add_checks(one, judge)
    return [done[i] for i in range(len(images))] if several else done[0]


@contextlib.contextmanager
def _editable(pipe: Any, method: Method) -> Iterator[None]:
    """The pipeline as an edit needs it, and as it was afterwards.

    A UNet that was distilled to take the guidance scale as an embedding (LCM) is guided by rows instead; its embedding
    is then left out, which such a UNet allows. ALE's release runs it so.

    Raises UnsupportedModel for a pipeline whose noise no edit can follow, or this method cannot.
    """
    noise = FLOW if is_flow(pipe.scheduler) else ALPHAS
    if noise not in method.noise:
        able = ", ".join(name for name, preset in EDITORS.items() if noise in preset.method.noise)
        raise UnsupportedModel(
            f"{type(pipe).__name__} has noise levels by {noise}, and this method knows those by "
            f"{' and '.join(method.noise)}: take {able}"
        )
    denoiser: Any = eager(Anatomy.of(pipe).denoiser)
    own = denoiser.config.get("time_cond_proj_dim")
    with followed(pipe, method.steps, reversible=method.inverts, skipped=method.skipped):
        try:
            if own is not None:
                denoiser.register_to_config(time_cond_proj_dim=None)
            yield
        finally:
            if own is not None:
                denoiser.register_to_config(time_cond_proj_dim=own)

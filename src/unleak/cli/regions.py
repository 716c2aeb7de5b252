"""Leaks between regions: edit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import err, ticking
from unleak.cli.options import CALL, MODEL, OUTPUT, PresetName, Prompt, Seed, Settings
from unleak.files.outputs import Reads, behind_at, model_files

MASKS_FROM = """Folder or hub id of what finds masks that are not given: a model that segments by text (CLIPSeg), or,
given twice, a detector (Grounding DINO) and then a segmenter (SAM). "own", the default: the model itself;
"attention": by its attention alone."""


@command(
    *MODEL, *CALL, "judge", *OUTPUT, name="edit", presets="unleak.regions.presets:EDITORS",
    old={f"--{name}": f"--set {name.replace('-', '_')}={{}}" for name in ("dilation", "self-replace")},
    files=("before*.png", "after*.png", "mask*.png"),
)  # fmt: skip
def edit_image(
    cmd: Command,
    image: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG ..."), Reads("picture")],
    edits: Annotated[
        list[str],
        typer.Option("--edit", help="SRC=TGT or SRC=TGT@MASK.png; once for each object."),
        Reads("mask of {}", behind_at),
    ],
    prompt: Annotated[str | None, typer.Option(help="Caption that names every SRC; default: they joined.")] = None,
    preset: PresetName = "ale",
    settings: Settings = None,
    seed: Seed = 0,
    masks_from: Annotated[list[str] | None, typer.Option(help=MASKS_FROM), Reads("masker", model_files)] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt of the target.")] = None,
    keep_pixels: Annotated[
        bool, typer.Option("--keep-pixels", help="Lay the edit into the photo: its own pixels outside the masks.")
    ] = False,
) -> None:
    """Turn objects of an image into others and change nothing else."""
    from unleak.regions.plan import Edit, plan

    named = [Edit.parse(text) for text in edits]
    plan(named, prompt)
    size = cmd.pixels
    from unleak import models
    from unleak.regions import presets

    given = {"steps": cmd.steps, "target_guidance": cmd.guidance}
    editor = presets.EDITORS[preset]
    options = {k: v for k, v in given.items() if v is not None} | editor.parse(settings or ())
    editor.make(**options)
    options = {**presets.recommended(preset, models.edit_settings(cmd.model)), **options}
    from unleak.files import pictures

    picture = pictures.photo(image)
    masks = [one.mask and pictures.mask(one.mask, f"the mask of {one.source!r}") for one in named]
    named = [replace(one, mask=mask) for one, mask in zip(named, masks, strict=True)]
    from unleak.regions.masks.own_masks import FROM

    masker: Any = masks_from[0] if masks_from and masks_from[0] in FROM else FROM[0]
    if masks_from and masks_from != [masker]:
        from unleak.regions.masks.text_masks import load_masker

        with err.status("loading the masker"):
            masker = load_masker(*masks_from)
    pipe = cmd.open()
    from unleak.regions.check import add_checks
    from unleak.regions.edit import edit

    with err.status("editing"):
        result = edit(pipe, picture, named, preset=preset, seed=seed, source_prompt=prompt,
                      negative_prompt=negative, size=size, masks_from=masker, model=cmd.model, keep_pixels=keep_pixels,
                      call=models.settings(cmd.model), **options)  # fmt: skip
    judge = cmd.judge_of(result.image.shape[:2])
    if judge is not None:
        add_checks(result, judge)
    cmd.show(result, cmd.folder / ("full.png" if keep_pixels else "after.png"))


@command(*MODEL, "seeds", *CALL, *OUTPUT, name="regions")
def draw_regions(
    cmd: Command,
    prompt: Prompt,
    region: Annotated[
        list[str],
        typer.Option(help="PHRASE@MASK.png or PHRASE@x0,y0,x1,y1 in shares of the image; once for each."),
        Reads("mask of {}", behind_at),
    ],
) -> None:
    """Draw a prompt whose phrases act in their own regions: --region "red car@0,0,0.5,1" --region "dog@mask.png"."""
    from unleak.regions.regional import RegionPrompt, regions

    where = [RegionPrompt.parse(text) for text in region]
    from unleak.files import pictures

    read = [pictures.mask(one.where, f"the mask of {one.phrase!r}") if not one.is_box else one.where for one in where]
    where = [replace(one, where=mask) for one, mask in zip(where, read, strict=True)]
    seeds, call, pipe = cmd.numbers, cmd.call, cmd.open()
    with ticking("drawing", len(seeds)) as tick:
        result = regions(pipe, prompt, where, seeds=seeds, model=cmd.model, call=call, progress=tick)
    cmd.show(result)

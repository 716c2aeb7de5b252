"""Leaks between regions: edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unleak.cli.console import check_outputs, emit, err, errors, judge_for, open_model, say
from unleak.cli.options import (
    Folder,
    Guidance,
    HtmlFile,
    JsonFile,
    Model,
    Size,
    Steps,
    app,
)
from unleak.errors import BadInput

METHODS = "ale, ale-official; to compare: infedit, p2p, masactrl, pnp, ddim, direct, null-text"

MASKS_FROM = """Folder or hub id of what finds masks that are not given: a model that segments by text (CLIPSeg), or,
given twice, a detector (Grounding DINO) and then a segmenter (SAM). "own", the default: the model itself;
"attention": by its attention alone."""


@app.command("edit")
def edit_image(
    image: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG ...")],
    edits: Annotated[list[str], typer.Option("--edit", help="SRC=TGT or SRC=TGT@MASK.png; once for each object.")],
    prompt: Annotated[str | None, typer.Option(help="Caption that names every SRC; default: they joined.")] = None,
    preset: Annotated[str, typer.Option(help=f"The method: {METHODS}.")] = "ale",
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A parameter of the method; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all noise.")] = 0,
    dilation: Annotated[float | None, typer.Option(help="Widen the masks, as a fraction of the height.")] = None,
    self_replace: Annotated[float | None, typer.Option(help="Share of steps that keep the layout, 0..1.")] = None,
    masks_from: Annotated[list[str] | None, typer.Option(help=MASKS_FROM)] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt of the target.")] = None,
    model: Model = "emoji-sd",
    out: Folder = Path("out"),
    json_file: JsonFile = None,
    html: HtmlFile = None,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Size = None,
    width: Size = None,
) -> None:
    """Turn objects of an image into others and change nothing else."""
    with errors():
        from unleak.regions.plan import Edit, plan

        named = [Edit.parse(text) for text in edits]
        plan(named, prompt)
        if (height is None) != (width is None):
            raise BadInput("only one of --height and --width is given: give both")
        folder = check_outputs(out, json_file, html)
        from unleak.models import edit_settings
        from unleak.regions import presets

        given = {"steps": steps, "target_guidance": guidance, "dilation": dilation, "self_replace": self_replace}
        editor = presets.EDITORS[preset]
        options: dict[str, Any] = {k: v for k, v in given.items() if v is not None} | editor.parse(settings or [])
        editor.make(**options)
        options = {**presets.recommended(preset, edit_settings(model)), **options}
        from unleak.drawing import photo

        picture = photo.read(image)
        from unleak.regions.masks.own_masks import FROM

        masker: Any = masks_from[0] if masks_from and masks_from[0] in FROM else FROM[0]
        if masks_from and masks_from != [masker]:
            from unleak.regions.masks.text_masks import load_masker

            with err.status("loading the masker"):
                masker = load_masker(*masks_from)
        pipe = open_model(model)
        from unleak.regions.check import add_checks
        from unleak.regions.edit import edit

        size = None if height is None or width is None else (height, width)
        with err.status("editing"):
            result = edit(pipe, picture, named, preset=preset, seed=seed, source_prompt=prompt,
                          negative_prompt=negative, size=size, masks_from=masker, model=model, **options)  # fmt: skip
        judge = judge_for(model, result.image.shape[:2])
        if judge is not None:
            add_checks(result, judge)
        result.save(f"{folder}/")
        data = result.to_dict()
        emit(data, json_file)
        if html:
            result.save(html)
        if result.notes and result.notes[-1].startswith("not judged"):
            say("note", result.notes[-1])
        if json_file != "-":
            for i, one in enumerate(result.edits):
                checks = result.checks
                said = "not judged" if checks is None else "is there" if checks[i].target_after else "is not there"
                print(one.source, one.target, said, sep="\t")
            kept = data["background_psnr"]["rebuilt"]
            print("background", "none" if kept is None else kept if kept == "inf" else f"{kept:.1f} dB", sep="\t")
            print(folder / "after.png")

"""`unleak audit`: does a training image come back, whatever a mitigation does?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unleak.cli.command import Command, command
from unleak.cli.console import number, ticking
from unleak.cli.options import CALL, MODEL, OUTPUT, Seed, Settings, SomePreset
from unleak.errors import BadInput, UnsupportedModel
from unleak.files.outputs import Reads


@command(*MODEL, "seeds", *CALL, "fail_over", *OUTPUT, presets="unleak.copies.presets:MITIGATIONS")
def audit(
    cmd: Command,
    image: Annotated[Path, typer.Argument(help="The picture: PNG, JPEG ..."), Reads("picture")],
    preset: SomePreset = None,
    settings: Settings = None,
    start: Annotated[
        str | None, typer.Option(help="The prompt whose rows the attack begins with; default: noise.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Runs of the pipeline in an attack.")] = 10,
    rate: Annotated[float, typer.Option(help="Learning rate of the attack.")] = 0.1,
    batch: Annotated[int, typer.Option(min=1, help="Images in a run of the attack.")] = 4,
    seed: Seed = 0,
) -> None:
    """Attack the text rows until an image of the training comes back, and draw from what was found.

    On the bare model and, with --preset, under a mitigation. Attack an image that training did not repeat as a control.
    What --fail-over compares is the PSNR in dB to the image; `threshold` is that from which an image counts as a copy.
    """
    limit = None if cmd.fail_over in (None, "threshold") else number(str(cmd.fail_over), "--fail-over")
    from unleak.copies.presets import MITIGATIONS
    from unleak.drawing import photo
    from unleak.files import pictures

    if preset is None and settings:
        raise BadInput("--set is of a mitigation: name one with --preset")
    methods = {"bare": None}
    if preset is not None:
        methods[preset] = MITIGATIONS[preset].make(**MITIGATIONS[preset].parse(settings or ()))
    picture, seeds, call, pipe = pictures.photo(image), cmd.numbers, cmd.call, cmd.open()
    import numpy as np

    from unleak.copies.audit import audit as examine
    from unleak.drawing.generate import image_size
    from unleak.judges.copies import PixelJudge

    size = image_size(pipe, call)
    if size is None:
        raise UnsupportedModel(f"{cmd.model!r} does not tell the size of its images: give --size")
    pixels = np.asarray(photo.resized(picture, size))
    with ticking("attacking", rounds * len(methods)) as tick:
        result = examine(pipe, pixels, methods, PixelJudge(pixels[None]), seeds=seeds, call=call, start=start,
                         rounds=rounds, lr=rate, batch=batch, seed=seed, progress=tick)  # fmt: skip
    cmd.show(result)
    if cmd.fail_over is not None:
        limit = result.copy_from if limit is None else limit
        if any((outcome.similarity >= limit).any() for outcome in result):
            raise typer.Exit(3)

"""`Drawing`: what all images of a study share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from unleak.core.intervention import Intervention
from unleak.drawing.drawing import Drawing
from unleak.drawing.generate import generate
from unleak.errors import BadInput

SMALL = {"num_inference_steps": 1, "height": 32, "width": 32}


@dataclass(frozen=True)
class Halved(Intervention):
    def on_latents(self, ctx, latents):
        return latents / 2


def test_images_are_those_of_attach_and_generate_and_the_log_grows(sd1):
    told = []
    drawing = Drawing(sd1, "0:2", SMALL, progress=told.append)
    plain, changed = drawing.images("a cat"), drawing.images("a cat", Halved())
    assert np.array_equal(plain, generate(sd1, "a cat", range(2), **SMALL)[0])
    assert not np.array_equal(changed, plain) and np.array_equal(drawing.images("a cat", seeds=[1])[0], plain[1])
    drawing.images("a cat", Halved())
    assert len(drawing.log) == 2 and drawing.run.log[0]["denoiser_rows"] and sum(told) == 7
    drawing.skip(2)
    assert sum(told) == 9 and drawing.present(plain, []) is None


def test_what_cannot_be_drawn_is_refused_early(sd1):
    with pytest.raises(BadInput, match="seeds"):
        Drawing(sd1, "4:0")
    with pytest.raises(BadInput, match="takes no"):
        Drawing(sd1, 2, {"colour": 3}).rehearse("a cat")

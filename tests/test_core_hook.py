"""`unleak.hook`: functions at the seams do what a class with these seams does, and what is wrong says so."""

from __future__ import annotations

import pytest
import torch

import unleak
from tiny import draw, tiny
from unleak.core.intervention import Window
from unleak.errors import BadInput, EmptyWindow, NoSite


@pytest.fixture(scope="module")
def pipe():
    return tiny("sd1")


def test_functions_at_every_seam_are_asked(pipe):
    asked = set()

    def seam(name, answer=None):
        return lambda ctx, *given: (asked.add(name), answer)[1]

    seams = ("on_text", "branches", "on_attention", "on_module", "on_prediction", "on_latents")
    bare = draw(pipe)
    with unleak.attach(pipe, unleak.hook(modules=["mid_block"], **{name: seam(name) for name in seams})):
        assert torch.equal(draw(pipe), bare)
    assert asked == set(seams)


def test_a_function_is_the_class_with_that_seam(pipe):
    class Boost(unleak.Intervention):
        def on_attention(self, ctx, site):
            return None if site.kind == "self" else unleak.KeyScale([2], 4.0)

    window, sites = Window(0, 0.5), "down_blocks.*"
    drawn = []
    for item in (
        Boost(window=window, sites=sites),
        unleak.hook(on_attention=lambda ctx, site: Boost().on_attention(ctx, site), window=window, sites=sites),
    ):
        with unleak.attach(pipe, item) as run:
            drawn.append(draw(pipe))
        assert run.log[0]["edits"]
    assert torch.equal(*drawn) and not torch.equal(drawn[0], draw(pipe))


def test_outputs_of_modules_may_be_replaced(pipe):
    with unleak.attach(
        pipe, unleak.hook(modules=["conv_out"], on_module=lambda ctx, name, output: output * 0.0)
    ) as run:
        draw(pipe, steps=2)
    assert run.log[0]["edits"] == {"0.Hook": {"on_module": {"conv_out": 2}}}


def test_what_is_wrong_says_so(pipe):
    with pytest.raises(BadInput, match="did you mean 'on_attention'"):
        unleak.hook(on_attenton=print)
    with pytest.raises(BadInput, match="on_text is a str"):
        unleak.hook(on_text="a cat")
    for half in ({"on_module": print}, {"modules": ["conv_out"]}):
        with pytest.raises(BadInput, match="belong together"):
            unleak.hook(**half)
    with pytest.raises(NoSite, match="nowhere"):
        unleak.attach(pipe, unleak.hook(modules=["nowhere"], on_module=print))
    with pytest.raises(NoSite):
        unleak.attach(pipe, unleak.hook(on_attention=print, sites="nowhere"))
    with pytest.raises(BadInput, match="cannot be saved"):
        unleak.hook(on_text=print).to_dict()
    late = unleak.hook(on_latents=lambda ctx, latents: None, window=Window(0.4, 0.45))
    with unleak.attach(pipe, late), pytest.raises(EmptyWindow):
        draw(pipe)

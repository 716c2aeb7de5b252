"""Maps of items: what they are, on every layout; that looking changes nothing; pictures of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from reference import full_map
from tiny import draw
from unleak.core.intervention import Intervention
from unleak.engine.session import attach
from unleak.errors import BadInput, ItemNotFound, NoSite
from unleak.report.maps import item_sheet, overlay
from unleak.words.methods.maps import Maps

PROMPT = "a red mouse and a laptop"
ITEMS = "red mouse,laptop"


@dataclass(frozen=True)
class Everything(Intervention):
    """The whole map of every site that reads text: the expensive way to the same numbers."""

    def on_attention(self, ctx, site):
        if site.kind != "self":
            full = full_map(site, "cond").mean(1)[:, site.layout.image_queries, site.layout.text_keys]
            ctx.results.setdefault("full", []).append(full.unflatten(1, site.grid))


def maps_of(pipe, *more, prompt=PROMPT, items=ITEMS, **kwargs):
    with attach(pipe, Maps(items), *more) as run:
        latents = draw(pipe, prompt, **kwargs)
    return run.results["maps"][0], latents, run


def rows_of(tokenizer, prompt, word, start=0):
    """Denoiser rows of a word that is the last in the prompt, by the tokenizer alone."""
    before = len(tokenizer(prompt[: -len(word)].rstrip(), add_special_tokens=False).input_ids)
    every = len(tokenizer(prompt, add_special_tokens=False).input_ids)
    bos = int(tokenizer.bos_token_id is not None and tokenizer("a").input_ids[0] == tokenizer.bos_token_id)
    return range(start + bos + before, start + bos + every)


def test_looking_changes_nothing(any_pipe):
    bare = draw(any_pipe, PROMPT)
    _, latents, _ = maps_of(any_pipe)
    assert torch.equal(latents, bare)
    assert torch.equal(draw(any_pipe, PROMPT), bare)


def test_a_map_is_the_mean_of_the_items_columns_in_the_whole_map(any_pipe):
    maps, _, run = maps_of(any_pipe, Everything(), steps=2, size=(64, 64))
    starts = {name: run.encoded.columns(name).start for name in maps.encoders}
    parts = {encoder.name: encoder for encoder in run.anatomy.encoders}
    full, finest = run.results["full"], max((part.shape[1:3] for part in run.results["full"]), key=np.prod)
    for name in maps.encoders:
        own = list(rows_of(parts[name].tokenizer, PROMPT, "laptop", starts[name]))
        planes = [part[:, :, :, own].mean(-1) for part in full]
        big = [torch.nn.functional.interpolate(p[:, None], finest, mode="bilinear")[0, 0] for p in planes]
        found = maps.map("laptop", encoder=name)
        assert found.shape == finest
        assert (found - torch.stack(big).mean(0)).abs().max() < 1e-6


def test_encoders_that_reach_the_denoiser(any_pipe):
    """SD3's appended T5 stands behind both CLIPs; FLUX has no CLIP rows; the map is the mean over encoders."""
    maps, _, _ = maps_of(any_pipe)
    parts = torch.stack([maps.map("laptop", encoder=name) for name in maps.encoders])
    assert (maps.map("laptop") - parts.mean(0)).abs().max() < 1e-6
    layouts = {"text_encoder"}, {"text_encoder", "text_encoder_2"}, {"text_encoder_2"}
    assert set(maps.encoders) in (*layouts, {"text_encoder", "text_encoder_2", "text_encoder_3"})


@pytest.mark.parametrize("size", [(64, 96), (128, 64)])
def test_maps_have_the_shape_of_the_image(any_pipe, size):
    maps, _, _ = maps_of(any_pipe, size=size, steps=1)
    found = maps.map("laptop")
    assert found.shape[0] * size[1] == found.shape[1] * size[0]
    assert found.shape == maps.heat(0).shape and maps.heat(0).max() == 1


def test_a_batch_of_prompts_is_its_singles(any_pipe):
    prompts = [PROMPT, "a laptop and a red mouse"]
    together, _, _ = maps_of(any_pipe, prompt=prompts, seeds=(3, 4), steps=2, size=(64, 96))
    for n, (prompt, seed) in enumerate(zip(prompts, (3, 4), strict=True)):
        single, _, _ = maps_of(any_pipe, prompt=prompt, seeds=(seed,), steps=2, size=(64, 96))
        for item in together.items:
            assert (together.map(item, n) - single.map(item)).abs().max() < 1e-5
    assert (together.map("laptop", 0) - together.map("laptop", 1)).abs().max() > 1e-4


def test_images_per_prompt(any_pipe):
    maps, _, _ = maps_of(any_pipe, seeds=(0, 1), num_images_per_prompt=2, steps=1)
    assert maps.prompts == (PROMPT, PROMPT)
    single, _, _ = maps_of(any_pipe, seeds=(1,), steps=1)
    assert (maps.map("laptop", 1) - single.map("laptop")).abs().max() < 1e-5


def test_each_generation_has_its_own(sd1):
    with attach(sd1, Maps("laptop")) as run:
        draw(sd1, PROMPT, steps=1)
        draw(sd1, PROMPT, steps=1, seeds=(1,))
    one, two = run.results["maps"]
    assert not torch.equal(one.map("laptop"), two.map("laptop"))


def test_errors_say_what_is_wrong(sd1):
    with pytest.raises(NoSite, match="reads text"), attach(sd1, Maps("laptop", sites="*attn1")):
        draw(sd1, PROMPT, steps=1)
    with pytest.raises(ItemNotFound), attach(sd1, Maps("laptop")):
        draw(sd1, ["a laptop", "a mouse"], seeds=(0, 1), steps=1)
    maps, _, _ = maps_of(sd1, steps=1)
    for wrong in ({"item": "cat"}, {"item": 0, "image": 1}, {"item": 0, "encoder": "text_encoder_2"}):
        with pytest.raises(BadInput, match="there are"):
            maps.map(**wrong)
    with pytest.raises(BadInput, match="twice"):
        Maps(["laptop", "laptop"])


def test_maps_survive_json():
    assert Intervention.from_dict(Maps("a#2=b,c").to_dict()) == Maps(["a#2=b", "c"])


def test_an_overlay_is_bright_where_the_heat_is():
    grey = np.full((32, 48, 3), 128, np.uint8)
    heat = np.zeros((2, 3))
    heat[0, 2] = 1
    made = overlay(grey, heat)
    assert made.shape == grey.shape and made.dtype == np.uint8
    assert made[2, 45].mean() > grey.mean() > made[28, 2].mean()
    with pytest.raises(BadInput, match=r"0\.\.1"):
        overlay(grey, heat * 2)


def test_a_sheet_has_a_row_for_each_item(sd1):
    maps, _, _ = maps_of(sd1, seeds=(0, 1), prompt=[PROMPT] * 2, steps=1, size=(64, 96))
    picture = np.zeros((64, 96, 3), np.uint8)
    assert item_sheet(maps, [picture] * 2, side=96).height > 3 * 64
    with pytest.raises(BadInput, match="1 images"):
        item_sheet(maps, [picture])


@pytest.mark.e2e
def test_a_map_is_hottest_where_the_item_is_drawn():
    """On the embedded model the judge says where each object stands (its corner in cells; it covers 4 x 4)."""
    from unleak.drawing.generate import generate
    from unleak.judges.glyphs import glyph_judge
    from unleak.models import load
    from unleak.world import load as load_world

    pipe, mouse = load("emoji-sd"), load_world().polysemes["mouse"]
    with attach(pipe, Maps("mouse")) as run:
        images = generate(pipe, "a mouse and a laptop", range(4), num_inference_steps=10)[0]
    inside, total = 0.0, 0
    for n, reading in enumerate(glyph_judge().read(images)):
        heat = run.results["maps"][0].heat("mouse", n)
        for one in (f for f in reading.found if f.glyph in (mouse.default, mouse.other)):
            box = torch.zeros(8, 8, dtype=torch.bool)
            box[one.y : one.y + 4, one.x : one.x + 4] = True
            inside, total = inside + float(heat[box].mean() > 1.5 * heat[~box].mean()), total + 1
    assert total >= 2 and inside / total >= 0.75

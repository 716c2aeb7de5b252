"""Regions where text and image attend jointly: who reads what, at which cost, and what the rows hold."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

import unleak
from reference import dense
from tiny import draw, tiny
from unleak.core.intervention import Intervention
from unleak.engine.execute import execute
from unleak.engine.session import attach
from unleak.errors import EmptyMask, UnsupportedModel
from unleak.regions.masks.masks import owned_tokens, partition
from unleak.regions.methods.ore import ORE
from unleak.regions.methods.p2p import P2P
from unleak.regions.methods.rgbcam import RGBCAM
from unleak.regions.methods.slots import text_rows
from unleak.regions.regional import RegionPrompt
from unleak.text.positions import first_encoder, readable

SIZE, GRID = (64, 96), (4, 6)
PROMPT, OBJECTS = "a red cup and a big dog", ("red cup", "big dog")


@pytest.fixture(scope="module", params=["sd3", "flux"])
def pipe(request):
    return tiny(request.param)


def boxes():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 8:40, 8:40] = masks[1, 24:56, 48:88] = True
    return masks


@dataclass(frozen=True)
class Seen(Intervention):
    """Hands a part's edits at every joint site to `look`, and carries out none."""

    part: RGBCAM = None
    look: object = None

    def on_attention(self, ctx, site):
        edits = self.part.on_attention(ctx, site)
        if site.kind == "joint":
            self.look(ctx, site, edits)


def doubled(site):
    return replace(site, q=site.q.double(), k=site.k.double(), v=site.v.double())


def kernel(q, k, v, mask):
    return scaled_dot_product_attention(q, k, v, mask)


def may_read(site, texts, cells):
    """The table of `joint`, written down as a map [N, N] of who may read whom."""
    n, rows, image = site.q.shape[2], site.layout.text_keys.start, site.layout.image_keys.start
    allowed = torch.ones(n, n, dtype=torch.bool)
    for own, inside in zip(texts, cells, strict=True):
        text = [rows + i for i in own]
        inner = [image + i for i in torch.nonzero(inside.flatten()).flatten().tolist()]
        outer = [i for i in range(image, image + inside.numel()) if i not in inner]
        readers = [i for i in range(n) if i not in text and i not in inner]
        for i in readers:
            allowed[i, text] = False
        for i in text:
            allowed[i, outer] = False
    return allowed


def test_the_parts_are_the_dense_map_at_every_joint_site(pipe):
    part, checked = RGBCAM(OBJECTS, boxes()), set()

    def look(ctx, site, edits):
        call, rows = doubled(site), list(site.rows.of("cond"))
        assert rows and site.grid == GRID
        out = execute(call, edits, kernel)
        assert torch.allclose(out, dense(call, edits), atol=1e-12, rtol=0)
        cells = owned_tokens(partition(boxes()), GRID)
        allowed = may_read(call, text_rows(ctx.encoded, PROMPT, OBJECTS), cells)
        logits = (call.scale * call.q @ call.k.mT).masked_fill(~allowed, float("-inf"))
        expected = torch.softmax(logits, -1) @ call.v
        assert torch.allclose(out[rows], expected[rows], atol=1e-12, rtol=0)
        others = [i for i in range(len(out)) if i not in rows]
        assert torch.allclose(out[others], kernel(call.q, call.k, call.v, None)[others], atol=1e-12, rtol=0)
        checked.add(site.name)

    with attach(pipe, Seen(part=part, look=look)) as run:
        draw(pipe, PROMPT, steps=1, size=SIZE)
        joint = [site.name for site in run.anatomy.sites if site.name in checked]
    expected = 4 if len(pipe.components) and hasattr(pipe, "_pack_latents") else 2
    assert len(joint) == len(checked) >= expected


class Shapes(TorchFunctionMode):
    """Every shape that a torch function gives back, and every mask of attention."""

    def __init__(self):
        super().__init__()
        self.shapes, self.masks = set(), []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is scaled_dot_product_attention:
            self.masks.append((kwargs or {}).get("attn_mask"))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, torch.Tensor):
                self.shapes.add(tuple(one.shape))
        return out


def test_nothing_of_the_size_of_the_map_is_made():
    pipe = tiny("flux")
    cells, keys = 24, 24 + 32
    with Shapes() as seen, attach(pipe, RGBCAM(OBJECTS, boxes())) as run:
        draw(pipe, PROMPT, steps=1, size=SIZE)
    assert run.log[-1]["edits"]["0.RGBCAM"]["Bias"].keys() == {site.name for site in run.anatomy.sites}
    maps = [shape for shape in seen.shapes if len(shape) > 1 and {*shape[-2:]} <= {cells, keys}]
    assert not maps
    assert not [mask for mask in seen.masks if mask is not None and mask.shape[-1] > 32]  # 32: within the T5


def test_other_words_change_nothing_in_a_region(pipe):
    part = RGBCAM(OBJECTS, boxes())

    def look(ctx, site, edits):
        call, (one, two) = doubled(site), text_rows(ctx.encoded, PROMPT, OBJECTS)
        changed = replace(call, v=call.v.clone())
        changed.v[:, :, [site.layout.text_keys.start + i for i in two]] += 1.0
        before, after = (execute(c, edits, kernel) for c in (call, changed))
        row = site.rows.of("cond")[0]
        cells = owned_tokens(partition(boxes()), GRID).flatten(1)
        picture = (after - before)[row][:, site.layout.image_queries].abs().amax((0, 2))
        words = (after - before)[row][:, site.layout.text_queries].abs().amax((0, 2))
        assert not picture[~cells[1]].any() and picture[cells[1]].all() and not words[one].any() and words[two].all()

    with attach(pipe, Seen(part=part, look=look)):
        draw(pipe, PROMPT, steps=1, size=SIZE)


@dataclass(frozen=True)
class Rows(Intervention):
    def on_text(self, ctx, call):
        others = call.rerun(["a red cup and a thing", "a thing and a big dog", "a thing and a thing", PROMPT])
        ctx.results.setdefault("rows", {})[call.name] = call.output.last_hidden_state, others.last_hidden_state


@pytest.mark.parametrize(
    ("part", "rest"), [(RGBCAM(OBJECTS, boxes(), rest="neutral"), 2), (ORE(OBJECTS), 3)], ids=["regions", "ore"]
)
def test_rows_of_an_object_know_of_no_other_object(part, rest):
    """Of FLUX's T5: each object's rows beside a thing; the rows of no object among things alone, or the prompt's."""
    pipe = tiny("flux")
    with attach(pipe, part, Rows()) as run:
        draw(pipe, PROMPT, steps=1, size=SIZE)
        spans = text_rows(run.encoded, PROMPT, OBJECTS)
    rows, others = run.results["rows"]["text_encoder_2"]
    assert torch.equal(rows[0, spans[0]], others[0][spans[0]])
    ends = [[len(others[0]) - 1, -1], [0, 0]]
    assert torch.equal(rows[0, ends[0]], others[rest][ends[0]]) and torch.equal(rows[0, 0], others[rest][0])
    assert not torch.equal(rows[0, spans[1]], others[3][spans[1]])


def test_regional_prompts_are_drawn_and_act_everywhere(pipe):
    call = {"height": SIZE[0], "width": SIZE[1], "num_inference_steps": 2, "max_sequence_length": 32}
    where = [RegionPrompt("red cup", (0, 0, 0.5, 1)), RegionPrompt("big dog", (0.5, 0, 1, 1))]
    left = unleak.regions(pipe, PROMPT, where, seeds=1, call=call)
    where = [RegionPrompt("red cup", (0.5, 0, 1, 1)), RegionPrompt("big dog", (0, 0, 0.5, 1))]
    right = unleak.regions(pipe, PROMPT, where, seeds=1, call=call)
    assert (left.images != right.images).any()


def test_prompt_to_prompt_gives_the_picture_the_sources_keys(pipe):
    """Of equal prompts, with everything injected, the picture of the target attends as the source's does."""
    part = P2P((PROMPT, PROMPT), cross_steps=1.0, self_steps=1.0)

    @dataclass(frozen=True)
    class Look(Intervention):
        def on_attention(self, ctx, site):
            if site.kind != "joint":
                return
            call, edits = doubled(site), part.on_attention(ctx, site)
            out = execute(call, edits, kernel)
            s, t = (list(site.rows.of("cond"))[i] for i in (0, 1))
            image, first = site.layout.image_queries, first_encoder(ctx.encoded)
            others = call.k.clone()
            columns = readable(ctx.encoded)[first.name]
            keys = slice(site.layout.text_keys.start + columns.start, site.layout.text_keys.start + columns.stop)
            others[t, :, keys], others[t, :, site.layout.image_keys] = (
                call.k[s, :, keys], call.k[s, :, site.layout.image_keys],
            )  # fmt: skip
            expected = kernel(call.q[s : s + 1], others[t : t + 1], call.v[t : t + 1], None)[0]
            assert torch.allclose(out[t][:, image], expected[:, image], atol=1e-6)
            text, plain = site.layout.text_queries, kernel(call.q, call.k, call.v, None)
            assert torch.allclose(out[t][:, text], plain[t][:, text], atol=1e-12)
            ctx.results["seen"] = True

    with attach(pipe, Look()) as run:
        draw(pipe, [PROMPT, PROMPT], seeds=(0, 1), steps=1, size=SIZE)
    assert run.results["seen"]


def test_prompts_of_a_batch_have_their_own_regions(pipe):
    prompts = [PROMPT, "a cat and a car"]
    masks = torch.stack([boxes(), boxes().flip(2)])
    part = RGBCAM([OBJECTS, ("cat", "car")], masks)
    with attach(pipe, part):
        both = draw(pipe, prompts, seeds=(0, 1), size=SIZE, steps=2)
    with attach(pipe, RGBCAM(("cat", "car"), masks[1])):
        alone = draw(pipe, prompts[1], seeds=(1,), size=SIZE, steps=2)
    assert torch.allclose(both[1], alone[0], atol=1e-4)


def test_what_only_cross_attention_knows_is_refused(pipe):
    with pytest.raises(UnsupportedModel, match="leave them out"), attach(pipe, RGBCAM(OBJECTS, boxes(), find="first")):
        draw(pipe, PROMPT, steps=1, size=SIZE)


def test_a_token_belongs_to_who_holds_most_of_it():
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[0, :4, :3], masks[1, :4, 3:] = True, True
    owned = owned_tokens(partition(masks), (2, 4))
    assert owned[0].tolist() == [[True, True, False, False], [False] * 4]
    assert owned[1].tolist() == [[False, False, True, True], [False] * 4]
    masks[0] = False
    masks[0, 0, 0] = True
    assert owned_tokens(partition(masks, "order"), (2, 4))[0].tolist() == [[True, False, False, False], [False] * 4]
    masks[1] = True
    with pytest.raises(EmptyMask, match="mask 1 of 2"):
        owned_tokens(partition(masks), (2, 4))


def test_every_encoder_is_rewritten():
    pipe = tiny("sd3")
    with attach(pipe, RGBCAM(OBJECTS, boxes(), rest="neutral"), Rows()) as run:
        draw(pipe, PROMPT, steps=1, size=SIZE)
    assert {by["encoder"] for by in run.log[-1]["text"]} == {"text_encoder", "text_encoder_2", "text_encoder_3"}

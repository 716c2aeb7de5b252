"""Published baselines: each against its equation written out, on the layouts where it applies."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from reference import MapEdit, full_map
from tiny import draw, tiny
from unleak.core.intervention import Intervention
from unleak.engine.session import attach
from unleak.errors import BadInput, UnsupportedModel
from unleak.words.methods.boost import Boost
from unleak.words.methods.cutoff import Cutoff, slerp
from unleak.words.methods.maps import Maps
from unleak.words.methods.patch import Patch
from unleak.words.methods.structure import StructureDiffusion
from unleak.words.methods.tebopt import TEBOpt, loss

pytestmark = pytest.mark.usefixtures("map_edits")

PROMPT = "a red mouse and a laptop"
ITEMS = ("red mouse", "laptop")
UNETS = ("sd1", "sd2", "sdxl")


def far(a, b):
    return (a - b).abs().max().item()


def span(tokenizer, text, word):
    """Half-open rows of a word in a text, by the tokenizer alone."""
    start = text.index(word)
    before, until = (len(tokenizer(part).input_ids) - 1 for part in (text[:start].rstrip(), text[: start + len(word)]))
    return before, until


@dataclass(frozen=True)
class Written(Intervention):
    """``1/k sum_j softmax(Q K_P^T) V_j``, term by term; `texts` are the k whole texts that V_j are made of."""

    texts: tuple

    def on_attention(self, ctx, site):
        if site.kind == "self":
            return None
        rows = list(site.rows.of("cond"))
        values = [site.encode(text)[1] for text in self.texts]

        def change(weights):
            terms = torch.stack([weights[rows] @ v for v in values]).mean(0)
            ctx.results.setdefault("terms", {})[ctx.step, site.name] = terms
            return weights

        return MapEdit(change)


@dataclass(frozen=True)
class Spy(Intervention):
    """The output that StructureDiffusion's edit gives at every site: its map times its values."""

    method: StructureDiffusion

    def on_attention(self, ctx, site):
        if site.kind == "self":
            return None
        edit = self.method.on_attention(ctx, site)
        rows = list(site.rows.of("cond"))
        ctx.results.setdefault("outputs", {})[ctx.step, site.name] = full_map(site, "cond") @ edit.values
        assert len(edit.values) == len(rows)


@pytest.mark.parametrize("name", UNETS)
def test_structure_is_the_mean_of_its_terms(name):
    pipe = tiny(name)
    with attach(pipe, Maps(ITEMS)) as run:
        draw(pipe, PROMPT, steps=1)
    encoded, tokenizer = run.encoded, pipe.tokenizer
    with attach(pipe, Maps("laptop")) as alone:
        draw(pipe, "a laptop", steps=1)
    with attach(pipe, Maps("red mouse")) as other:
        draw(pipe, "a red mouse", steps=1)
    texts = []
    for word, source in (("red mouse", other), ("laptop", alone)):
        text = encoded.cond[0].clone()
        (a, b), (c, d) = span(tokenizer, PROMPT, word), span(tokenizer, "a " + word, word)
        text[a:b] = source.prompts.encoded.cond[0, c:d]
        texts.append(text)
    with attach(pipe, Spy(StructureDiffusion(ITEMS)), Written(tuple(texts))) as run:
        draw(pipe, PROMPT, steps=1)
    assert len(run.results["terms"]) > 3
    for key, terms in run.results["terms"].items():
        assert far(terms, run.results["outputs"][key]) < 1e-4 * terms.abs().max()


def test_structure_after_a_patch_of_all_its_phrases_changes_nothing(sd1):
    patch = Patch("red mouse", "laptop", isolation="bare", eos_pads="keep")
    with attach(sd1, patch):
        patched = draw(sd1, PROMPT)
    with attach(sd1, patch, StructureDiffusion(ITEMS)):
        assert far(draw(sd1, PROMPT), patched) < 1e-4 * patched.abs().max()


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_structure_does_not_apply_to_joint_attention(name):
    pipe = tiny(name)
    with pytest.raises(UnsupportedModel, match="joint"), attach(pipe, StructureDiffusion(ITEMS)):
        draw(pipe, PROMPT, steps=1)


def changed_rows(pipe, method, prompt=PROMPT):
    """Per encoder: rows before and after the method, its call, and which rows it changed."""
    found = {}

    @dataclass(frozen=True)
    class See(Intervention):
        when: str

        def on_text(self, ctx, call):
            found.setdefault(call.name, {})[self.when] = call.output.last_hidden_state.clone()
            found[call.name]["call"] = call

    with attach(pipe, See("before"), method, See("after")) as run:
        draw(pipe, prompt, steps=1)
    for entry in run.log[0]["text"]:
        if "See" not in entry["by"]:
            found[entry["encoder"]]["rows"] = entry["rows"]
    return found


def test_cutoff_mixes_in_rows_of_the_prompt_with_blanks(any_pipe):
    full = changed_rows(any_pipe, Cutoff(ITEMS, weight=1.0))
    half = changed_rows(any_pipe, Cutoff(ITEMS, weight=0.5))
    for name, one in full.items():
        call, rows = one["call"], one["rows"][0]
        mouse, laptop = (slice(*span(call.tokenizer, PROMPT, word)) for word in ITEMS)
        ids = call.ids.clone()
        ids[0, mouse] = call.tokenizer("_", add_special_tokens=False).input_ids[-1]
        with torch.no_grad():
            blanked = call.rerun(ids).last_hidden_state
        assert far(one["after"][0, laptop], blanked[0, laptop]) < 1e-5, name
        assert set(rows) <= {*range(mouse.start, mouse.stop), *range(laptop.start, laptop.stop)}
        middle = (one["before"] + one["after"]) / 2
        assert far(half[name]["after"][0, rows], middle[0, rows]) < 1e-5
        kept = [r for r in range(call.length) if r not in rows]
        assert torch.equal(one["after"][0, kept], one["before"][0, kept])


def test_cutoff_of_weight_zero_is_nothing_and_strong_reaches_the_other_rows(sd1):
    bare = draw(sd1, PROMPT)
    with attach(sd1, Cutoff(ITEMS, weight=0.0)):
        assert torch.equal(draw(sd1, PROMPT), bare)
    for mix in ("lerp", "slerp"):
        strong = changed_rows(sd1, Cutoff(ITEMS, weight=1.0, strong=True, mix=mix))["text_encoder"]["rows"][0]
        assert 0 not in strong and 76 in strong


def test_slerp_walks_the_arc():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert torch.allclose(slerp(a, b, 0.5), torch.full((1, 2), 0.5**0.5))
    assert torch.equal(slerp(a, a, 0.3), a)
    assert torch.allclose(slerp(a, b, 0.0), a) and torch.allclose(slerp(a, b, 1.0), b, atol=1e-6)


def test_tebopt_lowers_its_loss_in_the_text_rows_alone(any_pipe):
    for name, one in changed_rows(any_pipe, TEBOpt(ITEMS, rate=1.0)).items():
        call, rows = one["call"], one["rows"][0]
        words = [r for r in range(call.length) if call.tokenizer.decode([call.ids[0, r]]).strip() and r not in (0,)]
        assert rows and max(rows) <= max(words), name
        special = [r for r in range(call.length) if r not in rows]
        assert torch.equal(one["after"][0, special], one["before"][0, special])
        assert torch.isfinite(one["after"]).all()


def test_tebopt_is_descent_on_the_written_loss():
    make = torch.Generator().manual_seed(0)
    H, pure = torch.randn(9, 8, generator=make), torch.randn(2, 8, generator=make)
    spans, body = [(1, 3), (5, 6)], (1, 7)
    cos = lambda x, y: torch.cosine_similarity(x, y, dim=0)  # noqa: E731
    apart = [cos(H[2], H[u]) for u in (3, 4, 5, 6)] + [cos(H[5], H[u]) for u in (1, 2, 3, 4, 6)]
    written = -min(cos(H[2], pure[0]), cos(H[5], pure[1])) + sum(apart) / 9
    assert far(loss(H, pure, spans, body), written) < 1e-6
    one = TEBOpt(ITEMS, rate=0.5, steps=1).balanced(H, pure, spans, body)
    leaf = H.clone().requires_grad_()
    assert far(one, H - 0.5 * torch.autograd.grad(loss(leaf, pure, spans, body), leaf)[0]) < 1e-6
    many = TEBOpt(ITEMS, rate=0.5, steps=200).balanced(H, pure, spans, body)
    assert loss(many, pure, spans, body) <= -0.7
    assert torch.equal(TEBOpt(ITEMS, target=5.0).balanced(H, pure, spans, body), H)


def test_tebopt_works_under_inference_mode(sd1):
    with attach(sd1, TEBOpt(ITEMS)):
        expected = draw(sd1, PROMPT, steps=1)
        with torch.inference_mode():
            assert torch.equal(draw(sd1, PROMPT, steps=1), expected)


def test_baselines_compose_on_lists_with_negative_prompts_and_several_images(any_pipe):
    unet = not hasattr(any_pipe, "transformer")
    methods = [Cutoff(ITEMS), TEBOpt(ITEMS, rate=0.1), Boost("laptop", region="all"), Maps("laptop")]
    methods += [StructureDiffusion(ITEMS)] if unet else []
    negative = {"negative_prompt": "dog", "guidance_scale": 3.0} if unet else {}
    options = {"size": (64, 96), "steps": 2, "num_images_per_prompt": 2}
    both = [PROMPT, "a laptop by a red mouse"]
    with attach(any_pipe, *methods):
        batch = draw(
            any_pipe, both, seeds=range(4), **options, **({**negative, "negative_prompt": ["dog"] * 2} if unet else {})
        )
        single = draw(any_pipe, both[1], seeds=(2, 3), **options, **negative)
    assert far(batch[2:], single) < 1e-4 * batch.abs().max()
    bare = draw(any_pipe, both[1], seeds=(2, 3), **options, **negative)
    assert far(bare, single) > 1e-3 * bare.abs().max()


def test_baselines_survive_json():
    for one in (StructureDiffusion("a,b"), Cutoff("a,b", strong=True), TEBOpt("a", rate=3.0)):
        assert Intervention.from_dict(one.to_dict()) == one


def test_bad_input_is_refused_when_built_or_before_anything_is_drawn(sd1):
    for build in (
        lambda: Cutoff("laptop"),
        lambda: Cutoff("mouse=furry mouse,laptop"),
        lambda: Cutoff(ITEMS, weight=2.0),
        lambda: Cutoff(ITEMS, mix="magic"),
        lambda: TEBOpt(ITEMS, rate=0.0),
    ):
        with pytest.raises(BadInput):
            build()
    with pytest.raises(BadInput, match="no word beside"), attach(sd1, TEBOpt("laptop")):
        draw(sd1, "laptop", steps=1)

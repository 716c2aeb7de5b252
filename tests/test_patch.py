"""`Patch`: the repaired item's rows are those it has without context, and nothing else changes (TF-1, 2, 5, 9)."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import dataclass, field

import pytest
import torch

import unleak
from tiny import NAMES, draw, tiny
from unleak import Intervention, Patch, Subset
from unleak.core.anatomy import Anatomy
from unleak.errors import AmbiguousItem, BadInput, ItemNotFound, PromptTruncated
from unleak.text.eos_pads import POLICIES, aligned
from unleak.text.items import Item
from unleak.text.rows import each_layer, remove
from unleak.text.spans import item_span, tokenize

PROMPT = "a laptop and a mouse on a table"
CAUSAL = {"sd1": {"text_encoder"}, "sd2": {"text_encoder"}, "sdxl": {"text_encoder", "text_encoder_2"}}
CAUSAL |= {"sd3": CAUSAL["sdxl"], "flux": {"text_encoder"}}

every_layout = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def pipes():
    return {name: tiny(name) for name in NAMES}


@dataclass(frozen=True)
class Spy(Intervention):
    """Keeps what each encoder says after the interventions before it."""

    seen: dict = field(default_factory=dict, compare=False)

    def on_text(self, ctx, call):
        self.seen[call.name] = call


def encode(pipe, prompt=PROMPT, *patches, **kwargs):
    """The text encoders' calls on the positive prompt, by name, and what `encode_prompt` returned."""
    spy = Spy()
    if hasattr(pipe, "unet"):
        kwargs.setdefault("do_classifier_free_guidance", False)
    if type(pipe).__name__ == "StableDiffusionPipeline":
        kwargs |= {"device": "cpu", "num_images_per_prompt": 1}
    if "max_sequence_length" in pipe.encode_prompt.__code__.co_varnames:
        kwargs |= {"max_sequence_length": 40}
    if "prompt_3" in pipe.encode_prompt.__code__.co_varnames:
        kwargs |= {"prompt_2": None, "prompt_3": None}
    elif "prompt_2" in pipe.encode_prompt.__code__.co_varnames:
        kwargs |= {"prompt_2": None}
    with torch.no_grad(), unleak.attach(pipe, *patches, spy):
        returned = pipe.encode_prompt(prompt, **kwargs)
    return spy.seen, returned


def layers(call):
    return [call.output.last_hidden_state, *(call.output.get("hidden_states") or ())]


def spans_of(call, prompt, item):
    return item_span(call.tokenizer, prompt, item, call.ids.shape[1])


# -- the rows ---------------------------------------------------------------------------------------------------


@every_layout
def test_only_the_items_rows_change_and_they_are_the_bare_ones(pipes, name):
    plain, _ = encode(pipes[name])
    bare, _ = encode(pipes[name], "a mouse")
    patched, _ = encode(pipes[name], PROMPT, Patch("mouse"))
    assert patched.keys() == plain.keys() and len(plain) == {"sdxl": 2, "sd3": 3, "flux": 2}.get(name, 1)
    for encoder, call in patched.items():
        (a, b), (c, d) = spans_of(call, PROMPT, "mouse"), spans_of(call, "a mouse", "mouse")
        for new, old, alone in zip(layers(call), layers(plain[encoder]), layers(bare[encoder]), strict=True):
            assert torch.equal(new[:, a:b], alone[:, c:d])
            assert torch.equal(new[:, :a], old[:, :a]) and torch.equal(new[:, b:], old[:, b:])
        new, old = layers(call)[0], layers(plain[encoder])[0]
        assert not torch.allclose(new[:, a:b], old[:, a:b], atol=1e-3), "nothing leaked, so nothing was tested"
        assert (new.dtype, new.shape) == (old.dtype, old.shape)


@every_layout
def test_the_encoders_own_output_is_not_mutated(pipes, name):
    outputs = []
    handle = pipes[name].text_encoder.register_forward_hook(
        lambda *a: outputs.append((a[2], a[2].last_hidden_state.clone()))
    )
    try:
        encode(pipes[name], PROMPT, Patch("mouse", eos_pads="item"))
    finally:
        handle.remove()
    assert outputs and all(torch.equal(output.last_hidden_state, before) for output, before in outputs)


@every_layout
def test_context_to_the_left_only_reaches_causal_encoders(pipes, name):
    prompt = "a mouse and a laptop"
    plain, _ = encode(pipes[name], prompt)
    patched, _ = encode(pipes[name], prompt, Patch("mouse"))
    for encoder, call in patched.items():
        same = all(map(torch.equal, layers(call), layers(plain[encoder])))
        assert same is (encoder in CAUSAL[name])


@every_layout
def test_negative_rows_are_untouched(pipes, name):
    if name == "flux":
        pytest.skip("no negative prompt without true_cfg_scale; see test_negative_prompt_of_flux")
    given = {"negative_prompt": PROMPT, "do_classifier_free_guidance": True}
    _, plain = encode(pipes[name], PROMPT, **given)
    _, patched = encode(pipes[name], PROMPT, Patch("mouse"), **given)
    assert not torch.equal(patched[0], plain[0]) and torch.equal(patched[1], plain[1])
    assert torch.equal(plain[0], plain[1])


def test_negative_prompt_of_flux(pipes):
    pipe, rows = pipes["flux"], []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    try:
        draw(pipe, PROMPT, steps=1)
        with unleak.attach(pipe, Patch("mouse")):
            draw(pipe, PROMPT, steps=1, negative_prompt=PROMPT, true_cfg_scale=2.0)
    finally:
        handle.remove()
    plain, positive, negative = rows
    assert torch.equal(negative, plain) and not torch.equal(positive, plain)


def test_two_patches_are_one_patch_of_two_items(pipes):
    alone = {"isolation": "bare", "eos_pads": "keep"}
    for name in ("sdxl", "flux"):
        both, _ = encode(pipes[name], PROMPT, Patch("mouse", "table", **alone))
        apart, _ = encode(pipes[name], PROMPT, Patch("table", **alone), Patch("mouse", **alone))
        for encoder, call in both.items():
            assert all(map(torch.equal, layers(call), layers(apart[encoder])))


def test_items_repaired_together_are_each_others_context(pipes):
    """In a causal encoder "mouse" and "table" are taken apart as thoroughly as "mouse" beside other="table"."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        both, _ = encode(pipes["sdxl"], PROMPT, Patch("mouse", "table"))
    one, _ = encode(pipes["sdxl"], PROMPT, Patch("mouse", others="table"))
    for encoder, call in both.items():
        assert all(map(torch.equal, layers(call), layers(one[encoder])))


def test_a_patch_after_a_patch_still_knows_the_encoder(pipes):
    first = Patch("table", eos_pads="keep")
    rows = ("item", "eos", "pads")
    second = Patch("mouse", others="laptop", isolation="attn-mask", eos_pads="attn-mask", rows=rows)
    both, _ = encode(pipes["sd1"], PROMPT, first, second)
    alone, _ = encode(pipes["sd1"], PROMPT, second)
    changed = (layers(both["text_encoder"])[0] != layers(alone["text_encoder"])[0]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [*range(*spans_of(both["text_encoder"], PROMPT, "table"))]


def test_occurrence_chooses_the_rows(pipes):
    prompt = "a laptop by a mouse by a mouse"
    plain, _ = encode(pipes["sd1"], prompt)
    patched, _ = encode(pipes["sd1"], prompt, Patch("mouse#2"))
    changed = (layers(patched["text_encoder"])[0] != layers(plain["text_encoder"])[0]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == [*range(*spans_of(patched["text_encoder"], prompt, "mouse#2"))]


# -- whole pipelines ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RemoveNothing(Intervention):
    def on_text(self, ctx, call):
        pads = call.rerun([""] * len(call.prompts))
        return each_layer(lambda layer: remove(layer(call.output), layer(pads)[:1], []), call.output)


@every_layout
def test_removing_nothing_and_patching_an_item_with_itself_change_nothing(pipes, name):
    plain = draw(pipes[name], "a mouse", steps=2)
    for nothing in (RemoveNothing(), Patch("mouse"), Patch("mouse", eos_pads="item", pooled="eos_pads")):
        with unleak.attach(pipes[name], nothing):
            assert torch.equal(draw(pipes[name], "a mouse", steps=2), plain)


@every_layout
def test_the_image_changes_and_is_restored(pipes, name):
    plain = draw(pipes[name], PROMPT, steps=2)
    with unleak.attach(pipes[name], Patch("mouse")):
        one, two = (draw(pipes[name], PROMPT, steps=2) for _ in range(2))
    assert torch.equal(one, two) and not torch.allclose(one, plain, atol=1e-4)
    assert torch.equal(draw(pipes[name], PROMPT, steps=2), plain)


@every_layout
def test_a_list_of_prompts_is_its_singles(pipes, name):
    prompts = [PROMPT, "a mouse by a laptop", "a big red hat and a mouse"]
    with unleak.attach(pipes[name], Patch("mouse", others=(), eos_pads="item")):
        together = draw(pipes[name], prompts, seeds=(1, 2, 3), steps=2)
        singly = [draw(pipes[name], prompt, seeds=(k,), steps=2) for k, prompt in enumerate(prompts, 1)]
    assert torch.allclose(together, torch.cat(singly), atol=2e-4 * float(together.abs().max()))


@every_layout
def test_images_per_prompt_are_repeated_prompts(pipes, name):
    with unleak.attach(pipes[name], Patch("mouse")):
        several = draw(pipes[name], PROMPT, seeds=(1, 2), steps=2, num_images_per_prompt=2)
        repeated = draw(pipes[name], [PROMPT] * 2, seeds=(1, 2), steps=2)
        second = draw(pipes[name], PROMPT, seeds=(2,), steps=2)
    scale = float(several.abs().max())
    assert torch.allclose(several, repeated, atol=2e-4 * scale)
    assert torch.allclose(several[1:], second, atol=2e-4 * scale)


FAILURES = [
    (Patch("cat"), PROMPT, ItemNotFound),
    (Patch("lap"), PROMPT, ItemNotFound),
    (Patch("mouse"), "a mouse by a mouse", AmbiguousItem),
    (Patch("mouse#3"), "a mouse by a mouse", ItemNotFound),
    (Patch("laptop and a mouse", "mouse"), PROMPT, BadInput),
    (Patch("mouse", others="a mouse"), PROMPT, BadInput),
    (Patch("mouse", others="cat", eos_pads="difference"), PROMPT, ItemNotFound),
    (Patch("mouse"), ["a mouse", "a laptop"], ItemNotFound),
    (Patch("mouse"), "a red hat " * 40 + "a mouse", PromptTruncated),
    (Patch("mouse", filler="squirrel", others="laptop", isolation="masked-context"), PROMPT, BadInput),
    (Patch("mouse", as_="furry " * 90 + "mouse"), PROMPT, PromptTruncated),
]


@pytest.mark.parametrize(("bad", "prompt", "error"), FAILURES, ids=range(len(FAILURES)))
def test_errors_leave_the_pipeline_as_it_was(pipes, bad, prompt, error):
    for name in ("sd1", "flux"):
        plain = draw(pipes[name], PROMPT, steps=1)
        seeds = (0,) if isinstance(prompt, str) else (0, 1)
        with pytest.raises(error), unleak.attach(pipes[name], bad):
            draw(pipes[name], prompt, seeds=seeds, steps=1)
        assert torch.equal(draw(pipes[name], PROMPT, steps=1), plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("policy", POLICIES)
def test_half_precision_is_kept(policy, dtype):
    for name in ("sdxl", "flux"):
        pipe = tiny(name).to(dtype)
        patch = Patch(
            "mouse", others="laptop", as_="furry mouse", eos_pads=policy, pooled="eos_pads", isolation="attn-mask"
        )
        seen, returned = encode(pipe, PROMPT, patch)
        for call in seen.values():
            assert {layer.dtype for layer in layers(call)} == {dtype}
            assert all(torch.isfinite(layer).all() for layer in layers(call))
        assert returned[0].dtype == dtype


# -- isolations ---------------------------------------------------------------------------------------------------


@every_layout
@pytest.mark.parametrize("isolation", ["bare", "positioned", "masked-context", "substituted", "attn-mask"])
def test_an_isolated_item_does_not_know_the_other(pipes, name, isolation):
    """Swapping the other item for another of as many tokens must leave the repaired item's rows alone."""
    for one, two in (("laptop", "dog"), ("hat", "key")):
        rows = {}
        for other in (one, two):
            prompt = f"a {other} and a mouse"
            seen, _ = encode(pipes[name], prompt, Patch("mouse", others=other, isolation=isolation))
            plain, _ = encode(pipes[name], prompt)
            rows[other] = {
                encoder: [
                    h[:, slice(*spans_of(call, prompt, "mouse"))] for h in (*layers(call), layers(plain[encoder])[0])
                ]
                for encoder, call in seen.items()
            }
        for encoder in rows[one]:
            (*ours, context), (*theirs, other_context) = rows[one][encoder], rows[two][encoder]
            same_length = context.shape == other_context.shape
            assert same_length and not torch.allclose(context, other_context, atol=1e-3)
            assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True)), encoder


def test_positions_are_kept_where_the_isolation_says_so(pipes):
    """CLIP adds learned positions: at its own place, after fillers, an item has other rows than at the start."""
    for isolation in ("bare", "positioned", "masked-context", "attn-mask"):
        seen, _ = encode(pipes["sd1"], PROMPT, Patch("mouse", others="laptop,table", isolation=isolation))
        call = seen["text_encoder"]
        module, (a, _) = call.module, spans_of(call, PROMPT, "mouse")
        bare = tokenize(call.tokenizer, "a mouse", 77).ids
        comma = tokenize(call.tokenizer, ",", 77).ids[1]
        ids = torch.tensor([[bare[0], *[comma] * (a - 2), *bare[1:]][:77]])
        with torch.no_grad():
            after_fillers = module(ids).last_hidden_state[:, a]
        same = torch.allclose(call.output.last_hidden_state[:, a], after_fillers, atol=1e-6)
        assert same is (isolation == "positioned"), isolation


def test_masked_context_keeps_the_rest_of_the_sentence(pipes):
    prompt = "a red laptop and a mouse"
    seen, _ = encode(pipes["sd1"], prompt, Patch("mouse", others="laptop", isolation="masked-context"))
    masked, _ = encode(pipes["sd1"], "a red , and a mouse")
    span = slice(*spans_of(seen["text_encoder"], prompt, "mouse"))
    for new, expected in zip(layers(seen["text_encoder"]), layers(masked["text_encoder"]), strict=True):
        assert torch.equal(new[:, span], expected[:, span])


@every_layout
def test_where_the_others_are_known_the_item_stays_in_its_sentence(pipes, name):
    """The row of a word depends on where it stands, too: by default only its company is replaced."""
    prompt = "a red laptop and a mouse"
    seen, _ = encode(pipes[name], prompt, Patch("mouse", others="red laptop", eos_pads="keep"))
    substituted, _ = encode(pipes[name], "a thing and a mouse")
    for encoder, call in seen.items():
        (a, b), (c, d) = spans_of(call, prompt, "mouse"), spans_of(call, "a thing and a mouse", "mouse")
        for new, expected in zip(layers(call), layers(substituted[encoder]), strict=True):
            assert torch.equal(new[:, a:b], expected[:, c:d])


def test_encoders_that_take_no_pair_mask_are_refused():
    pipe = tiny("sd1")

    class Deaf(torch.nn.Module):
        """Ignores any attention mask."""

        def __init__(self, inner):
            super().__init__()
            self.inner, self.config, self.dtype = inner, inner.config, inner.dtype

        def forward(self, input_ids, attention_mask=None, **kwargs):
            return self.inner(input_ids, **kwargs)

    pipe.text_encoder = Deaf(pipe.text_encoder)
    with pytest.raises(unleak.errors.UnsupportedModel, match="ignores"):
        encode(pipe, PROMPT, Patch("mouse", isolation="attn-mask"))


# -- EOS and pads -------------------------------------------------------------------------------------------------


def expected_tail(policy, say, tail):
    """The equations of the policies, on texts; `tail` reads the rows after a text."""
    alone = [tail(say(text)) for text in ("a furry mouse", "a laptop")]
    if policy == "keep":
        return tail(say(PROMPT))
    if policy == "item":
        return alone[0]
    if policy == "mean-of-items":
        return (alone[0] + alone[1]) / 2
    if policy == "round-robin":
        rows = alone[0].clone()
        rows[:, 1::2] = alone[1][:, 1::2]
        return rows
    if policy == "renamed":
        return tail(say("a laptop and a furry mouse on a table"))
    if policy == "compose":
        mouse, laptop, neither = (
            tail(say(text))
            for text in (
                "a thing and a furry mouse on a table",
                "a laptop and a thing on a table",
                "a thing and a thing on a table",
            )
        )
        return mouse + laptop - neither
    mouse, laptop, neither = (
        tail(say(text))
        for text in (
            "a , and a furry mouse on a table",
            "a laptop and a furry , on a table",
            "a , and a furry , on a table",
        )
    )
    return mouse if policy == "masked-context" else mouse + laptop - neither


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "attn-mask"])
@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_rows_after_the_text_follow_their_equation(pipes, name, policy):
    pipe = pipes[name]
    rows = ("item", "eos", "pads")
    seen, _ = encode(pipe, PROMPT, Patch("mouse", others="laptop", as_="furry mouse", eos_pads=policy, rows=rows))
    plain, _ = encode(pipe)
    for encoder, call in seen.items():
        own = tokenize(call.tokenizer, PROMPT, 77)
        for k, new in enumerate(layers(call)):

            def say(text, encoder=encoder, k=k):
                return text, layers(encode(pipe, text)[0][encoder])[k]

            def tail(said, call=call, own=own):
                text, rows = said
                return rows[:, aligned(own, tokenize(call.tokenizer, text, 77))]

            assert torch.allclose(new[:, own.after_text], expected_tail(policy, say, tail), atol=1e-5), (encoder, k)
            a, _ = spans_of(call, PROMPT, "mouse")
            assert torch.equal(new[:, :a], layers(plain[encoder])[k][:, :a])


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_composed_rows_never_saw_the_items_together(pipes, name):
    """Every row after BOS follows the equation: items beside "a thing", all other rows by inclusion-exclusion."""
    pipe, prompt = pipes[name], "a laptop and a mouse"
    seen, _ = encode(pipe, prompt, Patch("mouse", others="laptop"))
    texts = ("a thing and a mouse", "a laptop and a thing", "a thing and a thing")
    for encoder, call in seen.items():
        cuts = [tokenize(call.tokenizer, text, 77) for text in (prompt, *texts)]
        items = [("laptop", "mouse"), ("thing", "mouse"), ("laptop", "thing"), ("thing#1", "thing#2")]
        find = lambda cut, word: item_span(call.tokenizer, cut.text, Item.of(word), 77)  # noqa: E731, B023
        spans = [[find(cut, word) for word in both] for cut, both in zip(cuts, items, strict=True)]
        rest = [
            [r for r in range(*cut.body) if not any(a <= r < b for a, b in held)]
            for cut, held in zip(cuts, spans, strict=True)
        ]
        rest = [[*r, *aligned(cuts[0], c)] for r, c in zip(rest, cuts, strict=True)]
        layers_of = [layers(encode(pipe, text)[0][encoder]) for text in texts]
        for k, new in enumerate(layers(call)):
            mouse, laptop, neither = (views[k] for views in layers_of)
            expected = mouse[:, rest[1]] + laptop[:, rest[2]] - neither[:, rest[3]]
            assert torch.allclose(new[:, rest[0]], expected, atol=1e-5)
            assert torch.equal(new[:, slice(*spans[0][1])], mouse[:, slice(*spans[1][1])])
            assert torch.equal(new[:, slice(*spans[0][0])], laptop[:, slice(*spans[2][0])])


def test_a_causal_encoder_warns_where_the_leak_stays(pipes):
    with pytest.warns(UserWarning, match="others="):
        encode(pipes["sd1"], PROMPT, Patch("mouse"))


def test_only_the_chosen_rows_change(pipes):
    plain, _ = encode(pipes["sd1"])
    own = tokenize(plain["text_encoder"].tokenizer, PROMPT, 77)
    item = {*range(*spans_of(plain["text_encoder"], PROMPT, "mouse"))}
    channels = {"item": item, "eos": {own.after_text[0]}, "pads": {*own.after_text[1:]}}
    channels["context"] = {*range(*own.body)} - item
    for channel, rows in channels.items():
        seen, _ = encode(pipes["sd1"], PROMPT, Patch("mouse", others="laptop", rows=(channel,)))
        new, old = layers(seen["text_encoder"])[-1][0], layers(plain["text_encoder"])[-1][0]
        changed = {*(new != old).any(-1).nonzero().flatten().tolist()}
        assert changed and changed <= rows


def test_masked_items_are_masked_in_place(pipes):
    """A masked item of several tokens becomes as many fillers, so no other token moves."""
    prompt = "a squirrel and a mouse"
    seen, _ = encode(pipes["sd1"], prompt, Patch("mouse", others="squirrel", eos_pads="masked-context"))
    call = seen["text_encoder"]
    ids = call.ids.clone()
    ids[0, slice(*spans_of(call, prompt, "squirrel"))] = tokenize(call.tokenizer, ",", 77).ids[1]
    own = tokenize(call.tokenizer, prompt, 77)
    with torch.no_grad():
        expected = call.module(ids).last_hidden_state[:, own.after_text]
    assert torch.equal(call.output.last_hidden_state[:, own.after_text], expected)


def test_attn_mask_tail_hears_each_item_without_the_other(pipes):
    plain, _ = encode(pipes["sd1"])
    seen, _ = encode(pipes["sd1"], PROMPT, Patch("mouse", others="laptop", eos_pads="attn-mask"))
    old, new = layers(plain["text_encoder"])[0], layers(seen["text_encoder"])[0]
    tail = tokenize(pipes["sd1"].tokenizer, PROMPT, 77).after_text
    assert not torch.allclose(old[:, tail], new[:, tail], atol=1e-3)


def test_aligned_reads_eos_from_eos_and_pads_in_place():
    tokenizer = tiny("sd1").tokenizer
    long, short = tokenize(tokenizer, "a red mouse", 8), tokenize(tokenizer, "mouse", 8)
    assert long.after_text == range(5, 8) and short.after_text == range(2, 8)
    assert aligned(long, long) == [5, 6, 7]
    assert aligned(long, short) == [2, 6, 7]
    assert aligned(short, long) == [5, 6, 6, 6, 6, 7]
    assert aligned(short, tokenize(tokenizer, "a red mouse", 6)) == [5] * 6


@pytest.mark.parametrize("policy", POLICIES)
def test_encoders_that_look_both_ways_keep_their_tail(pipes, policy):
    meant = Patch("mouse", as_="furry mouse", isolation="bare", eos_pads="keep")
    keep, _ = encode(pipes["flux"], PROMPT, meant)
    seen, _ = encode(pipes["flux"], PROMPT, dataclasses.replace(meant, others=("laptop",), eos_pads=policy))
    assert torch.equal(layers(seen["text_encoder_2"])[0], layers(keep["text_encoder_2"])[0])
    changed = not torch.equal(layers(seen["text_encoder"])[0], layers(keep["text_encoder"])[0])
    assert changed is (policy != "keep")


@pytest.mark.parametrize(
    ("name", "encoder"), [("flux", "text_encoder"), ("sdxl", "text_encoder_2"), ("sd3", "text_encoder")]
)
def test_pooled(pipes, name, encoder):
    def pooled(prompt, *patches):
        output = encode(pipes[name], prompt, *patches)[0][encoder].output
        return output["pooler_output"] if output.get("text_embeds") is None else output["text_embeds"]

    assert torch.equal(pooled(PROMPT, Patch("mouse", eos_pads="item")), pooled(PROMPT))
    assert torch.equal(pooled(PROMPT, Patch("mouse", pooled="item")), pooled("a mouse"))
    mean = (pooled("a mouse") + pooled("a table")) / 2
    assert torch.allclose(pooled(PROMPT, Patch("mouse", "table", pooled="item")), mean, atol=1e-6)
    renamed = Patch("mouse", as_="furry mouse", eos_pads="renamed", pooled="eos_pads")
    assert torch.equal(pooled(PROMPT, renamed), pooled("a laptop and a furry mouse on a table"))


# -- senses and bare phrases --------------------------------------------------------------------------------------


def test_a_sense_that_holds_the_item_gives_its_rows(pipes):
    for as_ in ("furry mouse", "mouse with a hat", "a furry mouse"):
        seen, _ = encode(pipes["flux"], PROMPT, Patch("mouse", as_=as_))
        text = as_ if as_.startswith("a ") else f"a {as_}"
        named, _ = encode(pipes["flux"], text)
        for encoder, call in seen.items():
            dst, src = (slice(*spans_of(call, said, "mouse")) for said in (PROMPT, text))
            assert torch.equal(layers(call)[0][:, dst], layers(named[encoder])[0][:, src])


def test_another_name_is_aligned_to_the_right(pipes):
    prompt = "a laptop and a squirrel"
    for as_ in ("mouse", "very long golden striped furry animal"):
        seen, _ = encode(pipes["sd1"], prompt, Patch("squirrel", as_=as_))
        named, empty = encode(pipes["sd1"], f"a {as_}")[0], encode(pipes["sd1"], "")[0]
        call = seen["text_encoder"]
        (a, b), (c, d) = spans_of(call, prompt, "squirrel"), spans_of(call, f"a {as_}", as_)
        m = min(b - a, d - c)
        new, name, pad = (layers(calls["text_encoder"])[0] for calls in (seen, named, empty))
        assert torch.equal(new[:, b - m : b], name[:, d - m : d])
        assert torch.equal(new[:, a : b - m], pad[:, a : b - m])


@pytest.mark.parametrize(
    ("prompt", "options", "bare"),
    [
        ("an owl and the mouse", {}, "the mouse"),
        ("a laptop and mouse", {}, "mouse"),
        ("a laptop and mouse", {"article": "a"}, "a mouse"),
        ("a laptop and a mouse", {"article": ""}, "mouse"),
        ("a laptop and a mouse", {"as_": "old mouse"}, "an old mouse"),
    ],
)
def test_the_bare_phrase(pipes, prompt, options, bare):
    seen, _ = encode(pipes["flux"], prompt, Patch("mouse", **options))
    alone, _ = encode(pipes["flux"], bare)
    for encoder, call in seen.items():
        dst, src = (slice(*spans_of(call, said, "mouse")) for said in (prompt, bare))
        assert torch.equal(layers(call)[0][:, dst], layers(alone[encoder])[0][:, src])


# -- the object ---------------------------------------------------------------------------------------------------


def test_spellings_of_the_same_patch():
    assert Patch("mouse", "bat") == Patch(("mouse", "bat")) == Patch("mouse,bat") == Patch(items=["mouse", Item("bat")])
    assert Patch("mouse", as_="furry mouse") == Patch("mouse=furry mouse") == Patch(Item("mouse", sense="furry mouse"))
    assert Patch("mouse#2", others="laptop").others == ("laptop",)
    assert hash(Patch("mouse")) == hash(Patch("mouse"))


@every_layout
def test_only_representative_rows_are_taken_and_the_others_are_pads(pipes, name):
    """The carriers of the clean phrase stand at the item's last rows; what is left of its span is cleared."""
    pipe = pipes[name]
    counted = {"sd3": "text_encoder_3", "flux": "text_encoder_2"}.get(name, "text_encoder")
    carriers = Subset.token("hot dog", 1, counted)
    patch = Patch("dog mouse", as_="hot dog", unequal="representative", carriers=carriers, eos_pads="keep")
    assert Intervention.from_dict(json.loads(json.dumps(patch.to_dict()))) == patch
    prompt = "a dog mouse on a table"
    plain, _ = encode(pipe, prompt)
    alone, _ = encode(pipe, "a hot dog")
    empty, _ = encode(pipe, "")
    patched, _ = encode(pipe, prompt, patch)
    for encoder, call in patched.items():
        a, b = item_span(call.tokenizer, prompt, "dog mouse", call.length)
        every = Anatomy.of(pipe).encoders
        own = next(e for e in every if e.name == encoder)
        at = carriers.positions(own, tokenize(call.tokenizer, "a hot dog", call.length), every)
        H, Q, C = (x[encoder].output.last_hidden_state[0] for x in (plain, alone, empty))
        rows = call.output.last_hidden_state[0]
        assert at and len(at) <= b - a
        assert torch.equal(rows[b - len(at) : b], Q[at]) and torch.equal(rows[a : b - len(at)], C[a : b - len(at)])
        assert torch.equal(rows[:a], H[:a]) and torch.equal(rows[b:], H[b:])


@pytest.mark.parametrize(("name", "counted"), [("sd3", "text_encoder_3"), ("flux", "text_encoder_2")])
def test_an_encoder_without_tokens_like_the_carriers_right_aligns(pipes, name, counted):
    carried = Patch("cat", as_="squirrels", unequal="representative", carriers=Subset.token("squirrels", 5, counted))
    whole = Patch("cat", as_="squirrels", unequal="right-align")
    (one, _), (other, _) = (encode(pipes[name], "a cat on a table", patch) for patch in (carried, whole))
    for encoder, call in one.items():
        same = torch.equal(call.output.last_hidden_state, other[encoder].output.last_hidden_state)
        assert same == (encoder != counted)


def test_it_survives_json_and_replace():
    patch = Patch("mouse#2", "hot dog", as_=None, others="laptop", isolation="positioned", eos_pads="difference")
    assert Intervention.from_dict(json.loads(json.dumps(patch.to_dict()))) == patch
    assert dataclasses.replace(patch, eos_pads="keep").items == patch.items


@pytest.mark.parametrize(
    "arguments",
    [
        {"items": ()},
        {"items": "mouse,bat", "as_": "furry mouse"},
        {"items": ["mouse"], "isolation": "alone"},
        {"items": ["mouse"], "isolation": "masked-context"},
        {"items": ["mouse"], "pooled": "mean"},
        {"items": ["mouse"], "unequal": "representative"},
        {"items": ["mouse"], "carriers": Subset.token("mouse", 0)},
        {"items": ["mouse", "bat"], "unequal": "representative", "carriers": Subset.token("mouse", 0)},
        {"items": ["mouse"], "eos_pads": "none"},
        {"items": ["mouse"], "eos_pads": "renamed"},
        {"items": ["mouse"], "eos_pads": "round-robin"},
        {"items": ["mouse"], "eos_pads": "masked-context"},
        {"items": ["mouse", "bat"], "eos_pads": "item"},
        {"items": [Item("a=b")]},
    ],
)
def test_what_cannot_be_is_refused_when_built(arguments):
    with pytest.raises(BadInput):
        Patch(**arguments)

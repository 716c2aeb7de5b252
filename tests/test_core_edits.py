"""Edits of one attention call: every executor computes the materialised definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from reference import MapEdit, dense, full_map
from unleak.core.anatomy import Site
from unleak.core.attention import AttentionCall, Layout
from unleak.core.edits import (
    Bias,
    KeyScale,
    KeyValueSwap,
    MapMix,
    Mask,
    Partition,
    QueryKeySwap,
    Region,
    ValueSwap,
)
from unleak.core.rows import Rows
from unleak.engine import execute as engine
from unleak.engine.execute import execute
from unleak.errors import BadInput, Conflict, EmptyMask, UnsupportedModel

HEIGHT, WIDTH, TEXT, HEADS, WIDE = 3, 4, 5, 2, 8
CELLS = HEIGHT * WIDTH
LABELS = ("uncond", "uncond", "cond", "cond")


def make_call(kind="cross", seed=0, mask=None, rows=LABELS, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    layout = {
        "cross": Layout.cross(CELLS, TEXT),
        "self": Layout.self_(CELLS),
        "joint-first": Layout.joint(CELLS + TEXT, TEXT, True),
        "joint-last": Layout.joint(CELLS + TEXT, TEXT, False),
    }[kind]
    queries = CELLS if kind in ("cross", "self") else CELLS + TEXT
    keys = {"cross": TEXT, "self": CELLS}.get(kind, CELLS + TEXT)
    q = torch.randn(len(rows), HEADS, queries, WIDE, generator=random, dtype=dtype)
    k, v = (torch.randn(len(rows), HEADS, keys, WIDE, generator=random, dtype=dtype) for _ in "kv")
    images = tuple(sum(label == other for other in rows[:i]) for i, label in enumerate(rows))
    return AttentionCall(
        site=Site("some.attn", nn.Identity()),
        q=q,
        k=k,
        v=v,
        mask=mask,
        scale=WIDE**-0.5,
        layout=layout,
        grid=(HEIGHT, WIDTH),
        rows=Rows(tuple(rows), images, frozenset({"cond", "uncond", *rows})),
        plain_call=lambda: kernel(q, k, v, mask),
    )


def kernel(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def run(call, *edits):
    return execute(call, edits, kernel)


def agree(call, *edits):
    """Both executors, where they apply, give what the definition gives. Returns that."""
    expected = dense(call, edits)
    assert (run(call, *edits) - expected).abs().max() < 1e-12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "scaled", engine.partitioned)
        assert (run(call, *edits) - expected).abs().max() < 1e-12
    return expected


def grid_mask(*cells):
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    for row, column in cells:
        mask[row, column] = True
    return mask


# -- random edits ----------------------------------------------------------------------------------------------

seeds = st.integers(0, 10_000)
some_rows = st.sampled_from(["cond", "uncond", None, (0,), (3,), (1, 2)])
token_lists = st.none() | st.lists(st.integers(0, TEXT - 1), min_size=1, max_size=TEXT, unique=True)
some_heads = st.sampled_from([None, (0,), (1,)])


def random_mask(seed, batch=None):
    shape = (HEIGHT, WIDTH) if batch is None else (batch, HEIGHT, WIDTH)
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[..., 0, 0] = True
    return mask


def row_count(rows):
    return {"cond": 2, "uncond": 2, None: 4}.get(rows) or len(rows)


@st.composite
def key_scales(draw):
    rows, tokens = draw(some_rows), draw(token_lists)
    count = TEXT if tokens is None else len(tokens)
    shape = draw(st.sampled_from([(), (count,), (HEADS, count), (row_count(rows), 1, count)]))
    factor = torch.rand(shape, generator=torch.Generator().manual_seed(draw(seeds)), dtype=torch.float64) * 3 - 0.5
    queries = random_mask(draw(seeds), draw(st.sampled_from([None, row_count(rows)]))) if draw(st.booleans()) else None
    return KeyScale(tokens, factor if shape else float(factor), rows, draw(some_heads), queries)


@st.composite
def biases(draw):
    rows, keys = draw(some_rows), draw(token_lists)
    queries = draw(st.sampled_from([None, "image"])) if draw(st.booleans()) else random_mask(draw(seeds))
    value = draw(st.sampled_from([-100.0, 2.5, -1.0]))
    return Bias(value, keys, queries, rows, draw(some_heads))


@st.composite
def partitions(draw):
    rows = draw(some_rows)
    regions = []
    for _ in range(draw(st.integers(1, 3))):
        random = torch.Generator().manual_seed(draw(seeds))
        keys, values = (torch.randn(HEADS, TEXT, WIDE, generator=random, dtype=torch.float64) for _ in "kv")
        regions.append(Region(random_mask(draw(seeds)), keys=keys if draw(st.booleans()) else None, values=values))
    return Partition(regions, rows)


swaps = st.sampled_from([QueryKeySwap("cond", "uncond"), KeyValueSwap((3,), (1,)), KeyValueSwap("cond", (0,))])


@settings(max_examples=150, deadline=None)
@given(st.lists(key_scales() | biases() | partitions() | swaps, min_size=1, max_size=5), seeds)
def test_executors_agree_at_cross_sites(edits, seed):
    agree(make_call("cross", seed), *edits)


@settings(max_examples=80, deadline=None)
@given(st.lists(key_scales() | biases() | swaps, min_size=1, max_size=4), seeds, st.sampled_from(["first", "last"]))
def test_executors_agree_at_joint_sites(edits, seed, end):
    agree(make_call(f"joint-{end}", seed), *edits)


@settings(max_examples=40, deadline=None)
@given(st.lists(key_scales(), min_size=1, max_size=3), seeds)
def test_key_scaling_is_one_kernel_call(edits, seed):
    calls = []

    def counting(*args):
        calls.append(1)
        return kernel(*args)

    call = make_call("cross", seed)
    edits = [KeyScale(e.tokens, e.factor, e.rows, e.heads) for e in edits]
    execute(call, edits, counting)
    assert len(calls) == 1
    agree(call, *edits)


@pytest.mark.parametrize("shape", [(1, 1, 1, TEXT), (4, 1, 1, TEXT), (4, HEADS, CELLS, TEXT)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_the_pipelines_own_mask_is_kept(shape, dtype):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[..., 0] = True
    mask = mask if dtype == torch.bool else torch.zeros(shape, dtype=dtype).masked_fill(~mask, float("-inf"))
    call = make_call(mask=mask)
    agree(call, KeyScale([1, 2], 2.0))
    agree(call, KeyScale([1, 2], 2.0, queries=grid_mask((0, 1))), Bias(-3.0, [1]))


# -- meaning ---------------------------------------------------------------------------------------------------


def test_key_scaling_is_logit_scaling():
    call = make_call()
    factor = torch.tensor([1.0, 0.3, 1.0, 2.0, 1.0], dtype=torch.float64)
    logits = call.q @ call.k.mT * call.scale
    logits[2:] *= factor
    expected = torch.softmax(logits, -1) @ call.v
    assert (run(call, KeyScale(None, factor)) - expected).abs().max() < 1e-12


def test_a_factor_of_one_changes_no_bit():
    call = make_call(dtype=torch.float32)
    assert torch.equal(run(call, KeyScale(None, 1.0)), call.plain())


@pytest.mark.parametrize("edit", [KeyScale([1], 3.0), Mask([1]), Bias(-1.0, [2], grid_mask((0, 0)))])
def test_rows_that_are_not_meant_keep_every_bit(edit):
    call = make_call(dtype=torch.float32)
    out = run(call, edit)
    assert torch.equal(out[:2], call.plain()[:2]) and not torch.equal(out[2:], call.plain()[2:])


def test_masking_a_token_removes_its_value():
    call = make_call()
    before = run(call, Mask([2]))
    call.v[:, :, 2] += 100.0
    assert torch.equal(run(call, Mask([2]))[2:], before[2:])


def test_a_mask_between_image_regions_and_text():
    call = make_call("joint-first")
    region = grid_mask((0, 0), (2, 3))
    out = agree(call, Mask(keys=[1], queries=region), Mask(keys=region, queries=[1]))
    logits = call.q @ call.k.mT * call.scale
    for cell in (0, 11):
        logits[2:, :, TEXT + cell, 1] = logits[2:, :, 1, TEXT + cell] = float("-inf")
    assert (out - torch.softmax(logits, -1) @ call.v).abs().max() < 1e-12


def test_a_bias_between_image_cells_is_placed_by_position():
    call = make_call("joint-first")
    links = torch.randn(1, 1, CELLS, CELLS, dtype=torch.float64)
    out = agree(call, Bias(links, keys="image", queries="image"))
    logits = call.q @ call.k.mT * call.scale
    logits[2:, :, TEXT:, TEXT:] += links
    assert (out - torch.softmax(logits, -1) @ call.v).abs().max() < 1e-12


def test_a_region_reads_its_own_values():
    call = make_call()
    values = torch.randn(HEADS, TEXT, WIDE, dtype=torch.float64)
    out = agree(call, Partition([Region(grid_mask((1, 1)), values=values)]))
    weights = full_map(call, "cond").double()
    cell = WIDTH + 1
    assert (out[2:, :, [cell]] - weights[:, :, [cell]] @ values).abs().max() < 1e-12
    others = [i for i in range(CELLS) if i != cell]
    assert (out[:, :, others] - call.plain()[:, :, others]).abs().max() < 1e-12


def test_where_regions_overlap_the_later_wins():
    call = make_call()
    first, second = (torch.full((HEADS, TEXT, WIDE), x, dtype=torch.float64) for x in (1.0, 2.0))
    regions = [Region(grid_mask((0, 0), (0, 1)), values=first), Region(grid_mask((0, 1)), values=second)]
    out = agree(call, Partition(regions))
    assert out[2, 0, 0, 0].item() == pytest.approx(1.0) and out[2, 0, 1, 0].item() == pytest.approx(2.0)


def test_each_row_may_have_its_own_mask():
    call = make_call()
    masks = torch.stack([grid_mask((0, 0)), grid_mask((2, 3))])
    out = agree(call, KeyScale([1], 5.0, queries=masks))
    moved = (out - call.plain()).abs().amax((1, 3)) > 1e-9
    assert moved.nonzero().tolist() == [[2, 0], [3, 11]]


def test_a_mask_of_the_latents_is_resized_to_the_site():
    call = make_call()
    mask = torch.zeros(2 * HEIGHT, 2 * WIDTH, dtype=torch.bool)
    mask[:2, :2] = True
    moved = (run(call, KeyScale([1], 5.0, queries=mask)) - call.plain()).abs().amax((0, 1, 3)) > 1e-9
    assert moved.nonzero().flatten().tolist() == [0]


def test_swapping_queries_and_keys_takes_the_map_and_keeps_the_values():
    call = make_call("self")
    out = agree(call, QueryKeySwap("cond", "uncond"))
    assert (out[2:] - full_map(call, "uncond") @ call.v[2:]).abs().max() < 1e-12
    assert torch.equal(run(call, QueryKeySwap("cond", "uncond"))[:2], call.plain()[:2])


def test_swapping_keys_and_values_reads_the_source():
    call = make_call("self")
    assert torch.equal(run(call, KeyValueSwap("cond", "uncond"))[2:], kernel(call.q[2:], call.k[:2], call.v[:2], None))


def test_values_may_be_replaced_at_tokens():
    call = make_call()
    out = agree(call, ValueSwap(torch.zeros(1, HEADS, 2, WIDE), [0, 3]))
    v = call.v.clone()
    v[2:, :, [0, 3]] = 0
    assert (out - kernel(call.q, call.k, v, None)).abs().max() < 1e-12
    assert call.v[2:, :, 0].abs().max() > 0, "the call's own values were written to"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["cross", "self", "joint-first"])
def test_mixing_maps_of_other_rows_is_the_equation_and_needs_no_map(kind, masked):
    call = make_call(kind)
    batch, keys = len(call.k), call.k.shape[2]
    random = torch.Generator().manual_seed(1)
    take, keep = torch.rand(2, keys, keys, generator=random).double(), torch.rand(keys, generator=random).double()
    if masked:
        call = make_call(kind, mask=torch.randn(batch, 1, 1, keys, generator=random).double())
    others = [KeyScale([1], torch.tensor([2.0, 3.0]).double()[:, None, None], None if kind == "self" else (1, 0))]
    others = [Bias(-1.0, [1], rows=(1, 2)), *others] if kind != "self" else []
    plain = run(call, *others)
    out = agree(call, *others, MapMix((2, 3), (1,), take, keep))
    assert torch.equal(out[:2], dense(call, others)[:2])
    if not others:
        weights = full_map(call, None)
        wanted = weights[[1, 1]] @ take[:, None] + weights[2:] * keep
        assert (out[2:] - wanted @ call.v[2:]).abs().max() < 1e-12
    nothing, everything = torch.zeros(keys, keys).double(), torch.ones(keys).double()
    assert (agree(call, *others, MapMix("cond", "uncond", nothing, everything)) - plain).abs().max() < 1e-12


@pytest.mark.parametrize(
    "more",
    [
        [MapMix((3,), (1,), torch.eye(TEXT), torch.zeros(TEXT))],
        [MapMix((1,), (0,), torch.eye(TEXT), torch.zeros(TEXT))],
        [Partition([Region(grid_mask((0, 0)), values=torch.zeros(HEADS, TEXT, WIDE, dtype=torch.float64))])],
    ],
)
def test_a_row_is_mixed_once_with_its_own_values_from_a_row_that_is_not(more):
    with pytest.raises(Conflict, match="mixed twice"):
        run(make_call(), MapMix("cond", (1,), torch.eye(TEXT), torch.zeros(TEXT)), *more)


def test_a_map_edit_changes_the_map_of_the_reference():
    call = make_call()
    out = dense(call, [KeyScale([1], 2.0), MapEdit(lambda weights: weights[[0, 1, 0, 1]])])
    expected = full_map(call, None)[[0, 1, 0, 1]] @ call.v
    assert (out - expected).abs().max() < 1e-12


def test_what_is_no_edit_is_refused():
    with pytest.raises(BadInput, match="no edit"):
        run(make_call(), MapEdit(lambda weights: weights))


def test_edits_of_many_compose_and_their_kinds_commute():
    call = make_call()
    a, b = KeyScale([1], 2.0), Bias(-1.0, [1, 2], grid_mask((0, 0), (1, 1)))
    assert torch.equal(run(call, a, b), run(call, b, a))
    assert torch.allclose(run(call, a, a), run(call, KeyScale([1], 4.0)), atol=1e-12)


def test_an_edit_of_rows_that_are_elsewhere_does_nothing():
    call = make_call(rows=("uncond", "uncond"))
    assert torch.equal(run(call, KeyScale([1], 2.0), Mask([0])), call.plain())


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "error"),
    [
        (KeyScale([TEXT], 2.0), BadInput),
        (KeyScale([0], 2.0, rows="nobody"), BadInput),
        (KeyScale([0], 2.0, rows=(4,)), BadInput),
        (Mask(None), BadInput),
        (Mask([0], queries=[0]), BadInput),
        (Bias(1.0, queries=torch.zeros(3, 4)), BadInput),
        (Bias(torch.zeros(1, 1, CELLS - 1, TEXT)), BadInput),
        (Partition([Region(torch.zeros(3, 4, dtype=torch.bool))]), EmptyMask),
        (Partition([Region(grid_mask((0, 0)), values=torch.zeros(HEADS, TEXT + 1, WIDE))]), BadInput),
        (QueryKeySwap("cond", (0, 1, 2)), BadInput),
        (MapMix("cond", (0,), torch.eye(TEXT + 1), torch.zeros(TEXT + 1)), BadInput),
        (MapMix("cond", (0,), torch.zeros(3, TEXT, TEXT), torch.zeros(TEXT)), BadInput),
    ],
)
def test_wrong_edits_say_so(edit, error):
    with pytest.raises(error):
        run(make_call(), edit)


def test_a_self_site_has_no_tokens():
    with pytest.raises(BadInput, match="no text tokens"):
        run(make_call("self"), KeyScale([0], 2.0))


def test_unknown_rows_cannot_be_addressed_by_label():
    call = make_call(rows=("unknown", "unknown"))
    with pytest.raises(UnsupportedModel):
        run(call, KeyScale([0], 2.0))
    run(call, KeyScale([0], 2.0, rows=(1,)))

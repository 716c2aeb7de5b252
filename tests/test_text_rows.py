"""The row algebra, on tensors and on encoder outputs (TF-2, TF-4, TF-5)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutputWithPooling

from unleak.errors import BadInput, SpanMismatch
from unleak.text.rows import align, each_layer, keep, patch, remove

L, D = 6, 3
H = torch.randn(2, L, D, generator=torch.Generator().manual_seed(0))
C = torch.randn(1, L, D, generator=torch.Generator().manual_seed(1))
G = torch.randn(1, L + 2, D, generator=torch.Generator().manual_seed(2))
positions = st.sets(st.integers(0, L - 1))
EVERY = set(range(L))


@given(positions)
def test_keep_is_remove_of_the_complement(S):
    assert torch.equal(keep(H, C, S), remove(H, C, EVERY - S))


@given(positions)
def test_keep_all_and_remove_none_change_nothing(S):
    assert torch.equal(keep(H, C, EVERY), H) and torch.equal(remove(H, C, []), H)
    assert torch.equal(keep(H, C, []), C.expand_as(H))


@given(positions, positions)
def test_removals_are_idempotent_and_commute(R1, R2):
    once = remove(H, C, R1)
    assert torch.equal(remove(once, C, R1), once)
    both = remove(H, C, R1 | R2)
    assert torch.equal(remove(once, C, R2), both)
    assert torch.equal(remove(remove(H, C, R2), C, R1), both)


@given(positions)
def test_removal_is_local(R):
    before = H.clone(), C.clone()
    out = remove(H, C, R)
    rest = sorted(EVERY - R)
    assert torch.equal(out[:, rest], H[:, rest])
    assert torch.equal(out[:, sorted(R)], C.expand_as(H)[:, sorted(R)])
    assert (out.shape, out.dtype, out.device) == (H.shape, H.dtype, H.device)
    assert torch.equal(H, before[0]) and torch.equal(C, before[1])


@given(st.permutations(range(L)), st.permutations(range(L + 2)), st.integers(0, L))
def test_patch_is_local_and_pairs_rows(to, of, m):
    dst, src = to[:m], of[:m]
    before = H.clone(), G.clone()
    out = patch(H, G, dst, src)
    rest = sorted(EVERY - set(dst))
    assert torch.equal(out[:, rest], H[:, rest])
    for i, j in zip(dst, src, strict=True):
        assert torch.equal(out[:, i], G[:, j].expand(2, -1))
    assert torch.equal(H, before[0]) and torch.equal(G, before[1])


@given(st.permutations(range(L)), st.integers(0, L))
def test_disjoint_patches_commute_and_self_patch_is_nothing(order, m):
    one, two = order[:m], order[m:]
    assert torch.equal(patch(patch(H, G, one, one), C, two, two), patch(patch(H, C, two, two), G, one, one))
    assert torch.equal(patch(H, H, one, one), H)


def test_masks_follow_the_same_algebra():
    ours, pads = torch.tensor([[1, 1, 1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 0, 0, 0]])
    assert keep(ours, pads, {2}).tolist() == [[1, 0, 1, 0, 0, 0]]


def test_bad_positions_and_lengths():
    for call in (lambda: keep(H, C, {L}), lambda: remove(H, C, {-1}), lambda: patch(H, G, [0], [L + 2])):
        with pytest.raises(BadInput, match="positions"):
            call()
    with pytest.raises(BadInput, match="same length"):
        keep(H, G, {0})
    with pytest.raises(SpanMismatch):
        patch(H, G, [0, 1], [0])


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_right_alignment_pairs_the_last_rows(a, m, b, k):
    dst, src = (a, a + m), (b, b + k)
    targets, sources, cleared = align(dst, src, "right-align")
    assert cleared + targets == list(range(*dst))
    assert [t - dst[1] for t in targets] == [s - src[1] for s in sources]
    assert len(targets) == min(m, k)
    if m == k:
        assert align(dst, src) == (targets, sources, [])
    else:
        with pytest.raises(SpanMismatch, match="right-align"):
            align(dst, src)


def test_only_carriers_are_paired_under_representative():
    assert align((1, 4), (4, 5), "representative", carriers=[3, 2]) == ([2, 3], [2, 3], [1])
    assert align((0, 1), (0, 2), "representative", carriers=[0, 1]) == ([0], [1], [])  # each carries all of it
    with pytest.raises(SpanMismatch, match="carriers"):
        align((0, 1), (0, 2), "representative")


def test_unknown_policies():
    with pytest.raises(BadInput, match="Choose from error, right-align"):
        align((0, 1), (0, 1), "left")


def test_each_layer_changes_every_layer_and_nothing_else():
    def output(offset):
        return BaseModelOutputWithPooling(
            last_hidden_state=H + offset,
            hidden_states=(H + 1 + offset, H + 2 + offset),
            pooler_output=H[:, 0],
        )

    one, two = output(0.0), output(5.0)
    out = each_layer(lambda layer: patch(layer(one), layer(two), [1], [2]), one)
    assert type(out) is type(one) and out.pooler_output is one.pooler_output and out.attentions is None
    for new, old, other in zip(
        (out.last_hidden_state, *out.hidden_states),
        (one.last_hidden_state, *one.hidden_states),
        (two.last_hidden_state, *two.hidden_states),
        strict=True,
    ):
        assert torch.equal(new, patch(old, other, [1], [2])) and not torch.equal(new, old)
    assert torch.equal(one.last_hidden_state, H)
    bare = BaseModelOutputWithPooling(last_hidden_state=H)
    bare = each_layer(lambda layer: layer(bare) + 1, bare)
    assert bare.hidden_states is None and torch.equal(bare.last_hidden_state, H + 1)

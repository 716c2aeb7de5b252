"""Text columns without the map: equal to the dense softmax, on the real grid, averaged as they come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from reference import full_map, softmax_map
from test_core_edits import CELLS, HEADS, HEIGHT, TEXT, WIDTH, make_call
from unleak.core import scores
from unleak.core.scores import RunningMean
from unleak.errors import BadInput, NotFinite


def qkv(batch=2, heads=3, queries=50, keys=17, wide=8, dtype=torch.float64):
    random = torch.Generator().manual_seed(queries + keys)
    shapes = (queries, keys, keys)
    return [torch.randn(batch, heads, n, wide, generator=random, dtype=dtype) for n in shapes]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4000), st.booleans())
def test_chunked_columns_equal_the_dense_softmax(chunk, masked):
    q, k, _ = qkv()
    mask = torch.randn(1, 1, 50, 17, dtype=torch.float64) if masked else None
    dense = softmax_map(q, k, 0.3, mask)
    lse = scores.log_sum_exp(q, k, 0.3, mask, chunk)
    assert (scores.columns(q, k, [0, 5, 16], 0.3, lse, mask) - dense[..., [0, 5, 16]]).abs().max() < 1e-12


def test_all_columns_sum_to_one():
    q, k, _ = qkv()
    lse = scores.log_sum_exp(q, k, 0.3)
    assert (scores.columns(q, k, range(17), 0.3, lse, None).sum(-1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_output_is_bitwise_the_plain_one(dtype):
    q, k, v = qkv(queries=256, keys=77, wide=16, dtype=dtype)
    found = scores.fused(q, k, v, 0.25)
    assert found is not None, "this machine's kernel gives no log-sum-exp"
    out, lse = found
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v, scale=0.25))
    assert (lse - scores.log_sum_exp(q, k, 0.25)).abs().max() < (1e-5 if dtype == torch.float32 else 1e-2)


def test_a_kernel_that_fails_its_trial_is_not_used(monkeypatch):
    q, k, v = qkv(wide=24, dtype=torch.float32)
    assert scores.fused(q, k, v, 0.3) is not None
    wrong = lambda q, k, v, s: (F.scaled_dot_product_attention(q, k, v, scale=s), torch.zeros(*q.shape[:3]))  # noqa: E731
    monkeypatch.setitem(scores._KERNELS, ("cpu", 1), wrong)
    scores._sound.cache_clear()
    assert scores.fused(q, k, v, 0.3) is None
    scores._sound.cache_clear()


def test_gradients_keep_to_the_differentiable_way():
    q, k, v = qkv()
    assert scores.fused(q.requires_grad_(), k, v, 0.3) is None
    call = make_call()
    call.q.requires_grad_()
    call.columns([1]).sum().backward()
    assert call.q.grad.abs().max() > 0


@pytest.mark.parametrize("kind", ["cross", "joint-first", "joint-last"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_calls_columns_are_those_of_its_map(kind, dtype):
    call = make_call(kind, dtype=dtype)
    full = full_map(call, "cond")[:, :, call.layout.image_queries, call.layout.text_keys]
    columns = call.columns([3, 1], "cond", mean_heads=False)
    assert columns.shape == (2, HEADS, HEIGHT, WIDTH, 2)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    assert (columns.flatten(2, 3) - full[..., [3, 1]]).abs().max() < tolerance
    assert (call.columns([3, 1]) - columns.mean(1)).abs().max() < tolerance


def test_columns_respect_the_pipelines_mask():
    mask = torch.ones(4, 1, 1, TEXT, dtype=torch.bool)
    mask[..., 2] = False
    call = make_call(mask=mask)
    assert call.columns([2]).abs().max() == 0
    assert (call.columns(range(TEXT)).sum(-1) - 1).abs().max() < 1e-12


def test_looking_does_not_change_the_output():
    call = make_call(dtype=torch.float32)
    before = call.plain().clone()
    call.columns([0])
    assert torch.equal(call.plain(), before)


def test_columns_of_a_self_site_are_refused():
    with pytest.raises(BadInput):
        make_call("self").columns([0])


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_the_running_mean_is_the_mean(values):
    mean = RunningMean()
    for value in values:
        mean.add("key", torch.full((CELLS,), value, dtype=torch.float64))
    assert mean.mean("key").tolist() == pytest.approx([sum(values) / len(values)] * CELLS, abs=1e-9)
    assert mean.count("key") == len(values) and list(mean) == ["key"]


def test_nan_is_found_when_the_mean_is_read():
    mean = RunningMean()
    mean.add("key", torch.tensor([1.0, float("nan")]))
    with pytest.raises(NotFinite, match="key"):
        mean.mean("key")

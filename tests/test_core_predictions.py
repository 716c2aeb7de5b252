"""The algebra of predictions: parametrisations and guidance."""

from __future__ import annotations

import diffusers
import pytest
import torch

from unleak.core.predictions import Level, clean_latents, guidance, predicted
from unleak.errors import BadInput, UnsupportedModel


def rows(seed):
    return torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(seed)).double()


def test_a_flow_is_read_as_clean_latents_and_noise():
    z0, n = rows(0), rows(1)
    found = predicted(n - z0, 0.7 * z0 + 0.3 * n, "flow_prediction", Level(0.7, 0.3))
    assert torch.allclose(found.clean, z0) and torch.allclose(found.noise, n)


def test_channels_of_a_variance_are_left_out():
    x, output = rows(0), rows(1)
    scheduler = diffusers.DDIMScheduler()
    both = torch.cat([output, rows(2)], 1)
    assert torch.equal(clean_latents(scheduler, x, both, 300), clean_latents(scheduler, x, output, 300))


def test_a_scheduler_without_alphas_is_unsupported_in_words():
    with pytest.raises(UnsupportedModel, match="no alphas"):
        clean_latents(diffusers.EDMEulerScheduler(), rows(0), rows(1), 3.0)


def test_guidance_needs_an_unconditional_prediction_unless_its_scale_is_one():
    u, c = rows(0), rows(1)
    assert torch.equal(guidance(u, c, 2.0), u + 2.0 * (c - u)) and guidance(None, c, 1.0) is c
    with pytest.raises(BadInput, match="unconditional rows"):
        guidance(None, c, 2.0)

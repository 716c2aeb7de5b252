"""Windows, site filters and the JSON form of interventions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from tiny import tiny
from unleak.core.anatomy import Site, attention_sites
from unleak.core.intervention import ALL, Intervention, SiteFilter, Window
from unleak.errors import BadInput, NoSite


@dataclass(frozen=True)
class Nudge(Intervention):
    items: tuple[str, ...] = ()
    strength: float = 1.0
    mask: torch.Tensor | None = field(default=None, compare=False)

    def on_latents(self, ctx, latents):
        return latents * self.strength


def test_windows_are_closed_intervals_of_fractions():
    window = Window(0.25, 0.75)
    assert [f in window for f in (0.0, 0.25, 0.5, 0.75, 1.0)] == [False, True, True, True, False]
    for start, end in [(-0.1, 1), (0, 1.1), (0.6, 0.5), (float("nan"), 1)]:
        with pytest.raises(BadInput):
            Window(start, end)


@pytest.fixture(scope="module")
def sites():
    return attention_sites(tiny("sd1").unet)


def test_a_filter_takes_names_globs_and_predicates(sites):
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert [s.name for s in SiteFilter.of(name).select(sites)] == [name]
    assert len(SiteFilter.of("down_blocks.*.attn2").select(sites)) == 6
    assert len(SiteFilter.of(lambda s: s.name.endswith("attn1")).select(sites)) == 16
    assert len(SiteFilter.of(["mid_block*", "up_blocks.1*"]).select(sites)) == 8
    assert ALL.select(sites) == sites


def test_the_order_is_the_denoisers(sites):
    picked = SiteFilter.of(["up_blocks.1*", "down_blocks.0*"]).select(sites)
    assert [s.name.split(".")[0] for s in picked] == ["down_blocks"] * 4 + ["up_blocks"] * 6


@pytest.mark.parametrize("which", ["nowhere", ["mid_block*", "nowhere*"], lambda s: False, []])
def test_matching_nothing_is_an_error(which, sites):
    with pytest.raises(NoSite):
        SiteFilter.of(which).select(sites)


def test_the_error_names_near_sites():
    sites = [Site("mid_block.attentions.0.attn2", nn.Identity())]
    with pytest.raises(NoSite, match=r"mid_block\.attentions\.0\.attn2"):
        SiteFilter.of("mid_block.attention.0.attn2").select(sites)


def test_a_user_may_write_sites_as_a_string():
    assert Nudge(sites="mid_block*").sites == SiteFilter(("mid_block*",))


def test_interventions_survive_json():
    mask = torch.tensor([[True, False], [False, True]])
    nudge = Nudge(("a", "b"), 0.5, mask, window=Window(0.1, 0.9), sites=["mid_block*"])
    again = Intervention.from_dict(json.loads(json.dumps(nudge.to_dict())))
    assert again == nudge
    assert torch.equal(again.mask, mask) and again.mask.dtype == torch.bool


def test_what_json_cannot_carry_is_refused():
    with pytest.raises(BadInput, match="sites"):
        Nudge(sites=lambda site: True).to_dict()


def test_unknown_types_are_refused():
    with pytest.raises(BadInput, match="Nonesuch"):
        Intervention.from_dict({"type": "Nonesuch"})


def test_a_seam_is_had_when_overridden():
    assert [seam for seam in ("on_text", "on_latents") if Nudge().has(seam)] == ["on_latents"]

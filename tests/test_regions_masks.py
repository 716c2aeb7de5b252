"""Masks: read from anything, resized, widened, made disjoint; nothing wrong passes in silence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from unleak.errors import BadInput, EmptyMask
from unleak.regions.masks import masks as masking
from unleak.regions.masks.masks import as_stack, dilate, foreground, mask_notes, partition, read_mask, to_grid

SIZE = (32, 48)


def box(y=(8, 24), x=(8, 24), size=SIZE):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[slice(*y), slice(*x)] = True
    return mask


def stacks():
    """1 to 4 random masks of some size, none of them empty."""

    def build(values):
        seed, k, h, w, share = values
        made = torch.rand(k, h, w, generator=torch.Generator().manual_seed(seed)) < share
        made[:, 0, 0] = True
        return made

    numbers = st.tuples(st.integers(0, 99), st.integers(1, 4), st.integers(1, 17), st.integers(1, 17), st.floats(0, 1))
    return numbers.map(build)


@settings(max_examples=40, deadline=None)
@given(stacks(), st.sampled_from(masking.OVERLAP), st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_regions_partition_the_image_at_every_resolution(masks, overlap, grid):
    regions = partition(masks, overlap)
    assert (regions.sum(0) == 1).all() and not (regions[:-1] & ~masks).any()
    assert (to_grid(regions, grid).sum(0) == 1).all()
    background = regions[-1] == ~masks.any(0)
    assert background.all() or overlap == "background"


@settings(max_examples=40, deadline=None)
@given(stacks(), st.randoms(use_true_random=False))
def test_permuting_edits_permutes_their_regions(masks, random):
    areas = masks.flatten(1).sum(1).tolist()
    order = random.sample(range(len(masks)), len(masks))
    one, other = partition(masks, "background"), partition(masks[order], "background")
    assert torch.equal(one[[*order, len(masks)]], other)
    if len(set(areas)) == len(areas):
        assert torch.equal(partition(masks)[[*order, len(masks)]], partition(masks[order]))


def test_the_smaller_mask_owns_an_overlap_and_order_can_decide_instead():
    outer, inner = box((0, 32), (0, 48)), box()
    stack = torch.stack([outer, inner])
    assert torch.equal(partition(stack)[1], inner) and not (partition(stack)[0] & inner).any()
    assert torch.equal(partition(stack, "order")[0], outer) and not partition(stack, "order")[1].any()
    assert torch.equal(partition(stack, "background")[2], inner)


@settings(max_examples=30, deadline=None)
@given(stacks(), st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_resizing_is_nearest_as_torch_defines_it(masks, grid):
    assert torch.equal(to_grid(masks, grid), F.interpolate(masks[None].float(), grid, mode="nearest")[0] > 0.5)


def test_dilation_is_a_disc_in_fractions_of_the_height():
    one = torch.zeros(1, 40, 60, dtype=torch.bool)
    one[0, 20, 30] = True
    wide = dilate(one, 0.1)[0]
    y, x = torch.meshgrid(torch.arange(40), torch.arange(60), indexing="ij")
    assert torch.equal(wide, (y - 20) ** 2 + (x - 30) ** 2 <= 16)
    assert torch.equal(dilate(one, 0.02), one)  # less than a pixel
    with pytest.raises(BadInput, match="fraction"):
        dilate(one, 4.0)


def test_the_foreground_is_the_union_and_coarser_grids_only_add_to_it():
    stack = torch.stack([box(), box((20, 30), (30, 46))])
    single, multi = foreground(stack, (8, 12)), foreground(stack, (8, 12), "multiscale")
    assert torch.equal(single > 0, to_grid(stack.any(0), (8, 12))) and set(single.unique().tolist()) == {0.0, 1.0}
    assert (multi >= single).all() and multi.sum() > single.sum()


def test_a_feathered_edge_lies_inside_the_mask():
    hard = foreground(box()[None], SIZE)
    soft = foreground(box()[None], SIZE, feather=0.1)
    assert (soft[hard == 0] == 0).all() and 0 < soft[8, 8] < soft[10, 10] < 1 and soft[15, 15] == 1
    everything = foreground(torch.ones(1, *SIZE, dtype=torch.bool), SIZE, feather=0.1)
    assert (everything[10:20, 10:20] == 1).all()


def test_masks_are_read_from_files_images_and_arrays(tmp_path):
    wanted, grey = box(), Image.fromarray((box().numpy() * 255).astype(np.uint8))
    clear = Image.new("RGBA", grey.size, (0, 0, 0, 0))
    clear.putalpha(grey)
    deep = Image.fromarray((box().numpy() * 65535).astype(np.uint16))
    for i, picture in enumerate((grey, grey.convert("RGB"), grey.convert("1"), clear, deep)):
        picture.save(tmp_path / f"{i}.png")
        assert torch.equal(read_mask(tmp_path / f"{i}.png", SIZE), wanted), picture.mode
        assert torch.equal(read_mask(picture, SIZE), wanted), picture.mode
    for array in (wanted, wanted.float() * 0.7, wanted.int(), wanted.numpy().astype(np.uint8) * 255):
        assert torch.equal(read_mask(array, SIZE), wanted)
    assert torch.equal(read_mask(grey.resize((96, 64), Image.Resampling.NEAREST), SIZE), wanted)
    soft = np.where(wanted, 0.51, 0.49)
    assert torch.equal(read_mask(soft, SIZE), wanted)


@pytest.mark.parametrize(
    ("mask", "error", "what"),
    [
        (np.zeros(SIZE), EmptyMask, "nothing"),
        (np.full(SIZE, 0.4), EmptyMask, "nothing"),
        (np.ones((48, 32)), BadInput, "draw it on that"),
        (np.ones((3, *SIZE)), BadInput, "one plane"),
        (np.full(SIZE, np.nan), BadInput, "NaN"),
        ("no such file.png", BadInput, "cannot be read"),
        (np.array([["a"]]), BadInput, "neither"),
    ],
)
def test_a_mask_that_cannot_be_meant_is_an_error(mask, error, what):
    with pytest.raises(error, match=what):
        read_mask(mask, SIZE, "the mask of 'car'")


def test_a_truncated_mask_file_is_an_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    with pytest.raises(BadInput, match="cannot be read"):
        read_mask(tmp_path / "half.png", SIZE)


def test_a_stack_without_a_cell_or_of_another_kind_is_refused():
    with pytest.raises(EmptyMask, match="mask 2 of 2"):
        as_stack(torch.stack([box(), torch.zeros_like(box())]))
    with pytest.raises(BadInput, match="bool"):
        as_stack(box()[None].float())
    with pytest.raises(EmptyMask, match="latent grid"):
        mask_notes(box((9, 10), (9, 10))[None], ["a"], (4, 6))
    with pytest.raises(EmptyMask, match="latent grid"):
        foreground(box((9, 10), (9, 10))[None], (4, 6))


def test_overlap_nesting_and_full_masks_are_told():
    whole, middle = torch.ones(SIZE, dtype=torch.bool), box()
    assert mask_notes(torch.stack([middle, box((8, 24), (30, 40))]), "ab", (8, 12)) == []
    assert "overlap: 25%" in mask_notes(torch.stack([middle, box((8, 24), (20, 36))]), "ab", (8, 12))[0]
    full, nested = mask_notes(torch.stack([whole, middle]), "ab", (8, 12))
    assert "covers the whole image" in full and "inside" in nested
    halves = torch.stack([box((0, 32), (0, 24)), box((0, 32), (24, 48))])
    assert "together" in mask_notes(halves, "ab", (8, 12))[0]

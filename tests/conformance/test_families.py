"""Each tiny pipeline draws: twice the same for one seed, another picture for another prompt."""

import numpy as np
import pytest

from conformance import each


@pytest.mark.parametrize("family", each())
def test_a_family_draws_what_its_prompt_says(family):
    pipe = family.pipe()
    picture = family.draw(pipe)
    assert picture.ndim == 4 and picture.shape[-1] in {3, 4} and np.isfinite(picture).all()
    assert picture.std() > 0.01, "a flat picture"
    assert np.array_equal(picture, family.draw(family.pipe())), "equal seeds give equal weights and pictures"
    other = family.draw(pipe, "a green dog and a laptop")
    assert np.abs(other - picture).max() > 1e-3, "the prompt does not matter"

"""One message for a name that is none of the choices."""

from __future__ import annotations

import pytest

from unleak.errors import BadInput, choose


def test_a_known_name_is_returned_and_an_unknown_one_names_the_nearest_and_all():
    assert choose("pad", "zero", ("empty", "zero")) == "zero"
    with pytest.raises(BadInput, match=r"no pad is called 'zeros'; did you mean 'zero'\? Choose from empty, zero$"):
        choose("pad", "zeros", ("empty", "zero"))


@pytest.mark.parametrize("name", [None, 3, [], "x"])
def test_whatever_is_given_as_a_name_is_refused_in_words(name):
    with pytest.raises(BadInput, match="no pad is called"):
        choose("pad", name, ("empty", "zero"))

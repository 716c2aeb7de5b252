"""Drop redundant tokens: pad rows in the place of tokens that do not carry their item.

Source: Follow the Flow (arXiv 2504.01137), redundant-token removal: ``H~[R] = C[R]``; all other rows stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unleak.errors import BadInput
from unleak.text.spans import Tokens
from unleak.text.subsets import Cutter, Subset, letters
from unleak.words.methods.probe import Keep


@dataclass(frozen=True)
class Prune(Keep):
    """Replace redundant tokens of items by pad rows; every other row stays, contextual pads included.

    ``Prune(Subset.token("hot dog", 0))``, or ``tokens(...).prune()``. ``subsets`` are the rows to remove; the
    pooled vector stays that of the whole prompt unless `pooled` says otherwise. The length never changes.

    Raises:
        BadInput: something else than single tokens of items is named, or an item would lose all of its tokens.
    """

    pooled: str = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        assert not isinstance(self.subsets, Subset)
        if any(s.items or s.kinds or not s.pieces for s in self.subsets):
            raise BadInput("Prune removes single tokens of items, Subset.token('hot dog', 0), and nothing else.")

    def kept(self, subset: Subset, own: Cutter, tokens: Tokens, every: Sequence[Cutter]) -> list[int]:
        """Every position but those of the redundant tokens."""
        removed = set(subset.positions(own, tokens, every))
        for item in subset.named:
            rows = Subset.of(item).positions(own, tokens, every)
            if not any(letters(own, tokens, i) for i in rows if i not in removed):
                raise BadInput(f"Prune would leave no token of {item!r} in {own.name}: keep one of them.")
        return [i for i in range(tokens.length) if i not in removed]

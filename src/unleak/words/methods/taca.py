"""TACA: joint attention in which the picture listens more to the text.

Source: TACA (arXiv 2506.07986). In joint attention a softmax runs over text rows and image cells together, of which
the cells are many more. The logits between a query of the picture and a key of the text are multiplied by ``gamma``:

    logit = gamma <q_image, k_text> / sqrt(d)

Queries of the text, and keys of the picture, stay as they are. With a second call for the negative prompt (SD3), only
the conditional one is changed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from unleak.core.edits import KeyScale
from unleak.core.intervention import JOINT, Intervention
from unleak.errors import BadInput, UnsupportedModel

if TYPE_CHECKING:
    from unleak.core.attention import AttentionCall
    from unleak.core.context import Context


@dataclass(frozen=True)
class TACA(Intervention):
    """``TACA()``: every block and step, as published; ``TACA(window=Window(0, 0.3))`` only early steps.

    Attributes:
        gamma: above 0; 1 changes nothing. Published: 1.2.

    Raises:
        BadInput: gamma is out of range. UnsupportedModel: text does not reach the picture by joint attention.
    """

    gamma: float = 1.2

    layouts: ClassVar[tuple[str, ...]] = (JOINT,)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.gamma < math.inf:
            raise BadInput(f"gamma={self.gamma}: give a number above 0, e.g. 1.2; 1 changes nothing")

    def on_attention(self, ctx: Context, site: AttentionCall) -> KeyScale | None:
        if site.kind == "cross":
            raise UnsupportedModel(
                "TACA is for joint attention, where text competes with the picture's cells; elsewhere it has the "
                "softmax to itself: weigh single words with Weight or Boost"
            )
        if site.kind == "self" or self.gamma == 1:
            return None
        return KeyScale(None, self.gamma, queries="image")

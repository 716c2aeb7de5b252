"""What a judge says of an edit: is each target there, and its source gone?"""

from __future__ import annotations

import numpy as np

from unleak.errors import BadInput
from unleak.judges import Judge
from unleak.regions.edited import Check, Edited
from unleak.regions.plan import without_article
from unleak.text.items import Item


def judged(edited: Edited, judge: Judge) -> list[Check]:
    """One `Check` for each edit. Raises BadInput for a phrase that the judge cannot read."""
    sources = [Item(without_article(Item.of(one.source).text)) for one in edited.edits]
    targets = [Item(without_article(one.target)) for one in edited.edits]
    before, after = judge.present(np.stack([edited.before, edited.image]), [*sources, *targets])
    k = len(sources)
    return [Check(bool(before[i]), bool(after[i]), bool(after[k + i])) for i in range(k)]


def add_checks(edited: Edited, judge: Judge) -> None:
    """Add what the judge sees of each edit, or a note that says why it cannot."""
    try:
        edited.checks, edited.judge = judged(edited, judge), judge.name
    except BadInput as e:
        edited.notes.append(f"not judged: {e}")

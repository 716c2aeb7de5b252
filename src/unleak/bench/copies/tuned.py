"""GUARD and delayed guidance tuned for the embedded model, so that what is tuned for it has fair competition.

Published settings are of other models. `VARIANTS` were tried on `dev` captions, first on three of each memorized kind,
the likely ones on six, with two seeds; `TUNED_PRESETS` are those `chosen` among these. To choose again:

    unleak bench copies --split dev --limit 6 --seeds 0:2 --methods guard:rho=3.5,guard:rho=8:until=0.3,...

whose results name the choice of every method of which variants were measured. Twelve images of a kind without a copy
still leave room for 24 %, and several variants are within noise of the chosen ones: the held-out half tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from unleak.bench.copies.detection import MEMORIZED
from unleak.bench.rows import Row
from unleak.copies.presets import MITIGATIONS, MitigationPreset
from unleak.core.intervention import ALL, Window
from unleak.core.presets import Presets

MOST_COPIES = 0.05  #: of either kind, for a variant to be chosen for its alignment

EVERYWHERE: dict[str, Any] = {"alpha": 0.0, "sites": ALL}  #: spikes are removed, at all sites
FIELDS: dict[str, dict[str, Any]] = {
    **{f"guard:rho={rho:g}": {"rho": rho} for rho in (3.0, 3.5, 4.0, 6.0)},
    **{f"guard:rho={rho:g}:until={end:g}": {"rho": rho, "window": Window(0.0, end)}
       for rho, end in ((4.0, 0.5), (6.0, 0.3), (6.0, 0.4), (7.0, 0.3), (8.0, 0.3))},
    **{f"guard:everywhere:rho={rho:g}": {"rho": rho, **EVERYWHERE} for rho in (0.0, 2.0, 2.5, 3.0)},
    **{f"guard:everywhere:rho={rho:g}:until=0.5": {"rho": rho, "window": Window(0.0, 0.5), **EVERYWHERE}
       for rho in (3.0, 3.5)},
    **{f"guard:orthogonal:rho={rho:g}": {"orthogonalize": True, "rho": rho} for rho in (0.0, 4.0)},
    **{f"delayed-guidance:until={end:g}": {"until": end} for end in (0.3, 0.6, 0.65, 0.7)},
}  # fmt: skip
#: tuned preset -> the variant that was chosen for it on `dev`
CHOSEN: dict[str, str] = {
    "guard:tuned": "guard:rho=8:until=0.3",
    "delayed-guidance:tuned": "delayed-guidance:until=0.65",
}


def _variant(name: str, fields: Mapping[str, Any]) -> MitigationPreset:
    """A preset of the method before the colon, with other values of some fields."""
    return replace(MITIGATIONS[name.partition(":")[0]], name=name, fields=fields)


VARIANTS = Presets("variant", [_variant(name, fields) for name, fields in FIELDS.items()])
TUNED_PRESETS = Presets("tuned preset", [_variant(name, FIELDS[variant]) for name, variant in CHOSEN.items()])
#: all that the benchmark can measure
MEASURABLE = Presets("mitigation", [*MITIGATIONS.values(), *TUNED_PRESETS.values(), *VARIANTS.values()])


def chosen(rows: Sequence[Row], method: str) -> str:
    """The measured variant of a method, as published or of `VARIANTS`, that is aligned best while it hardly copies.

    Of those that copy less than `MOST_COPIES` of either kind the one with the highest mean alignment of both; if there
    is none, the one that copies least. Of equals the first measured.

    >>> figures = {"guard": (1.0, 1.0), "guard:rho=3": (0.04, 0.3), "guard:rho=4": (0.0, 0.1)}
    >>> rows = [Row(name, "verbatim", metric, value, value, value, 1) for name, both in figures.items()
    ...         for metric, value in zip(("copy_rate", "alignment"), both)]
    >>> chosen(rows, "guard")
    'guard:rho=3'
    """
    value = {(r.method, r.metric, r.subset): r.value for r in rows}
    names = [name for name in dict.fromkeys(r.method for r in rows) if name.partition(":")[0] == method]

    def rank(name: str) -> tuple[float, float]:
        copies, aligned = ([value[name, metric, kind] for kind in MEMORIZED if (name, metric, kind) in value]
                           for metric in ("copy_rate", "alignment"))  # fmt: skip
        return (max(copies) if max(copies) >= MOST_COPIES else 0.0), -float(np.mean(aligned))

    return min(names, key=rank)


def notes(rows: Sequence[Row]) -> list[str]:
    """The choice among the variants of every method of which some were measured."""
    some = dict.fromkeys(r.method.partition(":")[0] for r in rows if r.method in VARIANTS)
    return [f"{method}: of the variants measured, {chosen(rows, method)} is aligned best while it hardly copies"
            for method in some]  # fmt: skip

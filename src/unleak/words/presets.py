"""The repairs that an automatic repair may choose from: one line each, in the order of what they cost.

A new repair is a constructor and one line in `CANDIDATES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from unleak.core.intervention import Intervention
from unleak.text.items import Item
from unleak.words.methods.boost import Boost
from unleak.words.methods.patch import Patch
from unleak.words.tokens.redundancy import Prune


@dataclass(frozen=True)
class Case:
    """What is to be repaired: the broken items and the others, each with the sense that is meant, or None.

    ``verdicts``: why the broken ones are missing, one each; None where that is not known.
    ``redundant``: the repair that drops redundant tokens of the items; None where none are known.
    """

    broken: tuple[Item, ...]
    others: tuple[Item, ...]
    verdicts: tuple[str | None, ...]
    redundant: Prune | None = None

    def only(self, *verdicts: str) -> Case:
        """The case with the broken items of these verdicts alone; the rest are others."""
        chosen = [v is None or v in verdicts for v in self.verdicts]
        return Case(
            tuple(i for i, c in zip(self.broken, chosen, strict=True) if c),
            (*self.others, *(i for i, c in zip(self.broken, chosen, strict=True) if not c)),
            tuple(v for v, c in zip(self.verdicts, chosen, strict=True) if c),
            self.redundant,
        )


class Candidate(NamedTuple):
    """A way to repair.

    Attributes:
        make: ``make(case)``, the intervention; None where it has nothing to act on.
        cures: the verdicts it is meant for, for which it is tried first.
        cost: what an image costs more, in shares of a denoiser run; encodings count as next to nothing.
        patches: ``make`` takes the options of `Patch`.
    """

    make: Callable[..., Intervention | None]
    cures: tuple[str, ...]
    cost: float
    patches: bool = False

    def made(self, case: Case, options: dict[str, Any]) -> Intervention | None:
        """The intervention for a case, if there is any; the options of `Patch` are for those that patch."""
        return self.make(case, **(options if self.patches else {}))


def prune(case: Case) -> Intervention | None:
    """Pad rows for tokens that are known to be redundant, of any item; they can only mislead."""
    return case.redundant


def patch(case: Case, **options: Any) -> Intervention:
    """Rows without context, named by the sense that is meant."""
    return Patch(items=case.broken, others=case.others, **options)


def patch_word(case: Case, **options: Any) -> Intervention:
    """Rows without context, by the word as it stands in the prompt."""
    return Patch(items=[replace(item, sense=None) for item in case.broken], others=case.others, **options)


def patch_masked(case: Case, **options: Any) -> Intervention:
    """The same, but encoded in its sentence with the company masked out of attention."""
    return patch_word(case, **{"isolation": "attn-mask", "eos_pads": "attn-mask", **options})


def boost(case: Case) -> Intervention:
    """More attention to the items where they are; the rows stay."""
    return Boost([replace(item, sense=None) for item in case.broken])


CANDIDATES: dict[str, Candidate] = {
    "prune": Candidate(prune, cures=(), cost=0.005),
    "patch": Candidate(patch, cures=("leak",), cost=0.01, patches=True),
    "patch-word": Candidate(patch_word, cures=(), cost=0.01, patches=True),
    "patch-masked": Candidate(patch_masked, cures=(), cost=0.01, patches=True),
    "boost": Candidate(boost, cures=("neglect",), cost=0.1),
}


class Trial(NamedTuple):
    """A candidate at work: its name, what it does, and the items that it acts on."""

    name: str
    repair: Intervention
    items: tuple[Item, ...]


def suggested(case: Case, **options: Any) -> list[Trial]:
    """Repairs that are meant for a verdict of the case, each for the items it is meant for; the cheapest first."""
    found = []
    for name, candidate in sorted(CANDIDATES.items(), key=lambda pair: pair[1].cost):
        part = case.only(*candidate.cures)
        if candidate.cures and part.broken and (made := candidate.made(part, options)) is not None:
            found.append(Trial(name, made, part.broken))
    return found


def trials(case: Case, **options: Any) -> list[Trial]:
    """What is worth trying, none twice: first what is suggested, then every repair on all broken items.

    Among the latter those that are meant for one of the verdicts come first, then the cheapest.
    """
    found = suggested(case, **options)
    meant = {v for v in case.verdicts if v}
    order = sorted(CANDIDATES, key=lambda name: (not meant & {*CANDIDATES[name].cures}, CANDIDATES[name].cost))
    for name in order if case.broken else []:
        made = CANDIDATES[name].made(case, options)
        if made is not None and made not in [trial.repair for trial in found]:
            found.append(Trial(name, made, case.broken))
    return found

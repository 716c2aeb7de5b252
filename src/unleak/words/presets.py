"""The repairs of this room by name: one table, which the command line, the benchmark, `unleak.repair` and docs read.

A new repair is its file in `words/methods/` and one line in `REPAIRS`. The automatic repair considers it only if the
line says ``automatic=True``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from unleak.core.intervention import Intervention
from unleak.core.presets import Preset, Presets
from unleak.text.items import Item
from unleak.words.methods.boost import Boost
from unleak.words.methods.contextless import Contextless
from unleak.words.methods.cutoff import Cutoff
from unleak.words.methods.deleaker import DeLeaker
from unleak.words.methods.patch import Patch
from unleak.words.methods.prune import Prune
from unleak.words.methods.structure import StructureDiffusion
from unleak.words.methods.taca import TACA
from unleak.words.methods.tebopt import TEBOpt
from unleak.words.methods.weight import Weight


@dataclass(frozen=True)
class RepairTask:
    """What is to be repaired: the broken items and the others, each with the intended sense, or None.

    Attributes:
        verdicts: why the broken items are missing, one for each; None where that is not known.
        redundant: which tokens of the items are redundant; None where none are known.
    """

    broken: tuple[Item, ...]
    others: tuple[Item, ...]
    verdicts: tuple[str | None, ...]
    redundant: Prune | None = None

    def only(self, *verdicts: str) -> RepairTask:
        """The task of the broken items with these verdicts, or with none; all other items are their context."""
        chosen = [v is None or v in verdicts for v in self.verdicts]
        return RepairTask(
            tuple(item for item, c in zip(self.broken, chosen, strict=True) if c),
            (*self.others, *(item for item, c in zip(self.broken, chosen, strict=True) if not c)),
            tuple(verdict for verdict, c in zip(self.verdicts, chosen, strict=True) if c),
            self.redundant,
        )


Arguments = Callable[[RepairTask], dict[str, Any] | None]
"""What a task says to a method: its hidden fields by name; None where the method has nothing to act on."""


def known_redundant(task: RepairTask) -> dict[str, Any] | None:
    """The fields of the `Prune` that drops the redundant tokens, of any item: they can only mislead."""
    known = task.redundant
    return None if known is None else {f.name: getattr(known, f.name) for f in dataclasses.fields(known)}


def broken_and_others(task: RepairTask) -> dict[str, Any]:
    """The broken items by their intended sense, and their context."""
    return {"items": task.broken, "others": task.others}


def broken_words_and_others(task: RepairTask) -> dict[str, Any]:
    """The broken items by their words as they stand in the prompt, and their context."""
    return {"items": by_word(task.broken), "others": task.others}


def broken_words(task: RepairTask) -> dict[str, Any]:
    """The broken items, where their words stand in the prompt."""
    return {"items": by_word(task.broken)}


def every_item(task: RepairTask) -> dict[str, Any]:
    """All items by their intended sense, the broken ones first."""
    return {"items": (*task.broken, *task.others)}


def every_word(task: RepairTask) -> dict[str, Any]:
    """All items, where their words stand in the prompt, the broken ones first."""
    return {"items": by_word((*task.broken, *task.others))}


def whole_prompt(task: RepairTask) -> dict[str, Any]:
    """Nothing: the method acts on all of the text, whatever is broken."""
    return {}


def by_word(items: Sequence[Item]) -> tuple[Item, ...]:
    """The items without their senses."""
    return tuple(replace(item, sense=None) for item in items)


@dataclass(frozen=True)
class Repair(Preset):
    """One named repair.

    Attributes:
        arguments: which items of a task the method takes, and how.
        treats: the verdicts for which it is tried first.
        cost: what an image costs more, in shares of a denoiser run; encodings count as next to nothing. An estimate.
        automatic: the automatic repair may choose it.
    """

    arguments: Arguments = broken_and_others
    treats: tuple[str, ...] = ()
    cost: float = 0.01
    automatic: bool = False
    hidden: tuple[str, ...] = ("items", "others")

    def build(self, task: RepairTask, parameters: Mapping[str, Any] | None = None) -> Intervention | None:
        """The method for a task, with some of its parameters changed; None where it has nothing to act on.

        Raises BadInput: no such parameter, or a value that the method refuses.
        """
        changed, arguments = self.settings(parameters or {}), self.arguments(task)
        if arguments is None:
            return None
        built: Intervention = self.method(**{**arguments, **changed})
        return built


FLOW = "Follow the Flow (arXiv 2504.01137)"
DELEAKER = "DeLeaker (arXiv 2510.15015), section 3"

REPAIRS: Presets[Repair] = Presets(
    "repair",
    [
        Repair("prune", Prune, "Puts pad rows in the place of tokens that are known to be redundant.",
               f"{FLOW}, redundant-token removal", hidden=("subsets",), arguments=known_redundant, cost=0.005,
               automatic=True),
        Repair("patch", Patch, "Gives broken items the rows of their intended sense without its context.",
               f"{FLOW}, uncontextualised rows", treats=("leak",), automatic=True),
        Repair("patch-word", Patch, "Gives broken items the rows of their own words without the context.",
               f"{FLOW}, uncontextualised rows", arguments=broken_words_and_others, automatic=True),
        Repair("patch-masked", Patch, "Gives broken items the rows of the sentence whose items attend to themselves.",
               f"after {FLOW}", {"isolation": "attn-mask", "eos_pads": "attn-mask"},
               arguments=broken_words_and_others, automatic=True),
        Repair("boost", Boost, "Lets the picture attend more to broken items, where they are.",
               f"{DELEAKER}, own-item strengthening alone", arguments=broken_words, treats=("neglect",), cost=0.1,
               automatic=True),
        Repair("structure", StructureDiffusion, "Reads the values of noun phrases that were encoded alone.",
               "Feng et al., StructureDiffusion (ICLR 2023)", arguments=every_item),
        Repair("cutoff", Cutoff, "Encodes each item where all others are blanked out.",
               "sd-webui-cutoff (2023)", arguments=every_word),
        Repair("contextless", Contextless, "Gives every word the rows that it has where all other words say nothing.",
               "contextless rows (arXiv 2606.03715)", arguments=whole_prompt),
        Repair("tebopt", TEBOpt, "Moves the text rows by gradient descent until every item is itself.",
               "Unraveling Information Mix-ups (NeurIPS 2024)", arguments=every_item),
        Repair("deleaker", DeLeaker, "Keeps the regions of items apart in joint attention, whatever their order.",
               DELEAKER, arguments=every_word, cost=0.5),
        Repair("deleaker-official", DeLeaker, "DeLeaker pair by pair, as the authors released it.",
               "github.com/tokeron/DeLeaker at 67f1759", {"pairwise": True}, arguments=every_word, cost=0.5),
        Repair("weight", Weight, "Weighs the words of broken items in attention, as (word:1.4) does in other tools.",
               "practitioners' prompt weights, as key scales", arguments=broken_words, cost=0.1),
        Repair("taca", TACA, "Lets the picture listen more to all of the text in joint attention.",
               "TACA (arXiv 2506.07986)", arguments=whole_prompt, cost=0.1),
    ],
)  # fmt: skip
"""Every repair, those of the automatic repair first and by what they cost."""

DEFAULT = "patch"
"""The repair where nobody judges; the automatic repair takes its parameters."""


class Trial(NamedTuple):
    """A repair at work: its name, what it does, and the items that it acts on."""

    name: str
    repair: Intervention
    items: tuple[Item, ...]


def suggested(task: RepairTask, **parameters: Any) -> list[Trial]:
    """Automatic repairs that treat a verdict of the task, each for the items that it treats; the cheapest first."""
    planned = []
    for name, repair in sorted(_automatic().items(), key=lambda pair: pair[1].cost):
        part = task.only(*repair.treats)
        if repair.treats and part.broken and (built := _built(repair, part, parameters)) is not None:
            planned.append(Trial(name, built, part.broken))
    return planned


def trials(task: RepairTask, **parameters: Any) -> list[Trial]:
    """What is worth trying, none twice: first what is suggested, then every automatic repair on all broken items.

    Among the latter those that treat one of the verdicts come first, then the cheapest.
    """
    planned = suggested(task, **parameters)
    verdicts = {v for v in task.verdicts if v}
    order = sorted(_automatic().items(), key=lambda pair: (not verdicts & {*pair[1].treats}, pair[1].cost))
    for name, repair in order if task.broken else []:
        built = _built(repair, task, parameters)
        if built is not None and built not in [trial.repair for trial in planned]:
            planned.append(Trial(name, built, task.broken))
    return planned


def check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    """Raises BadInput: no such repair (or "auto"), or a parameter that it does not have."""
    REPAIRS[DEFAULT if name == "auto" else name].settings(parameters)


def _automatic() -> dict[str, Repair]:
    return {name: repair for name, repair in REPAIRS.items() if repair.automatic}


def _built(repair: Repair, task: RepairTask, parameters: Mapping[str, Any]) -> Intervention | None:
    """The repair for a task; the parameters are for those of the method of `DEFAULT`."""
    return repair.build(task, parameters if repair.method is REPAIRS[DEFAULT].method else {})

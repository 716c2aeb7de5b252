"""unleak's methods as parts of a modular pipeline of diffusers, which need no `with`.

`UnleakBlocks` is a `ModularPipelineBlocks` around other blocks, `guidance` makes a guider (`BaseGuidance`) of another.
Both carry out interventions as `unleak.attach` does, while the pipeline is called: the picture is bitwise the same, and
after the call the pipeline's parts are as they were.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from diffusers.guiders.guider_utils import BaseGuidance
from diffusers.modular_pipelines.modular_pipeline import SequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InsertableDict, OutputParam

from unleak.core.intervention import Intervention
from unleak.engine.run import Run
from unleak.engine.sampling import is_guider
from unleak.engine.session import attach
from unleak.engine.undo import Undo
from unleak.errors import BadInput, UnsupportedModel
from unleak.text.blocks import encoding_blocks
from unleak.text.encoders import text_encoders

RESULTS, LOG = "unleak_results", "unleak_log"

_at_work: weakref.WeakSet[Any] = weakref.WeakSet()
"""Blocks and guiders whose session is open."""


class UnleakBlocks(SequentialPipelineBlocks):
    """Blocks of a modular pipeline that run under interventions.

    >>> blocks = UnleakBlocks(StableDiffusionXLAutoBlocks(), unleak.Patch(["mouse"]))  # doctest: +SKIP
    >>> pipe = blocks.init_pipeline("a/repository")  # doctest: +SKIP
    >>> pipe(prompt="a mouse and a laptop", output="images")  # doctest: +SKIP

    The pipeline's state has two more values after a call: ``unleak_results``, by name what the interventions leave, and
    ``unleak_log``, an entry of plain JSON data for each generation.

    Args:
        blocks: what draws, from the prompt to the picture. Sequential blocks keep the names of their parts; workflows
            can be chosen before or afterwards.
        interventions: applied in this order.

    Raises:
        BadInput: an intervention is none; or, when called, one works on the prompt's text, which blocks outside encode.
        Conflict: when called inside `unleak.attach`, or beside an unleak guider.
        And whatever `unleak.attach` and the interventions raise, when called.
    """

    def __init__(self, blocks: Any, *interventions: Intervention) -> None:
        super().__init__()
        self.interventions = _checked(interventions)
        sequential = isinstance(blocks, SequentialPipelineBlocks)
        self.sub_blocks = blocks.sub_blocks if sequential else InsertableDict({"blocks": blocks})
        self._workflow_map = getattr(blocks, "_workflow_map", None)

    @property
    def description(self) -> str:
        return "Runs its blocks under interventions of unleak: " + ", ".join(map(repr, self.interventions))

    @property
    def intermediate_outputs(self) -> list[Any]:
        return [
            *super().intermediate_outputs,
            OutputParam(RESULTS, type_hint=dict, description="By name, what the interventions of unleak leave."),
            OutputParam(LOG, type_hint=list, description="Plain JSON data for each generation."),
        ]

    def get_execution_blocks(self, **kwargs: Any) -> UnleakBlocks:
        """The blocks that run for these inputs, under the same interventions."""
        return UnleakBlocks(super().get_execution_blocks(**kwargs), *self.interventions)

    def __call__(self, pipeline: Any, state: Any) -> tuple[Any, Any]:
        if self in _at_work:
            return super().__call__(pipeline, state)
        reads_text = any(item.uses_text or item.has("on_text") for item in self.interventions)
        if reads_text and not encoding_blocks(self, [encoder.name for encoder in text_encoders(pipeline.components)]):
            raise BadInput(
                "an intervention works on the prompt's text, but none of these blocks encodes it: put the text "
                "encoder's block inside UnleakBlocks, too"
            )
        with _session(self, pipeline, self.interventions) as run:
            pipeline, state = self(pipeline, state)  # what the session watches calls back
        state.set(RESULTS, run.results)
        state.set(LOG, run.log)
        return pipeline, state


class UnleakGuidance(BaseGuidance):
    """A guider that carries interventions with it, as `guidance` makes it. It combines predictions as the guider does
    that it was made of.

    Attributes:
        interventions: what it carries.
        results: by name, what the interventions left in the last call of the pipeline.
        log: an entry of plain JSON data for that call.
    """

    interventions: ClassVar[tuple[Intervention, ...]] = ()
    _runs: ClassVar[list[Run]]

    @property
    def results(self) -> dict[str, Any]:
        return self._runs[-1].results if self._runs else {}

    @property
    def log(self) -> list[dict[str, Any]]:
        return self._runs[-1].log if self._runs else []

    def set_state(self, *args: Any, **kwargs: Any) -> None:
        if self not in _at_work:
            raise UnsupportedModel(
                f"this {type(self).__name__} was made for another pipeline, so its interventions would do nothing: "
                "make one with guidance(pipe, ...) for the pipeline that you call"
            )
        super().set_state(*args, **kwargs)


def guidance(pipe: Any, *interventions: Intervention, guider: BaseGuidance | None = None) -> UnleakGuidance:
    """A guider for a modular pipeline that carries out interventions while it is the pipeline's guider.

    >>> pipe.update_components(guider=guidance(pipe, unleak.Guard()))  # doctest: +SKIP
    >>> pipe(prompt="a mouse", output="images")  # doctest: +SKIP

    Args:
        pipe: the modular pipeline that will have the guider, which watches the outermost block to know of its calls.
        interventions: applied in this order; of any seam, also on the prompt's text.
        guider: how predictions are combined; the pipeline's own guider if left out. It is copied.

    Returns:
        A guider of a class derived from the given one's, with its settings.

    Raises:
        BadInput: an intervention is none.
        UnsupportedModel: the pipeline is not modular, or has no guider.
    """
    own = [part for part in getattr(pipe, "components", {}).values() if is_guider(part)]
    if getattr(pipe, "_blocks", None) is None or not own:
        raise UnsupportedModel(f"{type(pipe).__name__} has no guider: use UnleakBlocks, or unleak.attach")
    guided: Any = copy.deepcopy(guider or own[0])
    kind = type(guided)
    if issubclass(kind, UnleakGuidance):
        kind = kind.__bases__[1]
    carried = {"interventions": _checked(interventions), "_runs": [], "__module__": __name__}
    guided.__class__ = type(f"Unleak{kind.__name__}", (UnleakGuidance, kind), carried)
    undo, known = Undo(), weakref.ref(guided)

    def call(original: Any, args: tuple, kwargs: dict) -> Any:
        pipe, guider = args[0], known()
        if guider is None or guider in _at_work or all(part is not guider for part in pipe.components.values()):
            return original(*args, **kwargs)
        with _session(guider, pipe, guider.interventions) as run:
            guider._runs[:] = [run]
            return pipe._blocks(*args, **kwargs)  # what the session watches calls back

    undo.shadow_call(pipe._blocks, call)
    weakref.finalize(guided, undo.run)
    return guided


@contextmanager
def _session(owner: Any, pipe: Any, interventions: tuple[Intervention, ...]) -> Iterator[Run]:
    """`attach` for the length of a call; meanwhile the owner is at work."""
    with attach(pipe, *interventions) as run:
        _at_work.add(owner)
        try:
            yield run
        finally:
            _at_work.discard(owner)


def _checked(interventions: tuple[Any, ...]) -> tuple[Intervention, ...]:
    for item in interventions:
        if not isinstance(item, Intervention):
            raise BadInput(f"{item!r} is not an Intervention")
    return interventions

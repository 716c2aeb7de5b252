"""`attach(pipe, *interventions)`: carry out interventions on the user's own pipeline calls, then restore it.

Nothing is subclassed, copied or replaced. What is installed, and removed again on leaving the block whatever
happened, are forward hooks (denoiser, attention sites, text encoders, chosen modules) and four instance attributes
that shadow bound methods: `encode_prompt` and `check_inputs` of the pipeline, `set_timesteps` and `step` of its
scheduler. Without interventions nothing is installed at all.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from typing import Any

from torch import nn

from unleak.core.anatomy import eager
from unleak.core.intervention import Intervention
from unleak.engine.denoising import Denoising
from unleak.engine.run import Run
from unleak.engine.sampling import Sampling
from unleak.engine.tap import Tap
from unleak.engine.undo import Undo
from unleak.errors import Conflict

_attached: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def attach(pipe: Any, *interventions: Intervention) -> Session:
    """A session, to be used as `with unleak.attach(pipe, ...) as run: pipe(...)`.

    Interventions apply in the given order. Sessions do not nest: give all interventions to one call. A session may be
    entered again; it then begins anew.

    Raises:
        UnsupportedModel: the pipeline has no denoiser that unleak can observe.
        NoSite: an intervention's `sites` match no attention site.
    """
    return Session(pipe, interventions)


class Session:
    """Installs the hooks of one `Run` and removes them. The block gets the run."""

    def __init__(self, pipe: Any, interventions: tuple[Intervention, ...]) -> None:
        self._undo = Undo()
        self.pipe, self.interventions = pipe, interventions
        self.run = Run(pipe, interventions)

    @property
    def results(self) -> dict[str, Any]:
        """What the interventions left since the session was entered."""
        return self.run.results

    @property
    def log(self) -> list[dict[str, Any]]:
        """One JSON-serialisable entry for each generation since the session was entered."""
        return self.run.log

    def __enter__(self) -> Run:
        run = self.run = Run(self.pipe, self.interventions)
        if run.anatomy.denoiser in _attached:
            raise Conflict(
                "this pipeline, or another with the same denoiser, is attached already: leave that session first, or "
                "give all interventions to one attach()"
            )
        try:
            if run.interventions:
                self._install(run)
        except BaseException:
            self._undo.run()
            raise
        return run

    def __exit__(self, *exc: object) -> None:
        try:
            self._undo.run()
        finally:
            self._undo.run()

    def __del__(self) -> None:
        """An interrupt at the very entry of `__exit__` leaves the pipeline to this."""
        undo = vars(self).get("_undo")
        if undo:
            warnings.warn("a session was dropped inside its block; its pipeline is restored now", stacklevel=2)
            undo.run()

    def _install(self, run: Run) -> None:
        undo, denoiser = self._undo, run.anatomy.denoiser
        undo.add(functools.partial(_attached.discard, denoiser))
        _attached.add(denoiser)
        undo.add(run.release)
        denoising = Denoising(run, undo)
        Sampling(run, denoising, undo).watch()
        for encoder in run.anatomy.encoders:
            undo.hook(encoder.module, functools.partial(run.prompts.after_encoder, encoder))
        undo.hook(denoiser, denoising.before, before=True)
        undo.hook(denoiser, denoising.after)
        for name in set().union(*run.names["on_module"]):
            undo.hook(eager(denoiser).get_submodule(name), functools.partial(denoising.after_module, name))
        names = set().union(*run.names["on_attention"])
        if names:
            run.tap = Tap(lambda site: site.name in run.sites_now(), denoising.attend, denoising.must_see)
            run.tap.install(undo, [site for site in run.anatomy.sites if site.name in names])

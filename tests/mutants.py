"""Break named places of the product one at a time, and list those that no test notices.

    python tests/mutants.py [-j 2] [NAME ...]

Each mutant is one exact replacement in a copy of the package and the tests that should fail with it. They run in a
child of a process that has imported the large libraries once. Exit status 1: a mutant survived, or a replacement no
longer fits its file. With --sound the tests also run without a mutant first, and must pass.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "src" / "unleak"
LIBRARIES = ("numpy", "scipy.stats", "sklearn.metrics", "torch", "transformers", "diffusers", "hypothesis", "pytest")


class Mutant(NamedTuple):
    """`old` becomes `new`, once, in a file of the package; `tests` are arguments of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: str


SESSIONS, LAWS, BRANCHES = "test_faults_sessions.py", "test_core_laws.py", "test_core_branches.py"
MUTANTS = [
    # sessions
    Mutant(
        "a hook stays",
        "engine/undo.py",
        "table.pop(key, None)",
        "pass",
        f"{LAWS}::test_two_pipelines_with_one_scheduler_are_left_in_any_order",
    ),
    Mutant(
        "a shadow stays",
        "engine/undo.py",
        "space.pop(name, None)",
        "return",
        f"{LAWS}::test_two_pipelines_with_one_scheduler_are_left_in_any_order",
    ),
    Mutant(
        "a shadow under another one stays",
        "engine/undo.py",
        "(top := space.get(name), _Shadow) and not top.alive",
        "(top := space.get(name), _Shadow) and top is shadow",
        f"{LAWS}::test_two_pipelines_with_one_scheduler_are_left_in_any_order",
    ),
    Mutant(
        "a copy keeps its hooks",
        "engine/undo.py",
        "return _bare_hook, ()",
        "return _Hook, (self.hook,)",
        f"{SESSIONS} -k copy_made_inside_a_session_is_bare",
    ),
    Mutant(
        "two sessions nest",
        "engine/session.py",
        "if run.anatomy.denoiser in _attached:",
        "if False:",
        f"{SESSIONS}::test_one_denoiser_in_two_sessions_is_a_conflict",
    ),
    Mutant(
        "a foreign pipeline is not told",
        "engine/denoising.py",
        "raise another_pipeline(",
        "str(",
        f"{SESSIONS} -k another_pipeline_of_the_same_parts",
    ),
    Mutant(
        "a cache is not asked for",
        "engine/perturbed.py",
        "in _hooks(denoiser) if hook._is_stateful}",
        "in _hooks(denoiser) if False}",
        f"{SESSIONS} -k cache_of_blocks",
    ),
    Mutant(
        "calls left out are not counted",
        "engine/denoising.py",
        "raise skipped(run.anatomy, missing)",
        "pass",
        f"{SESSIONS} -k foreign_cache",
    ),
    Mutant(
        "unseen attention is no error",
        "engine/tap.py",
        "raise unreadable(site) if running.calls else unobservable(site)",
        "return",
        f"{LAWS} -k cannot_be_seen",
    ),
    Mutant(
        "another scheduler is not told",
        "engine/clock.py",
        "self.calls > 1 and value != self._value",
        "False",
        f"{SESSIONS} -k copy_with_another_scheduler",
    ),
    # windows, sites, the clock
    Mutant("a window never ends", "core/intervention.py", " <= self.end + 1e-9", "", "test_core_intervention.py"),
    Mutant(
        "the last step is not 1",
        "engine/clock.py",
        "self.step / (self.steps - 1)",
        "self.step / self.steps",
        "test_core_clock.py",
    ),
    Mutant(
        "windows are not looked at",
        "engine/run.py",
        "if item.has(seam) and now in item.window and",
        "if item.has(seam) and",
        "test_core_clock.py -k windows_are_fractions",
    ),
    Mutant(
        "sites are not looked at", "engine/run.py", "name in names[i])", "True)", f"{LAWS} -k confined_to_its_sites"
    ),
    # rows
    Mutant(
        "rows are told by order",
        "engine/batch.py",
        "if hit:",
        "if True:",
        f"{BRANCHES}",
    ),
    Mutant(
        "a third group is nobody's",
        "engine/batch.py",
        "(hits or again or",
        "(hits or",
        f"{SESSIONS} -k third_group_of_rows_is_told",
    ),
    Mutant(
        "a combined prediction is lost",
        "engine/batch.py",
        "where: Sequence[int] = range(batch)",
        "where: Sequence[int] = range(0)",
        f"{BRANCHES}::test_the_combined_prediction_survives_guidance",
    ),
    Mutant(
        "a prompt's mask is not its own",
        "core/rows.py",
        "(MASK, self.mask)",
        "(MASK, None)",
        f"{SESSIONS} -k its_own_mask",
    ),
    # edits
    Mutant(
        "a key scale reaches every row",
        "engine/execute.py",
        "factor[list(edit.rows)] *=",
        "factor *=",
        "test_core_edits.py",
    ),
    Mutant(
        "the pipeline's mask is dropped",
        "engine/execute.py",
        "mask = bias if mask is None else mask + bias",
        "mask = bias",
        "test_core_edits.py -k own_mask",
    ),
    Mutant(
        "a swap takes its own rows",
        "engine/resolve.py",
        "parts[name][sources, :, where]",
        "parts[name][targets, :, where]",
        "test_core_edits.py -k swapping",
    ),
    # predictions
    Mutant(
        "guidance points away",
        "core/predictions.py",
        "uncond + scale * (cond - uncond)",
        "uncond + scale * (uncond - cond)",
        "test_core_predictions.py",
    ),
    Mutant(
        "a flow is read backwards",
        "core/predictions.py",
        "Prediction(x - g * output,",
        "Prediction(x + g * output,",
        "test_core_predictions.py",
    ),
    Mutant(
        "a variance is a prediction",
        "core/predictions.py",
        "return output[:, :channels] if output.ndim > 3",
        "return output if output.ndim > 3",
        "test_core_predictions.py -k variance",
    ),
    # text
    Mutant(
        "a long prompt is cut in silence",
        "text/call.py",
        "            if one.lost:",
        "            if False:",
        "test_core_text.py -k longer_than_the_encoder",
    ),
    Mutant(
        "an unread encoder vetoes",
        "text/prompts.py",
        "if self._cut and not whole:",
        "if self._cut:",
        f"{SESSIONS} -k does_not_veto",
    ),
    Mutant(
        "a word of vectors is one token",
        "text/vectors.py",
        "if not several:",
        "if True:",
        f"{SESSIONS} -k several_vectors_is_one_item",
    ),
    Mutant(
        "lint looks at a pair among others in the prompt alone",
        "words/lint/lint.py",
        "if len(given.items) > 2 else []",
        "if False else []",
        "test_faults_lint.py -k mean_of_the_prompt",
    ),
    Mutant(
        "a risk falls with z",
        "words/lint/calibration.py",
        "np.exp(-np.clip(",
        "np.exp(np.clip(",
        "test_lint.py -k risk_grows",
    ),
    Mutant(
        "TACA acts on the text's queries, too",
        "words/methods/taca.py",
        ', queries="image")',
        ")",
        "test_weights.py -k by_hand",
    ),
    Mutant(
        "all weights are the first",
        "words/methods/weight.py",
        "zip(at, self.of_items, strict=True)",
        "zip(at, self.of_items[:1] * len(at), strict=True)",
        "test_weights.py -k weight_of_one",
    ),
    Mutant("part of a word is found", "text/match.py", " and _splits(text, a)", "", "test_text_items.py"),
    Mutant("case is never exact", "text/match.py", "_search(text, item, fold=False) or ", "", "test_text_items.py"),
    Mutant(
        "rows are kept the wrong way",
        "text/rows.py",
        "torch.where(m.view(1, L, *(1,) * (H.ndim - 2)), H, C)",
        "torch.where(m.view(1, L, *(1,) * (H.ndim - 2)), C, H)",
        "test_text_rows.py",
    ),
    Mutant(
        "spans align to the left",
        "text/rows.py",
        "return targets[cut:], sources",
        "return targets[:m], sources",
        "test_text_rows.py",
    ),
    # words, copies, regions
    Mutant(
        "verification seeds are the user's",
        "words/repair/automatic.py",
        "count() if seed not in taken",
        "count()",
        "test_repairs.py -k other_seeds_than_the_users",
    ),
    Mutant(
        "Detour never goes back",
        "copies/methods/detour.py",
        "strict=True) if cosine >= self.near]",
        "strict=True)]",
        "test_detour.py -k goes_back",
    ),
    Mutant(
        "GUARD attracts",
        "copies/methods/guard.py",
        "w * v_p - rho * v_n",
        "w * v_p + rho * v_n",
        "test_guard.py -k without_attenuation",
    ),
    Mutant(
        "orthogonalisation doubles",
        "copies/methods/guard.py",
        "* v_n).to(v_p.dtype)",
        "* -v_n).to(v_p.dtype)",
        "test_guard.py -k orthogonalisation_per_image",
    ),
    Mutant(
        "a spike may be at the threshold",
        "copies/methods/attenuate.py",
        "spike_scores(peaks) > tau",
        "spike_scores(peaks) >= tau",
        "test_guard.py -k strictly_above",
    ),
    Mutant(
        "a gate is passed above its threshold only",
        "copies/methods/gate.py",
        "torch.nonzero(score >= threshold)",
        "torch.nonzero(score > threshold)",
        "test_detour.py -k gated_for_itself",
    ),
    Mutant(
        "a DDCM step keeps no noise",
        "regions/methods/ddcm.py",
        "torch.randn(like.shape, generator=random)",
        "torch.zeros(like.shape)",
        "test_regions.py -k fresh_noise_of_its_seed",
    ),
    # files and figures
    Mutant(
        "a file loses its mode",
        "files/atomic.py",
        "shutil.copymode(path, part)",
        "pass",
        "test_files.py -k keeps_its_mode",
    ),
    Mutant(
        "a threshold stands on a score",
        "stats/roc.py",
        "(above.min() + below.max()) / 2 if len(below) else above.min()",
        "above.min()",
        "test_roc.py -k midway",
    ),
    Mutant(
        "false alarms are not counted",
        "stats/roc.py",
        "false_positive_rates < fpr",
        "false_positive_rates <= 1",
        "test_roc.py -k rate_of_false_alarms",
    ),
    Mutant(
        "fixed is broken",
        "stats/intervals.py",
        "(~b & a).sum()), int((b & ~a).sum())",
        "(b & ~a).sum()), int((~b & a).sum())",
        "test_stats.py -k mcnemar",
    ),
    Mutant(
        "a page does not escape", "report/pages.py", "autoescape=True", "autoescape=False", "test_scan.py -k escapes"
    ),
    Mutant(
        "a photo lies on its side",
        "files/pictures.py",
        "ImageOps.exif_transpose(_single(picture, name))",
        "_single(picture, name)",
        "test_faults_pictures.py",
    ),
]


def noticed(mutant: Mutant | None, tests: str) -> bool:
    """Whether these tests fail with the mutant (None: with the package as it is); in a child of this process."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "unleak"
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
        if mutant:
            text = (copy / mutant.file).read_text()
            (copy / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        child = os.fork()
        if not child:
            status = 1
            with contextlib.suppress(BaseException):
                sys.path[:0] = [folder, str(TESTS)]
                os.chdir(TESTS.parent)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                os.dup2(1, 2)
                first, *rest = tests.split(" ", 1)
                args = ["-x", "-q", "-p", "no:cacheprovider", f"tests/{first}"]
                status = importlib.import_module("pytest").main([*args, *rest[0].split(" ", 1)] if rest else args)
            os._exit(int(status))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def judged(mutant: Mutant) -> str:
    """What is wrong about a mutant; nothing if it is noticed."""
    if (PACKAGE / mutant.file).read_text().count(mutant.old) != 1:
        return "its replacement does not fit the file any more"
    return "" if noticed(mutant, mutant.tests) else "no test notices it"


def sound(mutant: Mutant) -> str:
    """As `judged`, where its tests pass without it."""
    return "its tests fail without it" if noticed(None, mutant.tests) else judged(mutant)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-j", type=int, default=1, help="how many at a time")
    parser.add_argument("--sound", action="store_true", help="first let the tests pass without the mutant")
    parser.add_argument("names", nargs="*", help="some of them; default: all")
    given = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if not given.names or mutant.name in given.names]
    for library in LIBRARIES:
        importlib.import_module(library)
    importlib.import_module("torch").set_num_threads(1)
    wrong = 0
    with ThreadPoolExecutor(given.j) as pool:
        for mutant, verdict in zip(chosen, pool.map(sound if given.sound else judged, chosen), strict=True):
            wrong += bool(verdict)
            print(
                f"{'SURVIVES' if verdict else 'noticed '}  {mutant.name}{': ' if verdict else ''}{verdict}", flush=True
            )
    print(f"{len(chosen) - wrong} of {len(chosen)} noticed")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

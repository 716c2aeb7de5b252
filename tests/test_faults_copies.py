"""What a mitigation leaves of a copy is counted and shown, and figures of copies say what they are of."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tiny import save_tiny, tiny
from unleak.bench.copies import detection, intended, mitigation
from unleak.cli import app
from unleak.copies.methods.detour import Detour
from unleak.copies.methods.guard import Guard
from unleak.copies.protect import Protection, guard, remains
from unleak.errors import BadInput
from unleak.judges.copies import PixelJudge, scene_judge
from unleak.report import guard as report
from unleak.world import Caption, Placement, Scene
from unleak.world import load as load_world
from unleak.world.render import Renderer

WORLD = load_world()
CALL = {"height": 64, "width": 64, "num_inference_steps": 1}


def drawn(caption: Caption, keep: int, dx: int = 0) -> np.ndarray:
    """The scene of a caption with its first objects alone, moved by some cells, [H, W, 3] uint8."""
    kept = tuple(Placement(p.glyph, p.x + (dx if p.x + dx in range(5) else -dx), p.y, p.tint)
                 for p in caption.scene.placements[:keep])  # fmt: skip
    return Renderer(WORLD).pictures([Scene(caption.scene.background, kept)])[0]


def a_caption(kind: str, objects: int) -> Caption:
    return next(c for c in WORLD.memorized if c.kind == kind and len(c.scene.placements) == objects)


def protection(before: np.ndarray, after: np.ndarray, judge: Any = None, **more: Any) -> Protection:
    """A result of pictures that were not drawn by a model."""
    judge = judge or scene_judge()
    found = {"gate": None, "present": None} | more
    return Protection(
        "a prompt", "a model", "detour", Detour(), {}, list(range(len(before))), before, after, found["gate"], None,
        (2, 3), judge, (judge.similarity(before), judge.similarity(after)), None, (), found["present"],
        remains(judge, before, after),
    )  # fmt: skip


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_guard_says_what_is_left_of_a_copy(keep: int) -> None:
    caption = a_caption("verbatim", 3)
    before, after = (np.stack([drawn(caption, n)]) for n in (3, keep))
    found = protection(before, after)
    assert found.copies() is not None and found.remains is not None
    assert found.remains.counts == (3, keep, 3)
    assert found.to_dict()["left_of_copies"] == {
        "parts": "objects", "before": 3, "after": keep, "of": 3, "shares": [1.0, round(keep / 3, 4)],
        "by_seed": [{"before": 3, "after": keep, "of": 3}],
    }  # fmt: skip
    says = f"{keep} of 3 objects of the training images still stand in their place"
    assert says in str(found) and says in report.page(found) and f"{keep} of 3 objects" in report.page(found)


def test_an_object_counts_where_it_stood_and_nowhere_else() -> None:
    caption = a_caption("verbatim", 2)
    k = [int(scene_judge().scene(np.stack([drawn(caption, 2)]))[0])]
    in_place = lambda dx: int(scene_judge().in_place(np.stack([drawn(caption, 1, dx)]), k)[0].sum())  # noqa: E731
    assert [in_place(dx) for dx in (0, 1, 2, 3)] == [1, 1, 0, 0]


def test_of_a_template_only_what_its_captions_share_counts() -> None:
    caption = next(c for c in WORLD.memorized if c.kind == "template")
    image = np.stack([drawn(caption, len(caption.scene.placements))])
    found = protection(image, image)
    assert found.remains is not None and found.remains.counts == (caption.fixed,) * 3


def test_without_a_copy_nothing_is_left_and_without_known_images_it_is_not_measured() -> None:
    blank = np.full((2, 64, 64, 3), 255, np.uint8)
    found = protection(blank, blank)
    assert found.remains is not None and found.remains.shares is None
    assert "no image copies a training image" in str(found)
    assert found.to_dict()["left_of_copies"]["shares"] is None

    class Similar:
        name, threshold = "similar", 0.5

        def similarity(self, images: np.ndarray) -> np.ndarray:
            return np.ones(len(images))

    other = protection(blank, blank, Similar())
    assert other.to_dict()["left_of_copies"] is None and "not measured: the judge 'similar'" in str(other)
    unknown = guard(tiny("sd1"), "a red mouse", Guard(), seeds=[0], call=CALL)
    assert "not measured: no training images are known" in str(unknown)
    assert "not measured" in report.page(unknown)


def test_cells_of_a_users_training_image_are_counted() -> None:
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    half = original.copy()
    half[:32] = rng.integers(0, 256, (32, 64, 3))
    found = protection(original[None], half[None], PixelJudge(original[None]))
    assert found.remains is not None and found.remains.counts == (64, 32, 64)
    assert "32 of 64 cells" in report.page(found)
    with pytest.raises(BadInput, match="references"):
        PixelJudge(original[None]).scene(original[None, :32])


def test_guard_takes_the_users_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_tiny("sd1", tmp_path / "model")
    Image.new("RGB", (32, 32), "red").save("a.png")
    common = ("guard", "a red mouse", "-m", str(folder), "--size", "64", "--steps", "1", "--seeds", "0:1")
    done = CliRunner().invoke(app, [*common, "--original", "a.png", "--original", "a.png"])
    assert done.exit_code == 0 and "Copies of a training image: 0 of 1 before" in done.stdout, done.stderr
    for original, says in (("none.png", "none.png"), ("model/model_index.json", "model_index.json")):
        done = CliRunner().invoke(app, [*common, "--original", original])
        assert done.exit_code == 2 and says in done.stderr
    done = CliRunner().invoke(app, [*common, "--original", "a.png", "--json", "a.png"])
    assert done.exit_code == 2 and Image.open("a.png").size == (32, 32)


def test_the_page_says_what_to_try_next() -> None:
    caption = a_caption("verbatim", 3)
    copy, part, blank = (np.stack([drawn(caption, n)]) for n in (3, 1, 0))
    advice = lambda *args, **more: dict(report.advice(protection(*args, **more)))  # noqa: E731
    assert "--preset detour --set near=0.3" in advice(copy, copy[:, ::-1].copy()[:, ::-1] * 1 + (copy < 1)).values()
    assert "--preset detour --set near=0.3" in advice(copy, part).values()
    assert list(advice(blank, blank)) == ["Nothing was copied before: nothing had to be changed. "
                                          "A gate leaves such prompts as they are."]  # fmt: skip
    closed = [{"score": 0.0, "acted": False}]
    assert advice(copy, copy, gate=closed) == {
        "The gate let copies pass. See what the mitigation does without it.": "leave out --gate"
    }


def test_a_detour_follows_a_text_that_no_model_saw() -> None:
    sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
    try:
        from mixture import Mixture
    finally:
        sys.path.pop(0)
    rng, mixture = random.Random(0), Mixture(WORLD)
    seen = {mixture.draw(rng).text for _ in range(3000)} | set(WORLD.moods) | set(WORLD.categories.values())
    seen |= {c.text for c in [*WORLD.memorized, *WORLD.ordinary]}
    text = Detour().text
    assert "a still life" in seen and text not in seen
    assert not set(re.findall(r"\w+", text)) & {word for name in WORLD.words for word in name.split()}


def test_figures_of_templates_are_over_scenes_and_say_how_many() -> None:
    texts = detection.captions(WORLD, "heldout")["template"]
    some = [intended.Prompt(text, "template", scene=0) for text in texts]
    n = len(some)
    seen = {
        "similarity": [[29.0] * 7] * n, "nearest": [[0] * 7] * n, "alignment": [[1.0] * 7] * n,
        "quality": [[28.0] * 7] * n, "diversity": [0.0] * n, "digest": [["p"] * 7] * n,
    }  # fmt: skip
    rows = {r.metric: r for r in mitigation.rows_of("none", some, seen, seen, 20.0)}
    scenes = {c.family for c in WORLD.memorized if c.text in set(texts)}
    assert rows["copy_rate"].n == 7 * n and rows["copy_rate"].units == len(scenes) == 4
    assert rows["copy_rate"].low < 0.6 and rows["alignment"].units == 4
    assert "both splits" in mitigation.UNITS

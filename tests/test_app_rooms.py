"""`unleak app` without a browser: the rooms of regions and of copies, with what people upload and paint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the app needs gradio: pip install 'unleak[app]'")

from unleak.app import copies, paint, regions  # noqa: E402
from unleak.app.desk import Desk  # noqa: E402
from unleak.app.frame import runner  # noqa: E402

PHOTO = Image.open(Path(__file__).parents[1] / "examples" / "data" / "photo.png").convert("RGBA")
NONE = ("",) * 6  #: the other lines
CAPTION = "a dog, a tree and a red car"
EDIT = ("dog", "cat", *NONE)


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    one = Desk()
    yield one
    one.close()


def press(desk: Desk, work: Any, *inputs: Any, outputs: int, seeds: str = "0") -> list[Any]:
    """What a button shows in the end."""
    *_, last = runner(desk, work, outputs)(SimpleNamespace(session_hash="me"), "emoji-sd", seeds, "2", "", *inputs)
    return last


def refused(desk: Desk, work: Any, *inputs: Any, seeds: str = "0") -> str:
    """What the page says of an input that cannot be used."""
    with pytest.raises(gr.Error) as error:
        press(desk, work, *inputs, outputs=7, seeds=seeds)
    return error.value.message


def canvas(size: tuple[int, int] | None = None, **strokes: tuple[int, int, int, int]) -> dict[str, Any]:
    """A photo with painted boxes by colour, as the page's canvas gives it."""
    photo = PHOTO if size is None else PHOTO.resize(size)
    layer = Image.new("RGBA", photo.size)
    for name, box in strokes.items():
        layer.paste((*bytes.fromhex(paint.COLOURS[name][1:]), 178), box)
    return {"background": photo, "layers": [layer], "composite": photo}


def test_each_colour_is_a_mask_and_a_soft_edge_is_not() -> None:
    painted = canvas(orange=(0, 0, 5, 4), pink=(10, 10, 12, 12))
    painted["layers"][0].putpixel((20, 20), (230, 159, 0, 40))
    found = paint.masks(painted)
    assert {name: int(mask.sum()) for name, mask in found.items()} == {"orange": 20, "pink": 4}
    assert found["orange"].shape == PHOTO.size[::-1] and found["orange"][:4, :5].all()
    assert paint.masks(None) == paint.masks({"layers": None}) == {}


def test_several_objects_are_edited_at_once_one_painted_one_found(desk: Desk) -> None:
    fields = ("dog", "cat", "red car", "bus", "", "", "", "")
    half = PHOTO.width // 2
    shown = press(
        desk, regions.edit, canvas(orange=(0, 0, half, half)), CAPTION, "ale", None, False, *fields, outputs=7
    )
    state, _, looking, (before, after), report, *files = shown
    assert "Done in" in state and looking["visible"] and before.shape == after.shape and (before != after).any()
    assert "given" in report and "by the model itself" in report and "Changed outside the masks" in report
    assert len(files) == 3


def test_a_photo_of_twenty_megapixels_is_edited(desk: Desk) -> None:
    shown = press(desk, regions.edit, canvas((5000, 4000)), CAPTION, "ale", None, False, *EDIT, outputs=7)
    assert "Done in" in shown[0] and max(shown[3][0].shape) < 2000


def test_a_picture_to_edit_is_drawn_from_the_caption(desk: Desk) -> None:
    _, drawn = press(desk, regions.draw, "a dog", outputs=1)
    assert drawn["background"].shape == (paint.SIDE, paint.SIDE, 3) and drawn["layers"] == []


def test_pictures_and_masks_that_cannot_be_used_are_answered_in_words(desk: Desk, tmp_path: Path) -> None:
    def said(painted: Any, *fields: str, files: list[Path] = (), caption: str = CAPTION, preset: str = "ale") -> str:  # type: ignore[assignment]
        names = [str(file) for file in files]
        return refused(desk, regions.edit, painted, caption, preset, names, False, *(fields or EDIT))

    wide, black, text = tmp_path / "wide.png", tmp_path / "black.png", tmp_path / "mask.png.txt"
    Image.new("L", (64, 20), 255).save(wide)
    Image.new("L", PHOTO.size, 0).save(black)
    text.write_text("no picture")
    assert "no picture" in said(None) and "no picture" in said({"background": None, "layers": []})
    assert "the mask of 'dog' is 20x64 and the image" in said(canvas(), files=[wide])
    assert "holds nothing" in said(canvas(), files=[black])
    assert "no picture that Pillow knows" in said(canvas(), files=[text])
    assert "2 files of masks for 1 lines" in said(canvas(), files=[wide, wide])
    assert "pink is painted" in said(canvas(pink=(0, 0, 9, 9)))
    assert "nothing is to be edited" in said(canvas(), *("",) * 8)
    assert "target of an edit is empty" in said(canvas(), "dog", "", *NONE)
    assert "horse" in said(canvas(), "horse", "cat", *NONE)
    assert "no editor is called" in said(canvas(), preset="nothing")


def test_each_phrase_is_drawn_in_its_box_or_where_it_is_painted(desk: Desk) -> None:
    fields = ("dog", "0,0,0.5,1", "red car", "", "", "", "", "")
    painted = canvas((512, 512), blue=(256, 0, 512, 512))
    state, drawn, report, *_ = press(desk, regions.regions, "a dog and a red car", painted, *fields, outputs=5)
    assert "Done in" in state and len(drawn["value"]) == 1 and report.count("50 %") >= 2


@pytest.mark.parametrize("fields, said", [
    (("",) * 8, "no region is given"),
    (("dog", "", *NONE), "has no region"),
    (("dog", "0,0,1", *NONE), "such as 0,0,0.5,1"),
    (("dog", "0.5,0,0.1,1", *NONE), "0 <= x0 < x1 <= 1"),
    (("dog", "0,0,inf,nan", *NONE), "0 <= x0 < x1 <= 1"),
    (("", "0,0,0.5,1", *NONE), "phrase of a region is empty"),
    (("horse", "0,0,0.5,1", *NONE), "horse"),
])  # fmt: skip
def test_regions_that_cannot_be_used_are_answered_in_words(desk: Desk, fields: tuple[str, ...], said: str) -> None:
    assert said in refused(desk, regions.regions, "a dog and a red car", None, *fields).replace("&lt;", "<")


def test_an_empty_prompt_is_answered_in_words_everywhere(desk: Desk) -> None:
    assert "prompt" in refused(desk, regions.regions, "", None, "dog", "0,0,0.5,1", *NONE)
    assert "prompt" in refused(desk, regions.draw, " ")
    assert "no prompt" in refused(desk, copies.score, "\n ")
    assert "no prompt" in refused(desk, copies.guard, "", "", "detour", False)


def test_scores_are_sorted_and_stand_against_the_calibration(desk: Desk) -> None:
    request, prompts = SimpleNamespace(session_hash="me"), "a dog and a tree\nRenbrith concert poster"
    *_, shown = runner(desk, copies.score, 5)(request, "emoji-sd", "0:4", "", "", prompts)
    state, chosen, report, *files = shown
    assert chosen["choices"][0] == chosen["value"] == "Renbrith concert poster" and len(files) == 3
    assert "the threshold that was calibrated for this model" in report and "not used" not in state
    *_, (state, *_) = runner(desk, copies.score, 5)(request, "emoji-sd", "0:2", "", "", prompts)
    assert "calibration is not used" in state and "uncalibrated" in state


def test_a_mitigation_is_drawn_beside_the_original(desk: Desk) -> None:
    prompts = "a dog and a tree\nRenbrith concert poster"
    _, chosen, report, *_ = press(desk, copies.guard, prompts, "Renbrith concert poster", "guard", False, outputs=5)
    assert chosen["value"] == "Renbrith concert poster" and "After, from the same noise" in report
    assert "the nearest training image" in report


def test_prompts_that_cannot_be_scored_are_answered_in_words(desk: Desk) -> None:
    assert "201 prompts" in refused(desk, copies.score, "a dog\n" * 201)
    assert "tokens" in refused(desk, copies.score, "dog " * 300, seeds="0:2")
    assert "no mitigation is called" in refused(desk, copies.guard, "a dog", "", "nothing", False)
    assert "at least two seeds" in refused(desk, copies.score, "a dog")


def test_masks_of_files_go_with_their_lines(desk: Desk, tmp_path: Path) -> None:
    file = tmp_path / "mask.png"
    mask = np.zeros(PHOTO.size[::-1], np.uint8)
    mask[: PHOTO.height // 2] = 255
    Image.fromarray(mask).save(file)
    shown = press(desk, regions.edit, canvas(), CAPTION, "ale", [str(file)], True, *EDIT, outputs=7)
    assert "50.0 %" in shown[4] and "Outside them every pixel" in shown[4]

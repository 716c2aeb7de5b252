"""Pictures of every kind that people have: photos and masks are read alike, as documented, or refused by name.

`files.pictures` is the one reader; `unleak edit`, `unleak regions` and `unleak audit` read by it.
"""

from __future__ import annotations

import ast
import io
import os
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import unleak
from tiny import tiny
from unleak import models
from unleak.cli import app
from unleak.errors import BadInput, EmptyMask
from unleak.files import pictures
from unleak.regions.edit import edit
from unleak.regions.keep_pixels import lay_in
from unleak.regions.masks.masks import read_mask, to_grid
from unleak.regions.plan import Edit

SIZE = (16, 24)
"""Height and width."""
WANTED = np.zeros(SIZE, bool)
WANTED[2:7, 3:15] = True
GREY = Image.fromarray(WANTED.astype(np.uint8) * 255)
COLOURS = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
TURN = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: np.rot90(np.fliplr(a)),
        6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(np.fliplr(a), -1), 8: np.rot90}  # fmt: skip
"""EXIF orientation -> how an array as stored is turned to be seen upright."""


def oriented(file: Path, image: Image.Image, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(file, exif=exif)
    return file


def cut_out(alpha: Image.Image = GREY, colour: tuple[int, ...] = (200, 30, 90)) -> Image.Image:
    image = Image.new("RGB", alpha.size, colour)
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".webp"])
@pytest.mark.parametrize("orientation", [*TURN, 0, 9])
def test_a_mask_is_turned_by_its_orientation_tag_as_a_photo_is(tmp_path: Path, orientation: int, suffix: str) -> None:
    file = oriented(tmp_path / f"m{suffix}", GREY.convert("RGB"), orientation)
    upright = TURN.get(orientation, TURN[1])(WANTED)
    as_photo = np.asarray(pictures.photo(file).convert("L")) > 127
    assert as_photo.shape == upright.shape and (as_photo == upright).mean() > 0.98
    assert np.array_equal(pictures.mask(file), as_photo)


@pytest.mark.parametrize("orientation", TURN)
def test_an_image_in_memory_is_turned_and_stays_as_it_was(tmp_path: Path, orientation: int) -> None:
    with Image.open(oriented(tmp_path / "m.png", GREY, orientation)) as opened:
        mask = pictures.mask(opened)
        assert np.array_equal(mask, TURN[orientation](WANTED))
        assert opened.size == GREY.size and opened.getexif()[0x0112] == orientation
        assert np.array_equal(np.asarray(opened), np.asarray(GREY))


def test_alpha_is_the_mask_where_something_is_cut_out() -> None:
    faint = GREY.point(lambda v: 200 if v else 20)
    for alpha in (GREY, faint):
        for colour in ((0, 0, 0), (255, 255, 255), (200, 30, 90)):
            assert np.array_equal(pictures.mask(cut_out(alpha, colour)), WANTED)
    photo = Image.fromarray(COLOURS)
    photo.putalpha(GREY)
    assert np.array_equal(pictures.mask(photo), WANTED), "a cut-out with colours of its own"
    assert np.array_equal(pictures.mask(photo.convert("RGBa")), WANTED), "premultiplied"
    grey_with_alpha = Image.merge("LA", (Image.new("L", GREY.size, 9), GREY))
    assert np.array_equal(pictures.mask(grey_with_alpha), WANTED)
    assert np.array_equal(pictures.mask(np.asarray(photo)), WANTED), "an array [H, W, 4]"


def test_luminance_is_the_mask_where_nothing_is_transparent() -> None:
    for alpha in (255, 254, 128):
        image = GREY.convert("RGBA")
        image.putalpha(alpha)
        assert np.array_equal(pictures.mask(image), WANTED), alpha


@pytest.mark.parametrize("picture", [
    Image.new("RGBA", (8, 8)), cut_out(Image.new("L", (8, 8), 127)), np.zeros((8, 8)), np.full((8, 8), 0.49),
    Image.new("L", (8, 8)), np.zeros((8, 8), bool),
])  # fmt: skip
def test_an_empty_mask_is_an_error_that_says_its_highest_level(picture: Any) -> None:
    with pytest.raises(EmptyMask, match=r"highest level is \d+ of 255"):
        pictures.mask(picture)


def test_a_file_of_labels_is_no_silent_empty_mask(tmp_path: Path) -> None:
    Image.fromarray(WANTED.astype(np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(EmptyMask, match="highest level is 1 of 255"):
        pictures.mask(tmp_path / "labels.png")


def test_soft_edges_count_from_the_middle_on() -> None:
    ramp = np.arange(256, dtype=np.uint8)[None].repeat(2, 0)
    assert np.array_equal(pictures.mask(ramp)[0], np.arange(256) >= 128)
    assert np.array_equal(pictures.mask(ramp / 255.0), pictures.mask(ramp))
    deep = np.array([[0, 32767, 32768, 65535]], np.uint16)
    assert pictures.mask(deep).tolist() == [[False, False, True, True]]


def test_a_mask_of_any_format_and_mode_is_the_same_mask(tmp_path: Path) -> None:
    colours = Image.new("P", GREY.size)
    colours.putpalette([0, 0, 0, 255, 255, 255])
    colours.putdata(WANTED.astype(np.uint8).ravel().tolist())
    clear = colours.copy()
    clear.info["transparency"] = bytes([0, 255])
    deep = Image.fromarray(WANTED.astype(np.uint16) * 65535)
    floats = Image.fromarray(WANTED.astype(np.float32))
    for name, image in {
        "1.png": GREY.convert("1"), "l.png": GREY, "rgb.png": GREY.convert("RGB"), "la.png": GREY.convert("LA"),
        "p.png": colours, "p-clear.png": clear, "p.gif": colours, "deep.png": deep, "deep.tiff": deep,
        "f.tiff": floats, "cmyk.tiff": GREY.convert("RGB").convert("CMYK"), "l.bmp": GREY, "l.pgm": GREY,
        "cut.png": cut_out(), "cut.webp": cut_out(), "cut.tiff": cut_out(), "l.jp2": GREY, "1.tiff": GREY.convert("1"),
    }.items():  # fmt: skip
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        assert np.array_equal(pictures.mask(tmp_path / name), WANTED), name
        assert np.array_equal(pictures.mask(image), WANTED), name
    for array in (WANTED, WANTED.astype(np.uint8), WANTED.astype(np.int64) * 255, WANTED.astype(np.uint16) * 65535,
                  WANTED.astype(np.float16), torch.tensor(WANTED), torch.tensor(WANTED).bfloat16(),
                  torch.tensor(WANTED).float().requires_grad_(), WANTED[..., None], WANTED.tolist(),
                  np.asfortranarray(WANTED), WANTED.astype(">u2") * 65535):  # fmt: skip
        assert np.array_equal(pictures.mask(array), WANTED)


def test_a_photo_of_any_format_and_mode_is_the_same_photo(tmp_path: Path) -> None:
    rgb = Image.fromarray(COLOURS)
    for name, image in {
        "rgb.png": rgb, "rgba.png": rgb.convert("RGBA"), "rgb.bmp": rgb, "rgb.tiff": rgb, "rgb.webp": rgb,
        "rgb.ppm": rgb, "rgb.jp2": rgb, "rgb.jpeg": rgb, "cmyk.tiff": rgb.convert("CMYK"),
    }.items():  # fmt: skip
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        read = pictures.photo(tmp_path / name)
        assert read.mode == "RGB" and read.size == rgb.size
        if "jpeg" not in name:
            assert np.array_equal(np.asarray(read), COLOURS), name
    grey = COLOURS[..., 0]
    for one in (grey, grey.astype(np.uint16) * 257, grey / 255, Image.fromarray(grey.astype(np.uint16) * 257),
                Image.fromarray(grey.astype(np.int32) * 257), Image.fromarray((grey / 255).astype(np.float32)),
                Image.fromarray(grey).convert("LA"), torch.tensor(grey)):  # fmt: skip
        assert np.array_equal(np.asarray(pictures.photo(one)), np.repeat(grey[..., None], 3, 2))


def test_transparent_pixels_of_a_photo_lie_on_white_and_that_is_said() -> None:
    image = Image.fromarray(COLOURS)
    image.putalpha(GREY)
    with pytest.warns(UserWarning, match="laid on white"):
        read = np.asarray(pictures.photo(image))
    assert np.array_equal(read[WANTED], COLOURS[WANTED]) and (read[~WANTED] == 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.photo(Image.fromarray(COLOURS).convert("RGBA"))


def animated(file: Path, **settings: Any) -> Path:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(file, save_all=True, append_images=frames[1:], **settings)
    return file


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp", ".tiff"])
def test_several_images_in_a_file_are_refused_with_the_remedy(tmp_path: Path, suffix: str) -> None:
    file = animated(tmp_path / f"several{suffix}")
    for read in (pictures.photo, pictures.mask):
        with pytest.raises(BadInput, match=r"several images.*save the one that you mean as PNG"):
            read(file)
        with Image.open(file) as opened, pytest.raises(BadInput, match="several images"):
            read(opened)
    with Image.open(file) as opened:
        opened.seek(1)
        assert np.asarray(pictures.photo(opened.copy()))[0, 0].tolist()[2] > 250, "a frame that was copied"


def test_a_phones_picture_with_a_second_one_inside_is_a_photo(tmp_path: Path) -> None:
    animated(tmp_path / "phone.jpg", format="MPO")
    assert np.asarray(pictures.photo(tmp_path / "phone.jpg"))[0, 0].tolist()[0] > 250


def bomb(file: Path, side: int) -> Path:
    """A grey PNG of side x side that is small on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + check

    pack, row = zlib.compressobj(9), bytes(side + 1)
    rows = b"".join(pack.compress(row) for _ in range(min(side, 20_000))) + pack.flush()
    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return file


@pytest.mark.parametrize("side", [9400, 14_000, 60_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    file = bomb(tmp_path / "bomb.png", side)
    assert file.stat().st_size < 1_500_000
    tracemalloc.start()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (pictures.photo, pictures.mask):
            with pytest.raises(
                BadInput, match=r"more than the 67,108,864 that|more than the 67,108,864 pixels"
            ) as error:
                read(file)
            assert "make it smaller" in str(error.value)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()
    if side < 14_000:
        with Image.open(file) as opened, pytest.raises(BadInput, match="smaller"):
            pictures.mask(opened)
    with pytest.raises(BadInput, match="smaller"):
        pictures.mask(np.broadcast_to(np.zeros((1, 1), np.uint8), (side, side)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff", ".bmp", ".gif"])
def test_half_a_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, {".jpg": "JPEG", ".tiff": "TIFF"}.get(suffix, suffix[1:].upper()))
    whole = buffer.getvalue()
    (tmp_path / f"half{suffix}").write_bytes(whole[: int(share * len(whole)) - 16])
    for read in (pictures.photo, pictures.mask):
        with pytest.raises(BadInput, match="cannot be read"):
            read(tmp_path / f"half{suffix}")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>'


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"no picture", "no picture"),
        (SVG, "SVG"),
        (b"\xef\xbb\xbf <SVG width='4'/>", "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%PDF-1.7", "PDF"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "gzip"),
        (b"\x89PNG\r\n\x1a\n", "cannot be read"),
        (b"\x89PNG\r\n\x1a\n" + b"\xff" * 200, "cannot be read"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "cannot be read"),
        (b"GIF89a" + b"\0" * 7, "cannot be read|no pixels"),
        (b"P5 0 0 255\n", "cannot be read|no pixels"),
        (b"P5 4 4 255\n\x00", "cannot be read"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "cannot be read"),
        (b"II*\0\x08\0\0\0\0\0\0\0\0\0", "cannot be read"),
        (b"BM" + b"\0" * 60, "cannot be read"),
    ],
)
def test_what_is_no_picture_is_said_by_its_name(tmp_path: Path, data: bytes, says: str) -> None:
    file = tmp_path / "p.png"
    file.write_bytes(data)
    for read in (pictures.photo, pictures.mask):
        with pytest.raises(BadInput, match=says):
            read(file)
    assert file.read_bytes() == data


def test_what_is_no_file_is_refused_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for file in (tmp_path, tmp_path / "none.png", tmp_path / "pipe.png", tmp_path / "loop.png", "/dev/zero", "",
                 "a\0b.png", "x" * 5000, "https://example.org/p.png", str(tmp_path)):  # fmt: skip
        for read in (pictures.photo, pictures.mask):
            with pytest.raises(BadInput, match="cannot be read"):
                read(file)


@pytest.mark.parametrize(
    "array",
    [
        np.full(SIZE, np.nan), np.where(WANTED, np.inf, 0), np.full(SIZE, -np.inf), np.full(SIZE, 1.5),
        np.where(WANTED, 1.0, -0.1), np.full((*SIZE, 3), 255.0), np.full(SIZE, 256), np.full(SIZE, -1),
        np.full(SIZE, 2**40), np.ones(SIZE, complex), np.full(SIZE, "a"), np.full(SIZE, None), np.ones((3, *SIZE)),
        np.ones((*SIZE, 2)), np.ones((*SIZE, 5)), np.ones((1, *SIZE, 3)), np.ones(4), np.float64(1.0), np.ones((0, 4)),
        np.ones((4, 0, 3)), np.ones(SIZE, "datetime64[s]"), np.ones(SIZE, [("a", "f4")]), None, b"\x89PNG", 7, {"a": 1},
        [[1, 0], [1]], torch.ones(SIZE).to_sparse(), torch.full(SIZE, torch.nan).half(), object(),
        Image.new("L", (0, 4)),
        Image.fromarray(np.full(SIZE, np.nan, np.float32)), Image.fromarray(np.full(SIZE, 255, np.float32)),
        Image.fromarray(np.full(SIZE, 70_000, np.int32)), Image.fromarray(np.full(SIZE, -1, np.int32)),
    ],
    ids=lambda a: f"{getattr(a, 'dtype', type(a).__name__)}-{getattr(a, 'shape', '')}",
)  # fmt: skip
def test_an_array_of_another_range_kind_or_shape_is_refused(array: Any) -> None:
    for read in (pictures.photo, pictures.mask):
        with pytest.raises(BadInput):
            read(array)


def test_a_closed_image_is_refused(tmp_path: Path) -> None:
    GREY.save(tmp_path / "m.png")
    opened = Image.open(tmp_path / "m.png")
    opened.close()
    with pytest.raises(BadInput, match="cannot be read"):
        pictures.mask(opened)


def test_an_array_is_not_changed() -> None:
    for array in (WANTED, COLOURS, COLOURS / 255.0, COLOURS[..., 0].astype(np.uint16) * 257):
        before = array.copy()
        pictures.photo(array)
        pictures.mask(array)
        assert np.array_equal(array, before)


@pytest.mark.parametrize("size", [(24, 16), (16, 25), (17, 24), (16, 48)])
def test_a_mask_of_other_proportions_than_the_photo_is_refused(size: tuple[int, int]) -> None:
    if size in ((16, 25), (17, 24)):  # a pixel of rounding
        assert read_mask(np.ones(size), SIZE).shape == SIZE
    else:
        with pytest.raises(BadInput, match=f"{size[0]}x{size[1]} and the image 16x24"):
            read_mask(np.ones(size), SIZE)


def test_a_thin_mask_that_vanishes_at_the_working_size_is_an_error() -> None:
    thin = np.zeros((160, 240), bool)
    thin[5, 5] = True
    with pytest.raises(EmptyMask, match="16x24"):
        read_mask(thin, SIZE)


def test_every_picture_is_read_by_the_one_reader() -> None:
    source = Path(unleak.__file__).parent
    opening = {
        str(file.relative_to(source))
        for file in source.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "open" and getattr(node.value, "id", "") == "Image"
    }
    assert opening == {"files/pictures.py", "world/vocabulary.py"}


def box(size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[size[0] // 8 : size[0] // 2, size[1] // 8 : size[1] // 2] = True
    return mask


def test_pixels_outside_the_masks_are_the_photos_own_where_they_are_asked_for() -> None:
    pipe, photo = tiny("sd1"), np.random.default_rng(3).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    mask, settings = box((150, 150)), {"steps": 2, "size": (64, 64)}
    one = Edit("blue cup", "red cup", mask)
    plain, kept = (edit(pipe, photo, [one], keep_pixels=keep, **settings) for keep in (False, True))
    assert plain.full is None and kept.full.shape == photo.shape
    inside, used = to_grid(kept.masks, (150, 150)).any(0).numpy(), kept.masks.any(0).numpy()
    assert np.array_equal(kept.full[~inside], photo[~inside]) and (kept.full[inside] != photo[inside]).any()
    assert np.array_equal(kept.image[~used], kept.before[~used]) and kept.psnr["photo"] == np.inf
    assert (plain.image[~used] != plain.before[~used]).any()
    assert not kept.leak.any() and "against the photo: exact" in str(kept)
    assert kept.data()["keep_pixels"] and kept.file_names()["full"] == "full.png"
    untouched = edit(pipe, photo, [], keep_pixels=True, **settings)
    assert np.array_equal(untouched.full, photo)


def test_the_seam_is_blended_inside_the_mask() -> None:
    mask, white = torch.zeros(1, 100, 100, dtype=torch.bool), Image.new("RGB", (100, 100), "white")
    mask[0, :, 50:] = True
    black = np.zeros((100, 100, 3), np.uint8)
    row = lay_in(white, black, mask, 0.1)[50, :, 0].astype(int)
    assert (row[:50] == 255).all() and (row[60:] == 0).all() and (np.diff(row[49:61]) < 0).all()
    assert np.array_equal(lay_in(white, black, mask, 0.0)[..., 0] == 0, mask[0].numpy())


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A command in an empty folder with a photo `p.png`; no model may be loaded."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load", load)
    Image.fromarray(COLOURS).save("p.png")
    return lambda *line: CliRunner().invoke(app, [*map(str, line)])


def wrong_masks(folder: Path) -> dict[str, Path]:
    GREY.save(folder / "m.png")
    (folder / "half.png").write_bytes((folder / "m.png").read_bytes()[:60])
    Image.new("L", GREY.size).save(folder / "empty.png")
    (folder / "drawing.svg").write_bytes(SVG)
    bomb(folder / "bomb.png", 9400)
    animated(folder / "a.gif")
    names = {"truncated": "half.png", "holds nothing": "empty.png", "SVG": "drawing.svg", "smaller": "bomb.png",
             "several images": "a.gif", "No such file": "none.png", "folder": "."}  # fmt: skip
    return {says: folder / name for says, name in names.items()}


def test_a_wrong_mask_or_photo_is_said_before_a_model_is_loaded_and_no_input_changes(
    command: Any, tmp_path: Path
) -> None:
    masks = wrong_masks(tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    for says, file in masks.items():
        edits = command("edit", "p.png", "--edit", f"dog=cat@{file}")
        regions = command("regions", "a dog", "--region", f"dog@{file}")
        shown = [edits, regions]
        if says != "holds nothing":
            shown += [command("edit", file, "--edit", "dog=cat"), command("audit", file)]
        for done in shown:
            assert done.exit_code == 2 and says in " ".join(done.output.split()), (says, done.output)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_an_output_of_an_edit_is_none_of_its_masks(command: Any) -> None:
    GREY.save("m.png")
    done = command("edit", "p.png", "--edit", "dog=cat@./m.png", "--json", "m.png")
    assert done.exit_code == 2 and "mask of dog" in done.output

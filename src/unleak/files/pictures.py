"""Pictures as people have them: one reader for photos and for masks.

A picture is a file, a PIL image or an array. Whatever it is, it is turned as its orientation tag says, holds one image
of at most `MOST_PIXELS` pixels, and is reduced to 8 bits:

* a photo is RGB; transparent pixels are laid on white, with a warning that says so;
* a mask is a plane of levels: its alpha where any pixel is more transparent than not, otherwise its luminance.

Files are PNG, JPEG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000, and AVIF or HEIF where Pillow can. 16-bit levels are shares
of 65535. CMYK is converted without a colour profile. Nothing that is given is changed.
"""

from __future__ import annotations

import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from unleak.errors import BadInput, EmptyMask

MOST_PIXELS = 8192 * 8192
MIDDLE = 128
"""A mask is where its levels, 0 to 255, reach this."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
_FOREIGN = {b"<svg": "an SVG drawing", b"%PDF": "a PDF document", b"ftyphei": "a HEIC picture",
            b"ftypmif1": "a HEIF picture", b"ftypavif": "an AVIF picture", b"8BPS": "a Photoshop file",
            b"\x1f\x8b": "compressed by gzip", b"PK\x03\x04": "a ZIP archive"}  # fmt: skip
"""What files begin with that are no pictures for Pillow, and what a person calls them."""


def photo(picture: Any, name: str = "the image") -> Image.Image:
    """An RGB picture.

    Args:
        picture: a file, a PIL image, or an array or tensor [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of bool, uint8,
            uint16 or floats from 0 to 1.
        name: what errors call it.

    Raises BadInput: it cannot be read, holds several images, too many pixels or none, NaN, or numbers out of range.
    """
    image = _read(picture, name)
    with _decoding(name):
        if not _has_alpha(image):
            return image.convert("RGB")
        image = image.convert("RGBA")
        if _lowest(image.getchannel("A")) < 255:
            warnings.warn(f"transparent pixels of {name} are laid on white", stacklevel=3)
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def levels(picture: Any, name: str = "the mask") -> np.ndarray:
    """The levels of a mask, uint8 [H, W].

    Args:
        picture: as of `photo`; arrays may hold integers of any kind, too: 0 and 1, or 0 to 255.
        name: what errors call it.

    Raises BadInput as `photo` does.
    """
    image = _read(picture, name, binary=True)
    with _decoding(name):
        if _has_alpha(image):
            image = image.convert("RGBA")
            alpha = image.getchannel("A")
            if _lowest(alpha) < MIDDLE:
                return np.asarray(alpha)
        return np.asarray(image if image.mode == "L" else image.convert("RGB").convert("L"))


def mask(picture: Any, name: str = "the mask") -> np.ndarray:
    """Where `levels` reach `MIDDLE`, bool [H, W]. Raises BadInput, and EmptyMask where none does."""
    plane = levels(picture, name)
    if plane.max() < MIDDLE:
        raise EmptyMask(
            f"{name} holds nothing: its highest level is {plane.max()} of 255 and {MIDDLE} counts; "
            "mark what may change in white"
        )
    return plane >= MIDDLE


def _read(picture: Any, name: str, binary: bool = False) -> Image.Image:
    """The picture upright and in 8 bits, with alpha or without. `binary`: integers may be 0 and 1."""
    if isinstance(picture, str | os.PathLike):
        image = _opened(Path(picture), name)
    elif isinstance(picture, Image.Image):
        with _decoding(name):
            image = ImageOps.exif_transpose(_single(picture, name))
    else:
        return Image.fromarray(_eight_bits(_array(picture, name), name, binary))
    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    numbers = np.asarray(image)
    if image.mode == "I" and numbers.size and numbers.min() >= 0 and numbers.max() <= 65535:
        numbers = numbers.astype(np.uint16)
    return Image.fromarray(_eight_bits(numbers, name))


def _opened(file: Path, name: str) -> Image.Image:
    """The image of a file, decoded; its size is looked at first."""
    _check_file(file, name)
    Image.init()
    known = [one for one in FORMATS if one in Image.OPEN]
    with _decoding(f"{name} {str(file)!r}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_single` refuses what it warns of
        try:
            opened = Image.open(file, formats=known)
        except UnidentifiedImageError:
            raise BadInput(f"{name} {str(file)!r} cannot be read: {_what_it_is(file)}") from None
        with opened:
            image = _single(opened, f"{name} {str(file)!r}")
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return image


def _check_file(file: Path, name: str) -> None:
    try:
        there = file.stat()
    except (OSError, ValueError) as e:
        reason = e.strerror if isinstance(e, OSError) else e
        raise BadInput(f"{name} {str(file)!r} cannot be read: {reason}") from None
    if not stat.S_ISREG(there.st_mode):
        kind = "a folder" if stat.S_ISDIR(there.st_mode) else "a device or pipe"
        raise BadInput(f"{name} {str(file)!r} cannot be read: it is {kind}; name a PNG or JPEG file")
    if not there.st_size:
        raise BadInput(f"{name} {str(file)!r} cannot be read: the file is empty")


def _what_it_is(file: Path) -> str:
    """Of a file that no decoder knows."""
    with file.open("rb") as f:
        head = f.read(1024)
    for begin, kind in _FOREIGN.items():
        if begin in (head[:16] if begin != b"<svg" else head.lower()):
            return f"it is {kind}; save it as PNG or JPEG"
    return "it is no picture that Pillow knows; give a PNG or JPEG"


def _single(image: Image.Image, name: str) -> Image.Image:
    """The same image, if it is one, of a size that can be used; nothing is decoded yet."""
    _check_size(image.height, image.width, name)
    if image.format != "MPO" and (getattr(image, "is_animated", False) or getattr(image, "n_frames", 1) > 1):
        raise BadInput(f"{name} holds several images (an animation or pages): save the one that you mean as PNG")
    return image


def _check_size(height: int, width: int, name: str) -> None:
    if not height or not width:
        raise BadInput(f"{name} has no pixels: it is {height} high and {width} wide")
    if math.prod((height, width)) > MOST_PIXELS:
        raise BadInput(
            f"{name} has {height}x{width} pixels, more than the {MOST_PIXELS:,} that are read: make it smaller first"
        )


def _has_alpha(image: Image.Image) -> bool:
    return bool({"A", "a"} & set(image.getbands())) or "transparency" in image.info


def _lowest(plane: Image.Image) -> int:
    low, _ = plane.getextrema()
    return int(low)  # type: ignore[arg-type]


def _array(given: Any, name: str) -> np.ndarray:
    """Numbers [H, W], [H, W, 3] or [H, W, 4]."""
    try:
        if isinstance(given, torch.Tensor):
            given = given.detach().cpu()
            given = (given.float() if given.is_floating_point() else given).numpy()
        array = np.asarray(given)
    except (TypeError, ValueError, RuntimeError) as e:
        raise BadInput(f"{name} is neither a file, an image nor an array of numbers: {e}") from e
    if array.dtype.kind not in "biuf":
        raise BadInput(f"{name} is neither a file, an image nor an array of numbers, but {type(given).__name__}")
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (1,), (3,), (4,)):
        raise BadInput(
            f"{name} has shape {array.shape}: give one plane [height, width], or colours [height, width, 3 or 4]"
        )
    _check_size(array.shape[0], array.shape[1], name)
    return array[..., 0] if array.shape[2:] == (1,) else array


def _eight_bits(numbers: np.ndarray, name: str, binary: bool = False) -> np.ndarray:
    """Numbers of any kind as uint8 from 0 to 255."""
    kind = numbers.dtype
    if kind.kind == "f":
        low, high = float(numbers.min()), float(numbers.max())  # NaN wherever there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            raise BadInput(f"{name} holds NaN or infinity")
        if low < 0 or high > 1:
            raise BadInput(f"{name} holds floats from {low:g} to {high:g}: give floats from 0 to 1, or uint8")
        return (numbers * 255).round().astype(np.uint8)
    if kind == np.bool_ or (binary and numbers.min() >= 0 and numbers.max() <= 1):
        return numbers.astype(np.uint8) * np.uint8(255)
    if kind == np.uint8:
        return numbers
    if kind == np.uint16:
        return (numbers / 65535 * 255).round().astype(np.uint8)
    if binary and numbers.min() >= 0 and numbers.max() <= 255:
        return numbers.astype(np.uint8)
    raise BadInput(
        f"{name} holds {kind} from {numbers.min()} to {numbers.max()}: give uint8, uint16 or floats from 0 to 1"
    )


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Whatever a broken file makes a decoder raise is said of the picture."""
    try:
        yield
    except (BadInput, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise BadInput(
            f"{name} has more than the {MOST_PIXELS:,} pixels that are read: make it smaller first"
        ) from None
    except Exception as e:
        raise BadInput(f"{name} cannot be read: {e or type(e).__name__}") from e

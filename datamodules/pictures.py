"""Pictures in files: read as RGB, or refused by name; nothing here can fill the memory."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000  # 150 MB as RGB
DARKEST = 16  # of numbers in 0..255 the brightest is at least this; below, the scale is another
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")

# What Pillow raises on damaged files, by format.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, MemoryError)


def read_picture(file: str | Path) -> Image.Image:
    """Read a picture as RGB: upright as its EXIF data say, what is transparent over white.

    The header is read first, and a picture above `MAX_PIXELS` is not decoded.

    Args:
        file: In any format that Pillow reads; of an animation the first frame.

    Raises:
        ValueError: It is absent, unreadable or too large; the message names the file.
    """
    with warnings.catch_warnings():
        # Pillow's own limits, warned of or raised, lie above ours.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise _too_large(file, f"{width} x {height} pixels")
                image.load()
                upright = ImageOps.exif_transpose(image)
        except Image.DecompressionBombError as error:
            raise _too_large(file, str(error)) from error
        except TooLargeError:
            raise
        except _DAMAGED as error:
            what = "does not exist" if not Path(file).exists() else f"cannot be read: {error}"
            raise ValueError(f"picture {file} {what}") from error
    if upright.mode.startswith("I;16"):  # 16 bits a pixel, which `convert` would cut off
        wide = np.asarray(upright)
        if 0 < (brightest := int(wide.max())) < DARKEST << 8:  # of 8 to 12 bits
            raise ValueError(
                f"picture {file} has 16 bits a pixel and values up to {brightest} alone: what is "
                "white cannot be told; scale them to 0..65535"
            )
        upright = Image.fromarray((wide >> 8).astype(np.uint8))
    if upright.mode in ("F", "I"):  # floats or 32-bit numbers, which `convert` would cut off
        values = np.asarray(upright, dtype=np.float64)
        try:
            scale = byte_scale(float(values.min()), float(values.max()))
        except ValueError as error:
            raise ValueError(f"picture {file} {error}") from error
        upright = Image.fromarray(np.rint(values * scale).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        upright = Image.alpha_composite(white, layer)
    return upright.convert("RGB")


def byte_scale(lowest: float, highest: float, bytes_already: bool = False) -> int:
    """Return by what pixels that belong together are multiplied so that white is 255: 255 or 1.

    Dark ones are meant where their type is that of bytes.

    Raises:
        ValueError: They lie neither in 0..1 nor in 0..255.
    """
    if lowest >= 0 and highest <= 1:
        return 255 if highest == 1 or not bytes_already else 1
    if lowest >= 0 and highest <= 255 and (bytes_already or highest >= DARKEST):
        return 1
    raise ValueError(
        f"with values from {lowest:g} to {highest:g}: what is black and what is white cannot be "
        "told; scale them to 0..255 or to 0..1, undo a normalisation first"
    )


def over_white(pixels: NDArray[np.floating]) -> NDArray[np.floating]:
    """RGBA pixels in 0..255, (4, height, width), laid over white: (3, height, width)."""
    opaque = pixels[3] / 255
    return pixels[:3] * opaque + 255 * (1 - opaque)


class TooLargeError(ValueError):
    """A picture has more than `MAX_PIXELS`."""


def _too_large(file: str | Path, size: str) -> TooLargeError:
    return TooLargeError(
        f"picture {file} is too large ({size}): at most {MAX_PIXELS:,} pixels are read; scale it "
        "down"
    )


def is_picture(query: str) -> bool:
    """Whether a query names a picture's file rather than being a text.

    Raises:
        ValueError: It names a folder.
    """
    path = Path(query)
    try:
        if path.is_dir():
            raise ValueError(
                f"query={query}: a folder. Give one picture of it; to ask for the word, add another"
            )
        return path.is_file() or query.lower().endswith(SUFFIXES)
    except OSError:  # longer than a file's name can be
        return False

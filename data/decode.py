"""From the bytes of an image file to pixels: the one decoder of training and serving.

This file is also copied, as it stands, into the served model, so that a bin is decoded there exactly as it
was in training. It therefore imports nothing but the standard library, numpy and Pillow.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

# Banks and caches keep what this decoder made: raise it whenever the same file would give other pixels.
VERSION = 1
# A small file can claim a huge picture. 50 megapixels is any camera's photo, and 150 MB once decoded.
MAX_PIXELS = 50_000_000
# Of one photo's file, in training as in a request to the served model: what could not be asked about later must not
# be learned from. A request waits in memory as a whole, with up to 256 photos.
MAX_BYTES = 20_000_000
# libjpeg may shrink while it decodes as long as this many times `size` remains for the antialiased resize.
DRAFT_GAP = 2

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112


class ImageError(ValueError):
    """An image that cannot be read. Its message is one line and leaves it to the caller to name the file."""


def decode(source: bytes | Path, size: int | None = None) -> np.ndarray:
    """Decode a JPEG, PNG or WebP image to uint8 RGB [H, W, 3], or [size, size, 3] when `size` is given.

    `size` squashes the picture to a square with antialiased bilinear filtering. The EXIF orientation is
    applied; of an animation the first frame is taken; 16 bits become the upper 8; colour profiles are
    ignored. Transparent parts become white, because that is the page on which people see and label such
    pictures. Raises ImageError, and nothing else, for everything that is not a whole picture of at most
    MAX_PIXELS (checked from the header, before decoding).
    """
    data = source if isinstance(source, bytes) else read(source)
    kind = _kind(data)
    try:
        with _open(kind, data) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return _pixels(image, size)
    # Decoders of hostile files raise whatever they like (SyntaxError, struct.error, MemoryError, ...).
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ImageError(f"broken {kind} image: {reason}") from error
    raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are allowed")


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as the file's header says them, before any turning. Raises ImageError."""
    kind = _kind(data)
    try:
        with _open(kind, data) as image:
            return image.size
    except Exception as error:
        raise ImageError(
            f"broken {kind} image: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error


def read(path: Path) -> bytes:
    """The content of an image file. Raises ImageError for what is no regular file of at most MAX_BYTES."""
    try:
        if not path.is_file():  # a pipe or a device would block for ever
            raise ImageError("no such file" if not path.exists() else "not a regular file")
        if path.stat().st_size > MAX_BYTES:
            raise ImageError(
                f"{path.stat().st_size:,} bytes are more than the {MAX_BYTES:,} that are allowed"
            )
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _kind(data: bytes) -> str:
    if not data:
        raise ImageError("empty file (0 bytes)")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    raise ImageError(f"not a JPEG, PNG or WebP image (it starts with {data[:12]!r})")


def _open(kind: str, data: bytes) -> ImageFile.ImageFile:
    """The format's own class rather than Image.open, which tries every format and warns on stderr."""
    stream = io.BytesIO(data)
    if kind == "JPEG":
        return JpegImagePlugin.JpegImageFile(stream)
    if kind == "PNG":
        return PngImagePlugin.PngImageFile(stream)
    return WebPImagePlugin.WebPImageFile(stream)


def _pixels(image: ImageFile.ImageFile, size: int | None) -> np.ndarray:
    if size is not None:
        image.draft(None, (DRAFT_GAP * size, DRAFT_GAP * size))  # does nothing except for JPEG
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image)
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    if turn is not None:  # after the resize, because fewer pixels are turned then
        rgb = rgb.transpose(turn)
    return np.array(rgb)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if isinstance(value, int) else 1
    except Exception:  # damaged EXIF says nothing about the pixels: the picture is good as it stands
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")

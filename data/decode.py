"""Decoding image files to pixels, the same for training and serving.

The source of this file is part of the served model, so that photos are decoded there exactly as in training. It
imports only the standard library, numpy and Pillow, and pi_heif for HEIC photos.
"""

import errno
import io
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

# Part of the keys of banks and caches: raise it whenever the same file gives other pixels.
VERSION = 2
# A small file can declare a huge image. 50 megapixels are 150 MB once decoded.
MAX_PIXELS = 50_000_000
# Phones take photos of 200 megapixels. libjpeg shrinks a baseline JPEG while it decodes and never holds all pixels;
# it must hold all those of a progressive JPEG, for which MAX_PIXELS applies.
MAX_JPEG_PIXELS = 4 * MAX_PIXELS
# The limit of one file, in training as in requests to the served model: photos that cannot be served must not be
# trained on. A request is held in memory completely, with up to 256 photos.
MAX_BYTES = 20_000_000
# Photoshop writes texts of several megabytes into PNGs. Pillow refuses more than 1 MB in one text and 64 MB in all.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
# libjpeg may shrink while it decodes to this multiple of `size` at least, for the antialiased resize.
_MIN_DRAFT_FACTOR = 2

_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_ORIENTATION = 0x0112


_TIFF_BITS_PER_SAMPLE = 258
# Errors of the system that concern the file itself. All others (too many open files, a failing disk, an unreachable
# file server, no memory) do not.
_NOT_FOUND_ERRORS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_PERMISSION_ERRORS = (errno.EACCES, errno.EPERM)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"}
_FORMATS = "JPEG, PNG, WebP, TIFF, AVIF or HEIC"


class ImageError(ValueError):
    """An image that cannot be read. Its message is one line and leaves it to the caller to name the file."""


class ReadFailed(ImageError):
    """An image could not be read for a reason that is not the image's; it must not be cached as a bad image.

    `is_transient` is whether a retry may help; it does not for a file without read permission.
    """

    def __init__(self, message: str, is_transient: bool = True) -> None:
        super().__init__(message)
        self.is_transient = is_transient


def decode(source: bytes | Path, size: int | None = None, interpolation: str = "bilinear") -> np.ndarray:
    """Decode a JPEG, PNG, WebP, TIFF, AVIF or HEIC image to uint8 RGB [H, W, 3], or [size, size, 3] with `size`.

    `size` resizes the image to a square with antialiased filtering, `bilinear` or `bicubic`. The EXIF orientation is
    applied; the first frame of an animation is used; colour profiles are ignored. 16-bit samples are reduced to the
    upper 8 of the bits in use: 12-bit cameras leave the upper 4 empty. Transparent parts become white, the background
    on which people see and label such images. A JPEG of more than MAX_PIXELS is shrunk by 2 or 4.

    Raises ReadFailed if the machine fails, and only ImageError for anything but a complete image of at most
    MAX_PIXELS, or MAX_JPEG_PIXELS (checked in the header, before decoding).
    """
    data = source if isinstance(source, bytes) else read(source)
    kind = _format_of(data)
    try:
        with _open(kind, data) as image:
            width, height = image.size
            if width * height <= _max_pixels(image):
                return _pixels(image, size, interpolation, _bits_per_sample(kind, data, image))
    except Exception as error:
        raise _image_error(kind, error) from error
    raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are allowed")


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height in pixels from the file's header, before orientation. Raises as `decode` does."""
    kind = _format_of(data)
    try:
        with _open(kind, data) as image:
            return image.size
    except Exception as error:
        raise _image_error(kind, error) from error


def read(path: Path) -> bytes:
    """The content of an image file. Raises ImageError unless it is a regular file of at most MAX_BYTES, and
    ReadFailed if it cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block forever
            raise ImageError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{status.st_size:,} bytes are more than the {MAX_BYTES:,} that are allowed")
        return path.read_bytes()
    except MemoryError as error:
        raise ReadFailed("cannot be read: no memory is left") from error
    except OSError as error:
        if error.errno in _NOT_FOUND_ERRORS:
            raise ImageError("no such file") from error
        is_transient = error.errno not in _PERMISSION_ERRORS
        raise ReadFailed(f"cannot be read: {error.strerror or error}", is_transient) from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("no such file") from error  # a name with a zero byte


def _image_error(kind: str, error: Exception) -> ImageError:
    """Any exception of a decoder (SyntaxError, struct.error, EOFError, ...) as an ImageError."""
    if isinstance(error, ImageError):
        return error
    reason = (str(error) or type(error).__name__).splitlines()[0]
    # Pillow raises OSError without a number for bad files.
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return ReadFailed(f"cannot be decoded: {reason}")
    return ImageError(f"broken {kind} image: {reason}")


def _format_of(data: bytes) -> str:
    if not data:
        raise ImageError("empty file (0 bytes)")
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WebP"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if data[4:8] == b"ftyp":
        length = int.from_bytes(data[:4], "big")
        brands = {data[at : at + 4] for at in (8, *range(16, min(length, 128), 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & _HEIC_BRANDS:
            return "HEIC"
    if data.startswith(b"version https://git-lfs"):
        raise ImageError("a pointer of Git LFS instead of the image: `git lfs pull` fetches it")
    raise ImageError(f"not a {_FORMATS} image (it starts with {data[:12]!r})")


def _open(kind: str, data: bytes) -> ImageFile.ImageFile:
    """Open with the format's own class: Image.open tries every format and warns on stderr."""
    stream = io.BytesIO(data)
    if kind == "JPEG":
        return JpegImagePlugin.JpegImageFile(stream)
    if kind == "PNG":
        return PngImagePlugin.PngImageFile(stream)
    if kind == "TIFF":
        return TiffImagePlugin.TiffImageFile(stream)
    if kind == "AVIF":
        return _avif(stream)
    if kind == "HEIC":
        return _heic(stream)
    return WebPImagePlugin.WebPImageFile(stream)


def _avif(stream: io.BytesIO) -> ImageFile.ImageFile:
    try:
        from PIL import AvifImagePlugin
    except ImportError as error:
        raise ImageError("AVIF images need Pillow 11.3 or newer") from error
    if not AvifImagePlugin.SUPPORTED:
        raise ImageError("AVIF images need a Pillow that was built with libavif, as its wheels are")
    return AvifImagePlugin.AvifImageFile(stream)


def _heic(stream: io.BytesIO) -> ImageFile.ImageFile:
    try:
        from pi_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise ImageError("HEIC images need the package pi-heif, which is not installed") from error
    image: ImageFile.ImageFile = HeifImageFile(stream)
    return image


def _max_pixels(image: ImageFile.ImageFile) -> int:
    """The limit of an image's pixels."""
    baseline = isinstance(image, JpegImagePlugin.JpegImageFile) and not image.info.get("progressive")
    return MAX_JPEG_PIXELS if baseline else MAX_PIXELS


def _pixels(image: ImageFile.ImageFile, size: int | None, interpolation: str, bits: int) -> np.ndarray:
    width, height = image.size
    shrink = 1
    while width * height > MAX_PIXELS * shrink**2:
        shrink *= 2
    if size is not None or shrink > 1:
        min_side = _MIN_DRAFT_FACTOR * size if size is not None else max(width, height)
        # Does nothing except for JPEG.
        image.draft(None, (min(min_side, width // shrink), min(min_side, height // shrink)))
    image.load()
    transpose = _TRANSPOSE_BY_ORIENTATION.get(_orientation(image))
    rgb = _to_rgb(image, bits)
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling[interpolation.upper()])
    if transpose is not None:  # after the resize, which leaves fewer pixels
        rgb = rgb.transpose(transpose)
    return np.array(rgb)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    except MemoryError:
        raise
    except Exception:  # the pixels are good even if EXIF is damaged
        return 1


def _to_rgb(image: ImageFile.ImageFile, bits: int) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and isinstance(image, TiffImagePlugin.TiffImageFile)):
        raise ImageError("its pixels are numbers of 32 bits, not a photo's of 8 or 16: save it with 8")
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion would clip at 255
        return _from_16_bit_gray(image, bits)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        rgb = Image.alpha_composite(white, rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if bits == 16:
        max_value = np.asarray(image.convert("RGB")).max()
        if 0 < max_value < 16:  # Pillow has dropped the lower 8 bits
            raise ImageError(
                "a 16-bit colour image that uses only the lower 12 bits would be nearly black: save it with 8 bits"
            )
    return rgb


def _from_16_bit_gray(image: ImageFile.ImageFile, bits: int) -> Image.Image:
    """16-bit gray as RGB. 12-bit cameras and 8-bit programs leave the upper bits empty."""
    values = np.asarray(image).clip(0, 65535).astype(np.uint16)
    max_value = int(values.max())
    if bits == 16:
        bits = 16 if max_value > 4095 else 12 if max_value > 255 else 8
    gray = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _bits_per_sample(kind: str, data: bytes, image: ImageFile.ImageFile) -> int:
    """Bits per sample as declared in the file, for formats that allow more than 8."""
    if kind == "PNG":
        return data[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(_TIFF_BITS_PER_SAMPLE, (8,))))
    return 8

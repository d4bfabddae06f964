"""From the bytes of an image file to pixels: the one decoder of training and serving.

This file is also copied, as it stands, into the served model, so that a bin is decoded there exactly as it
was in training. It therefore imports nothing but the standard library, numpy and Pillow, and pi_heif only when
a HEIC photo comes.
"""

import errno
import io
import stat
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

# Banks and caches keep what this decoder made: raise it whenever the same file would give other pixels.
VERSION = 2
# A small file can claim a huge picture. 50 megapixels are 150 MB once decoded.
MAX_PIXELS = 50_000_000
# Phones take photos of 200 megapixels. libjpeg shrinks a JPEG while it decodes, so that its pixels never all exist;
# it must keep all of a progressive one, which therefore has the limit of the others.
MAX_JPEG_PIXELS = 4 * MAX_PIXELS
# Of one photo's file, in training as in a request to the served model: what could not be asked about later must not
# be learned from. A request waits in memory as a whole, with up to 256 photos.
MAX_BYTES = 20_000_000
# Photoshop writes texts of several megabytes into PNGs. Pillow refuses more than 1 MB in one text and 64 MB in all.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
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


_BITS_TAG = 258
# What an error of the system says about the file itself. Any other one (too many open files, a failing disk, a file
# server that is away, no memory) says nothing about it.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1"}
_KINDS = "JPEG, PNG, WebP, TIFF, AVIF or HEIC"


class ImageError(ValueError):
    """An image that cannot be read. Its message is one line and leaves it to the caller to name the file."""


class ReadFailed(ImageError):
    """An image that could not be read now, for a reason that is not the image's: the same file may be good.

    Nobody may remember it as a bad image. `passing` is whether trying again may help: a file that one may not
    read is no such case.
    """

    def __init__(self, message: str, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


def decode(source: bytes | Path, size: int | None = None) -> np.ndarray:
    """Decode a JPEG, PNG, WebP, TIFF, AVIF or HEIC image to uint8 RGB [H, W, 3], or [size, size, 3] with `size`.

    `size` squashes the picture to a square with antialiased bilinear filtering. The orientation is applied; of
    an animation the first frame is taken; colour profiles are ignored. 16 bits become the upper 8 of those that
    are used: 12-bit cameras leave the upper 4 empty. Transparent parts become white, because that is the page on
    which people see and label such pictures. A JPEG of more than MAX_PIXELS comes shrunk by 2 or 4.

    Raises ReadFailed where the machine fails, and ImageError, and nothing else, for everything that is not a
    whole picture of at most MAX_PIXELS, or MAX_JPEG_PIXELS (checked from the header, before decoding).
    """
    data = source if isinstance(source, bytes) else read(source)
    kind = _kind(data)
    try:
        with _open(kind, data) as image:
            width, height = image.size
            if width * height <= _most(image):
                return _pixels(image, size, _bits(kind, data, image))
    except Exception as error:
        raise _broken(kind, error) from error
    raise ImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that are allowed")


def dimensions(data: bytes) -> tuple[int, int]:
    """Width and height in pixels as the file's header says them, before any turning. Raises as `decode` does."""
    kind = _kind(data)
    try:
        with _open(kind, data) as image:
            return image.size
    except Exception as error:
        raise _broken(kind, error) from error


def read(path: Path) -> bytes:
    """The content of an image file. Raises ImageError for what is no regular file of at most MAX_BYTES, and
    ReadFailed where it may be one and cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device would block for ever
            raise ImageError("not a regular file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{status.st_size:,} bytes are more than the {MAX_BYTES:,} that are allowed")
        return path.read_bytes()
    except MemoryError as error:
        raise ReadFailed("cannot be read: no memory is left") from error
    except OSError as error:
        if error.errno in _ABSENT:
            raise ImageError("no such file") from error
        passing = error.errno not in _FORBIDDEN
        raise ReadFailed(f"cannot be read: {error.strerror or error}", passing) from error
    except ValueError as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError("no such file") from error  # a name with a zero byte


def _broken(kind: str, error: Exception) -> ImageError:
    """Decoders of hostile files raise whatever they like (SyntaxError, struct.error, EOFError, ...)."""
    if isinstance(error, ImageError):
        return error
    reason = (str(error) or type(error).__name__).splitlines()[0]
    # Without a number, an OSError is Pillow's own word for a bad file.
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return ReadFailed(f"cannot be decoded: {reason}")
    return ImageError(f"broken {kind} image: {reason}")


def _kind(data: bytes) -> str:
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
    raise ImageError(f"not a {_KINDS} image (it starts with {data[:12]!r})")


def _open(kind: str, data: bytes) -> ImageFile.ImageFile:
    """The format's own class rather than Image.open, which tries every format and warns on stderr."""
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


def _most(image: ImageFile.ImageFile) -> int:
    """The pixels that an image may have."""
    baseline = isinstance(image, JpegImagePlugin.JpegImageFile) and not image.info.get("progressive")
    return MAX_JPEG_PIXELS if baseline else MAX_PIXELS


def _pixels(image: ImageFile.ImageFile, size: int | None, bits: int) -> np.ndarray:
    width, height = image.size
    shrink = 1
    while width * height > MAX_PIXELS * shrink**2:
        shrink *= 2
    if size is not None or shrink > 1:
        least = DRAFT_GAP * size if size is not None else max(width, height)
        # Does nothing except for JPEG.
        image.draft(None, (min(least, width // shrink), min(least, height // shrink)))
    image.load()
    turn = _TURNS.get(_orientation(image))
    rgb = _to_rgb(image, bits)
    if size is not None and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    if turn is not None:  # after the resize, because fewer pixels are turned then
        rgb = rgb.transpose(turn)
    return np.array(rgb)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
        return value if isinstance(value, int) else 1
    except MemoryError:
        raise
    except Exception:  # damaged EXIF says nothing about the pixels: the picture is good as it stands
        return 1


def _to_rgb(image: ImageFile.ImageFile, bits: int) -> Image.Image:
    if image.mode == "F" or (image.mode == "I" and isinstance(image, TiffImagePlugin.TiffImageFile)):
        raise ImageError("its pixels are numbers of 32 bits, not a photo's of 8 or 16: save it with 8")
    if image.mode.startswith("I"):  # 16-bit gray: Pillow's own conversion would clip at 255
        return _from_sixteen(image, bits)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        rgb = Image.alpha_composite(white, rgba).convert("RGB")
    else:
        rgb = image.convert("RGB")
    if bits == 16:
        most = np.asarray(image.convert("RGB")).max()
        if 0 < most < 16:  # Pillow has thrown the lower 8 bits away
            raise ImageError(
                "a 16-bit colour image that uses only the lower 12 bits would be nearly black: save it with 8 bits"
            )
    return rgb


def _from_sixteen(image: ImageFile.ImageFile, bits: int) -> Image.Image:
    """16-bit gray as RGB. Cameras that give 12 bits, and programs that give 8, leave the upper ones empty."""
    values = np.asarray(image).clip(0, 65535).astype(np.uint16)
    most = int(values.max())
    if bits == 16:
        bits = 16 if most > 4095 else 12 if most > 255 else 8
    gray = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        gray[values == clear] = 255
    return Image.fromarray(gray).convert("RGB")


def _bits(kind: str, data: bytes, image: ImageFile.ImageFile) -> int:
    """Bits of a sample as the file declares them, where there can be more than 8."""
    if kind == "PNG":
        return data[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(_BITS_TAG, (8,))))
    return 8

"""All formats decode to the same RGB, and bad images raise only ImageError."""

import base64
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from binsweep.data.decode import MAX_PIXELS, ImageError, ReadFailed, decode, read


def scene(width: int = 64, height: int = 48) -> Image.Image:
    """A smooth image that JPEG preserves, with four different corners that show its orientation."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, (x + y) * 90 / (width + height)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def distance(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"quality": 95}),
    ],
)
def test_formats_give_the_same_pixels(kind: str, options: dict[str, object]) -> None:
    pixels = decode(encode(scene(), kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert distance(pixels, np.asarray(scene())) < 3


def test_a_path_and_its_bytes_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "bin.jpg"
    path.write_bytes(encode(scene(), "JPEG"))
    np.testing.assert_array_equal(decode(path), decode(path.read_bytes()))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = scene().transpose(undo[orientation]) if orientation > 1 else scene()
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, kind, exif=exif, quality=95)
    assert distance(decode(data), np.asarray(scene())) < 4
    assert distance(decode(data, 32), np.asarray(scene().resize((32, 32), Image.Resampling.BILINEAR))) < 4


@pytest.mark.parametrize("exif", [b"II*\x00\xff\xff\xff\x7f" + b"\xff" * 40, b"no exif at all", b""])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_broken_exif_is_decoded(kind: str, exif: bytes) -> None:
    assert decode(encode(scene(), kind, exif=b"Exif\x00\x00" + exif)).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_grayscale(kind: str) -> None:
    pixels = decode(encode(scene().convert("L"), kind, quality=95))
    assert distance(pixels, np.asarray(scene().convert("L").convert("RGB"))) < 3


def test_cmyk() -> None:
    pixels = decode(encode(scene().convert("CMYK"), "JPEG", quality=95))
    assert distance(pixels, np.asarray(scene())) < 5


def test_palette() -> None:
    pixels = decode(encode(scene().quantize(256), "PNG"))
    assert distance(pixels, np.asarray(scene())) < 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P with a transparent colour", "RGB with one"])
def test_transparent_parts_become_white(mode: str) -> None:
    image = Image.new("RGBA", (20, 10), (10, 20, 30, 0))
    image.paste((200, 0, 0, 255), (0, 0, 10, 10))
    options: dict[str, object] = {}
    if mode.startswith("P w"):
        image = Image.fromarray(np.repeat([[0, 1]], 10, axis=1).repeat(10, axis=0).astype(np.uint8), "P")
        image.putpalette([200, 0, 0, 10, 20, 30])
        options = {"transparency": 1}
    elif mode.startswith("RGB w"):
        image = image.convert("RGB")
        options = {"transparency": (10, 20, 30)}
    elif mode != "RGBA":
        image = image.convert("LA")
    pixels = decode(encode(image, "PNG", **options))
    assert pixels[5, 15].tolist() == [255, 255, 255]
    assert pixels[5, 5].max() <= 200 and pixels[5, 5].min() < 100


def test_half_transparent_is_blended() -> None:
    pixels = decode(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "WEBP", lossless=True))
    assert abs(int(pixels[0, 0, 0]) - 127) <= 1


def test_sixteen_bits_keep_the_upper_eight() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    pixels = decode(encode(Image.fromarray(ramp), "PNG"))
    np.testing.assert_array_equal(pixels[:, :, 1], ramp >> 8)


def test_one_bit() -> None:
    assert set(np.unique(decode(encode(scene().convert("1"), "PNG")))) == {0, 255}


def test_the_first_frame_of_an_animation() -> None:
    second = Image.new("RGB", (64, 48), "red")
    for kind in ("PNG", "WEBP"):
        data = encode(scene(), kind, save_all=True, append_images=[second], lossless=True)
        assert distance(decode(data), np.asarray(scene())) < 3


def test_size_squashes_like_an_antialiased_resize() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    expected = np.asarray(noise.resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode(encode(noise, "PNG"), 64), expected)


def test_draft_decoding_of_a_large_jpeg_stays_close_to_the_full_one() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    large = Image.fromarray(tiles).resize((400, 300), Image.Resampling.NEAREST)
    data = encode(large, "JPEG", quality=95, subsampling=0)
    assert distance(decode(data, 64), np.asarray(large.resize((64, 64), Image.Resampling.BILINEAR))) < 4


def test_small_pictures_grow() -> None:
    assert decode(encode(Image.new("RGB", (1, 1), "white"), "PNG"), 224).shape == (224, 224, 3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes"),
        (b"this is a text file\n", "not a JPEG, PNG, WebP, TIFF, AVIF or HEIC image"),
        (b"GIF89a" + bytes(20), "not a JPEG, PNG, WebP, TIFF, AVIF or HEIC image"),
        (b"\xff\xd8\xff", "broken JPEG image"),
        (b"\x89PNG\r\n\x1a\n", "broken PNG image"),
        (b"RIFF\x00\x00\x00\x00WEBP", "broken WebP image"),
    ],
)
def test_a_file_that_is_no_image_gives_the_reason_in_one_line(data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        decode(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_refused(kind: str) -> None:
    data = encode(scene(), kind)
    for keep in (len(data) // 3, len(data) // 2, len(data) - 40):
        with pytest.raises(ImageError, match="broken"):
            decode(data[:keep])
        with pytest.raises(ImageError, match="broken"):
            decode(data[:keep], 32)


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that declares any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b""))]
    body = b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [10_000, 60_000, 2**31 - 1])
@pytest.mark.filterwarnings("error")
def test_a_decompression_bomb_is_refused_from_its_header(side: int) -> None:
    with pytest.raises(ImageError, match=f"{side} x {side} pixels are more than the {MAX_PIXELS:,}"):
        decode(png_header(side, side))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    for path, says in [
        (tmp_path / "absent.jpg", "no such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe.jpg", "not a regular file"),
        (tmp_path / ("x" * 300), "no such file|too long"),
    ]:
        with pytest.raises(ImageError, match=says):
            decode(path)


# 96 x 64 pixels: red, green, and blue below red; nothing here can write such a file.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABegABAAAAAAAAANkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA1mlwcnAAAAC3aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAAAwAeoDCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xy"
    "bmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABgAAAAQAAAABBwaXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAAOFt"
    "ZGF0AAAA1SgBrwng4Vc5dV///II///xiNyH8Cc1JBKTz6IVA/4rC//0Z9XUUe/5i6dWYVrgz1GfSbr5rtX9PkGlVAjRgdrF6l83d"
    "uuB9u+l+qPhcB7ZLDtBIH6EdqwEP4xNGCjNpB1KzUZ//38IPH8SyN/+uvJX0ADMb1nnJrfWlSgcRjqDUFC2bJeWmEJn/O8pAj0P6"
    "xZ6nAkyKFRp0mPe9hfY9rp/R83/iSWX/KcALSRuT/4jUj29hruyI2/aFVhpDbLffK72+EO9FAHDXjaTZ+bZx58n//EU/wA=="
)

SEEDS = [
    encode(scene(), "JPEG", exif=b"Exif\x00\x00II*\x00\x08\x00\x00\x00\x00\x00"),
    encode(scene(), "JPEG", progressive=True),
    encode(scene().convert("CMYK"), "JPEG"),
    encode(scene(), "PNG"),
    encode(scene().quantize(16), "PNG", transparency=3),
    encode(scene().convert("RGBA"), "WEBP", lossless=True),
    encode(scene(), "WEBP"),
    encode(scene(), "TIFF", compression="tiff_lzw"),
    encode(scene(), "AVIF"),
    HEIC,
]


@settings(max_examples=300, deadline=None)
@given(
    data=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=8),
    cut=st.none() | st.integers(0, 10**6),
    size=st.sampled_from([None, 16]),
)
def test_damaged_files_give_pixels_or_an_image_error(
    data: bytes, flips: list[tuple[int, int]], cut: int | None, size: int | None
) -> None:
    damaged = bytearray(data if cut is None else data[: cut % len(data)])
    for position, mask in flips:
        if damaged:
            damaged[position % len(damaged)] ^= mask
    try:
        pixels = decode(bytes(damaged), size)
    except ImageError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


@settings(max_examples=100, deadline=None)
@given(head=st.sampled_from([data[:24] for data in SEEDS]), tail=st.binary(max_size=200))
def test_noise_after_a_good_header(head: bytes, tail: bytes) -> None:
    try:
        decode(head + tail)
    except ImageError as error:
        assert "\n" not in str(error)


def test_heic() -> None:
    pixels = decode(HEIC)
    assert pixels.shape == (64, 96, 3)
    corners = [pixels[place].astype(int).tolist() for place in ((8, 8), (8, 88), (56, 8), (56, 88))]
    for corner, wanted in zip(
        corners, [(220, 30, 30), (30, 220, 30), (30, 30, 220), (200, 200, 200)], strict=True
    ):
        assert np.abs(np.array(corner) - wanted).max() < 16
    assert decode(HEIC, 32).shape == (32, 32, 3)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "jpeg"}),
        ("TIFF", {"save_all": True, "append_images": [Image.new("RGB", (9, 9))]}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_formats_of_cameras_and_scanners(kind: str, options: dict[str, object]) -> None:
    assert distance(decode(encode(scene(), kind, **options)), np.asarray(scene())) < 4


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_their_orientation_is_applied(kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = scene().transpose(Image.Transpose.ROTATE_90)
    assert distance(decode(encode(turned, kind, exif=exif)), np.asarray(scene())) < 4


def test_twelve_bits_in_sixteen() -> None:
    gray = np.asarray(scene().convert("L"))
    for values in (gray.astype(np.uint16) << 4, gray.astype(np.uint16) << 8, gray.astype(np.uint16)):
        for kind in ("PNG", "TIFF"):
            pixels = decode(encode(Image.fromarray(values), kind))
            assert (pixels == gray[..., None]).all()
    colour = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = b"\0" + struct.pack(">6H", *[3000] * 6)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    png = chunk(b"IHDR", colour) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="only the lower 12 bits"):
        decode(b"\x89PNG\r\n\x1a\n" + png)


def test_sixteen_bits_of_gray_with_a_transparent_one() -> None:
    values = np.asarray(scene().convert("L")).astype(np.uint16) << 8
    pixels = decode(encode(Image.fromarray(values), "PNG", transparency=int(values[5, 5])))
    assert (pixels[values == values[5, 5]] == 255).all() and not (pixels == 255).all()


@pytest.mark.parametrize("zip", [True, False])
def test_a_png_with_megabytes_of_text(zip: bool) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="3"/>' + "a" * 3_000_000, zip=zip)
    turned = scene().transpose(Image.Transpose.ROTATE_180)
    assert (decode(encode(turned, "PNG", pnginfo=text)) == np.asarray(scene())).all()


def test_a_photo_of_more_than_fifty_megapixels() -> None:
    big = encode(scene(900, 700).resize((9000, 7000)), "JPEG", quality=80)
    whole = decode(big)
    assert whole.shape == (3500, 4500, 3)
    assert distance(decode(big, 64), np.asarray(scene(900, 700).resize((64, 64)))) < 3
    assert distance(whole[::50, ::50], np.asarray(scene(90, 70))) < 3
    with pytest.raises(ImageError, match="9000 x 7000 pixels are more than"):
        decode(encode(Image.new("L", (9000, 7000)), "JPEG", progressive=True))
    with pytest.raises(ImageError, match="15000 x 15000 pixels are more than"):
        decode(encode(Image.new("L", (15000, 15000)), "JPEG"))


def test_a_missing_decoder_is_reported_with_its_remedy() -> None:
    with pytest.raises(ImageError, match="git lfs pull"):
        decode(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(ImageError, match="32 bits"):
        decode(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))


def test_a_file_without_read_permission_is_no_bad_image(tmp_path: Path) -> None:
    if not Path("/proc/self/mem").is_file():
        pytest.skip("needs Linux")
    with pytest.raises(ReadFailed, match="cannot be read: Input/output error"):
        read(Path("/proc/self/mem"))

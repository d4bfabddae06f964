"""Requests that a model server may meet by accident or by malice, the same for the same seed."""

import base64
import gzip
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

JSON = "application/json"
FORMS = ("dataframe_split", "dataframe_records", "inputs", "instances")


@dataclass(frozen=True)
class Request:
    """One POST to /invocations."""

    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": JSON})


def photo(kind: str = "JPEG", size: tuple[int, int] = (32, 24), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, 0).save(buffer, kind)
    return buffer.getvalue()


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def wrapped(form: str, cells: list[object]) -> object:
    """The cells of the column `image` in one of MLflow's forms."""
    if form == "dataframe_split":
        return {form: {"columns": ["image"], "data": [[cell] for cell in cells]}}
    if form == "inputs":
        return {form: {"image": cells}}
    return {form: [{"image": cell} for cell in cells]}


def _images(dice: random.Random) -> bytes:
    """A photo, whole, cut, with changed bytes, or claiming to be something else."""
    kind = dice.choice(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
    size = dice.choice([(1, 1), (32, 24), (1, 900), (900, 1)])
    mode = dice.choice(["RGB", "L", "1", "CMYK"] if kind in ("JPEG", "TIFF") else ["RGB", "L"])
    content = bytearray(photo(kind, size, mode))
    how = dice.randrange(5)
    if how == 1:
        content = content[: dice.randrange(len(content))]
    elif how == 2:
        for _ in range(dice.randrange(1, 20)):
            content[dice.randrange(len(content))] = dice.randrange(256)
    elif how == 3:
        content = bytearray(b"\xff\xd8\xff" + dice.randbytes(dice.randrange(200)))
    elif how == 4:  # a header that claims a huge picture
        content = bytearray(photo("PNG"))
        content[16:24] = (100_000).to_bytes(4, "big") * 2
    return bytes(content)


_WORDS = [
    "",
    "a",
    "\x00",
    "é",
    "😀",
    "../../etc/passwd",
    "NaN",
    "'",
    '"',
    "%s",
    "\ud7ff",
    "image",
    "x" * 5000,
    "=" * 9,
]


def _cell(dice: random.Random) -> object:
    """What may stand where base64 should."""
    kind = dice.randrange(6)
    if kind <= 1:
        return encoded(_images(dice))
    if kind == 2:
        return encoded(_images(dice))[:-1] + dice.choice("!\n =é")
    if kind == 3:
        return dice.choice(_WORDS)
    return dice.choice([None, True, 0, -1, 1e308, 2**70, [], {}, [[]], {"b64": "QQ=="}, [1, 2], float("inf")])


def _value(dice: random.Random, depth: int) -> object:
    if depth == 0 or dice.random() < 0.3:
        return _cell(dice)
    if dice.random() < 0.5:
        return [_value(dice, depth - 1) for _ in range(dice.randrange(4))]
    keys = [*_WORDS[:8], *FORMS, "columns", "data", "index", "params", "messages", "image"]
    return {dice.choice(keys): _value(dice, depth - 1) for _ in range(dice.randrange(4))}


def _nested(dice: random.Random) -> bytes:
    depth = dice.choice([50, 900, 5_000, 100_000])
    opening, closing = dice.choice([("[", "]"), ('{"a":', "}"), ('{"inputs":[', "]}")])
    return (opening * depth + "1" + closing * dice.choice([depth, 0])).encode()


def _types(dice: random.Random) -> dict[str, str]:
    kinds = [
        "text/csv",
        "text/plain",
        "image/jpeg",
        "application/vnd.apache.parquet",
        "",
        ";",
        "a/b;c=d",
        "é/ü",
    ]
    kinds += [
        "application/json; charset=utf-16",
        "application/json;charset=utf-8",
        "multipart/form-data",
        "x" * 3000,
    ]
    headers = {"Content-Type": dice.choice(kinds)} if dice.random() < 0.8 else {}
    if dice.random() < 0.3:
        headers[dice.choice(["Accept", "Content-Encoding", "X-Odd", "Cookie", "Expect"])] = dice.choice(
            ["", "gzip", "a" * 2000, "identity;q=0"]
        )
    return {name: value.encode().decode("latin-1") for name, value in headers.items()}


def requests(number: int, seed: int) -> Iterator[Request]:
    """So many requests, of every kind."""
    dice = random.Random(seed)
    good = json.dumps(wrapped("dataframe_split", [encoded(photo())])).encode()
    for _ in range(number):
        kind = dice.randrange(8)
        if kind <= 2:  # the right form with wrong cells
            cells = [_cell(dice) for _ in range(dice.choice([0, 1, 1, 2, 5, 40]))]
            if dice.random() < 0.02:
                cells = ["QQ=="] * 300
            yield Request(json.dumps(wrapped(dice.choice(FORMS), cells)).encode())
        elif kind == 3:  # any JSON
            yield Request(json.dumps(_value(dice, dice.randrange(1, 6))).encode())
        elif kind == 4:  # the right form, broken on its way
            body = bytearray(good)
            for _ in range(dice.randrange(1, 4)):
                body[dice.randrange(len(body))] = dice.randrange(256)
            yield Request(bytes(body[: dice.randrange(len(body))] if dice.random() < 0.5 else body))
        elif kind == 5:  # other types and headers
            body = dice.choice([good, b"", b"image\nQQ==\n", b"\n\n,,\n", b"PAR1", gzip.compress(good)])
            yield Request(body, _types(dice))
        elif kind == 6:
            yield Request(
                dice.choice(
                    [dice.randbytes(dice.randrange(2000)), "\ud800".encode("utf-16", "surrogatepass")]
                )
            )
        else:
            yield Request(_nested(dice) if dice.random() < 0.3 else json.dumps(dice.choice(_WORDS)).encode())

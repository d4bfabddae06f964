"""A bin's metadata in the format of the public bucket: the number of items, and the products."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BinMetadata:
    """The content of one metadata file. `label` is None if there is none, for the `reason` given.

    `codes`, `names` and `quantities` have one entry for each product; a missing quantity is 0.
    """

    label: int | None
    reason: str = ""
    codes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    quantities: tuple[int, ...] = ()

    @property
    def disagreement(self) -> str:
        """How the quantities contradict the label; empty if they agree."""
        total = sum(self.quantities)
        if self.label is None or total == self.label:
            return ""
        return f"EXPECTED_QUANTITY is {self.label}, and the quantities of the items add up to {total}"


def parse_metadata(data: bytes) -> BinMetadata:
    """Parse a metadata file; errors are part of the result rather than raised."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        return BinMetadata(None, f"not JSON ({str(error).splitlines()[0]})")
    if not isinstance(content, dict) or "EXPECTED_QUANTITY" not in content:
        return BinMetadata(None, "has no EXPECTED_QUANTITY")
    label = content["EXPECTED_QUANTITY"]
    if not _is_count(label):
        return BinMetadata(
            None, f"EXPECTED_QUANTITY must be a whole number from 0, and is {str(label)[:40]!r}"
        )
    listing = content.get("BIN_FCSKU_DATA")
    products = listing if isinstance(listing, dict) else {}
    entries = [entry if isinstance(entry, dict) else {} for entry in products.values()]
    quantities = [entry.get("quantity") for entry in entries]
    return BinMetadata(
        label,
        codes=tuple(map(str, products)),
        names=tuple(str(entry.get("name") or "") for entry in entries),
        quantities=tuple(q if isinstance(q, int) and _is_count(q) else 0 for q in quantities),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31

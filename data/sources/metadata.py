"""A bin's metadata as the public bucket writes it: how many items, and which."""

import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BinMetadata:
    """What one metadata file says. `label` is None when it has none, and `reason` says why.

    `codes`, `names` and `quantities` have one entry for each product; 0 stands for a quantity that is missing.
    """

    label: int | None
    reason: str = ""
    codes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    quantities: tuple[int, ...] = ()

    @property
    def disagreement(self) -> str:
        """How the quantities contradict the label; empty when they agree."""
        total = sum(self.quantities)
        if self.label is None or total == self.label:
            return ""
        return f"EXPECTED_QUANTITY is {self.label}, and the quantities of the items add up to {total}"


def parse_metadata(data: bytes) -> BinMetadata:
    """Read a metadata file; what it lacks is said in the result rather than raised."""
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
    goods = listing if isinstance(listing, dict) else {}
    entries = [entry if isinstance(entry, dict) else {} for entry in goods.values()]
    quantities = [entry.get("quantity") for entry in entries]
    return BinMetadata(
        label,
        codes=tuple(map(str, goods)),
        names=tuple(str(entry.get("name") or "") for entry in entries),
        quantities=tuple(q if isinstance(q, int) and _is_count(q) else 0 for q in quantities),
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31

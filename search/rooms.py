"""The folders of the house's code, for whoever sends it to other machines, and whether Python finds them."""

import importlib.util
from pathlib import Path

ROOMS = tuple(Path(__file__).resolve().parents[1] / name for name in ("data", "models", "tracking", "search"))


def in_the_way() -> Path | None:
    """A file or folder that Python takes for one of the rooms; None where it finds our own."""
    for room in ROOMS:
        spec = importlib.util.find_spec(room.name)
        if spec is None:
            continue  # the import says so itself
        # A folder without __init__.py has no origin, but it may hide a package as well.
        places = [spec.origin, *(spec.submodule_search_locations or [])]
        found = Path(next(place for place in places if place is not None)).resolve()
        if found not in (room, room / "__init__.py"):
            return found
    return None

"""Keys that were renamed: refused in a new sweep file, translated in the stored spec of an earlier sweep."""

import copy
from typing import Any

RENAMED_KEYS = {
    "objective.against": "cost_objective",
    "resources.large": "overrides",
    "resources.trials_at_once": "max_concurrent_trials",
    "search.points": "initial_points",
    "register.gate.class_floor": "min_class_accuracy",
}


def translate_renamed_keys(raw: Any) -> Any:
    """A copy of a stored spec in which every renamed key has its present name, in the same place."""
    translated = copy.deepcopy(raw)
    for path, new in RENAMED_KEYS.items():
        *sections, old = path.split(".")
        section = translated
        for name in sections:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and old in section:
            items = [(new if key == old else key, value) for key, value in section.items()]
            section.clear()
            section.update(items)
    return translated

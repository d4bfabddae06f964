"""Special cases, one file for each family: each adds to ARCHITECTURES or ADAPTATIONS when it is imported."""

import pkgutil
from importlib import import_module

FILES = tuple(sorted(f"{__name__}.{file.name}" for file in pkgutil.iter_modules(__path__)))
for _file in FILES:
    import_module(_file)

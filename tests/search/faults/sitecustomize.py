"""Faults in the second process of a group, for sweeps started with this folder on PYTHONPATH (test_groups.py).

Of a batch of 8 it cannot hold its four photos at once; at a batch of 16 its code is wrong.
"""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any


class _Faults(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != "binsweep.models.train":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _add_faults(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _add_faults(module: ModuleType) -> None:
    import torch

    whole = module._forward

    def forward(net: Any, inputs: Any, precision: Any) -> Any:
        if net.training and module.current_group().rank == 1:
            if len(inputs) == 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            if len(inputs) == 8:
                raise ValueError("no such kernel")
        return whole(net, inputs, precision)

    module._forward = forward  # type: ignore[attr-defined]


sys.meta_path.insert(0, _Faults())

"""Backbones: the networks of torchvision and timm by name, cut into stages."""

from importlib import import_module

import_module(f"{__name__}.families")  # which fills the tables of `architecture`

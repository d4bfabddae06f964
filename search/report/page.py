"""Pages as files: a template with its values."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template

from binsweep.data.atomic_write import write_bytes
from binsweep.data.errors import UserError


def render_page(template: Path, contents: Mapping[str, Any]) -> str:
    """The page of a template; what is not marked as safe there, is text and no HTML."""
    return _layout(template).render(**contents)


def write_page_file(page: Path, template: Path, contents: Mapping[str, Any]) -> None:
    """Write a page atomically. Raises UserError if the file cannot be written."""
    text = render_page(template, contents)
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(page, text.encode())
    except OSError as error:
        raise UserError(f"{page}: {error.strerror}", "name a place where you may write") from error


@functools.cache  # a running sweep writes its report again and again
def _layout(template: Path) -> Template:
    return Environment(autoescape=True).from_string(template.read_text(encoding="utf-8"))

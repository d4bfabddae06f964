"""Reading YAML, with the mistakes that YAML itself does not report: duplicate keys and misread values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from binsweep.search.spec.problems import ABSENT, Problem

MAX_VALUES = 50_000  # of a document, with aliases expanded
# YAML 1.1 reads 010 as 8 (octal) and 1:30 as 90 (sexagesimal).
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Reads 1e-4 as a number, like YAML 1.2; in YAML 1.1 it is text, because it has no dot."""


_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class NotYaml(Exception):
    """A document that cannot be read. `where` is ", line N" or empty, `what` the mistake, `hint` its correction."""

    def __init__(self, what: str, hint: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint
        self.where = f", line {line}" if line else ""


@dataclass
class YamlDocument:
    """A document: its value, the mistakes found, and the bare words such as `no` that YAML reads as true or false, by
    their paths."""

    value: Any = None
    problems: list[Problem] = field(default_factory=list)
    bare_words: dict[str, str] = field(default_factory=dict)


def read_yaml(content: bytes | str) -> YamlDocument:
    """Read one document. Raises NotYaml if it is not valid YAML."""
    document = YamlDocument()
    try:
        loader = _Loader(content)
        try:
            node = loader.get_single_node()
            if node is not None:
                _inspect(node, document)
                document.value = loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.reader.ReaderError as error:
        before = content[: error.position] if isinstance(error.position, int) else content[:0]
        line = before.count(b"\n" if isinstance(before, bytes) else "\n") + 1  # type: ignore[arg-type]
        raise NotYaml(f"no text in UTF-8 ({error.reason})", "save it as UTF-8", line) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(part) for part in (error.context, error.problem) if part)
        hint = "indent with blanks: YAML takes no tabs" if r"'\t'" in what else "mend it"
        raise NotYaml(f"not YAML: {what}", hint, mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise NotYaml(f"not YAML: {str(error).splitlines()[0]}", "mend it") from error
    return document


def with_yaml_hint(problem: Problem, bare_words: dict[str, str]) -> Problem:
    """The problem, with a hint if its value is a bare word such as `no` that YAML reads as true or false."""
    path = re.sub(r"\[(\d+)\]", r".\1", problem.path)
    inside = [word for place, word in bare_words.items() if f"{place}.".startswith(f"{path}.")]
    word = next((w for w in inside if yaml.SafeLoader.bool_values[w.lower()] == problem.value), None)
    if word is None or not isinstance(problem.value, bool):
        return problem
    hint = f"YAML reads {word} as {str(problem.value).lower()}: write '{word}', with the quotes, for the word"
    return Problem(problem.path, problem.rule, problem.value, hint)


def _inspect(root: yaml.Node, document: YamlDocument) -> None:
    """Find duplicate keys and misread values, in the order of the document."""
    visits = 0
    reported: set[tuple[int, str]] = set()  # a mistake repeated by aliases is reported once
    pending: list[tuple[str, yaml.Node, tuple[int, ...]]] = [("", root, ())]
    while pending:
        path, node, ancestors = pending.pop()
        visits += 1
        if visits > MAX_VALUES or id(node) in ancestors:
            rule = (
                "an alias that contains itself"
                if id(node) in ancestors
                else f"aliases unfold to over {MAX_VALUES:,} values"
            )
            raise NotYaml(f"not a sweep: {rule}", "write it out", node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            _inspect_scalar(path, node, document)
        elif isinstance(node, yaml.SequenceNode):
            children = [(f"{path}.{i}".lstrip("."), child) for i, child in enumerate(node.value)]
            pending += [(p, child, (*ancestors, id(node))) for p, child in reversed(children)]
        elif isinstance(node, yaml.MappingNode):
            for problem in _key_problems(path, node):
                if (id(node), problem.path + problem.rule) not in reported:
                    reported.add((id(node), problem.path + problem.rule))
                    document.problems.append(problem)
            children = [(_child_path(path, key), value) for key, value in node.value]
            pending += [(p, child, (*ancestors, id(node))) for p, child in reversed(children)]


def _child_path(path: str, key: yaml.Node) -> str:
    """The path of a key; keys merged by `<<` belong to the section itself."""
    if key.tag == f"{_TAG}merge":
        return path
    return f"{path}.{_text(key)}".lstrip(".")


def _text(key: yaml.Node) -> str:
    return str(key.value) if isinstance(key, yaml.ScalarNode) else "?"


def _key_problems(path: str, node: yaml.MappingNode) -> Iterator[Problem]:
    lines: dict[str, list[int]] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            lines.setdefault(key.value, []).append(key.start_mark.line + 1)
            kind = key.tag.removeprefix(_TAG)
            if kind not in ("str", "merge"):
                rule = f"YAML reads this key in line {key.start_mark.line + 1} as {_KINDS.get(kind, kind)}"
                yield Problem(_child_path(path, key), rule, ABSENT, f"write '{key.value}', with the quotes")
    for name, found in lines.items():
        if len(found) > 1:
            where = f"{f'{path}.' if path else ''}{name}"
            yield Problem(where, f"written {_count(found)}, in {_lines(found)}", ABSENT, "keep one of them")


_KINDS = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
}


def _count(found: Sequence[int]) -> str:
    return "twice" if len(found) == 2 else f"{len(found)} times"


def _lines(found: Sequence[int]) -> str:
    if len(set(found)) == 1:
        return f"line {found[0]}"
    return f"lines {', '.join(map(str, found[:-1]))} and {found[-1]}"


def _inspect_scalar(path: str, node: yaml.ScalarNode, document: YamlDocument) -> None:
    if node.style is not None:  # in quotes, or a block of text
        return
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "bool" and text.lower() not in ("true", "false"):
        document.bare_words[path] = text
    elif kind == "timestamp":
        rule, hint = f"YAML reads {text} as a date", f"write '{text}', with the quotes"
        document.problems.append(Problem(path, rule, ABSENT, hint))
    elif kind in ("int", "float") and (_OCTAL.fullmatch(text) or _SEXAGESIMAL.fullmatch(text)):
        value = _Loader("").construct_object(node)
        hint = f"write {value}, or '{text}', with the quotes"
        if ":" not in text:
            decimal = int(text)
            if decimal == value:
                return
            hint = f"write {decimal}, or {value} if that is meant"
        document.problems.append(Problem(path, f"YAML reads {text} as {value}", ABSENT, hint))

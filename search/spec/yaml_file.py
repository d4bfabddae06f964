"""YAML as people write it: what it says twice, and what it says other than they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from binsweep.search.spec.problems import ABSENT, Problem

MOST = 50_000  # values of a document, with all that its aliases repeat
# What YAML 1.1 takes for numbers: 010 is 8, and 1:30 is 90, minutes and seconds.
_OCTAL = re.compile(r"[-+]?0[0-7_]+")
_SEXAGESIMAL = re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-4 as text for want of a dot; people mean the number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    f"{_TAG}float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class NotYaml(Exception):
    """A document that cannot be read: `where` is ", line N" or empty; `what` is wrong, and `hint` is right."""

    def __init__(self, what: str, hint: str, line: int | None = None) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint
        self.where = f", line {line}" if line else ""


@dataclass
class YamlDocument:
    """What was read: `value`; the mistakes of `problems`; and by the path of each bare word such as `no` that
    YAML takes for true or false, the word."""

    value: Any = None
    problems: list[Problem] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)


def read_yaml(content: bytes | str) -> YamlDocument:
    """Read one document; raises NotYaml where it is none."""
    document = YamlDocument()
    try:
        loader = _Loader(content)
        try:
            node = loader.get_single_node()
            if node is not None:
                _look(node, document)
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


def hinted(problem: Problem, words: dict[str, str]) -> Problem:
    """A mistake whose value is `no` or the like, with what YAML made of that."""
    path = re.sub(r"\[(\d+)\]", r".\1", problem.path)
    inside = [word for place, word in words.items() if f"{place}.".startswith(f"{path}.")]
    word = next((w for w in inside if yaml.SafeLoader.bool_values[w.lower()] == problem.value), None)
    if word is None or not isinstance(problem.value, bool):
        return problem
    hint = f"YAML reads {word} as {str(problem.value).lower()}: write '{word}', with the quotes, for the word"
    return Problem(problem.path, problem.rule, problem.value, hint)


def _look(root: yaml.Node, document: YamlDocument) -> None:
    """Find what is written twice or misread, in the order of the document."""
    visits = 0
    said: set[tuple[int, str]] = set()  # what several aliases repeat is one mistake
    waiting: list[tuple[str, yaml.Node, tuple[int, ...]]] = [("", root, ())]
    while waiting:
        path, node, above = waiting.pop()
        visits += 1
        if visits > MOST or id(node) in above:
            rule = (
                "an alias that contains itself"
                if id(node) in above
                else f"aliases unfold to over {MOST:,} values"
            )
            raise NotYaml(f"not a sweep: {rule}", "write it out", node.start_mark.line + 1)
        if isinstance(node, yaml.ScalarNode):
            _look_at_scalar(path, node, document)
        elif isinstance(node, yaml.SequenceNode):
            children = [(f"{path}.{i}".lstrip("."), child) for i, child in enumerate(node.value)]
            waiting += [(p, child, (*above, id(node))) for p, child in reversed(children)]
        elif isinstance(node, yaml.MappingNode):
            for problem in _keys(path, node):
                if (id(node), problem.path + problem.rule) not in said:
                    said.add((id(node), problem.path + problem.rule))
                    document.problems.append(problem)
            children = [(_below(path, key), value) for key, value in node.value]
            waiting += [(p, child, (*above, id(node))) for p, child in reversed(children)]


def _below(path: str, key: yaml.Node) -> str:
    """The path of a key; what is merged by `<<` stands beside the others."""
    if key.tag == f"{_TAG}merge":
        return path
    return f"{path}.{_text(key)}".lstrip(".")


def _text(key: yaml.Node) -> str:
    return str(key.value) if isinstance(key, yaml.ScalarNode) else "?"


def _keys(path: str, node: yaml.MappingNode) -> Iterator[Problem]:
    lines: dict[str, list[int]] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            lines.setdefault(key.value, []).append(key.start_mark.line + 1)
            kind = key.tag.removeprefix(_TAG)
            if kind not in ("str", "merge"):
                rule = f"YAML reads this key in line {key.start_mark.line + 1} as {_KINDS.get(kind, kind)}"
                yield Problem(_below(path, key), rule, ABSENT, f"write '{key.value}', with the quotes")
    for name, found in lines.items():
        if len(found) > 1:
            where = f"{f'{path}.' if path else ''}{name}"
            yield Problem(where, f"written {_times(found)}, in {_lines(found)}", ABSENT, "keep one of them")


_KINDS = {
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "null": "nothing",
    "timestamp": "a date",
}


def _times(found: Sequence[int]) -> str:
    return "twice" if len(found) == 2 else f"{len(found)} times"


def _lines(found: Sequence[int]) -> str:
    if len(set(found)) == 1:
        return f"line {found[0]}"
    return f"lines {', '.join(map(str, found[:-1]))} and {found[-1]}"


def _look_at_scalar(path: str, node: yaml.ScalarNode, document: YamlDocument) -> None:
    if node.style is not None:  # in quotes, or a block of text
        return
    text, kind = node.value, node.tag.removeprefix(_TAG)
    if kind == "bool" and text.lower() not in ("true", "false"):
        document.words[path] = text
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

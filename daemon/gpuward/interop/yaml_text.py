"""YAML text to plain tables, for files that somebody else wrote: bounded in size, depth and what aliases multiply to.

PyYAML's safe loader builds no objects, but it takes the last of two equal keys and lets nine lines of aliases stand for
a billion items ("billion laughs"). Both are refused here.
"""

from __future__ import annotations

import reprlib
from collections.abc import Hashable
from typing import NoReturn

import yaml

from gpuward.config.bounds import check_document
from gpuward.config.errors import ConfigError, one_line
from gpuward.config.fleet import Remark

MAX_CHARACTERS = 256 * 1024
MAX_DEPTH = 32
MAX_ITEMS = 20_000
"""Values that a file may come to, aliases written out. The largest example file of Dynamo has 112."""


def parse_yaml(text: str, *, file: str) -> dict[str, object]:
    """Return the table at the top of ``text``; ConfigError where there is none or it is not safe to read."""
    if len(text) > MAX_CHARACTERS:
        _refuse(file, "bad-value", f"{len(text)} characters; a file of services has at most {MAX_CHARACTERS}")
    try:
        document = _document(text, file)
    except _DuplicateKeyError as error:
        _refuse(file, "duplicate-name", str(error))
    except yaml.YAMLError as error:
        _refuse(file, "bad-syntax", f"not YAML: {_one_line(error)}")
    except (ValueError, RecursionError) as error:  # dates that no calendar has, integers of 5,000 digits
        _refuse(file, "bad-value", f"a value cannot be read: {error}")
    if not isinstance(document, dict):
        shown = reprlib.repr(document) if not isinstance(document, int) else "a number"
        _refuse(
            file, "bad-value", f"a {_kind(document)} at the top ({shown}); services are a table: 'Name:' and its keys"
        )
    check_document(document, file=file)
    return document


def _document(text: str, file: str) -> object:
    _check_depth(text, file)
    loader = _Loader(text)
    node = loader.get_single_node()
    if node is None:
        _refuse(file, "bad-value", "empty: no service in this file")
    _check_items(node, file)
    return loader.construct_document(node)


class _DuplicateKeyError(Exception):
    """A key that stands twice in one table."""


class _Loader(yaml.SafeLoader):
    """The safe loader, that refuses equal keys and keys that are no text."""

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Hashable, object]:
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
        return super().construct_mapping(node, deep=deep)  # type: ignore[arg-type]

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            line = key_node.start_mark.line + 1
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(
                    None, None, "a key that is no text; put it in quotes", key_node.start_mark
                )
            if key_node.value in seen:
                raise _DuplicateKeyError(f"'{key_node.value}' stands in line {seen[key_node.value]} and in line {line}")
            seen[key_node.value] = line


def _check_depth(text: str, file: str) -> None:
    """Walk the events, which needs no recursion, before anything recursive looks at them."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        if count > MAX_ITEMS:
            _refuse(file, "bad-value", f"more than {MAX_ITEMS} values; a file of services has some hundred")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(file, "bad-value", f"nested more than {MAX_DEPTH} deep; services need four")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _check_items(root: yaml.Node, file: str) -> None:
    """Count what the tree comes to with every alias written out; a node inside itself has no end."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        if id(node) in open_nodes:
            _refuse(file, "bad-value", f"line {node.start_mark.line + 1}: an anchor that contains itself")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(map(size, _children(node)))
            open_nodes.discard(id(node))
        return sizes[id(node)]

    total = size(root)
    if total > MAX_ITEMS:
        _refuse(file, "bad-value", f"{total} values with all aliases written out; at most {MAX_ITEMS}")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _refuse(file: str, code: str, message: str) -> NoReturn:
    raise ConfigError(file, [Remark(code=code, pool=None, message=one_line(message))])


def _one_line(error: yaml.YAMLError) -> str:
    """What is wrong and where, without the picture of the line that PyYAML draws below it."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    said = ", ".join(part for part in (error.context, error.problem) if part)
    return f"{said} (at line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"


def _kind(document: object) -> str:
    return "list" if isinstance(document, list) else "single value"

"""A recipe as text: YAML 1.2 with the line of every key, and `--set` overrides laid over it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from tasks.errors import RecipeError

Loc = tuple[str | int, ...]
"""Where a value stands: `("dataset", "sources", 0, "path")`."""

_TAG = "tag:yaml.org,2002:"
_PLAIN = {f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq")}


@dataclass
class Document:
    """A recipe's values as plain dicts and lists, each with the place a person wrote it at."""

    path: Path
    data: dict[str, Any] = field(default_factory=dict)
    mistakes: list[str] = field(default_factory=list)
    """Found while reading: `file:line: field: what is wrong`."""
    _places: dict[Loc, str] = field(default_factory=dict)

    def place(self, loc: Loc) -> str:
        """`recipes/a.yaml:12` or `--set training.method=x`: of the value, else of what encloses it."""
        while loc and loc not in self._places:
            loc = loc[:-1]
        return self._places.get(loc, f"{self.path}:1")

    def note(self, loc: Loc, place: str) -> None:
        """Remember where the value at `loc` was written."""
        self._places[loc] = place

    def line(self, loc: Loc, what: str) -> str:
        """A message about the value at `loc`."""
        dotted = dotted_name(loc)
        return f"{self.place(loc)}: {dotted}: {what}" if dotted else f"{self.place(loc)}: {what}"

    def get(self, loc: Loc, default: Any = None) -> Any:
        """The value at `loc`, or `default` where there is none."""
        value: Any = self.data
        for step in loc:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return default
        return value

    def remove(self, loc: Loc) -> Any:
        """Take the value at `loc` out (its place is kept for messages) and return it."""
        return self.get(loc[:-1]).pop(loc[-1])

    def put(self, loc: Loc, value: Any, place: str) -> None:
        """Set the value at `loc`, making mappings on the way. Raises LookupError with the reason."""
        parent: Any = self.data
        written: Loc = ()
        for step in loc[:-1]:
            key = _key(parent, step, written)
            if isinstance(parent, dict) and parent.get(str(key)) is None:
                parent[str(key)] = {}
            parent, written = parent[key], (*written, key)
        key = _key(parent, loc[-1], written)
        parent[key] = value
        written = (*written, key)
        for known in [known for known in self._places if known[: len(written)] == written]:
            del self._places[known]
        self._places[written] = place


def read_document(path: Path) -> Document:
    """Read a YAML file. Raises RecipeError when it is missing, unreadable, not YAML or not a mapping."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(str(p) for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f" Beside it lie: {', '.join(near)}." if near else ""
        raise RecipeError(f"{path}: there is no such file.{hint}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder; name the recipe's .yaml file.") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: is not UTF-8 text ({error}). Save it as UTF-8.") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from error
    document = Document(path)
    value = _Builder(document, f"{path}:").read(text)
    if value is None:
        raise RecipeError(
            f"{path}:1: is empty. A recipe needs at least `name`, `base` and `dataset`; "
            "`loraline init` writes one."
        )
    if not isinstance(value, dict):
        raise RecipeError(
            f"{path}:1: a recipe is a mapping of sections (`name: ...`), not {_kind(value)}."
        )
    document.data = value
    return document


def apply_override(document: Document, text: str) -> None:
    """Lay `training.peft_config.r=8` over the document; the value is YAML. Mistakes are collected."""
    place = f"--set {text}"
    name, equals, value_text = text.partition("=")
    steps = name.strip().split(".")
    if not equals or not all(steps):
        document.mistakes.append(f"{place}: write it as `--set section.field=value`.")
        return
    probe = Document(document.path)
    try:
        value = _Builder(probe, place, numbered=False).read(value_text)
    except RecipeError as error:
        document.mistakes.append(str(error))
        return
    document.mistakes.extend(probe.mistakes)
    if steps[0] == "base" and len(steps) > 1 and isinstance(document.data.get("base"), str):
        # `base: ID` is short for `base: {model: ID}`.
        document.data["base"] = {"model": document.data["base"]}
    try:
        document.put(tuple(steps), value, place)
    except LookupError as error:
        document.mistakes.append(f"{place}: {error.args[0]}.")


def dotted_name(loc: Loc) -> str:
    """`dataset.sources.0.path`."""
    return ".".join(str(step) for step in loc)


class _Builder:
    """Turns YAML nodes into plain values and notes the place of each."""

    def __init__(self, document: Document, prefix: str, *, numbered: bool = True) -> None:
        self._document = document
        self._prefix = prefix
        self._numbered = numbered
        self._yaml = YAML(typ="safe", pure=True)
        self._open: list[Node] = []

    def read(self, text: str) -> Any:
        """The text's value; None for an empty one. Raises RecipeError when it is not YAML."""
        try:
            node = self._yaml.compose(text)
            return None if node is None else self._value(node, ())
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = self._place(mark.line) if mark is not None else self._prefix.rstrip(":")
            what = ", ".join(str(part) for part in (error.context, error.problem) if part)
            raise RecipeError(f"{place}: is not YAML: {what}.{_hint(text, mark)}") from None
        except (YAMLError, ValueError) as error:
            what = " ".join(str(error).split())
            raise RecipeError(f"{self._prefix.rstrip(':')}: is not YAML: {what}.") from None
        except RecursionError:
            raise RecipeError(
                f"{self._prefix.rstrip(':')}: is nested too deep to be read."
            ) from None

    def _place(self, line: int) -> str:
        return f"{self._prefix}{line + 1}" if self._numbered else self._prefix

    def _value(self, node: Node, loc: Loc) -> Any:
        if not loc:
            self._document.note(loc, self._place(node.start_mark.line))
        if any(node is outer for outer in self._open):
            self._mistake(node, loc, "contains itself through an alias")
            return None
        self._open.append(node)
        try:
            if isinstance(node, MappingNode):
                return self._mapping(node, loc)
            if isinstance(node, SequenceNode):
                return [self._item(item, (*loc, i)) for i, item in enumerate(node.value)]
            assert isinstance(node, ScalarNode)
            return self._scalar(node, loc)
        finally:
            self._open.pop()

    def _item(self, node: Node, loc: Loc) -> Any:
        self._document.note(loc, self._place(node.start_mark.line))
        return self._value(node, loc)

    def _mapping(self, node: MappingNode, loc: Loc) -> dict[str, Any]:
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                for source in _merge_sources(value_node):
                    if not isinstance(source, MappingNode):
                        self._mistake(source, loc, "`<<` merges mappings, and this is none")
                        continue
                    for name, value in self._value(source, (*loc, "<<")).items():
                        merged.setdefault(name, value)
                continue
            if not isinstance(key_node, ScalarNode):
                self._mistake(key_node, loc, "a field's name is a single word")
                continue
            name, line = str(key_node.value), key_node.start_mark.line
            if name in lines:
                first = self._place(lines[name])
                self._mistake(key_node, (*loc, name), f"is set twice, first at {first}. Keep one")
                continue
            lines[name] = line
            self._document.note((*loc, name), self._place(line))
            values[name] = self._value(value_node, (*loc, name))
        return {**merged, **values}

    def _scalar(self, node: ScalarNode, loc: Loc) -> Any:
        if node.tag == f"{_TAG}timestamp":
            # JSON and the settings know no dates: `released: 2026-01-01` is the text it looks like.
            return str(node.value)
        if node.tag not in _PLAIN:
            self._mistake(node, loc, f"the YAML tag {node.tag} is not allowed in a recipe")
            return None
        try:
            return self._yaml.constructor.construct_object(node)
        except (ValueError, KeyError, OverflowError):
            # Such as `0x_`, which YAML takes for a number, and `!!bool maybe`.
            kind = node.tag.removeprefix(_TAG)
            self._mistake(node, loc, f"{node.value!r} is no {kind}. Write a text in quotes")
            return None

    def _mistake(self, node: Node, loc: Loc, what: str) -> None:
        name = dotted_name(loc)
        place = self._place(node.start_mark.line)
        self._document.mistakes.append(f"{place}: {name}: {what}." if name else f"{place}: {what}.")


def _merge_sources(node: Node) -> list[Node]:
    """What `<<:` names: a single mapping, or a list of them in which the first wins."""
    return list(node.value) if isinstance(node, SequenceNode) else [node]


def _key(parent: Any, step: str | int, where: Loc) -> str | int:
    """The step as a key of `parent`: `--set` names a list's items by digits. LookupError if it is none."""
    name = dotted_name(where)
    if isinstance(parent, dict):
        return str(step)
    if not isinstance(parent, list):
        raise LookupError(f"{name} is a single value; it has no `{step}`")
    if str(step).isdigit() and int(step) < len(parent):
        return int(step)
    last = len(parent) - 1
    items = f"{name}.0" + (f" to {name}.{last}" if last > 0 else "")
    way_out = f"name an item as {items}" if parent else "set the whole list"
    raise LookupError(f"{name} is a list of {len(parent)}; {way_out}")


def _hint(text: str, mark: Any) -> str:
    lines = text.splitlines()
    if mark is not None and mark.line < len(lines) and "\t" in lines[mark.line]:
        return " Indent with spaces, never with tabs."
    return ""


def _kind(value: Any) -> str:
    return "a list" if isinstance(value, list) else f"the single value {value!r}"

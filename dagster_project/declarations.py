"""Reading the YAML files that domains own: a mistake names its file, its line and the mend."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from dagster_project.failures import DeclarationError

#: libyaml's where it is there: loading definitions stays cheap.
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
ModelT = TypeVar("ModelT", bound=BaseModel)
Location = tuple[int | str, ...]


class Declared(BaseModel):
    """A mapping in a declaration: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def line_of(root: yaml.Node | None, location: Location) -> int:
    """The line (from 1) of the value at `location`, or of its nearest parent that is there."""
    node, line = root, 1 if root is None else root.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            if part >= len(node.value):
                break
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that are allowed where an unknown key stands."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        inner = [
            t
            for t in (field.annotation, *getattr(field.annotation, "__args__", ()))
            if isinstance(t, type) and issubclass(t, BaseModel)
        ]
        if not inner:
            return []
        model = inner[0]
    return [f.alias or name for name, f in model.model_fields.items()]


def explain(
    error: ValidationError, path: Path, root: yaml.Node | None, model: type[BaseModel]
) -> str:
    """The faults of a declaration, a line each: `file:line: where: what is wrong and allowed`."""
    lines = []
    for fault in error.errors(include_input=False, include_url=False):
        location = fault["loc"]
        where = ".".join(str(part) for part in location) or "the file"
        message = fault["msg"].removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            allowed = _fields_at(model, location)
            near = difflib.get_close_matches(str(location[-1]), allowed, n=1)
            message = "unknown key" + (f", did you mean {near[0]}?" if near else "")
            message += f" Allowed here: {', '.join(allowed)}" if allowed else ""
        elif fault["type"] == "missing":
            message = "required, but not there"
        lines.append(f"{path}:{line_of(root, location)}: {where}: {message}")
    return "\n".join(lines)


def parse(path: Path) -> list[tuple[object, yaml.Node]]:
    """The YAML documents of a file, each with the node tree that knows its lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DeclarationError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        raise DeclarationError(f"{path} is not UTF-8 text: {error}") from None
    try:
        nodes = list(yaml.compose_all(text, Loader=_Loader))
        documents = list(yaml.load_all(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise DeclarationError(f"{path}:{line}: not valid YAML: {problem}") from None
    except ValueError as error:
        # A value that looks like a date and is none: YAML does not say where it stands.
        raise DeclarationError(
            f"{path}: not valid YAML: {error}. Is there a date such as 2013-02-30 in it?"
        ) from None
    # An empty document, such as after a `---` at the end, is none.
    return [
        (document, node)
        for document, node in zip(documents, nodes, strict=True)
        if document is not None
    ]


def validate(
    path: Path, model: type[ModelT], document: object, root: yaml.Node, at: Location = ()
) -> ModelT:
    """The document (found at `at` within the file) as a model. Raises DeclarationError."""
    for part in at:
        if isinstance(root, yaml.MappingNode):
            root = next((v for k, v in root.value if k.value == str(part)), root)
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise DeclarationError(explain(error, path, root, model)) from None


def read(path: Path, model: type[ModelT]) -> ModelT:
    """The one document of a file as a model. Raises DeclarationError with file and line."""
    documents = parse(path)
    if len(documents) != 1:
        raise DeclarationError(f"{path}: holds {len(documents)} YAML documents, must hold one")
    document, root = documents[0]
    return validate(path, model, document, root)

"""What the models of all sections share: how strict they are, and the types of their fields."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, Strict
from pydantic.dataclasses import dataclass
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue

LIBRARY = Path(__file__).parents[1]
MODEL_CONFIG = ConfigDict(
    extra="forbid",  # an unknown key is an error
    allow_inf_nan=False,
    use_attribute_docstrings=True,
)
Model = TypeVar("Model")


@dataclass_transform(frozen_default=True, field_specifiers=(Field,))
def section(model: type[Model]) -> type[Model]:
    """Make a class a frozen dataclass that checks what it is given. The docstring below a field is
    its description."""
    return dataclass(frozen=True, config=MODEL_CONFIG)(model)  # type: ignore[return-value]


def described(model: type) -> dict[str, str]:
    """Return the description of each field of a section. A field without one takes its parent
    class's."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        for name, field in vars(base).get("__pydantic_fields__", {}).items():
            found[name] = field.description or found.get(name, "")
    return found


class SchemaOfSections(GenerateJsonSchema):
    """JSON Schema with descriptions of inherited fields and defaults of lists, without titles. Of
    types that a function tells apart it says anyOf: what is of one may look like another, too."""

    def dataclass_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        for name, text in described(schema["cls"]).items():
            field = schema["cls"].__pydantic_fields__[name]
            node = made["properties"][name]
            if text:
                node["description"] = text
            if field.default_factory:
                node["default"] = field.get_default(call_default_factory=True)
        return made

    def tagged_union_schema(self, schema: Any) -> JsonSchemaValue:
        made = super().tagged_union_schema(schema)
        return {"anyOf": made.pop("oneOf"), **made}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def named_in(file: str, variable: str) -> list[Any]:
    """Make annotations for ``Annotated[str, *named_in(…)]``, one of the names in our dict or tuple.

    The file is read and not run, since to import it would import torch. So a new entry there needs
    no edit here.

    Args:
        file: path below workflow/warpflow. variable: its name, assigned once at the file's top
            level.

    Raises:
        ValueError: the file does not assign such a dict or tuple of names.
    """
    names: list[Any] = []
    for node in ast.parse((LIBRARY / file).read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if variable in [getattr(target, "id", None) for target in targets]:
            value = getattr(node, "value", None)
            entries = getattr(value, "keys", None) or getattr(value, "elts", [])
            names = [ast.literal_eval(entry) for entry in entries]
    if not names:
        raise ValueError(f"{LIBRARY / file}: expected a dict or tuple {variable} of names")

    def is_known(name: str) -> str:
        if name not in names:
            raise ValueError(f"one of {', '.join(names)}")
        return name

    return [AfterValidator(is_known), Field(json_schema_extra={"enum": names})]


def has_no_value_twice(values: list[Any]) -> list[Any]:
    if any(value in values[:place] for place, value in enumerate(values)):
        raise ValueError("no value twice")
    return values


def listed(*values: Any) -> Any:
    """Make a field whose default is a list of these values."""
    return Field(default_factory=lambda: list(values))


# Strict means that text is no number, that a number is no truth value, and that True is no integer.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]
Natural = Annotated[Integer, Field(ge=0)]
Count = Annotated[Integer, Field(ge=1)]
NonNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Level = Annotated[Number, Field(gt=0, lt=1)]
Eta = Annotated[Number, Field(ge=0, le=2)]
Function = Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
Unique = [AfterValidator(has_no_value_twice), Field(json_schema_extra={"uniqueItems": True})]
NonEmpty = Field(min_length=1)

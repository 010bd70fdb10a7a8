"""The JSON schema of a recipe, from the types that the loader checks and the documentation under each field: for editors and for docs/."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from mindspeed_vita.config.kinds import NUMBER_TEXT, VARIABLE, WHOLE_TEXT
from mindspeed_vita.config.recipe import Recipe

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The newest dialect that editors' YAML extensions know whole."""
_SWITCH_TEXT = "[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]"


class _Schema(GenerateJsonSchema):
    """Every value may also be written in the other ways that kinds.py reads, and as ${VARIABLE}."""

    def int_schema(self, schema: core_schema.IntSchema) -> JsonSchemaValue:
        return _or_text(super().int_schema(schema), f"^{WHOLE_TEXT}$|{VARIABLE}")

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        return _or_text(super().float_schema(schema), f"^{NUMBER_TEXT}$|{VARIABLE}")

    def bool_schema(self, schema: core_schema.BoolSchema) -> JsonSchemaValue:
        return _or_text(super().bool_schema(schema), f"^({_SWITCH_TEXT})$|{VARIABLE}")

    def str_schema(self, schema: core_schema.StringSchema) -> JsonSchemaValue:
        return {"type": ["string", "integer", "null"]}

    def literal_schema(self, schema: core_schema.LiteralSchema) -> JsonSchemaValue:
        return _or_text({"enum": schema["expected"]}, VARIABLE)

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        return {"anyOf": [super().tuple_schema(schema), {"type": "string"}]}

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        made = super().dataclass_schema(schema)
        for name, text in documentation(schema["cls"]).items():
            made["properties"][name]["description"] = text
        # null: a section without keys
        return {**made, "description": inspect.getdoc(schema["cls"]), "type": ["object", "null"]}

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> dict[str, Any]:
    """The schema of a recipe file."""
    return {"$schema": DIALECT, **TypeAdapter(Recipe).json_schema(schema_generator=_Schema)}


def documentation(cls: type) -> dict[str, str]:
    """The text under each field of a dataclass, as one line."""
    (source,) = ast.parse(inspect.getsource(cls)).body
    assert isinstance(source, ast.ClassDef) and dataclasses.is_dataclass(cls)
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(source.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def _or_text(schema: JsonSchemaValue, pattern: str) -> JsonSchemaValue:
    return {"anyOf": [schema, {"type": "string", "pattern": pattern}]}

"""Types of the recipe's fields: what a value is, its bounds, and the ways to write it in YAML. pydantic reads them when a recipe is loaded.

Importing this file does not import pydantic, which takes longer than the rest of the package's configuration together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Optional, get_args

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

WHOLE_TEXT = r"[-+]?\d+"
VARIABLE = r"\$\{\w+(:-[^}]*)?\}"
"""${VAR} or ${VAR:-default}, which load.py expands before any value is read."""
NUMBER_TEXT = r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"
"""YAML 1.1 reads 1e-3 as text, because it has no dot."""


class Section:
    """A dataclass of settings. Unknown keys are refused, and a section that is left empty in YAML has its defaults."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(_read_section, handler(source))


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole number. Text of digits and a float without a fraction are read as one, true and false are not."""

    least: Optional[int] = None

    @property
    def bounds(self) -> str:
        """For messages; empty where there are none."""
        return "" if self.least is None else f"at least {self.least}"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(read_whole, core_schema.int_schema(strict=True, ge=self.least))


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number. Text with an exponent is read as one, other text is not. Every bound refuses nan."""

    above: Optional[float] = None
    least: Optional[float] = None
    most: Optional[float] = None
    below: Optional[float] = None
    finite: bool = False

    @property
    def bounds(self) -> str:
        """For messages; empty where there are none."""
        named = (("more than", self.above), ("at least", self.least), ("at most", self.most), ("less than", self.below))
        return " and ".join([f"{name} {bound:g}" for name, bound in named if bound is not None] + (["finite"] if self.finite else []))

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        number = core_schema.float_schema(
            strict=True, allow_inf_nan=not self.finite, gt=self.above, ge=self.least, le=self.most, lt=self.below
        )
        return core_schema.no_info_before_validator_function(_read_number, number)


@dataclass(frozen=True)
class Switch:
    """true or false. The same as text is read too, 1 and 0 are not."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(_read_switch, core_schema.bool_schema(strict=True))


@dataclass(frozen=True)
class Line:
    """Text. A whole number is read as its digits, and nothing as the empty text."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(read_text, core_schema.str_schema(strict=True))


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A list. Text is split at commas and spaces."""

    least: Optional[int] = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        item = handler.generate_schema(get_args(source)[0])
        items = core_schema.tuple_variable_schema(item, min_length=self.least)
        return core_schema.no_info_before_validator_function(read_list, items)


@dataclass(frozen=True, kw_only=True)
class OneOf:
    """A name out of a table."""

    names: Callable[[], Collection[Any]]
    """Asked whenever a recipe is read."""
    plugins: bool = True
    """Plugins may add to the table."""
    empty: bool = False
    """The empty text is allowed too."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        names = {"enum": [*([""] if self.empty else []), *self.names()]}
        return {"anyOf": [names, handler(schema) if self.plugins else {"type": "string", "pattern": VARIABLE}]}

    def _check(self, value: Any) -> Any:
        if value in self.names() or (self.empty and value == ""):
            return value
        from pydantic_core import PydanticCustomError

        raise PydanticCustomError("one_of", "not in the table", {"names": tuple(self.names()), "plugins": self.plugins})


Flag = Annotated[bool, Switch()]
Text = Annotated[str, Line()]
Integer = Annotated[int, Whole()]
Count = Annotated[int, Whole(least=0)]
Size = Annotated[int, Whole(least=1)]
Sizes = Annotated[tuple[Size, ...], Listed()]
Counts = Annotated[tuple[Count, ...], Listed()]
Real = Annotated[float, Number()]
Positive = Annotated[float, Number(above=0)]
Rate = Annotated[float, Number(above=0, finite=True)]
Factor = Annotated[float, Number(least=0)]
Wait = Annotated[float, Number(least=0, finite=True)]
LostHost = Annotated[float, Number(least=6, most=7200)]
Share = Annotated[float, Number(least=0, most=1)]
PartialShare = Annotated[float, Number(least=0, below=1)]
Reals = Annotated[tuple[Real, ...], Listed()]
Texts = Annotated[tuple[Text, ...], Listed()]


def read_whole(value: Any) -> Any:
    """The whole number that was written, or the value as it is where it is none."""
    if isinstance(value, str) and re.fullmatch(WHOLE_TEXT, value):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _read_number(value: Any) -> Any:
    return float(value) if isinstance(value, str) and re.fullmatch(NUMBER_TEXT, value) else value


def _read_switch(value: Any) -> Any:
    return value.lower() == "true" if isinstance(value, str) and value.lower() in ("true", "false") else value


def read_text(value: Any) -> Any:
    """The text that was written, or the value as it is where it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return "" if value is None else value


def read_list(value: Any) -> Any:
    """The items of the list that was written.

    Raises:
        PydanticCustomError: it is no list.
    """
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, (list, tuple)):
        return value
    from pydantic_core import PydanticCustomError

    raise PydanticCustomError("list", "not a list")


def _read_section(value: Any) -> Any:
    if value is None or isinstance(value, Mapping):
        return dict(value or {})
    from pydantic_core import PydanticCustomError

    raise PydanticCustomError("section", "not a section")

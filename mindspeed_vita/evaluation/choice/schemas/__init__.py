"""Published formats, one a file. A new one is a file with a SCHEMA and a place in the list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from mindspeed_vita.evaluation.choice.schemas import base64_tsv, longvideobench, mmmu, mvbench, videomme
from mindspeed_vita.evaluation.choice.schemas.schema import Schema, Sources
from mindspeed_vita.evaluation.choice.table import Row

SCHEMAS = (videomme.SCHEMA, longvideobench.SCHEMA, mmmu.SCHEMA, base64_tsv.SCHEMA, mvbench.SCHEMA)
"""In the order in which they are tried: those with more columns of their own first."""

__all__ = ["SCHEMAS", "Schema", "Sources", "choose_schema"]


def choose_schema(rows: Sequence[Row], name: Optional[str] = None) -> Schema:
    """The schema of that name, or the first that the columns of the rows fit.

    Raises:
        ValueError: no such schema, or columns that fit none.
    """
    by_name = {schema.name: schema for schema in SCHEMAS}
    if name is not None:
        if name not in by_name:
            raise ValueError(f"--schema {name} is unknown; expected one of {', '.join(by_name)}")
        return by_name[name]
    columns = {column for row in rows for column in row.values}
    for schema in SCHEMAS:
        if schema.fits(columns):
            return schema
    known = "; ".join(f"{schema.name}: {', '.join(' or '.join(names) for names in schema.columns)}" for schema in SCHEMAS)
    raise ValueError(f"the columns {', '.join(sorted(columns)) or '(none)'} fit no known schema; expected one of: {known}")

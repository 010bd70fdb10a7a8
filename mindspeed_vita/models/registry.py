"""A table of builders by name, for the parts of the model that come in kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Builder = Callable[..., torch.nn.Module]


class Registry:
    """Builders by name.

    Args:
        key: recipe key that holds the name, for messages.
        builders: those that are there from the start.
    """

    def __init__(self, key: str, **builders: Builder) -> None:
        self.key, self._builders = key, dict(builders)

    def register(self, name: str, builder: Builder) -> None:
        """Adds a builder.

        Raises:
            ValueError: the name is taken.
        """
        if name in self._builders:
            raise ValueError(f"{self.key} {name!r} is registered already")
        self._builders[name] = builder

    def names(self) -> tuple[str, ...]:
        """Names that build knows."""
        return tuple(self._builders)

    def knows(self, name: str, builder: Builder) -> bool:
        """Whether the name stands for that builder."""
        return self._builders.get(name) is builder

    def build(self, name: str, *arguments: Any, **keywords: Any) -> torch.nn.Module:
        """Calls the builder of that name.

        Raises:
            ValueError: there is none.
        """
        if name not in self._builders:
            raise ValueError(f"{self.key}={name!r}; expected one of {', '.join(sorted(self._builders))}")
        return self._builders[name](*arguments, **keywords)

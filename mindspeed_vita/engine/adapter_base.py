"""The weights under the adapters that a run trains: found, compared with what a checkpoint says of them, and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from mindspeed_vita.checkpoint import gates
from mindspeed_vita.checkpoint.adapter.source import AdapterSource, Base, find_base, holds_adapters, open_adapter
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.adapters import check_adapters
from mindspeed_vita.checkpoint.native.step_folder import differing_weights
from mindspeed_vita.checkpoint.source import SourceOptions
from mindspeed_vita.config import MODULES, LoraConfig, Recipe, recipe_of_checkpoint
from mindspeed_vita.engine.chosen_step import choose_step
from mindspeed_vita.files.tensors import Tensors


@dataclass(frozen=True, kw_only=True)
class RunBase:
    """What a run with adapters starts from."""

    recipe: Recipe
    """The run's, with the base's folder and fingerprint: its checkpoints say both."""
    base: Base
    adapter: Optional[AdapterSource]
    """Adapters of an earlier run to start from; None: fresh ones, or those of the run's own checkpoint."""

    @property
    def note(self) -> str:
        """Which weights the adapters belong to, for people."""
        return f"adapters over {self.base.folder}"

    @property
    def origins(self) -> tuple[Path, ...]:
        """Folders that the run starts from: the base's, and that of the adapters of an earlier run."""
        return (self.base.folder,) if self.adapter is None else (self.base.folder, self.adapter.folder)

    def describe(self) -> str:
        """Where the run starts, for people."""
        return f"starting from {f'the adapters of {self.adapter.folder}' if self.adapter else 'fresh adapters'}; {self.note}"

    def load(self, model: Any) -> None:
        """Loads the base and, where the run starts from some, adapters. Collective.

        Args:
            model: with adapters, on any layout.

        Raises:
            ValueError: weights that are not this model's, or a damaged file.
        """
        if self.base.source.format == "native":
            native.load_weights(self.base.folder, model, config=self.recipe.model, base=True)
        else:
            native.load_full_weights(self.base.source.weights, model, source=str(self.base.folder), base=True)
        matrices = self.matrices()
        if matrices is not None:
            native.load_full_weights(matrices, model, source=str(self.origins[-1]))

    def matrices(self) -> Optional[Tensors]:
        """The matrices of the adapters to start from, by native name; None for fresh ones, or those of the run's own checkpoint.

        Raises:
            ValueError: they are not this model's, or a damaged file.
        """
        if self.adapter is None:
            return None
        self.adapter.wait()
        return self.adapter.read(self.recipe.model)


def find_run_base(recipe: Recipe, resume_from: Optional[Path], saved: Optional[Mapping[str, Any]]) -> Optional[RunBase]:
    """The base of a run; None where it trains whole modules. Collective.

    Args:
        recipe: the run.
        resume_from: its own newest checkpoint, if there is one.
        saved: the recipe in that checkpoint, as nested plain values.

    Raises:
        ValueError: the base is missing, is another one than the checkpoint's, or is of another architecture; or whole modules are to
            train from adapters alone.
    """
    start = recipe.checkpoint.init_from
    origin = choose_step(start) if start and resume_from is None else None
    if not recipe.lora.rank:
        if origin is not None and holds_adapters(origin):
            raise ValueError(
                f"checkpoint.init_from={start} holds adapters only, and whole modules are to train; merge it first "
                f"(vita convert --from {start} --merge --to native), or set lora.rank"
            )
        return None
    adapter = None
    if resume_from is not None:
        assert saved is not None
        check_adapters(resume_from, saved, recipe)
        told, where = recipe_of_checkpoint(saved, resume_from).lora, resume_from
    elif origin is not None and holds_adapters(origin):
        gates.check_handover(origin)
        adapter = open_adapter(origin)
        told, where = adapter.lora, origin
        _check_same(adapter, recipe)
    else:
        told, where = LoraConfig(base=str(origin or "")), Path(recipe.checkpoint.directory)
        if origin is not None:
            gates.check_handover(origin)
    # which weights these must be is what the checkpoint says, and else what the recipe says
    told = replace(told, base_fingerprint=told.base_fingerprint or recipe.lora.base_fingerprint)
    base = find_base(told, where, SourceOptions(compare=False), named=recipe.lora.base)
    differing = differing_weights(base.source.recipe.model, recipe.model)
    if differing:
        raise ValueError(f"{base.folder} is of another architecture ({differing}); use the recipe it was trained with")
    lora = replace(recipe.lora, base=str(base.folder.resolve()), base_fingerprint=base.fingerprint)
    return RunBase(recipe=replace(recipe, lora=lora), base=base, adapter=adapter)


def _check_same(adapter: AdapterSource, recipe: Recipe) -> None:
    """Refuses to start from adapters that have other layers or another rank or scale."""
    differing = differing_adapters(adapter.lora, recipe.lora)
    if differing:
        raise ValueError(f"checkpoint.init_from={adapter.folder} holds other adapters ({'; '.join(differing)}); use the same settings")


def differing_adapters(there: LoraConfig, here: LoraConfig) -> list[str]:
    """What keeps a run from starting with the adapters of another: settings that differ, with both values.

    Args:
        there, here: of the earlier run, and of this one.
    """
    settings = (
        ("rank", there.rank, here.rank),
        ("alpha", there.alpha, here.alpha),
        ("rslora", there.rslora, here.rslora),
        *((f"targets of {part}", there.of(part), here.of(part)) for part in MODULES),
    )
    return [f"lora.{name}: {found} there, {wanted} here" for name, found, wanted in settings if found != wanted]

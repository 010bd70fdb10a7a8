"""The objective: from the loss of each token to the loss of a micro-batch and what is reported of it. Both engines call it.

A recipe chooses it by train.objective. docs/add_an_objective.md shows how to add one.
Shapes: T tokens of this context-parallel rank, Q supervised ones, n samples of the pack, R further averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Optional, Protocol

import torch

from mindspeed_vita.config import SUPERVISED, Recipe, add_objective_name
from mindspeed_vita.models.inputs import ModelInputs
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.summed import sum_over

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset

Part = tuple[torch.Tensor, torch.Tensor]
"""(sum, count) of an average, two scalars on the device: one rank's part for one micro-batch."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveResult:
    """One rank's part of the loss of one micro-batch.

    The engine adds up the parts over micro-batches, cp and dp. The loss of the step is then sum / count. A number that every
    context-parallel rank computes for the whole pack must be given by one of them only; see ObjectiveContext.once.
    """

    sum: torch.Tensor
    """float32 scalar. Its gradient is what the model learns from, so it must depend on the losses in every micro-batch."""
    count: torch.Tensor
    """int32 scalar."""
    report: Mapping[str, Part] = field(default_factory=dict)
    """Further averages for the logs, without gradients. Names without a part in this micro-batch may be left out."""


class Objective(Protocol):
    """What a run optimises. It must not make the host wait for the device: no .item(), no tensor made from a list on the device."""

    names: tuple[str, ...]
    """Every name that a report can have. The same on all ranks, and known before the first step."""

    def __call__(self, losses_T: torch.Tensor, inputs: ModelInputs) -> ObjectiveResult:
        """The loss of a micro-batch. Called on the last pipeline stage, with the same values on every tensor-parallel rank.

        Args:
            losses_T: float32, minus the log-probability of each token's label times its weight; 0 where there is no label.
            inputs: what the model computed them from.
        """


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext:
    """What an objective may know of the run."""

    recipe: Recipe
    layout: ParallelLayout
    sources: tuple[str, ...] = ()
    """Names of the mixture's entries. ModelInputs.source_ids points here."""
    fingerprint: str = ""
    """Of the data (PackDataset.fingerprint). Sample ids mean the same samples where it is the same."""

    @property
    def once(self) -> int:
        """1 on the first context-parallel rank of a pack, 0 on the others: a factor for what all of them compute for the whole pack."""
        return int(self.layout.cp_rank == 0)


Builder = Callable[[ObjectiveContext], Objective]


class SupervisedCrossEntropy:
    """The default objective: the sum over supervised tokens, divided by their number, and the same for each source.

    Args:
        sources: names of the mixture's entries; with fewer than two the loss by source would be the loss, and is not reported.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self.names = tuple(f"loss/{source}" for source in sources) if len(sources) > 1 else ()

    def __call__(self, losses_T: torch.Tensor, inputs: ModelInputs) -> ObjectiveResult:
        total = losses_T.sum()
        return ObjectiveResult(sum=total, count=inputs.loss_count, report=self._by_source(losses_T.detach(), total.detach(), inputs))

    def _by_source(self, losses_T: torch.Tensor, total: torch.Tensor, inputs: ModelInputs) -> dict[str, Part]:
        present = sorted(set(inputs.source_ids))
        if not self.names or not present:
            return {}
        if len(present) == 1:  # always so with data.packing=same_source
            return {self.names[present[0]]: (total, inputs.loss_count)}
        losses_Q, weights_Q = losses_T[inputs.supervised_Q], inputs.weights_T[inputs.supervised_Q]
        report = {}
        for source in present:  # sums over masks have the same bits in every run; index_add's on a GPU have not
            elsewhere_Q = inputs.source_Q != source
            report[self.names[source]] = (losses_Q.masked_fill(elsewhere_Q, 0).sum(), weights_Q.masked_fill(elsewhere_Q, 0).sum())
        return report


_BUILDERS: dict[str, Builder] = {SUPERVISED: lambda context: SupervisedCrossEntropy(context.sources)}


def register_objective(name: str, builder: Builder) -> None:
    """Adds an objective that recipes may name as train.objective; registering the same again changes nothing.

    Args:
        name: for the recipe.
        builder: makes the objective, once on each rank, before the first step.

    Raises:
        ValueError: the name is taken by another.
    """
    if _BUILDERS.get(name, builder) is not builder:
        raise ValueError(f"train.objective {name!r} is registered already; choose another name")
    add_objective_name(name)
    _BUILDERS[name] = builder


def build_objective(recipe: Recipe, layout: ParallelLayout, dataset: Optional[PackDataset] = None) -> Objective:
    """The objective of a recipe.

    Args:
        recipe: the run; `validate` has accepted its train.objective.
        layout: this rank's place.
        dataset: the run's packs; None where packs come from elsewhere and have no named sources.

    Raises:
        ValueError: the objective refuses the recipe or the data.
    """
    context = ObjectiveContext(recipe=recipe, layout=layout)
    if dataset is not None:
        context = replace(context, sources=tuple(dataset.source_names), fingerprint=dataset.fingerprint)
    return _BUILDERS[recipe.train.objective](context)


def sample_sums(values_T: torch.Tensor, inputs: ModelInputs, layout: ParallelLayout) -> torch.Tensor:
    """Sums over the supervised tokens of each sample, gathered from all context-parallel ranks: float32[n], differentiable.

    Collective over cp, also in the backward pass. Every rank gets the same sums, in the order of inputs.sample_ids. A sample whose
    media failed to decode has the sum 0.

    Args:
        values_T: float32, for instance the losses.
        inputs: the micro-batch.
        layout: this rank's place.
    """
    own_n = values_T.new_zeros(len(inputs.sample_ids)).index_add(0, inputs.sample_Q, values_T[inputs.supervised_Q])
    # the gradients of all ranks are added up on the way back: a rank whose part of the loss is 0 still gets the gradient of its tokens
    return sum_over(own_n, layout.cp_group) if layout.cp_size > 1 else own_n


def report_table(result: ObjectiveResult, names: Sequence[str]) -> torch.Tensor:
    """What is added up over micro-batches and ranks: float32[1 + R, 2] on the device, (sum, count) of the loss and of each name.

    Raises:
        ValueError: the report has a name that the objective did not announce.
    """
    unknown = sorted(set(result.report) - set(names))
    if unknown:
        raise ValueError(f"the objective reports {', '.join(unknown)}; list every name of a report in its `names`")
    zero = torch.zeros_like(result.sum, requires_grad=False)
    parts = [(result.sum, result.count), *(result.report.get(name, (zero, zero)) for name in names)]
    return torch.stack([value.detach().float() for part in parts for value in part]).view(-1, 2)


def averages(names: Sequence[str], sums: Sequence[float], counts: Sequence[float]) -> dict[str, float]:
    """Averages by name. Those without a count, such as a source that a step did not meet, are left out."""
    return {name: total / count for name, total, count in zip(names, sums, counts, strict=True) if count}

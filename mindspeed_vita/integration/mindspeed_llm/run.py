"""What `pretrain` is given: the model, the data, and the step over them, made from the recipe that the command line says."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint import lineage
from mindspeed_vita.checkpoint.gates import check_handover
from mindspeed_vita.checkpoint.megatron import rank_files
from mindspeed_vita.checkpoint.native import checkpoint as native
from mindspeed_vita.checkpoint.native.ranks import gather, on_first_rank
from mindspeed_vita.config import recipe_to_dict
from mindspeed_vita.engine.adapter_base import find_run_base
from mindspeed_vita.engine.faults import FailedSamples, open_failed_samples
from mindspeed_vita.engine.feed import open_dataset, open_loader
from mindspeed_vita.engine.held_out_packs import describe_overlap, open_held_out
from mindspeed_vita.engine.module_dump import ModuleDump
from mindspeed_vita.engine.objective import build_objective
from mindspeed_vita.engine.session import local_world_size
from mindspeed_vita.integration.mindspeed_llm.arguments import megatron_arguments, running_recipe
from mindspeed_vita.integration.mindspeed_llm.model import MindSpeedVitaModel
from mindspeed_vita.integration.mindspeed_llm.patches import ParameterSettings
from mindspeed_vita.integration.mindspeed_llm.run_watch import RunWatch
from mindspeed_vita.integration.mindspeed_llm.step import ForwardStep
from mindspeed_vita.parallel.build import model_arguments, with_adapters
from mindspeed_vita.parallel.chunks import ModelChunks
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.ring_groups import with_ring
from mindspeed_vita.parallel.weights_in_time import wait_before_reads
from mindspeed_vita.platform import Platform

if TYPE_CHECKING:
    from mindspeed_vita.data.dataset import PackDataset


_ENDLESS = 1 << 40
"""Held-out numbers that Megatron's sampler may count: every evaluation counts on, also after a restart."""


class PackNumbers(torch.utils.data.Dataset):
    """The numbers of a run's packs, which Megatron's sampler deals and resumes from consumed_train_samples. The packs are elsewhere."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> int:
        return number


class MindSpeedRun:
    """One process's part of a run; its methods are what `pretrain` is given.

    Args:
        platform: its device.
        watch: of this process.
    """

    def __init__(self, platform: Platform, watch: RunWatch) -> None:
        self.device, self.watch = platform.device, watch
        self.forward_step = ForwardStep(platform, watch)
        self.chunks: list[MindSpeedVitaModel] = []
        self._provided: Optional[tuple[PackNumbers, Optional[PackNumbers], None]] = None

    @property
    def built(self) -> MindSpeedVitaModel:
        """This stage's part of the model, the first of its chunks; the run's state travels in it."""
        return self.chunks[0]

    def model(self, pre_process: bool = True, post_process: bool = True) -> MindSpeedVitaModel:
        """Megatron's model provider: this stage's part, from Megatron's configuration, which MindSpeed's options are part of.

        In an interleaved pipeline it is called for each chunk, in order.
        """
        from megatron.core.models.gpt import gpt_layer_specs
        from megatron.training.arguments import core_transformer_config_from_args

        arguments = megatron_arguments()
        if not self.chunks:
            self._begin()
        # asked for where tensors really are: an emulated NPU keeps them on the host
        device = torch.empty(0, device=self.device).device
        told = core_transformer_config_from_args(arguments)
        virtual = self.recipe.parallel.virtual_stages > 1
        if virtual and device.type == "cpu":
            told.deallocate_pipeline_outputs = False  # gloo is still sending from that memory
        ends = {"pre_process": pre_process, "post_process": post_process}
        built = MindSpeedVitaModel(
            self.recipe.model,
            told,
            norm=gpt_layer_specs.LNImpl,  # MindSpeed's, fused with --use-fused-rmsnorm
            vp_stage=len(self.chunks) if virtual else None,
            **{**model_arguments(self.recipe, self.layout, device), **ends},
        )
        built = with_adapters(built, self.recipe, self.layout)
        if arguments.overlap_param_gather:
            wait_before_reads(built)
        built.parameter_settings = ParameterSettings(train=self.recipe.train, num_vision_layers=self.recipe.model.vision.num_layers)
        self.chunks.append(built)
        if len(self.chunks) == self.recipe.parallel.virtual_stages:
            self._load(ModelChunks(self.chunks) if virtual else built)
        return built

    def _load(self, model: Any) -> None:
        """Loads what this package loads itself: the weights to start from, and those under adapters. Collective."""
        if self.base is not None:
            self.base.load(model)
        elif self.recipe.checkpoint.init_from and self._resume_from is None:
            native.load_weights(self.recipe.checkpoint.init_from, model, config=self.recipe.model)

    def _begin(self) -> None:
        """What all chunks of this stage share: the recipe, this rank's place, and the weights to start from."""
        from megatron.training.checkpointing import checkpoint_exists

        arguments = megatron_arguments()
        self.recipe = running_recipe()
        self.watch.begin(self.recipe)
        self.forward_step.dump = ModuleDump(self.recipe.debug, Path(self.recipe.checkpoint.directory))
        timeout = timedelta(minutes=arguments.distributed_timeout_minutes)
        found = ParallelLayout.from_megatron(self.device)
        self.layout = with_ring(found, self.recipe.parallel, local_world_size(), self.device, timeout=timeout)
        resume_from = self._resume_from = Path(arguments.load) if checkpoint_exists(arguments.load) else None
        saved = rank_files.saved_recipe(resume_from) if resume_from and self.recipe.lora.rank else None
        base = self.base = find_run_base(self.recipe, resume_from, saved or {})
        if base is not None:
            self.recipe = base.recipe
            if dist.get_rank() == 0:
                print(f"{self.recipe.name}: {base.note if resume_from else base.describe()}", flush=True)
        elif self.recipe.checkpoint.init_from and resume_from is None:
            check_handover(Path(self.recipe.checkpoint.init_from))

    def datasets(self, samples: Any) -> tuple[PackNumbers, Optional[PackNumbers], None]:
        """Megatron's data provider, called once a checkpoint was loaded: opens the data where it left off.

        In an interleaved pipeline it is called for each chunk; all go through the same packs.

        Raises:
            ValueError: the data does not fit the recipe, or is not that of the checkpoint.
        """
        if self._provided is None:
            self._provided = (PackNumbers(samples[0]), self._open(), None)
        return self._provided

    def _open(self) -> Optional[PackNumbers]:
        """Opens training data and held-out data; gives the numbers of held-out packs, if there are any."""
        arguments, recipe = megatron_arguments(), self.recipe
        dataset = open_dataset(recipe, self.layout)
        known = resumed_failures(self.built.loaded_state, dataset.fingerprint, arguments.load) if arguments.iteration else ()
        if dist.get_rank() == 0:
            print(f"{recipe.name}: {dataset.describe()}", flush=True)
        failed = open_failed_samples(recipe, dataset, step=arguments.iteration, known=known)
        record: list[dict[str, Any]] = []  # of the first rank; each rank's file holds it
        on_first_rank(lambda: record.append(self._lineage(dataset.fingerprint)))
        state = {"fingerprint": dataset.fingerprint, "recipe": recipe_to_dict(recipe), "lineage": gather(record)[0][0]}
        self.built.run_state = lambda: {**state, "failed_samples": sorted(failed.ids)}
        loader = open_loader(dataset, recipe, self.layout, start_pack=arguments.consumed_train_samples)
        objective = build_objective(recipe, self.layout, dataset)
        self.forward_step.open(recipe, self.layout, loader, failed=failed, objective=objective, step=arguments.iteration)
        self.watch.when_over(self.forward_step.log.close)  # TensorBoard keeps the last two minutes' numbers until then
        return self._held_out(dataset, failed)

    def _lineage(self, data: str) -> dict[str, Any]:
        """The record of where this run's weights come from, which each of its checkpoints holds."""
        arguments, recipe, saved = megatron_arguments(), self.recipe, self.built.loaded_state
        if arguments.iteration and saved is not None:
            before, step = lineage.of_state(Path(arguments.load), saved), arguments.iteration
            return lineage.continued(before, recipe, step=step, saved=saved["recipe"], data=data).encode()
        start = recipe.checkpoint.init_from or (arguments.load if self.built.loaded_state is not None else "")
        origins = self.base.origins if self.base is not None else (Path(start),) if start else ()
        return lineage.of_beginning(recipe, data=data, origins=origins).encode()

    def _held_out(self, training: PackDataset, failed: FailedSamples) -> Optional[PackNumbers]:
        """Opens the held-out data of the recipe, and tells Megatron how many global batches an evaluation has."""
        arguments, recipe = megatron_arguments(), self.recipe
        if not recipe.eval.mixture:
            return None
        dataset = open_held_out(recipe, self.layout)
        own = FailedSamples(failed.quarantine, run=failed.run, budget=dataset.failure_budget())
        packs = self.forward_step.hold_out(dataset, own)
        arguments.eval_iters = packs.rounds
        if dist.get_rank() == 0:
            warning = describe_overlap(recipe, packs, training)
            said = f"{recipe.name}: {packs.count:,} held-out packs every {recipe.eval.every} steps: {dataset.describe()}"
            print(said if warning is None else f"{said}\n{recipe.name}: {warning}", flush=True)
        return PackNumbers(_ENDLESS)

    datasets.is_distributed = True  # type: ignore[attr-defined]  # Megatron then asks every tensor-parallel rank


def resumed_failures(state: Optional[Mapping[str, Any]], fingerprint: str, folder: str) -> tuple[int, ...]:
    """Samples that had failed when a checkpoint was written.

    Args:
        state: what the checkpoint holds of ours.
        fingerprint: of this run's data.
        folder: the checkpoint's, for the message.

    Raises:
        ValueError: the checkpoint holds nothing of ours, or was written with other data.
    """
    advice = "start from its weights only, with --finetune and another --save"
    if state is None:
        raise ValueError(f"{folder} was not written by this package, so its data cannot be resumed; {advice}")
    if state["fingerprint"] != fingerprint:
        raise ValueError(
            f"{folder} was written with other data (fingerprint {state['fingerprint'][:12]}, this run has {fingerprint[:12]}): "
            f"the mixture, its files, the tokenizer, the template or a --vita-data setting changed; restore them to resume, or {advice}"
        )
    return tuple(state["failed_samples"])

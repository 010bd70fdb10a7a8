"""Greedy decoding with the native model, in one process or under tensor and context parallelism.

Tiles are encoded once; every token recomputes the whole sequence: exact and simple, not fast.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import torch
import torch.distributed as dist

from mindspeed_vita.checkpoint.hf.tokenizer import stop_ids
from mindspeed_vita.config import Recipe
from mindspeed_vita.data.assemble import assemble_pack
from mindspeed_vita.data.batch import MediaFailure, PackedBatch
from mindspeed_vita.data.prepare import decode_settings
from mindspeed_vita.engine.chosen_step import choose_step
from mindspeed_vita.inference.loading import begin, find_model, inference_recipe
from mindspeed_vita.inference.prompt import PromptEncoder
from mindspeed_vita.inference.request import Answer, Request
from mindspeed_vita.models.inputs import ModelInputs
from mindspeed_vita.parallel.layout import ParallelLayout
from mindspeed_vita.parallel.shard import Sharder
from mindspeed_vita.platform import get_platform
from mindspeed_vita.sharding import index

if TYPE_CHECKING:
    from mindspeed_vita.models.vita import VitaModel


class NativeGenerator:
    """A native model that answers.

    Args:
        model: this rank's part; one pipeline stage.
        layout: this rank's place; tensor and context parallel.
        recipe: settings of the data section and the architecture.
        tokenizer: with the vision tokens.
        device: where the model is.
    """

    def __init__(self, model: VitaModel, layout: ParallelLayout, recipe: Recipe, tokenizer: Any, device: torch.device) -> None:
        self.model, self.layout, self.recipe, self.tokenizer, self.device = model.eval(), layout, recipe, tokenizer, device
        self._shard = Sharder(recipe, layout, get_platform())
        self.prompts = PromptEncoder(recipe, tokenizer)
        self.ids, self.limits = self.prompts.ids, self.prompts.limits

    def prompt(self, request: Request, *, room: int = 0) -> PackedBatch:
        """The request as a pack of one document, up to where the answer begins; the same code as in training makes it.

        Args:
            request: what is asked.
            room: places kept free for the answer; under tp or cp the whole is rounded up to equal shares.

        Raises:
            ValueError: tags and media disagree, or a medium cannot be used.
        """
        encoded = self.prompts.encode(request)
        share = 2 * self.layout.tile_group_size if self.layout.tile_group_size > 1 else 1
        length = -(-(len(encoded.tokens_T) + room) // share) * share
        batch = assemble_pack(
            [encoded],
            seq_length=length,
            resets=False,
            pad_id=self.tokenizer.pad_token_id,
            context_ids=self.ids.placeholders,
            tile_size=self.limits.tile_size,
            group_rank=self.layout.tile_rank,
            group_size=self.layout.tile_group_size,
            ring_size=self.layout.ring_size,
            decoding=decode_settings(self.recipe.data, self.recipe.model.vision.normalization),
            open_end=True,
        )
        failures = self._all_failures(batch)
        if failures:
            raise ValueError(f"{failures[0].path} {failures[0].reason}")
        return batch

    def _all_failures(self, batch: PackedBatch) -> list[MediaFailure]:
        """Media that any rank could not decode: all ranks must stop, not only the one that met it."""
        if self.layout.tile_group_size == 1:
            return list(batch.failures)
        found: list[Any] = [None] * self.layout.tile_group_size
        dist.all_gather_object(found, batch.failures, group=self.layout.tp_cp_group)
        return [failure for failures in found for failure in failures]

    def inputs(self, batch: PackedBatch) -> ModelInputs:
        """This rank's share of a pack with its tiles encoded. Collective over tp and cp."""
        return self.model.encode_tiles(self._shard(batch))

    @torch.no_grad()
    def logits(self, inputs: ModelInputs, rows: torch.Tensor) -> torch.Tensor:
        """Logits of some tokens of a pack, on every rank: fp32 [len(rows), vocabulary].

        Args:
            inputs: the pack (see inputs).
            rows: int64, positions in the whole pack.
        """
        if self.layout.cp_size == 1:
            return self.model.logits(inputs, rows.to(self.device))
        place, mine = self._places(inputs, rows)
        scores = self.model.logits(inputs, place[mine].to(self.device))
        whole = scores.new_zeros(len(rows), scores.shape[-1])
        whole[mine.to(self.device)] = scores
        dist.all_reduce(whole, group=self.layout.cp_group)  # every row has one owner
        return whole

    def _places(self, inputs: ModelInputs, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where tokens of the pack stand among this rank's, and which of them are this rank's."""
        own = torch.from_numpy(index(inputs.cp_plan, self.layout.cp_rank))
        place = torch.searchsorted(own, rows).clamp_max(len(own) - 1)
        return place, own[place] == rows

    def _write(self, inputs: ModelInputs, row: int, token: int) -> None:
        """Overwrites one token of the pack, where this rank has it."""
        place, mine = self._places(inputs, torch.tensor([row]))
        if mine:
            inputs.tokens_T[place] = token

    def generate(self, request: Request, *, max_new_tokens: int) -> Answer:
        """See Generator. The context tokens of tiles are never generated.

        The length is fixed while decoding, and each step computes the whole sequence and one row of logits (Long-VITA, section
        3.4); so it works under any layout, at the price of a sequence's work per token.
        """
        batch = self.prompt(request, room=max_new_tokens)
        inputs = self.inputs(batch)
        stops = stop_ids(self.tokenizer, self.recipe.data.template, self.recipe.model.language.family)
        prompt_tokens = int(batch.sample_cu[-1])
        answer: list[int] = []
        while len(answer) < max_new_tokens:
            last = prompt_tokens + len(answer) - 1
            inputs = replace(inputs, longest_document=last + 1)  # the room for what is to come does not count
            scores = self.logits(inputs, torch.tensor([last]))[0]
            scores[list(self.ids.placeholders)] = float("-inf")
            token = int(scores.argmax())
            if token in stops:
                break
            answer.append(token)
            self._write(inputs, last + 1, token)
        text = self.tokenizer.decode(answer, skip_special_tokens=True)
        return Answer(text=text, token_ids=tuple(answer), prompt_tokens=prompt_tokens)


def load_generator(
    path: str | Path,
    *,
    tokenizer: Optional[str | Path] = None,
    recipe: Optional[str | Path] = None,
    adapter: Optional[str | Path] = None,
    tp: int = 1,
    cp: int = 1,
    max_frames: Optional[int] = None,
    rope_scaling: Optional[str] = None,
) -> NativeGenerator:
    """Load a checkpoint of any format on the best device, in one process or under torchrun with tp * cp processes.

    Args:
        path: see loading.load_model.
        tokenizer: folder; None takes the checkpoint's own.
        recipe: recipe file with the sizes, for a MindSpeed-LLM folder that another program wrote.
        adapter: see loading.load_model.
        tp, cp: tensor and context parallel sizes; any, whatever the layout of the run that saved.
        max_frames: most frames taken from a video; None takes the recipe's setting.
        rope_scaling: other scaling of positions, see config.stretched; None takes that of the training.

    Raises:
        ValueError: no checkpoint there, no tokenizer, or sizes that do not fit the model or the processes.
    """
    found = find_model(choose_step(path), recipe, adapter=None if adapter is None else choose_step(adapter))
    wanted = inference_recipe(found.recipe, tp, cp, rope_scaling=rope_scaling, max_frames=max_frames)
    loaded, platform, layout = begin(wanted, tokenizer)
    # Not at the top: init_distributed prepares megatron.core for this device before it is imported.
    from mindspeed_vita.parallel.build import build_model

    model = build_model(wanted, layout, platform.device)
    found.fill(model, wanted)
    return NativeGenerator(model, layout, wanted, loaded, platform.device)

"""Long-VITA: vision tower, projector and language model as one megatron module; each pipeline stage builds its own part.

Knows no process group: attention, tile exchange and head come from outside (parallel/build.py).
Shapes: T tokens of this context-parallel rank, L = T / tp held here, H hidden, N tiles, R vision rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Optional, Protocol

import torch
from megatron.core.enums import ModelType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

from mindspeed_vita.config import MODULES, LoraConfig, ModelConfig
from mindspeed_vita.config.recompute import NO_RECOMPUTATION, Recomputation
from mindspeed_vita.models.core_attention import Attend
from mindspeed_vita.models.inputs import ModelInputs, VisionRoute
from mindspeed_vita.models.language import Norm, RMSNorm, build_language_model, layer_shift
from mindspeed_vita.models.layer_inputs import LayerInputs
from mindspeed_vita.models.packed_context import PackedContext
from mindspeed_vita.models.projector import projectors
from mindspeed_vita.models.splice import splice
from mindspeed_vita.models.vision import towers
from mindspeed_vita.models.vision.attention import AttendTiles
from mindspeed_vita.models.vision.linears import TowerLinears, whole_linears
from mindspeed_vita.ops.normalize import normalize_tiles
from mindspeed_vita.ops.rotary import RotaryTables
from mindspeed_vita.platform.host_copies import host_copies
from mindspeed_vita.platform.phases import name_backward, phase

TILES_AT_ONCE = 32
"""Tiles that a tower without gradients encodes at a time: 20 MB each in InternViT-300M (bf16, on a CPU), 33,000 rows a matrix product."""


class RowExchange(Protocol):
    """Sends this rank's vision rows to the ranks whose tokens need them and returns the rows for this rank's tokens, differentiable."""

    def __call__(self, rows_RH: torch.Tensor, route: VisionRoute) -> torch.Tensor: ...


class Head(Protocol):
    """Losses and logits from this rank's share of the final hidden states, over the vocabulary's slices; parallel/lm_head.py has one."""

    def losses(
        self,
        hidden_L1H: torch.Tensor,
        weight_VH: torch.Tensor,
        labels_T: torch.Tensor,
        weights_T: torch.Tensor,
        supervised_Q: torch.Tensor,
    ) -> torch.Tensor:
        """Weighted cross-entropy of each token: float32[T], 0 where the label is -100."""

    def hits(
        self, hidden_L1H: torch.Tensor, weight_VH: torch.Tensor, labels_T: torch.Tensor, supervised_Q: torch.Tensor
    ) -> torch.Tensor:
        """Whether each token's label has the highest logit: float32[T] of 1 and 0, without a gradient."""

    def logits(self, hidden_L1H: torch.Tensor, weight_VH: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
        """Logits of chosen tokens, fp32 [R, vocabulary]."""


class VitaModel(MegatronModule):
    """The part of Long-VITA that lives on one pipeline stage; tower and projector are on the first.

    Args:
        config: architecture.
        transformer_config: megatron's configuration of the decoder.
        attend: attention of the language model.
        attend_tiles: attention of the tower; needed on the first stage only.
        exchange: exchange of vision rows.
        head: language head.
        pre_process, post_process: whether this is the first, the last pipeline stage.
        trainable: modules that train; the others are frozen, and a frozen tower runs without autograd.
        tower_linears: how the tower's linear layers are cut over tensor parallelism; whole on every rank by default.
        seed: of the tower's and projector's initial weights, which are drawn alike on every rank.
        norm: the decoder's norm; a training framework may bring a fused one.
        recompute: what the layers of decoder and tower compute again in the backward pass.
        layers: decoder layers of this stage, by their number in the whole model; None leaves them to megatron.
        vp_stage: number of this chunk on its rank in an interleaved pipeline, else None.
    """

    def __init__(
        self,
        config: ModelConfig,
        transformer_config: TransformerConfig,
        *,
        attend: Attend,
        attend_tiles: Optional[AttendTiles],
        exchange: RowExchange,
        head: Head,
        pre_process: bool = True,
        post_process: bool = True,
        trainable: tuple[str, ...] = MODULES,
        tower_linears: Callable[[TransformerConfig], TowerLinears] = whole_linears,
        seed: int = 1234,
        norm: Norm = RMSNorm,
        recompute: Recomputation = NO_RECOMPUTATION,
        layers: Optional[range] = None,
        vp_stage: Optional[int] = None,
    ) -> None:
        super().__init__(config=transformer_config)
        self.vp_stage = vp_stage
        self.model_type = ModelType.encoder_or_decoder  # the schedules ask for it
        self.pre_process, self.post_process = pre_process, post_process
        self.rotary = RotaryTables(config.language)
        self.exchange, self.head = exchange, head
        self.trainable, self.offload = frozenset(trainable), recompute.offload
        self.lora: Optional[LoraConfig] = None  # add_adapters sets it
        self.vision: Optional[nn.Module] = None
        self.projector: Optional[nn.Module] = None
        if pre_process:
            assert attend_tiles is not None
            parts = {"linears": tower_linears(transformer_config), "attend": attend_tiles, "recompute": recompute.tower}
            self._build_vision(config, transformer_config, parts, seed)
        # where a training framework's own flags recompute layers, ours do not do it again inside
        told = NO_RECOMPUTATION if transformer_config.recompute_granularity else recompute
        decoder: dict[str, Any] = {"attend": attend, "norm": norm, "recompute": told, "layers": layers, "vp_stage": vp_stage}
        self.language = build_language_model(
            config.language, transformer_config, pre_process=pre_process, post_process=post_process, **decoder
        )
        self._layer_shift = layer_shift(transformer_config, layers, vp_stage)
        self._tied = config.language.tie_embeddings
        for name in MODULES:
            module = getattr(self, name)
            if module is not None and name not in self.trainable:
                module.requires_grad_(False)

    def _build_vision(self, config: ModelConfig, transformer_config: TransformerConfig, parts: dict[str, Any], seed: int) -> None:
        vision, linears = config.vision, parts["linears"]
        self.normalization = vision.normalization
        self.tile_shape, self.feature_shape = (3, vision.tile_size, vision.tile_size), (vision.grid**2, vision.hidden_size)
        self.vision = towers.build(vision.tower, vision, transformer_config=transformer_config, **parts)
        self.projector = projectors.build(
            config.projector.kind,
            config.projector,
            grid=vision.grid,
            input_size=vision.hidden_size,
            output_size=config.language.hidden_size,
            transformer_config=transformer_config,
        )
        generator = torch.Generator().manual_seed(seed)
        for module, partial in ((self.vision, linears.tp_size == 1), (self.projector, True)):
            init_weights(module, config.init_std, generator, linears.tp_rank, linears.tp_size)
            module.to(transformer_config.params_dtype)
            for parameter in module.parameters():
                # A whole tower has the gradient of this rank's tiles, the projector at most that of its rows: megatron sums tagged
                # gradients over tensor parallel. In a tower that is cut each rank has the whole gradient of what it holds.
                parameter.sequence_parallel = partial and transformer_config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, inputs: ModelInputs, *, with_hits: bool = False) -> torch.Tensor:
        """On the last stage the loss of each token, float32[T], 0 where unsupervised; on the others hidden states [L, 1, H].

        Args:
            inputs: of one pack.
            with_hits: the last stage gives float32[2, T]: the losses, and 1 where a label has the highest logit (Head.hits).
        """
        hidden = self.decode(inputs)
        if not self.post_process:
            return hidden
        weight_VH = self._output_weight()
        with phase("head"):
            losses_T = self.head.losses(hidden, weight_VH, inputs.labels_T, inputs.weights_T, inputs.supervised_Q)
        if not with_hits:
            return losses_T
        return torch.stack([losses_T, self.head.hits(hidden, weight_VH, inputs.labels_T, inputs.supervised_Q)])

    def logits(self, inputs: ModelInputs, rows_R: torch.Tensor) -> torch.Tensor:
        """Logits of chosen local tokens, fp32 [R, vocabulary]; last pipeline stage only."""
        return self.head_logits(self.decode(inputs), rows_R)

    def embed(self, tokens_T: torch.Tensor, rows_RH: torch.Tensor, places_R: torch.Tensor) -> torch.Tensor:
        """Embeddings of this rank's tokens [L, 1, H], with vision rows that are encoded already at their places. First pipeline stage."""
        embeddings_L1H = self.language.embedding(input_ids=tokens_T.unsqueeze(0), position_ids=None)
        return splice(embeddings_L1H, rows_RH, places_R) if len(places_R) else embeddings_L1H

    def head_logits(self, hidden_L1H: torch.Tensor, rows_R: torch.Tensor) -> torch.Tensor:
        """Logits of chosen rows of final hidden states, fp32 [R, vocabulary]; last pipeline stage only."""
        return self.head.logits(hidden_L1H, self._output_weight(), rows_R)

    def tile_rows(self, tiles_NCHW: torch.Tensor) -> torch.Tensor:
        """Vision rows [N * rows of a tile, H] of some tiles, without gradients. First pipeline stage."""
        with torch.no_grad():
            return self._encode(tiles_NCHW, False, self.language.embedding.word_embeddings.weight)

    @torch.no_grad()
    def encode_tiles(self, inputs: ModelInputs) -> ModelInputs:
        """The same inputs with their vision rows in place of the tiles, so that no further call encodes them. First pipeline stage.

        Collective over the ranks that exchange rows.
        """
        if inputs.route is None:
            return inputs
        rows_RH = self.tile_rows(inputs.tiles_NCHW)
        return replace(inputs, tiles_NCHW=inputs.tiles_NCHW[:0], vision_rows_RH=self.exchange(rows_RH, inputs.route))

    def decode(self, inputs: ModelInputs) -> torch.Tensor:
        """Hidden states [L, 1, H]; on the last stage those behind the final norm."""
        # rounded once here rather than in each layer: every pack in the pipeline keeps its tables until its backward pass
        cos_TD, sin_TD = (table.to(self.config.params_dtype) for table in self.rotary(inputs.positions_T, longest=inputs.longest_document))
        offloads = self.offload == "inputs" and self.training and torch.is_grad_enabled()
        layer_inputs = LayerInputs(host_copies(inputs.positions_T.device)) if offloads else None
        hidden_L1H = self._embed(inputs) if self.pre_process else None
        if hidden_L1H is not None and not hidden_L1H.requires_grad and torch.is_grad_enabled() and "language" in self.trainable:
            hidden_L1H.requires_grad_()  # over frozen tables: what is recomputed, or on a later stage, needs it
        context = PackedContext(cp_plan=inputs.cp_plan, cos_TD=cos_TD, sin_TD=sin_TD, layer_inputs=layer_inputs)
        with phase("layers"):
            decoded_L1H = self.language.decoder(hidden_states=hidden_L1H, attention_mask=None, packed_seq_params=context)
        name_backward("layers backward", decoded_L1H, hidden_L1H)
        return decoded_L1H

    def _embed(self, inputs: ModelInputs) -> torch.Tensor:
        embeddings_L1H = self.language.embedding(input_ids=inputs.tokens_T.unsqueeze(0), position_ids=None)
        if inputs.route is not None and inputs.vision_rows_RH is not None:
            return splice(embeddings_L1H, inputs.vision_rows_RH, inputs.route.targets)
        trains = torch.is_grad_enabled() and bool(self.trainable & {"vision", "projector"})
        if not inputs.num_tiles and not trains:
            return embeddings_L1H
        with phase("tower"):
            rows_RH = self._encode(inputs.tiles_NCHW, trains, embeddings_L1H)
        name_backward("tower backward", rows_RH)
        if inputs.route is not None:
            received_RH = self.exchange(rows_RH, inputs.route)
            embeddings_L1H = splice(embeddings_L1H, received_RH, inputs.route.targets)
        # a rank without tiles ran a dummy: joined with weight 0, so that every rank's graph holds the same parameters
        return embeddings_L1H + 0 * rows_RH.sum() if trains and not len(inputs.tiles_NCHW) else embeddings_L1H

    def _encode(self, tiles_NCHW: torch.Tensor, trains: bool, like: torch.Tensor) -> torch.Tensor:
        """Rows of this rank's tiles [R, H]; a rank without tiles takes a dummy through what trains here."""
        assert self.projector is not None
        if len(tiles_NCHW):
            features = self._features(tiles_NCHW, like.dtype)
        elif not trains:
            return like.new_zeros(0, like.shape[-1])
        elif "vision" in self.trainable:
            features = self._features(torch.zeros(1, *self.tile_shape, dtype=torch.uint8, device=like.device), like.dtype)
        else:
            features = like.new_zeros(1, *self.feature_shape)
        return self.projector(features).flatten(0, 1)

    def _features(self, tiles_NCHW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The tower's output [N, patches, H]; without autograd in parts, so that a long film needs no memory for all its activations."""
        assert self.vision is not None
        if torch.is_grad_enabled() and "vision" in self.trainable:
            return self.vision(normalize_tiles(tiles_NCHW, self.normalization).to(dtype))
        with torch.no_grad():
            return torch.cat([self.vision(normalize_tiles(part, self.normalization).to(dtype)) for part in tiles_NCHW.split(TILES_AT_ONCE)])

    def _output_weight(self) -> torch.Tensor:
        if self._tied:
            return self.shared_embedding_or_output_weight()
        return self.language.output_layer.weight

    @property
    def share_embeddings_and_output_weights(self) -> bool:
        """Whether megatron must sum the gradients of the first and the last stage's copies of a tied table: not if the table is frozen."""
        return self._tied and self.shared_embedding_or_output_weight().requires_grad

    def shared_embedding_or_output_weight(self) -> torch.Tensor:
        """The tied table on the first or last stage; megatron sums its gradients over both."""
        return self.language.shared_embedding_or_output_weight()

    def read_elsewhere(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """(called, read): modules whose weights may be read without a call of them, and a module that is called before that.

        Whoever gathers weights while the forward pass goes on must have them by then. A tower or projector may come from a plugin, so all
        of its weights count as read when it is called.
        """
        for part in (self.vision, self.projector):
            if part is not None:
                yield from ((part, module) for module in part.modules())
        if self.post_process and not (self._tied and self.pre_process):
            yield self.language.decoder.final_layernorm, self.language.output_layer

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """megatron's description of this stage's weights, by their local names. Its keys hold the layers' numbers in the whole model."""
        sharded = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if not self._layer_shift:
            return sharded
        # megatron derives a layer's place in this stage from its number, by its own rule for the stage's first layer
        start = re.compile(rf"({re.escape(prefix)}language\.decoder\.layers\.)(-?\d+)\.")
        return {
            start.sub(lambda match: f"{match[1]}{int(match[2]) - self._layer_shift}.", name): entry for name, entry in sharded.items()
        }

    def set_input_tensor(self, input_tensor: Any) -> None:
        """Hidden states from the stage before; called by megatron's schedules."""
        self.language.set_input_tensor(input_tensor)


@torch.no_grad()
def init_weights(module: nn.Module, std: float, generator: torch.Generator, tp_rank: int = 0, tp_size: int = 1) -> None:
    """Normal weights of the given deviation, zero biases; norms and LayerScale keep their constructors' values.

    Full weights are drawn, of which a tensor-parallel rank takes its part, so they do not depend on tp_size.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            shape, cut = list(parameter.shape), getattr(parameter, "tensor_model_parallel", False)
            dim = parameter.partition_dim if cut else 0  # type: ignore[attr-defined]
            whole = shape[dim] * (tp_size if cut else 1)
            heads, held = getattr(parameter, "num_heads", 0), getattr(parameter, "held_heads", 0)
            shape[dim] = shape[dim] // held * heads if heads else whole
            drawn = torch.empty(shape).normal_(0.0, std, generator=generator)
            if heads:  # zero heads behind the real ones
                shape[dim] = whole - shape[dim]
                drawn = torch.cat([drawn, torch.zeros(shape)], dim)
            parameter.copy_(drawn.chunk(tp_size, dim)[tp_rank] if cut else drawn)
        elif name.endswith("bias"):
            parameter.zero_()

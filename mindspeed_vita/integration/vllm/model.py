"""Long-VITA as a model of vLLM: tower and projector are the exported code's own modules, the decoder is vLLM's Qwen2 or Qwen3.

The interfaces are those of vLLM 0.33. The tower is whole on every rank of tensor parallelism; the decoder is cut as vLLM cuts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Optional

import torch
from torch import nn
from vllm.model_executor.models.interfaces import SupportsMultiModal, SupportsPP
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from mindspeed_vita.hf.modeling_long_vita import TILES_PER_CALL, LongVitaProjector
from mindspeed_vita.hf.vision_long_vita import LongVitaVisionModel
from mindspeed_vita.integration.vllm.processing import LongVitaDummyInputs, LongVitaMultiModalProcessor, LongVitaProcessingInfo


@MULTIMODAL_REGISTRY.register_processor(LongVitaMultiModalProcessor, info=LongVitaProcessingInfo, dummy_inputs=LongVitaDummyInputs)
class LongVITAForCausalLM(nn.Module, SupportsMultiModal, SupportsPP):
    """Long-VITA over Qwen2, the released checkpoints."""

    decoder: ClassVar[str] = "Qwen2ForCausalLM"
    """vLLM's class of the decoder."""
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "unused": None,
            "model.unused": None,
            "model.vision_model.": "vision_model.",
            "model.vision_projection.": "vision_projection.",
            "model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
        }
    )
    """Names in a Long-VITA folder -> names of the modules here. Some released folders hold a parameter that nothing uses."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> Optional[str]:
        """The tag of a picture or video.

        Raises:
            ValueError: another modality.
        """
        if modality not in ("image", "video"):
            raise ValueError(f"found {modality!r} in the prompt; Long-VITA takes pictures and videos")
        return f"<{modality}>"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.config = vllm_config.model_config.hf_config
        with self._mark_tower_model(vllm_config, {"image", "video"}):  # type: ignore[operator]
            self.vision_model = LongVitaVisionModel(self.config.vision_config)
            self.vision_projection = LongVitaProjector(self.config)
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=self.config,
                architectures=[self.decoder],
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> Sequence[torch.Tensor]:
        """Features of pictures and videos, one tensor [tokens of its tiles, hidden size] for each, pictures first.

        Args:
            kwargs: pixel_values [N, 3, H, W] with image_num_tiles, and pixel_values_videos with video_num_frames.
        """
        found: list[torch.Tensor] = []
        for pixels, sizes in (("pixel_values", "image_num_tiles"), ("pixel_values_videos", "video_num_frames")):
            if kwargs.get(pixels) is not None:
                features_NLD = self._encode(kwargs[pixels])
                tiles = torch.as_tensor(kwargs[sizes]).flatten().tolist()
                found += [part.flatten(0, 1) for part in features_NLD.split(tiles)]
        return found

    def _encode(self, tiles_NCHW: torch.Tensor) -> torch.Tensor:
        parts = [self.vision_projection(self.vision_model(part)) for part in tiles_NCHW.split(TILES_PER_CALL)]
        return torch.cat(parts)

    def forward(
        self,
        input_ids: Optional[torch.Tensor],
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Any:
        """Hidden states of the decoder; on a later stage of pipeline parallelism from `intermediate_tensors`."""
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> Optional[torch.Tensor]:
        """Logits of hidden states."""
        logits: Optional[torch.Tensor] = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Takes the tensors of a Long-VITA folder by their own names; returns the names of the parameters that got one."""
        loaded: set[str] = AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
        return loaded


class LongVITAQwen3ForCausalLM(LongVITAForCausalLM):
    """Long-VITA over Qwen3."""

    decoder = "Qwen3ForCausalLM"

"""vLLM's multimodal processing for Long-VITA: limits, dummy inputs for profiling, and pictures and videos into tiles and tokens.

The interfaces are those of vLLM 0.33. Media are cut and laid out by the exported processor's own code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
    PromptUpdateDetails,
)

from mindspeed_vita.hf.processing_long_vita import LongVitaProcessor
from mindspeed_vita.integration.vllm.media import (
    build_processor,
    frames_of,
    largest_picture,
    most_tokens,
    picture_tokens,
    token_ids,
    video_tokens,
)


class LongVitaProcessingInfo(BaseProcessingInfo):
    """What vLLM asks before it has seen a request."""

    def get_hf_processor(self, **kwargs: Any) -> LongVitaProcessor:
        """The folder's processor; keywords are mm_processor_kwargs, of the server or of a request."""
        options = self.ctx.get_merged_mm_kwargs(kwargs)
        return build_processor(self.ctx.model_config.model, self.get_hf_config(), self.get_tokenizer(), options)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Any number of pictures and videos."""
        return {"image": None, "video": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Most tokens of one picture and of one video."""
        return {kind: min(count, seq_len) for kind, count in most_tokens(self.get_hf_processor()).items()}

    def frames_that_fit(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """Frames of each of the videos that fit into a sequence next to the pictures; at least one, at most max_frames."""
        processor, videos = self.get_hf_processor(), max(mm_counts.get("video", 0), 1)
        room = seq_len - mm_counts.get("image", 0) * most_tokens(processor)["image"]
        return int(min(max(room // (processor.tokens_per_tile + 2) // videos, 1), processor.max_frames))


class LongVitaDummyInputs(BaseDummyInputsBuilder[LongVitaProcessingInfo]):
    """The largest inputs, by which vLLM measures memory."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """One tag per picture and video."""
        return "<image>" * mm_counts.get("image", 0) + "<video>" * mm_counts.get("video", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        """White pictures with as many tiles, and white videos with as many frames as there can be."""
        processor = self.info.get_hf_processor()
        width, height = largest_picture(processor)
        side, frames = processor.image_processor.tile_size, self.info.frames_that_fit(seq_len, mm_counts)
        images = {"width": width, "height": height, "num_images": mm_counts.get("image", 0), "overrides": mm_options.get("image")}
        videos = {"width": side, "height": side, "num_frames": frames, "num_videos": mm_counts.get("video", 0)}
        return {
            "image": self._get_dummy_images(**images),
            "video": self._get_dummy_videos(**videos, overrides=mm_options.get("video")),
        }


class LongVitaMultiModalProcessor(BaseMultiModalProcessor[LongVitaProcessingInfo]):
    """From media to tiles, and from tags to tokens."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Tiles of all pictures [sum of tiles, 3, H, W] with their grids, and of all frames with their number per video."""
        processor = self.info.get_hf_processor(**hf_kwargs)
        data: dict[str, Any] = {}
        if mm_items.get_count("image", strict=False):
            items = mm_items["image"]
            cut = [processor.image_processor.tile_image(items.get(i)) for i in range(items.get_count())]
            data["pixel_values"] = torch.from_numpy(np.concatenate([tiles for tiles, _ in cut]))
            data["image_num_tiles"] = torch.tensor([len(tiles) for tiles, _ in cut])
            data["image_grid"] = torch.tensor([list(grid) for _, grid in cut])
        if mm_items.get_count("video", strict=False):
            items = mm_items["video"]
            clips = [processor.image_processor.tile_frames(frames_of(items.get(i))) for i in range(items.get_count())]
            data["pixel_values_videos"] = torch.from_numpy(np.concatenate(clips))
            data["video_num_frames"] = torch.tensor([len(tiles) for tiles in clips])
        return BatchFeature(data)

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Mapping[str, Any]:
        tiles, frames = (hf_inputs.get(name, torch.empty(0)) for name in ("image_num_tiles", "video_num_frames"))
        return {
            "pixel_values": MultiModalFieldConfig.flat_from_sizes("image", tiles),
            "image_num_tiles": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "image_grid": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
            "pixel_values_videos": MultiModalFieldConfig.flat_from_sizes("video", frames),
            "video_num_frames": MultiModalFieldConfig.batched("video", keep_on_cpu=True),
        }

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any) -> Sequence[Any]:
        processor = self.info.get_hf_processor(**hf_processor_mm_kwargs)
        ids, data = token_ids(processor), out_mm_kwargs.get_data()

        def laid_out(tokens: list[int]) -> PromptUpdateDetails:
            return PromptUpdateDetails.select_token_ids(tokens, list(ids.placeholders))

        def picture(index: int) -> PromptUpdateDetails:
            return laid_out(picture_tokens(processor, data["image_grid"][index].tolist()))

        def video(index: int) -> PromptUpdateDetails:
            return laid_out(video_tokens(processor, int(data["video_num_frames"][index])))

        return [
            PromptReplacement(modality="image", target=[ids.image_tag], replacement=picture),
            PromptReplacement(modality="video", target=[ids.video_tag], replacement=video),
        ]

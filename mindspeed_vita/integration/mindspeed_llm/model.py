"""Long-VITA as MindSpeed-LLM holds it: saved and loaded under the names of the released MindSpeed weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Optional

import torch

from mindspeed_vita.checkpoint.mapping.mindspeed_names import from_mindspeed, to_mindspeed
from mindspeed_vita.models.lora import has_adapters, is_adapter
from mindspeed_vita.models.vita import VitaModel


class MindSpeedVitaModel(VitaModel):
    """VitaModel whose state dict speaks MindSpeed-LLM's names, and which carries the run's data state into its checkpoints."""

    run_state: Optional[Callable[[], dict[str, Any]]] = None
    """What a resume needs beside Megatron's own state, asked for at every save."""
    loaded_state: Optional[dict[str, Any]] = None
    """What it was in the checkpoint that was loaded; None where that had none."""
    parameter_settings: Any = None
    """How learning rates differ between parameters."""

    def state_dict_for_save_checkpoint(self, prefix: str = "", keep_vars: bool = False) -> dict[str, Any]:
        """This rank's weights under MindSpeed-LLM's names."""
        state = super().state_dict_for_save_checkpoint(prefix, keep_vars)
        return {to_mindspeed(name): value for name, value in state.items() if self._is_saved(name)}

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: Any = (), metadata: Any = None) -> dict[str, Any]:
        """megatron's description of this chunk's weights, which --ckpt-format torch_dist writes. The first stage writes the run's state."""
        sharded = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        state = sharded.get(f"{prefix}_extra_state")
        if state is not None:  # every stage and chunk has one under the same key
            state.replica_id = (0 if self.pre_process else 1, *state.replica_id[1:])
        return sharded

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads this rank's weights from MindSpeed-LLM's names or native ones; a tower that was split over tensor parallelism is joined.

        Raises:
            ValueError: a weight is missing, unexpected or of another shape.
        """
        wanted = {name: value for name, value in self.state_dict().items() if self._is_saved(name)}
        native = from_mindspeed(state_dict, wanted, self._tensor_parallel_group())
        # all names were compared; where there are adapters, the weights under them were loaded from their own folder
        return super().load_state_dict(native, strict=strict and not has_adapters(self), assign=assign)

    def _is_saved(self, name: str) -> bool:
        """Whether a checkpoint holds an entry of the state dict: of a model with adapters, these and the run's state only."""
        return not has_adapters(self) or is_adapter(name) or name == "_extra_state"

    def get_extra_state(self) -> torch.Tensor:
        """torch's hook: the run's state as bytes, so that a checkpoint holds tensors only."""
        return torch.frombuffer(bytearray(json.dumps(self.run_state() if self.run_state else {}), "utf-8"), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """torch's hook."""
        self.loaded_state = json.loads(bytes(state.cpu().tolist())) or None

    @staticmethod
    def _tensor_parallel_group() -> Any:
        from megatron.core import parallel_state

        return parallel_state.get_tensor_model_parallel_group()

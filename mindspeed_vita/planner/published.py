"""Times of steps that others published, for `python -m scripts.bench.plan_times`. None of them set a constant of a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mindspeed_vita.planner.decoder_load import DecoderLayout, DecoderShape, training_load
from mindspeed_vita.planner.device import Device
from mindspeed_vita.planner.time_model import StepTime, step_time


@dataclass(frozen=True, kw_only=True)
class TrainingRow:
    """One published training speed."""

    name: str
    source: str
    device: str
    shape: DecoderShape
    layout: DecoderLayout
    length: int
    micro_batch: int
    global_batch: int
    speed: float
    """Tokens per second and device."""

    def time(self, device: Device) -> StepTime:
        """What the model says of a step."""
        sizes: dict[str, Any] = {"length": self.length, "micro_batch": self.micro_batch, "global_batch": self.global_batch}
        return step_time(training_load(self.shape, self.layout, **sizes), device)

    def predicted(self, device: Device) -> float:
        """Tokens per second and device."""
        return self.global_batch * self.length / self.time(device).seconds / self.layout.world


_RC3 = "MindSpeed-LLM 1.0.RC3: README (Atlas 900 A2 PODc) and the script of that model in examples/mcore"
_LLAMA2_7B = DecoderShape(layers=32, hidden=4096, heads=32, kv_heads=32, ffn=11008, vocabulary=32000)
_LLAMA2_13B = DecoderShape(layers=40, hidden=5120, heads=40, kv_heads=40, ffn=13824, vocabulary=32000)
_LLAMA2_70B = DecoderShape(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocabulary=32000)
_LLAMA3_8B = DecoderShape(layers=32, hidden=4096, heads=32, kv_heads=8, ffn=14336, vocabulary=128256)
_LLAMA3_70B = DecoderShape(layers=80, hidden=8192, heads=64, kv_heads=8, ffn=28672, vocabulary=128256)
_CHATGLM3 = DecoderShape(layers=28, hidden=4096, heads=32, kv_heads=2, ffn=13696, vocabulary=65024)
_QWEN15_7B = DecoderShape(layers=32, hidden=4096, heads=32, kv_heads=32, ffn=11008, vocabulary=151936)


def _row(name: str, shape: DecoderShape, layout: DecoderLayout, length: int, batch: tuple[int, int], speed: float) -> TrainingRow:
    return TrainingRow(
        name=name,
        source=_RC3,
        device="910B",
        shape=shape,
        layout=layout,
        length=length,
        micro_batch=batch[0],
        global_batch=batch[1],
        speed=speed,
    )


_TP8 = DecoderLayout(world=8, tp=8, distributed_optimizer=False)
_TP8_PP4 = DecoderLayout(world=32, tp=8, pp=4, distributed_optimizer=False)
_PP2 = DecoderLayout(world=8, pp=2)
_INTERLEAVED = DecoderLayout(world=32, tp=8, pp=4, chunks=4, distributed_optimizer=False)
TRAINING = (
    _row("LLaMA2-7B, 4K", _LLAMA2_7B, _PP2, 4096, (1, 256), 4672),
    _row("LLaMA2-13B, 4K", _LLAMA2_13B, _TP8, 4096, (4, 512), 2016),
    _row("LLaMA2-70B, 4K", _LLAMA2_70B, _INTERLEAVED, 4096, (1, 1024), 439),
    _row("LLaMA3-8B, 8K", _LLAMA3_8B, _TP8, 8192, (2, 64), 2400),
    _row("LLaMA3.1-8B, 8K", _LLAMA3_8B, _TP8, 8192, (2, 64), 2280),
    _row("LLaMA3.1-70B, 8K", _LLAMA3_70B, _TP8_PP4, 8192, (1, 512), 399),
    _row("ChatGLM3-6B, 8K (fp16)", _CHATGLM3, _PP2, 8192, (1, 128), 4611),
    _row("Qwen1.5-7B, 8K", _QWEN15_7B, _TP8, 8192, (2, 64), 3146),
)
"""Dense decoders that the README lists as Mcore, with the layout of the same release's script. The scripts with tp use mc2."""

"""Settings that have a fixed list of values, as types. Those that exported code has too are in hf/choices.py; each list is written once.

The standard library alone: `vita doctor` reads it where packages are missing.
"""

from __future__ import annotations

from typing import Literal, get_args

Device = Literal["npu", "cuda", "cpu"]
"""Kinds of devices, in the order in which they are looked for."""
Engine = Literal["builtin", "mindspeed-llm", "hf"]
"""What runs a recipe: the loop of engine/, MindSpeed-LLM's pretrain, or transformers' Trainer."""
Module = Literal["vision", "projector", "language"]
"""Parts of the model that train or are frozen."""
Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]
"""gelu is the exact one, quick_gelu is x * sigmoid(1.702 x)."""
RopeScaling = Literal["none", "linear", "ntk", "yarn", "longrope", "llama3"]
LmHead = Literal["masked", "chunked", "original"]
LossWeighting = Literal["token", "sample"]
Packing = Literal["same_source", "cross_source"]
VideoReader = Literal["pyav", "decord", "torchcodec"]
Resize = Literal["exact", "fast"]
VisionParallel = Literal["balanced", "tensor"]
LayerSplit = Literal["even", "balanced"]
Precision = Literal["bf16", "fp32"]
Recompute = Literal["none", "selective", "mlp", "full_but_attention", "full"]
"""What the decoder's layers compute again in the backward pass, from little to much."""
Offload = Literal["none", "inputs"]
"""What recomputed layers keep in host memory between the two passes."""
Overlap = Literal["auto", "always", "never"]
TokenwiseChoice = Literal["auto", "plain"]

DEVICES: tuple[Device, ...] = get_args(Device)
ENGINES: tuple[Engine, ...] = get_args(Engine)
MODULES: tuple[Module, ...] = get_args(Module)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
LM_HEADS: tuple[LmHead, ...] = get_args(LmHead)
PACKINGS: tuple[Packing, ...] = get_args(Packing)
VIDEO_READERS: tuple[VideoReader, ...] = get_args(VideoReader)
VISION_PARALLELS: tuple[VisionParallel, ...] = get_args(VisionParallel)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RECOMPUTES: tuple[Recompute, ...] = get_args(Recompute)
OFFLOADS: tuple[Offload, ...] = get_args(Offload)

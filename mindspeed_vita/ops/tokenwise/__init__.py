"""What the decoder does with each token by itself: RMSNorm, SwiGLU, rotation. Plain torch, or one fused kernel each on an NPU."""

from mindspeed_vita.ops.tokenwise.api import apply_rotary, register_kernels, rms_norm, swiglu

__all__ = ["apply_rotary", "register_kernels", "rms_norm", "swiglu"]

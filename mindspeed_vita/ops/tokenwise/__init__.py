"""Work on each row by itself: RMSNorm, SwiGLU, rotation, row losses. Plain torch, or fused kernels on an NPU and, with Liger, on a GPU."""

from mindspeed_vita.ops.tokenwise.api import announce, apply_rotary, choose_kernels, register_kernels, rms_norm, row_losses, swiglu

__all__ = ["announce", "apply_rotary", "choose_kernels", "register_kernels", "rms_norm", "row_losses", "swiglu"]

"""A simulated Ascend: the real torch_npu over stub CANN libraries, with the fused kernels' documented semantics in plain arithmetic.

What it cannot show: rejections by the real kernels' tiling, their accuracy in bf16, races between streams, memory and speed.
"""

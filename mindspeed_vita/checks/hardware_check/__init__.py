"""What a user runs once on new hardware: are kernels, rings and a short training right there? See scripts/npu_check.py, gpu_check.py."""

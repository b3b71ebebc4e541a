"""Runs the PTX of the GPU kernels on CPU tensors: docs/gpu_without_a_gpu.md."""

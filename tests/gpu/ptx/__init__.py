"""Runs the PTX that nvcc and Triton make of the kernels on CPU tensors: docs/gpu_without_a_gpu.md."""

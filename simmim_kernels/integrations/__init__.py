"""The kernels in models of others."""

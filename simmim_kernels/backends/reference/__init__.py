"""The ops in plain PyTorch: their definition, and the oracle of every test."""

devices = ("cpu", "cuda")
unavailable = None

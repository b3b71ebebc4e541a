"""What a trained encoder can do: probing, and pictures of reconstructions."""

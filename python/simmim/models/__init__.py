"""The SimMIM model, its encoders, and the classifier that fine-tuning trains."""

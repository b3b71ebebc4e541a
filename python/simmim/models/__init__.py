"""The SimMIM and MAE models, their encoders, and the classifier that fine-tuning trains."""

"""Training runs: updates, records, and an orderly end."""

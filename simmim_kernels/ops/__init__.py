"""The public face of every op: docstring, checks, schema, fake kernel, autograd. No arithmetic."""

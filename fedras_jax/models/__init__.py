"""Recommenders. A new one is a file here and a line in `fedras_jax.registry`."""

"""Federated recommendation with gradients as actions, as a functional JAX toolkit."""

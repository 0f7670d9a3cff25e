"""Thin binaries: flags become a Spec, a Spec becomes a run."""

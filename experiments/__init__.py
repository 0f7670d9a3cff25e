"""Thin binaries: flags become a Spec, a Spec becomes a run."""

import gc

# Imports and traces make many small objects that live long, and each collection looks at them all:
# with the usual thresholds at every 700th.
gc.set_threshold(100_000, 50, 100)

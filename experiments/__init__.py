"""Thin binaries: flags become a Spec, a Spec becomes a run."""

import gc

# Imports and traces make many small objects that live long, and with the usual thresholds
# collections look at them over and over. Hardly anything is left to collect.
gc.set_threshold(100_000, 50, 100)

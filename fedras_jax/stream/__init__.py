"""Runs whose interactions stream from a store on disk, a segment of rounds at a time.

`run.run` has all clients' histories and private state on the device. Here a segment holds those of
its own clients alone, in `slot`s, while the next segment is read; what clients keep to themselves
lies on the device, on the host or on disk between their rounds. The rounds are the same, and so is
what comes out.
"""

from fedras_jax.stream.budget import Plan
from fedras_jax.stream.run import Streamed, stream

__all__ = ["Plan", "Streamed", "stream"]

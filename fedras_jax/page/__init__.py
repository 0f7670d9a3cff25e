"""One page about any number of runs: tables with intervals, curves, fronts and distributions.

`collect` sorts runs into groups and arms, `compare` sets arms against a baseline, `curves` and
`clients` thin what they have left, `figures` draws and `cells` tabulates it, `commands` says how to
repeat it, and `page` puts all of it into one HTML file.
"""

from fedras_jax.page.collect import Arm, Group, Run, Study, collect
from fedras_jax.page.page import libraries, render, write

__all__ = ["Arm", "Group", "Run", "Study", "collect", "libraries", "render", "write"]

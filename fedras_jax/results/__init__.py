"""What a run leaves on disk.

    WORKDIR/spec.json       the experiment, written first: a folder belongs to one Spec
    WORKDIR/rounds.parquet  a row a round: loss, bytes, actions, distortion, metrics where evaluated
    WORKDIR/clients.parquet a row for each client in each round, where asked for
    WORKDIR/ranks.parquet   a row a client: the final rank of its held-out item, the rounds in which
                            it was drawn, and those in which a payload of its was taken
    WORKDIR/summary.json    the figures of the whole run, written last

Every file is written beside its place and moved there, so a reader never sees half of one.
"""

from fedras_jax.results.read import read_columns, read_finished, read_summary
from fedras_jax.results.write import ClientLog, claim, write_json, write_rounds, write_table

__all__ = [
    "ClientLog",
    "claim",
    "read_columns",
    "read_finished",
    "read_summary",
    "write_json",
    "write_rounds",
    "write_table",
]

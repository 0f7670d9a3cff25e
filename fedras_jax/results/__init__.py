"""What a run leaves on disk.

    WORKDIR/data.json       digests of the data that it is run on, and
    WORKDIR/spec.json       the experiment, written first: a folder belongs to one Spec on one data
    WORKDIR/rounds.parquet  a row a round: loss, bytes, actions, distortion, metrics where evaluated
    WORKDIR/clients.parquet a row for each client in each round, where asked for
    WORKDIR/ranks.parquet   a row a client: the final rank of its held-out item, the rounds in which
                            it was drawn, and those in which a payload of its was taken
    WORKDIR/summary.json    the figures of the whole run, written last
    WORKDIR/diverged.json   instead of it, where training left the finite numbers: when and why
    WORKDIR/checkpoints/    where the run stands (`fedras_jax.checkpoint`), where asked for

While a run goes, its tables are folders, `rounds.parts/` and `clients.parts/`, of Parquet files
that are named by the last round in each; in the end they become one file.
Every file is written beside its place and moved there, so a reader never sees half of one.
"""

from fedras_jax.results.load import load, query
from fedras_jax.results.read import (
    read_columns,
    read_data,
    read_diverged,
    read_finished,
    read_json,
    read_log,
    read_summary,
    rows_in,
)
from fedras_jax.results.write import (
    Log,
    claim,
    columns_of,
    require_data,
    write_json,
    write_table,
)

__all__ = [
    "Log",
    "claim",
    "columns_of",
    "load",
    "query",
    "read_columns",
    "read_data",
    "read_diverged",
    "read_finished",
    "read_json",
    "read_log",
    "read_summary",
    "require_data",
    "rows_in",
    "write_json",
    "write_table",
]

"""What a trained run recommends to a client: the items that it has not seen, by score.

Read from the run's folder: the last checkpoint gives the public table and the client's private
parameters, the dataset its ids and titles.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedras_jax import bits, checkpoint, provenance, record, results
from fedras_jax.assembly import assemble, interactions_of, n_candidates, split_of
from fedras_jax.data import Interactions, Split
from fedras_jax.errors import DataError, ResultsError, SpecError
from fedras_jax.results import find
from fedras_jax.spec import Spec
from fedras_jax.types import FedState, RecModel


class Item(NamedTuple):
    """An item as the dataset knows it.

    Attributes:
      row: of the table.
      id: the dataset's own.
      title: '' where the dataset has none.
      role: 'training'; or 'valid' or 'test', held out from it.
    """

    row: int
    id: int | str
    title: str
    role: str


class Recommendation(NamedTuple):
    """An item that the client has not seen.

    Attributes:
      item: it may be the one that the run is evaluated on.
      score: the model's.
    """

    item: Item
    score: float


class HeldOut(NamedTuple):
    """The item that the run is evaluated on.

    Attributes:
      item: the model has not seen it.
      score: the model's.
      rank: among all items that the client has not seen, behind those of the same score.
      of: how many these are, itself included.
      candidates: drawn items that the run's metrics rank it against; None: all of these.
    """

    item: Item
    score: float
    rank: int
    of: int
    candidates: int | None


class Recommended(NamedTuple):
    """What a run knows of a client, and recommends to it.

    Attributes:
      folder: the run's.
      spec: what was run.
      client: the dataset's own id.
      trained: rounds in which it was drawn; with 0 its parameters are random.
      has_titles: whether the dataset names its items.
      history: what it has seen, in the dataset's order (by time where it has times).
      items: recommendations, best first.
      held_out: None where the client has too few interactions to be evaluated.
    """

    folder: Path
    spec: Spec
    client: int | str
    trained: int
    has_titles: bool
    history: tuple[Item, ...]
    items: tuple[Recommendation, ...]
    held_out: HeldOut | None


def recommend(
    workdir: str | os.PathLike,
    client: int | str,
    top: int = 10,
    *,
    data_dir: str | os.PathLike | None = None,
    interactions: Interactions | None = None,
) -> Recommended:
    """A client's history, and the items with the highest scores that are not in it.

    Args:
      workdir: a finished run that left a checkpoint, or a folder that holds no other run.
      client: the dataset's own id.
      top: how many items; fewer where the client has seen nearly everything.
      data_dir, interactions: as in `run`.

    Raises:
      SpecError: `top` below 1, or no such client.
      ResultsError: no finished run, no checkpoint of its last round, or one of another experiment.
      DataError: the dataset cannot be found, or is not the one that the run was trained on.
    """
    if top < 1:
        raise SpecError(f"top must be at least 1, not {top}")
    folder = _finished(workdir)
    summary = results.read_summary(folder)
    spec = Spec.from_json(summary["spec"])
    if not checkpoint.rounds_in(folder):
        raise ResultsError(
            f"{folder} holds no checkpoint, so its model is lost: run it again with "
            "--checkpoint_every=500; a sweep needs --keep_models too, and another --workdir"
        )
    if interactions is None:
        interactions = interactions_of(spec, data_dir)
    who = _index(interactions, client)
    split = split_of(spec, interactions=interactions)
    model, state, drawn = _trained(folder, spec, summary, split)
    score = _scores(model, state, who)
    target = int((split.test if spec.evaluate_on == "test" else split.valid)[who])
    seen = interactions.history(who)
    seen = seen[seen != target]
    unseen = np.setdiff1d(np.arange(split.n_items), seen)
    best = unseen[np.argsort(-score[unseen], kind="stable")[:top]]

    def item(index: int) -> Item:
        return _item(interactions, split, who, index)

    held_out = None
    if target >= 0:
        rank = int(np.sum(score[unseen] >= score[target]))
        drawn_for = int(n_candidates(spec, split)[who]) if spec.candidates else None
        held_out = HeldOut(
            item(target), float(score[target]), rank, of=unseen.size, candidates=drawn_for
        )
    return Recommended(
        folder=folder,
        spec=spec,
        client=interactions.client_ids[who].item(),
        trained=int(drawn[who]),
        has_titles=interactions.titles is not None,
        history=tuple(item(i) for i in seen.tolist()),
        items=tuple(Recommendation(item(i), float(score[i])) for i in best.tolist()),
        held_out=held_out,
    )


def _finished(workdir: str | os.PathLike) -> Path:
    """The folder of the one finished run.

    Raises:
      ResultsError: there is none, or there are several.
    """
    runs = find.find(workdir)
    if len(runs) > 1:
        names = ", ".join(str(run.folder) for run in runs[:3])
        raise ResultsError(f"{workdir} holds {len(runs)} runs: name one of them, as in {names}")
    told = find.row(runs[0])
    folder = runs[0].folder
    if told["status"] == "diverged":
        raise ResultsError(
            f"{folder} has no model: training diverged in round {told['diverged.round']}"
        )
    if told["status"] != "finished":
        raise ResultsError(
            f"{folder} is not a finished run: the command that began it goes on where it stands"
        )
    return folder


def _index(interactions: Interactions, client: int | str) -> int:
    """Where a client of that id is.

    Raises:
      SpecError: nowhere.
    """
    ids = interactions.client_ids
    found = np.flatnonzero(ids.astype(str) == str(client))
    if not found.size:
        some = ", ".join(map(str, ids[:5].tolist()))
        raise SpecError(
            f"{interactions.name} has no client {str(client)!r}: there are {ids.size}, "
            f"such as {some}"
        )
    return int(found[0])


def _trained(
    folder: Path, spec: Spec, summary: dict[str, Any], split: Split
) -> tuple[RecModel, FedState, np.ndarray]:
    """The model, the final state, and rounds in which each client was drawn, i64[U].

    Raises:
      DataError: the data is not what the run was trained on.
      ResultsError: no checkpoint of the final state, or data of the same sizes and other content.
    """
    model, algorithm, _ = assemble(spec, split)
    dense = bits.dense_bits(algorithm.sizes, algorithm.n_shared) / 8
    told = (summary["clients"]["total"], summary["payload"].get("dense_bytes", dense))
    if told != (split.n_clients, dense):
        raise DataError(
            f"{split.name} is not what {folder} was trained on: it has {split.n_clients} clients "
            f"and a table of {dense:,.0f} bytes, the run {told[0]} and {told[1]:,.0f}; give the "
            "data_dir of the run"
        )
    results.require_data(folder, provenance.of_split(spec, split))
    saved = record.last(folder, spec, algorithm, split.n_clients)
    if saved is None or checkpoint.digest(saved.tree["state"]) != summary["state_digest"]:
        at = "gone" if saved is None else f"of round {saved.round}"
        raise ResultsError(
            f"{folder} ended with round {spec.rounds}, and its last checkpoint is {at} and not of "
            "that end: run it again with --checkpoint_every=500"
        )
    return model, saved.tree["state"], saved.tree["drawn"]


def _scores(model: RecModel, state: FedState, client: int) -> np.ndarray:
    """A client's scores of all items, f32[M]."""
    private, shared, items = jax.tree.map(
        jnp.asarray,
        (jax.tree.map(lambda x: x[client], state.clients), state.shared, state.public),
    )
    return np.asarray(model.score(private, shared, items))


def _item(interactions: Interactions, split: Split, client: int, index: int) -> Item:
    titles = interactions.titles
    role = {int(split.test[client]): "test", int(split.valid[client]): "valid"}
    return Item(
        row=index,
        id=interactions.item_ids[index].item(),
        title="" if titles is None else str(titles[index]),
        role=role.get(index, "training"),
    )

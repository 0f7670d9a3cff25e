"""What a trained run recommends to a client.

    python -m experiments.run --codec=directional --codec_arg=k=16 --workdir=results/ours
    python -m experiments.recommend results/ours --client=17

Prints the client's history and the items with the highest scores that are not in it, by their
titles where the dataset has them. A client goes by its id in the dataset. The run must be finished
and have left a checkpoint, which --checkpoint_every (and, of a sweep, --keep_models) asks for.
"""

import logging

from absl import app
from absl import flags as absl_flags

from experiments import flags
from fedras_jax.errors import SpecError
from fedras_jax.recommend import HeldOut, Item, Recommended, recommend

for _flag in ("workdir", "data_dir"):  # so that --help shows them
    absl_flags.declare_key_flag(_flag)

CLIENT = absl_flags.DEFINE_string("client", None, "Its id in the dataset.")
TOP = absl_flags.DEFINE_integer("top", 10, "Recommendations to print.")
HISTORY = absl_flags.DEFINE_integer(
    "history", 10, "Items of the history to print, the latest; 0: none."
)

_ROLES = {
    "training": "",
    "valid": "  (held out for validation)",
    "test": "  (held out for testing)",
}


def main(argv: list[str]) -> None:
    with flags.friendly_errors():
        logging.getLogger("jax").setLevel(logging.WARNING)
        flags.refuse_all_but("workdir", "data_dir")
        workdir = _workdir(argv)
        if CLIENT.value is None:
            raise SpecError("--client is needed: the id of a client in the dataset, as in 17")
        for flag, low in ((TOP, 1), (HISTORY, 0)):
            if flag.value < low:
                raise SpecError(f"--{flag.name} must be at least {low}, not {flag.value}")
        found = recommend(workdir, CLIENT.value, TOP.value, data_dir=flags.DATA_DIR.value)
    print(render(found, HISTORY.value))


def _workdir(argv: list[str]) -> str:
    """The run's folder, by its place on the command line or by --workdir.

    Raises:
      SpecError: none, or several.
    """
    named = [*argv[1:], *filter(None, [flags.WORKDIR.value])]
    if len(named) != 1:
        told = f", not {len(named)}: {', '.join(named)}" if named else ", as in results/ours"
        raise SpecError(f"name the folder of one run{told}")
    return named[0]


def render(found: Recommended, n_history: int) -> str:
    """Recommendations as text.

    Args:
      found: what to show.
      n_history: items of the history, the latest.
    """
    spec, history = found.spec, found.history
    lines = [f"client {found.client} of {spec.dataset}, {found.folder} ({_told(found)})"]
    if not found.has_titles:
        lines.append("The dataset has no titles: items go by their ids.")
    if not found.trained:
        lines.append("The client was never drawn: its parameters are random, and so is the order.")
    shown = history[len(history) - n_history :] if n_history < len(history) else history
    latest = f", the last {len(shown)}" if len(shown) < len(history) else ""
    lines += ["", f"History: {len(history)} items{latest}"]
    lines += [f"      {_name(item)}{_ROLES[item.role]}" for item in shown]
    lines += ["", f"Recommended: {len(found.items)} items by score"]
    lines += [
        f"{place:4}  {entry.score:8.3f}  {_name(entry.item)}{_ROLES[entry.item.role]}"
        for place, entry in enumerate(found.items, 1)
    ]
    return "\n".join([*lines, "", _held_out(found.held_out)])


def _told(found: Recommended) -> str:
    spec = found.spec
    args = ", ".join(f"{k}={v}" for k, v in spec.codec_args.items())
    codec = f"{spec.codec} {args}".strip()
    return (
        f"{spec.model}, D={spec.dim}, {codec}, {spec.rounds} rounds; "
        f"the client took part in {found.trained}"
    )


def _held_out(found: HeldOut | None) -> str:
    if found is None:
        return "No item of this client is held out."
    drawn = found.candidates
    others = "" if drawn is None else f"; the run's metrics rank it among {drawn:,} drawn ones"
    held = _ROLES[found.item.role].strip(" ()").capitalize()
    return (
        f"{held}: {_name(found.item)}, at place {found.rank:,} of {found.of:,} unseen items{others}"
    )


def _name(item: Item) -> str:
    return item.title or f"item {item.id}"


if __name__ == "__main__":
    app.run(main)

"""The flags that describe an experiment, shared by every binary.

A flag carries the name of the `Spec` field that it sets, so there is nothing to translate;
`Spec` itself checks names and values. Flags that say where and how to run are not part of it.
"""

import ast
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from experiments import compiled
from fedras_jax import hosts, registry
from fedras_jax.errors import FedrasError, LostError, SpecError, StoppedError
from fedras_jax.spec import Spec

_DEFAULT = Spec()

flags.adopt_module_key_flags(compiled)  # so that --help shows them

# Spec field -> (flag definition, help).
_SPEC_FLAGS: dict[str, tuple[Any, str]] = {
    "dataset": (flags.DEFINE_string, "Dataset: a known name, synthetic:UxM, or a path."),
    "min_rating": (flags.DEFINE_float, "Keep interactions rated at least this; default: all."),
    "k_core": (flags.DEFINE_integer, "Drop clients and items with fewer interactions."),
    "validation": (
        flags.DEFINE_bool,
        "Hold out a validation item too; default: unless the dataset brings its own split.",
    ),
    "candidates": (flags.DEFINE_integer, "Sampled items to rank against; 0 ranks all items."),
    "evaluate_on": (flags.DEFINE_string, "'test' or 'valid'."),
    "model": (flags.DEFINE_string, "Recommender."),
    "dim": (flags.DEFINE_integer, "Embedding width D."),
    "rounds": (flags.DEFINE_integer, "Rounds."),
    "sampler": (flags.DEFINE_string, "Who takes part."),
    "cohort_size": (flags.DEFINE_integer, "Clients a round; 0: all."),
    "local_epochs": (flags.DEFINE_integer, "Passes over a client's examples."),
    "batch_size": (flags.DEFINE_integer, "Examples a minibatch."),
    "client_optimizer": (flags.DEFINE_string, "Local optimizer."),
    "client_lr": (flags.DEFINE_float, "Local step size."),
    "weight_decay": (flags.DEFINE_float, "Local L2 weight decay."),
    "negatives": (flags.DEFINE_integer, "Drawn negatives per training item."),
    "codec": (flags.DEFINE_string, "What clients send."),
    "feedback_rows": (flags.DEFINE_integer, "Rows of the codec's loss a client remembers."),
    "feedback_gib": (flags.DEFINE_float, "Memory that all clients' feedback may take, GiB."),
    "budget": (flags.DEFINE_string, "How many actions each client may send."),
    "profile": (flags.DEFINE_string, "Devices and networks, a file's path or a preset."),
    "arrival": (flags.DEFINE_string, "When a round ends, and whose payload counts."),
    "encode_work": (flags.DEFINE_float, "Examples that encoding a row with an action counts as."),
    "flight_gib": (flags.DEFINE_float, "Memory that payloads in flight may take on a device, GiB."),
    "downlink": (flags.DEFINE_string, "What the server sends, with dense the whole table."),
    "snapshot_bits": (
        flags.DEFINE_integer,
        "Bits an entry of the table fetched whole: 32, or 4 to 8.",
    ),
    "downlink_trend": (flags.DEFINE_float, "Share of what is sent that clients go on with."),
    "downlink_feedback": (flags.DEFINE_bool, "Whether what the downlink loses is sent later."),
    "reducer": (flags.DEFINE_string, "How payloads become one change of the table."),
    "server_optimizer": (flags.DEFINE_string, "Server optimizer."),
    "server_lr": (flags.DEFINE_float, "Server step size."),
    "seed": (flags.DEFINE_integer, "Seed of training."),
    "data_seed": (flags.DEFINE_integer, "Seed of splits and candidates."),
    "eval_every": (flags.DEFINE_integer, "Rounds between evaluations."),
}

# What --help gives to choose from.
_CHOICES: dict[str, Iterable[str]] = {
    "model": registry.MODELS,
    "sampler": registry.SAMPLERS,
    "client_optimizer": registry.CLIENT_OPTIMIZERS,
    "codec": registry.CODECS,
    "budget": registry.BUDGETS,
    "profile": ("ideal", *registry.PROFILES),
    "arrival": registry.ARRIVALS,
    "downlink": registry.DOWNLINKS,
    "reducer": registry.REDUCERS,
    "server_optimizer": registry.SERVER_OPTIMIZERS,
}

for _name, (_define, _help) in _SPEC_FLAGS.items():
    if _name in _CHOICES:
        _help = f"{_help[:-1]}: one of {', '.join(_CHOICES[_name])}."
    _define(_name, getattr(_DEFAULT, _name), _help)

# Fields of arguments have repeatable flags: --codec_arg=k=16 for `codec_args`.
_ARGS = (
    *("dataset", "model", "codec", "budget", "profile", "arrival", "downlink", "sampler"),
    *("reducer", "client_optimizer", "server_optimizer"),
)
_ARGS_HELP = {
    "dataset": "ROLE=NAME: the header's name of its user, item, rating or time; ROLE= ignores it."
}
for _name in _ARGS:
    _help = _ARGS_HELP.get(_name, f"NAME=VALUE for the {_name}.")
    flags.DEFINE_multi_string(f"{_name}_arg", [], f"{_help} Repeatable.")

PSEUDO_ITEMS = flags.DEFINE_float(
    "pseudo_items", None, "Untouched items to send as if touched, as a share of the touched."
)
PSEUDO_ROWS = flags.DEFINE_enum(
    "pseudo_rows",
    None,
    ["mixed", "zero"],
    "Rows of pseudo-items: like the client's own (the default), or zeros.",
)
CLIP_NORM = flags.DEFINE_float("clip_norm", None, "Clip every update to this L2 norm.")
TRANSFORMS = flags.DEFINE_multi_string(
    "transform",
    [],
    "NAME or NAME:ARGUMENT=VALUE,...: a change of every update before the codec, after those of "
    f"--clip_norm and --pseudo_items: one of {', '.join(registry.TRANSFORMS)}. Repeatable.",
)

DATA_DIR = flags.DEFINE_string("data_dir", None, "Where your own or downloaded datasets lie.")
WORKDIR = flags.DEFINE_string("workdir", None, "Results folder; nothing is written without one.")
CHUNK_SIZE = flags.DEFINE_integer(
    "chunk_size", None, "Clients at once; default: by platform and D."
)
DEVICES = flags.DEFINE_integer(
    "devices",
    None,
    "Devices of a process that share a cohort; default: all. On CPU a device is a thread: one for "
    "each core, or as many as are asked for.",
)
PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")
CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every", 500, "Rounds between checkpoints in --workdir; 0: none."
)
TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Write TensorBoard event files to --workdir.")
LOG_CLIENTS = flags.DEFINE_bool(
    "log_clients", False, "Write clients.parquet too: a row for each client in each round."
)

# What a binary ends with that was asked to stop, and has saved where it stands: `EX_TEMPFAIL` of
# sysexits.h, "try again later".
STOPPED = 75

# Devices that CPUs may be, where there are fewer cores: XLA gives up waiting for many more of them.
THREADS = 64


def spec_from_flags(base: Mapping[str, Any] | None = None) -> Spec:
    """The Spec that the flags describe.

    Args:
      base: fields that take the place of defaults; flags that are given override them.

    Raises:
      SpecError: a name or value that does not fit.
    """
    given = dict(base or {})
    values: dict[str, Any] = {
        name: given.pop(name)
        if name in given and not flags.FLAGS[name].present
        else flags.FLAGS[name].value
        for name in _SPEC_FLAGS
    }
    for name in _ARGS:
        entries: Any = flags.FLAGS[f"{name}_arg"].value
        # Arguments belong to a name: with another name, those of the base fit no longer.
        kept = {} if flags.FLAGS[name].present else given.get(f"{name}_args", {})
        if not isinstance(kept, Mapping):
            raise SpecError(f"{name}_args must be a mapping of arguments, not {kept!r}")
        parsed = columns() if name == "dataset" else parse_args(f"{name}_arg", entries)
        values[f"{name}_args"] = {**kept, **parsed}
        given.pop(f"{name}_args", None)
    chain = (
        ("clip_norm", "max_norm", CLIP_NORM.value),
        ("pseudo_items", "share", PSEUDO_ITEMS.value),
    )
    asked: list[dict[str, Any]] = [
        {"name": name, arg: value} for name, arg, value in chain if value is not None
    ]
    if PSEUDO_ROWS.value is not None:
        if PSEUDO_ITEMS.value is None:
            raise SpecError("--pseudo_rows needs --pseudo_items, the share of them")
        asked[-1]["rows"] = PSEUDO_ROWS.value
    for text in TRANSFORMS.value:
        name, _, args = text.partition(":")
        asked.append({"name": name, **parse_args("transform", split_args(args))})
    values["transforms"] = tuple(asked or given.pop("transforms", ()))
    return Spec.from_json({**given, **values})


def columns() -> dict[str, str | None]:
    """The header's names by role, as --dataset_arg says; None for a role to ignore."""
    entries: Any = flags.FLAGS["dataset_arg"].value
    named = parse_args("dataset_arg", entries, literal=False)
    return {role: name or None for role, name in named.items()}


def options_from_flags(**more: Any) -> dict[str, Any]:
    """What the flags say of how to run: fields of `run.Options`."""
    return {
        "data_dir": DATA_DIR.value,
        "devices": DEVICES.value,
        "chunk_size": CHUNK_SIZE.value,
        "progress": PROGRESS.value,
        "tensorboard": TENSORBOARD.value,
        "log_clients": LOG_CLIENTS.value,
        "checkpoint_every": CHECKPOINT_EVERY.value,
        **more,
    }


def of_field(name: str) -> tuple[str, ...]:
    """The flags that set a field of the Spec, none where it has none."""
    if name == "transforms":
        return ("clip_norm", "pseudo_items", "pseudo_rows", "transform")
    flag = name.removesuffix("s") if name.endswith("_args") else name
    return (flag,) if flag in flags.FLAGS else ()


def refuse(names: Iterable[str], instead: str) -> None:
    """Refuse flags that were given, in a call in which they have no effect.

    Args:
      names: of such flags.
      instead: the way out.

    Raises:
      SpecError: names those that were given.
    """
    given = [f"--{name}" for name in names if flags.FLAGS[name].present]
    if given:
        verb = "has" if len(given) == 1 else "have"
        raise SpecError(f"{', '.join(given)} {verb} no effect here: {instead}")


def refuse_all_but(*names: str) -> None:
    """Refuse this module's flags, but for some, in a binary that runs no experiment.

    Raises:
      SpecError: names those that were given.
    """
    mine = (flag.name for flag in flags.FLAGS.get_key_flags_for_module(__name__))
    told = ", ".join(f"--{name}" for name in names)
    instead = f"of an experiment's flags {told} have" if names else "no experiment is run"
    refuse((name for name in mine if name not in names), instead)


def stop_when_told() -> Callable[[], bool]:
    """Whether this process has been told to stop by SIGTERM, as schedulers do before they kill.

    From here on the signal does nothing else; runs ask between segments of rounds.
    """
    told = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: told.set())
    return told.is_set


def split_args(text: str) -> list[str]:
    """`"k=[4,8],seed=1"` as `["k=[4,8]", "seed=1"]`: commas within brackets part nothing."""
    return [part for part in re.split(r",(?![^\[(]*[\])])", text) if part]


def parse_args(flag: str, entries: Sequence[str], *, literal: bool = True) -> dict[str, Any]:
    """`["k=16", "dtype=float16"]` as `{"k": 16, "dtype": "float16"}`: Python literals or strings.

    Args:
      flag: whose values they are.
      entries: the values.
      literal: whether they may be literals; else all are strings.

    Raises:
      SpecError: an entry without '='.
    """
    parsed = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            raise SpecError(f"--{flag}={entry}: expected NAME=VALUE, for example k=16")
        if not literal:
            parsed[name] = text
            continue
        try:
            parsed[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            parsed[name] = text
    return parsed


def start_devices() -> Any:
    """The mesh that `--devices` asks for, None for a single device. Call before anything else.

    On CPU every device is one core: sharing a cohort over devices keeps all cores busy with
    clients of their own, which beats splitting every small operation.

    Raises:
      SpecError: more devices asked for than there are. On CPU they are threads, of which there may
        be more than cores, to see what many devices do; but no more than `THREADS`.
    """
    import jax

    from fedras_jax import cohort

    quiet()
    compiled.keep()
    asked = DEVICES.value
    if asked is not None and asked < 1:
        raise SpecError(f"--devices must be at least 1, not {asked}")
    cores = len(os.sched_getaffinity(0))
    if asked is not None and asked > max(cores, THREADS):
        raise SpecError(
            f"--devices={asked}, but there are {cores} cores: at most {THREADS} threads"
        )
    # Only sizes the CPU backend; where there is an accelerator, JAX prefers that.
    jax.config.update("jax_num_cpu_devices", asked or cores)

    def mesh() -> Any:
        there = jax.local_device_count()
        if (asked or 1) > there:
            raise SpecError(f"--devices={asked}, but there are {there}")
        shared = cohort.client_mesh(asked)
        return shared if shared.size > 1 else None

    return hosts.together(mesh)


def quiet() -> None:
    """Have libraries tell of nothing less than a warning."""
    for chatty in ("jax", "matplotlib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


@contextlib.contextmanager
def friendly_errors() -> Iterator[None]:
    """What the user can mend is one line and exit code 2; anything else keeps its traceback.

    A run that was told to stop, and did, ends with `STOPPED`; so does one of several processes when
    another is gone.
    """
    try:
        yield
    except StoppedError as e:
        sys.stdout.flush()
        print(e, file=sys.stderr)
        sys.exit(STOPPED)
    except LostError as e:
        print(f"error: {e}", file=sys.stderr)
        hosts.leave(STOPPED)
        sys.exit(STOPPED)
    except FedrasError as e:
        sys.stdout.flush()
        print(f"error: {e}", file=sys.stderr)
        sys.exit(2)
    except BaseException as e:
        if not isinstance(e, SystemExit) and hosts.started():
            traceback.print_exc()
            hosts.leave(1)  # so that the others see it at once
        raise


def no_arguments(argv: Sequence[str]) -> None:
    """Refuse what is not a flag: `--codec actions` would otherwise be half lost.

    Raises:
      SpecError: there are positional arguments.
    """
    if len(argv) > 1:
        raise SpecError(f"unexpected argument {argv[1]!r}: every setting is a --flag=value")

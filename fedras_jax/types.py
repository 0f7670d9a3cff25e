"""The arrays and the bundles of functions that everything else speaks in.

One letter, one meaning, in every docstring, shape comment and annotation of this library:

    U  clients (users)                  N  padded distinct items of a client
    M  items                            K  action slots
    D  embedding width                  F  fields of a payload
    C  clients in a cohort              R  rounds
    L  padded examples of a client

Bundles of arrays are `flax.struct.dataclass`es and go through `jit`, `vmap` and `scan`; they are
written for ONE client, and grow leading axes when a transformation adds them. Bundles of
functions are NamedTuples, closed over and never traced. Nothing is both.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fedras_jax import tables

PyTree = Any
Array = jax.Array
# A hyper-parameter that may be a tracer, so that one compiled program serves all its values.
Number = float | Array


# ---------------------------------------------------------------- arrays


@struct.dataclass
class Histories:
    """Every client's training items on device, one after another (CSR).

    Attributes:
      offset: i32[U + 1], client u owns `item[offset[u]:offset[u + 1]]`.
      item: i32[nnz], ascending and distinct within a client (the negative sampler searches it).
    """

    offset: Array
    item: Array


@struct.dataclass
class Cohort:
    """Who takes part in a round.

    Attributes:
      client: i32[C] global client ids, distinct where `mask`.
      mask: bool[C], False in slots that no client fills.
      weight: f32[C] aggregation weights.
      inclusion: f32[C], the probability with which the sampler draws this client in a round.
      role: i32[C], what the client is: 0 honest; other roles are the transforms' business.
      slot: i32[C], the client's row in the state and in the histories; None where that is the
        client's id, as it is unless they hold some of the clients alone (`stream`).
      device: the clients' devices and networks, leading axis C; None: those of the profile that
        the round was built with.
    """

    client: Array
    mask: Array
    weight: Array
    inclusion: Array
    role: Array
    slot: Array | None = None
    device: "Profile | None" = None


@struct.dataclass
class Profile:
    """What every client's device and network are like; leading axis U.

    Attributes:
      compute: f32[U] training speed, examples per second and epoch.
      up, down: f32[U] bit/s. latency: f32[U] s, before anything happens.
      availability: f32[U] in (0, 1], share of the time in which it can be drawn.
      session: i32[U] rounds for which it stays available, or away, at least.
      failure: f32[U] in [0, 1), probability of failing within a round.
      jitter: f32[U], standard deviation of the logarithm of a round's speeds.
      tier: i32[U], for reports by kind of device; nothing else depends on it.
    """

    compute: Array
    up: Array
    down: Array
    latency: Array
    availability: Array
    session: Array
    failure: Array
    jitter: Array
    tier: Array


@struct.dataclass
class Trace:
    """How clients' devices and networks change over simulated time (`traces`).

    A client's stretches are `stretch[offset[u]:offset[u + 1]]`; each lasts until its next one.

    Attributes:
      begin: f32[S] s, ascending within a client, whose first one begins at 0.
      offset: i32[U + 1].
      stretch: what the client is like in each; leading axis S, and availability may be 0.
      period: f32[] s after which everything begins anew; infinite where the last ones last.
    """

    begin: Array | np.ndarray
    offset: Array | np.ndarray
    stretch: Profile
    period: Array | np.ndarray | np.floating


@struct.dataclass
class Arguments:
    """The numbers of an experiment, which a compiled program takes; leading axis G for G of them.

    Attributes:
      seed: u32[].
      numbers: path in the Spec, as in 'client_lr' or 'budget_args.tolerance' -> f32[].
      profile: the clients' devices and networks; None where no time passes.
    """

    seed: Array | np.ndarray
    numbers: Mapping[str, Array | np.ndarray]
    profile: Profile | Trace | None


@struct.dataclass
class Pace:
    """One client's speeds in one round: compute in examples per second and epoch, up and down in
    bit/s, latency in s; f32[] each."""

    compute: Array
    up: Array
    down: Array
    latency: Array


@struct.dataclass
class Outcome:
    """How one client's round ends.

    Attributes:
      seconds: f32[], from being drawn until its payload is there, or until it fails.
      phases: f32[5], the seconds of each of `network.PHASES` in it.
      finished: bool[], False where it failed.
      share_down, share_up: f32[] in [0, 1], how much of its download and upload had been sent.
    """

    seconds: Array
    phases: Array
    finished: Array
    share_down: Array
    share_up: Array


@struct.dataclass
class Outlook:
    """What a budget policy may look at: one client, after training, before encoding.

    Attributes:
      round, client: i32[].
      error: f32[K + 1], as in `Prepared`, or None.
      bits: f32[K + 1], size of the upload with k actions, header, shared parameters and the
        budget's report included; an upper bound where labels are entropy-coded.
      seconds: f32[], what its round takes without encoding and uploading.
      encode_s: f32[K + 1], seconds that encoding takes with k actions.
      pace: its speeds as known beforehand, without the round's jitter.
    """

    round: Array
    client: Array
    error: PyTree
    bits: Array
    seconds: Array
    encode_s: Array
    pace: Pace


@struct.dataclass
class Tally:
    """What the server has seen of a round when it changes a budget's state.

    Attributes:
      round: i32[], which.
      bits: f32[], mean upload of those that ran.
      seconds: f32[], how long the round took.
      clients: f32[], how many payloads it took.
      report: f32[], mean of what came with them, 0 where there is none.
      deadline: f32[], seconds after which nothing counts, infinite where there is none.
    """

    round: Any
    bits: Any
    seconds: Any
    clients: Any
    report: Any
    deadline: Any


@struct.dataclass
class InFlight:
    """Payloads on their way to the server; leading axis P.

    What they hold lies on the device that made them, of n, in a row of their own there: slot i in
    row i + 1, as row 0 is for what nobody wants. A payload is as wide as its client was padded to,
    and what a wider one has left beyond that is of no use.

    Attributes:
      client, round: i32[P], whose they are and the round in which they were made.
      width: i32[P], the width that their clients were padded to.
      home: i32[P], the device where they lie.
      seconds: f32[P], until they are there (or their client fails).
      phases: f32[P, 5], what their clients spend all of their time on, as in `Outcome`.
      present: bool[P], False in free slots. finished: bool[P], False where the client fails.
      weight: f32[P], aggregation weights.
      report: f32[P], what comes with them for the budget.
      data: leaves of the payloads, as in `Payload`; leading axes n and P + 1.
      shared: changes of the shared parameters; leading axes n and P + 1.
    """

    client: Array
    round: Array
    width: Array
    home: Array
    seconds: Array
    phases: Array
    present: Array
    finished: Array
    weight: Array
    report: Array
    data: PyTree
    shared: PyTree


@struct.dataclass
class Settled:
    """What an arrival policy decides.

    Attributes:
      taken: bool[P], payloads that count in this round. kept: bool[P], those that stay in flight.
      seconds: f32[], how long the round takes.
    """

    taken: Array
    kept: Array
    seconds: Array


@struct.dataclass
class ClientBatch:
    """One client's examples of one round; its real items are distinct.

    Attributes:
      item: i32[L] global item ids, M where padded.
      label: f32[L], 1 for an item of the history, 0 for a drawn negative.
      mask: bool[L], False where padded.
      client: i32[] global client id.
      short: i32[], negatives that were asked for and do not exist (a client that has seen
        nearly everything has too few unseen items).
    """

    item: Array
    label: Array
    mask: Array
    client: Array
    short: Array


@struct.dataclass
class ItemDelta:
    """What a client's training did to the rows it touched.

    Attributes:
      item: i32[N] global item ids, M where padded.
      row: f32[N, D], exactly zero where padded.
      mask: bool[N].
    """

    item: Array
    row: Array
    mask: Array

    @property
    def source(self) -> tuple[Array, None]:
        """The rows; there are no labels, as each slot has a row of its own."""
        return self.row, None


@struct.dataclass
class LabelledDelta:
    """A decoded `ItemDelta` whose rows are out of a few, which are looked up where they are read.

    Attributes:
      item: i32[N] global item ids, M where padded.
      book: f32[K, D].
      label: i32[N], rows of the book; K where padded.
      mask: bool[N].
    """

    item: Array
    book: Array
    label: Array
    mask: Array

    @property
    def source(self) -> tuple[Array, Array]:
        """The book, and which of its rows each slot has."""
        return self.book, self.label

    @property
    def row(self) -> Array:
        """f32[N, D], exactly zero where padded; of several clients as well, on a leading axis."""
        book, label = jnp.asarray(self.book), jnp.asarray(self.label)  # they may be the host's
        if label.ndim == 1:
            return tables.look_up(book, label)
        n_clients, k, dim = book.shape
        first = k * jnp.arange(n_clients, dtype=label.dtype)[:, None]
        label = jnp.where(label < k, first + label, n_clients * k)
        found = tables.look_up(book.reshape(-1, dim), label.reshape(-1))
        return found.reshape(*label.shape, dim)


Decoded = ItemDelta | LabelledDelta


@struct.dataclass
class Update:
    """A client's whole change: item rows, and the model's dense shared parameters."""

    items: ItemDelta
    shared: PyTree


@struct.dataclass
class Prepared:
    """What a budget policy may look at before a client is told how much it may send.

    Attributes:
      error: f32[K + 1], relative squared error of the decoded delta were the client given k
        actions, or nearly so (entry 0: nothing sent). `None` where the codec cannot say
        cheaply.
      work: whatever `encode` would otherwise compute again.
    """

    error: PyTree
    work: PyTree


@struct.dataclass
class Payload:
    """What travels.

    Attributes:
      data: dict of arrays. `item` i32[N] and `mask` bool[N] say which rows are sent, in any order;
        `k` i32[] how many actions, where the codec has them; then a leaf for each declared field.
      counts: i32[F], how many entries of each declared field are sent. Widths are static
        (`Codec.fields`), so sizes in bits are exact and are multiplied on the host.
    """

    data: dict[str, Array]
    counts: Array


@struct.dataclass
class FedState:
    """All that one round hands to the next.

    Attributes:
      round: i32[], rounds done.
      items: f32[M, D], the server's table.
      public: f32[M, D], what clients hold: the sum of all that the server has sent.
      velocity: f32[M, D], what clients add to it by themselves; () where the downlink has no trend.
      last_sync: i32[U], the round whose public table the client holds. The first one grows from
        the seed, so that everyone holds it.
      owed: f32[U], bits that the client would have to fetch to hold the present one.
      shared: the model's dense shared parameters.
      clients: private parameters, leading axis U; they never leave the client.
      codec: per-client state of the codec, leading axis U (empty for stateless codecs).
      server: state of the server optimizer.
      budget: state of the budget policy.
      flight: `InFlight`; () where payloads are reduced as they are made.
      clock: f32[2] s, the simulated time and what rounding has added to it; () without a `Trace`.
    """

    round: Array
    items: Array
    public: Array
    velocity: PyTree
    last_sync: Array
    owed: Array
    shared: PyTree
    clients: PyTree
    codec: PyTree
    server: PyTree
    budget: PyTree
    flight: PyTree
    clock: PyTree = ()


@struct.dataclass
class RoundInfo:
    """What a round tells, per client slot of the cohort. It never enters the state.

    Attributes:
      client: i32[C] global ids; mask: bool[C]; role: i32[C].
      loss: f32[C], mean loss over the client's examples in its last local epoch.
      n_examples, n_short: i32[C], examples trained on; negatives that do not exist.
      n_actions: i32[C], actions sent: as many as the budget granted, but no more than rows.
      distortion: f32[C], squared error of the decoded delta relative to the delta's norm.
      counts_up: i32[C, F + 1], entries per declared field; last the shared parameters and what the
        budget has reported.
      synced: i32[C], the round whose public table the client held before this one.
      counts_down: i32[G], entries per declared field of what the server published after the round.
      outcome: how each client's round ends, and what it spent its time on.
      weight: f32[C], the weight with which its payload counted in this very round.
      arrived: `Arrived`, what the server took in this round.
      seconds: f32[], how long the round took, the wait for somebody to be there included.
      spent: f32[5], what the client that the server waited for was busy with meanwhile.
    """

    client: Array
    mask: Array
    role: Array
    loss: Array
    n_examples: Array
    n_short: Array
    n_actions: Array
    distortion: Array
    counts_up: Array
    synced: Array
    counts_down: Array
    outcome: Outcome
    weight: Array
    arrived: "Arrived"
    seconds: Array
    spent: Array


@struct.dataclass
class Arrived:
    """What the server took in a round; leading axis P, the cohort's slots or those in flight.

    Attributes:
      client: i32[P] global ids.
      weight: f32[P], 0 for what was not taken.
      staleness: i32[P], rounds since the payload was made.
    """

    client: Array
    weight: Array
    staleness: Array


# ---------------------------------------------------------------- bundles of functions


class Sizes(NamedTuple):
    """Static sizes that server and clients agree on: M items, D embedding width."""

    items: int
    dim: int


class Context(NamedTuple):
    """What server and client share in a round, sent once and not per client.

    `key` is the round's shared key (a seeded basis or mask grows from it).
    """

    sizes: Sizes
    key: Array


class Field(NamedTuple):
    """One kind of entry in a payload: how it is counted, and how it is written.

    `bits.measure` counts entries and `wire` writes them, both from this declaration alone; the
    constructors in `bits` (`touched`, `labels`, `values`, `codes`, ...) spell it out.

    Attributes:
      name: the leaf of `Payload.data` that is written.
      bits: static width of an entry; 1 where entries have no static width and bits are counted.
      per: what there is an entry for: the payload ('once', unless it is empty), an 'action' in
        use, a sent 'row', each of the M items ('item'), or the 'set' of sent rows.
      shape: elements of an entry; the universe's size for a set; for 'entropy' K and how many
        labels a row, and for 'symbols' how many there are and how many a row.
      dtype: of the elements: a float type, 'uint', 'exponent' (a byte, one of which says that the
        entry is not finite), 'label' (as wide as the client's own number of actions needs),
        'entropy' (labels too, entropy-coded), 'symbols' and 'levels' (unsigned, and small signed
        integers, entropy-coded) or 'set'.
    """

    name: str
    bits: int
    per: str = "once"
    shape: tuple[int, ...] = ()
    dtype: str = "uint"


class RecModel(NamedTuple):
    """A recommender: what it is made of, how it scores, what it minimises.

    Attributes:
      init: (key, U, sizes) -> (private with leading axis U, items f32[M, D], shared pytree).
      score: (private of one client, shared, rows f32[L, D]) -> f32[L].
      loss: (scores f32[L], labels f32[L]) -> f32[L], per example.
      dim: embedding width D.
      is_dot_product: True where the score is `rows @ private`, the loss is the logistic one and
        nothing is shared: the factored client then computes the same training faster.
    """

    init: Callable[..., Any]
    score: Callable[..., Any]
    loss: Callable[..., Any]
    dim: int
    is_dot_product: bool = False


class LocalResult(NamedTuple):
    """What local training returns: new private parameters, the changes, loss and work."""

    private: PyTree
    rows: Array  # f32[L, D], change of each example's row; zero where masked
    shared: PyTree  # change of the shared parameters
    loss: Array  # f32[], mean over the last epoch
    epochs: int  # passes over the examples


# (private, shared, rows f32[L, D], label f32[L], mask bool[L], basis=None) -> LocalResult
# Given a basis f32[r, D] of orthogonal vectors of one length, item rows step within its span alone,
# weight decay included, as many times as far as the square of that length.
LocalTraining = Callable[..., LocalResult]


class Transform(NamedTuple):
    """A change of the update before the codec: clipping, noise, pseudo-items, attackers.

    Attributes:
      apply: (ctx, key, role i32[], Update) -> Update. Rows may be dropped by their mask alone.
    """

    apply: Callable[..., Update]


class Codec(NamedTuple):
    """From an item delta to a payload and back. All functions are for ONE client.

    Attributes:
      name: as in the registry.
      fields: sizes -> tuple of Field; bits (and bytes) derive from it and nothing else.
      init: sizes -> per-client state (one client's; an empty tuple for stateless codecs).
      prepare: (ctx, key, ItemDelta) -> Prepared.
      encode: (ctx, key, ItemDelta, Prepared, k i32[], state) -> (Payload, state).
      decode: (ctx, Payload) -> ItemDelta, or LabelledDelta.
      max_actions: static maximum K of actions; 0 for codecs without a budget.
      lossless: decode(encode(delta)) == delta.
      unbiased: the decoded delta's mean over the codec's randomness is the delta, up to rounding.
      basis: ctx -> f32[r, D], orthogonal vectors of one length, in whose span local training keeps
        item rows' steps, and stretches them by the length's square; None: they step freely.
      support: which rows a decoded payload speaks of, against those touched:
        'exact' | 'subset' | 'superset' | 'all'.
    """

    name: str
    fields: Callable[[Sizes], tuple[Field, ...]]
    init: Callable[[Sizes], PyTree]
    prepare: Callable[..., Prepared]
    encode: Callable[..., tuple[Payload, PyTree]]
    decode: Callable[..., Decoded]
    max_actions: int = 0
    lossless: bool = False
    unbiased: bool = False
    support: str = "exact"
    basis: Callable[[Context], Array] | None = None


def unprepared(ctx: Context, key: Array, delta: ItemDelta) -> Prepared:
    """`Codec.prepare` of a codec that tells budgets nothing and has no work to keep."""
    del ctx, key, delta
    return Prepared(error=None, work=())


class Budget(NamedTuple):
    """How many actions a client may send.

    A policy sees one client, and what the server has told everyone: its state, a few numbers that
    go out with the round (their bytes are not counted) and that the server changes by what it
    received.

    Attributes:
      allocate: (Outlook, state) -> k i32[].
      max_actions: the most it ever grants, None if that is only known to it at run time.
      init: () -> state.
      update: (state, Tally) -> state.
      report: (Outlook, state) -> f32[], a number that every client sends with its payload, in 32
        bits; None where there is nothing to report.
      needs_error: it looks at `Outlook.error`.
      n_clients: clients that it knows, 0 for any.
      most_bits: (up_bps [U], s [U] that clients are busy with before they send, at least) -> the
        most bits that each may send, or one number for all; None where there is no such bound.
    """

    allocate: Callable[..., Array]
    max_actions: int | None = None
    init: Callable[[], PyTree] = tuple
    update: Callable[..., PyTree] = lambda state, tally: state
    report: Callable[..., Array] | None = None
    needs_error: bool = False
    n_clients: int = 0
    most_bits: Callable[..., Any] | None = None


class Sampler(NamedTuple):
    """Who takes part.

    Attributes:
      sample: (key, available bool[U] or None for everyone) -> Cohort of `capacity` slots. Who is
        not available is not drawn.
      capacity: slots of a cohort.
      period: rounds that share a key; where there are several, `sample` is told as a third
        argument which of them this is: i32[].
    """

    sample: Callable[..., Cohort]
    capacity: int
    period: int = 1


class Arrival(NamedTuple):
    """When a round ends, and whose payload counts.

    Attributes:
      settle: (seconds f32[P], present bool[P], finished bool[P], slots that the next cohort needs)
        -> Settled, over all that is in flight.
      alone: (seconds f32[], finished bool[]) -> bool[], whether a payload counts, where that does
        not depend on the others: then payloads are reduced as they are made, and none is kept.
        None where it does.
      weigh: staleness i32[P], rounds since a payload was sent -> factor f32[] of its weight.
      in_flight: payloads that can be on their way at once; 0: those of one cohort.
      wanted: payloads that it waits for, at most those of a cohort; 0: whoever was drawn.
      deadline: seconds after which nothing counts, None where there is none.
    """

    settle: Callable[..., Settled]
    alone: Callable[..., Array] | None = None
    weigh: Callable[[Array], Array] | None = None
    in_flight: int = 0
    wanted: int = 0
    deadline: Number | None = None


class Reducer(NamedTuple):
    """Folds decoded item deltas into one change of the table.

    Attributes:
      zero: sizes -> accumulator; accumulators of disjoint sets of clients merge by +. Where tables
        are spread over devices (`shards`) sizes are those of a device's own rows, and `add` sees
        the deltas of all devices: leaves must have a leading axis of items, or be a number.
      add: (acc, Decoded with leading axis c, weight f32[c]) -> acc. What a client of weight 0
        sent counts as nothing, whatever it holds: it may be infinite.
      finish: acc -> f32[M, D], the mean change.
    """

    zero: Callable[[Sizes], PyTree]
    add: Callable[..., PyTree]
    finish: Callable[[PyTree], Array]


class Algorithm(NamedTuple):
    """Federated training as two pure functions, and the static facts a caller needs.

    Attributes:
      init: () -> FedState.
      step: (FedState, Histories, Cohort or None) -> (FedState, RoundInfo). Without a cohort the
        sampler draws the one that belongs to the round.
      sizes, fields: for turning counts into bits; `fields` has the shared parameters last.
      n_shared: dense shared parameters of the model.
      down_fields: of what the server publishes after a round, for its `counts_down`.
      snapshot_bits: size of the whole public table as a client can fetch it, header included.
      draw: round i32[] -> the Cohort that the sampler draws for it; None where that depends on who
        is still at work, or on the time.
      gather: FedState -> the same as one device would have it, for a host to keep
        (`flight.scatter` is the way back).
    """

    init: Callable[..., FedState]
    step: Callable[..., tuple[FedState, RoundInfo]]
    sizes: Sizes
    fields: tuple[Field, ...]
    n_shared: int
    down_fields: tuple[Field, ...]
    snapshot_bits: int
    draw: Callable[[Array], Cohort] | None = None
    gather: Callable[[FedState], FedState] = lambda state: state

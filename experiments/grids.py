"""The arms of `experiments.pareto`, if none are named.

Budgets are bytes up of a client of MovieLens-1M at D=64 with 4 negatives, on the average: 800
touched rows of 3,706. They lie in four classes, near 0.5, 1 to 2, 4 and 16 kB. Header and touched
set alone are 280 bytes, and a bit for each entry of the rows is 6.6 kB. A codec that cannot be as
small or as large as a class, or is too slow there for two hours, has the nearest sizes that it can.
Ours and the paper's, which all others are compared with, have more.
"""

# What codecs have to beat: the table itself, and the touched rows of a narrower one.
REFERENCES = ("dense", "rows:spec.dim=1", "rows:spec.dim=4")

# The strongest codecs, each with the settings that did best of those tried (docs/results.md).
BUDGETS = (
    # ours: levels along few directions, and rows of the paper
    *(f"directional:k={k}" for k in (2, 4, 8, 16)),
    *("directional:k=64,rank=12", "directional:k=64,rank=48"),
    *(f"actions:k={k},dtype=float16" for k in (2, 4, 6, 8, 24, 64)),
    # several codebooks
    *("product:k=2,parts=2", "product:k=4,parts=2", "product:k=16,parts=4", "product:k=16,parts=8"),
    *("residual:k=2,stages=2", "residual:k=4,stages=2"),
    *("residual:k=8,stages=3", "residual:k=32,stages=3"),
    # low rank: levels have no use for more than about 1 kB, and svd and colr start at 1.9 kB
    *(f"transform:rank=1,bits={b}" for b in (1, 2, 3, 4)),
    "transform:rank=2,bits=8",
    *(f"svd:rank={r}" for r in (1, 2, 4, 8)),
    *(f"colr:rank={r},dtype=float16" for r in (1, 2, 4, 8)),
    # fewer bits an entry: in a narrower table where they are to be few bytes, and for the fewest
    # with one scale for the payload
    *("rotated:bits=1,spec.dim=8", "rotated:bits=1,spec.dim=16"),
    *("rotated:bits=1", "rotated:bits=2"),
    *(f"quantized:bits=1,scale=payload,spec.dim={d}" for d in (4, 8)),
    *("quantized:bits=1,spec.dim=16", "quantized:bits=1", "quantized:bits=2"),
    "sign",
    # sparse, what is left out is remembered, and the mean is over the cohort, with a longer step:
    # with 512 entries over those who sent an item it was far worse
    *(
        f"top_entries:entries={n},dtype=float16,spec.feedback_rows=256,spec.reducer=cohort_mean,"
        "spec.server_lr=4"
        for n in (128, 512, 1280, 5120)
    ),
)

CORE = (*REFERENCES, *BUDGETS)

# Rivals as they were published, one in 64 of the table's values, and what the server sends back
# through the same codec, where what is lost is lost. They name their step size, so that --tune
# leaves them alone; beside them the same codecs at their best in the same bytes up.
PUBLISHED = (
    *("dense", "directional:k=16"),
    "colr:rank=1,spec.client_lr=0.5",
    "colr:rank=1",
    "svd:rank=1,spec.client_lr=0.5,spec.downlink=svd,spec.downlink_args.rank=1,"
    "spec.downlink_feedback=False",
    "svd:rank=1",
    "top_entries:entries=3706,spec.client_lr=0.5,spec.downlink=top_entries,"
    "spec.downlink_args.entries=3706,spec.downlink_feedback=False",
    "top_entries:entries=3706",
)

MORE = (
    *("rows", "ternary", "dense:spec.dim=8", "dense:spec.dim=16"),
    # ours: levels along few directions, and rows of the paper
    "directional:k=64",
    *("directional:k=16,rank=2", "directional:k=64,rank=2"),
    *(f"directional:k={k},labels=entropy" for k in (4, 16, 64)),
    *("actions:k=16,dtype=float16", "actions:k=32,dtype=float16", "actions:k=16"),
    *(f"actions:k={k},dtype=float16,labels=entropy" for k in (4, 16, 64)),
    # several codebooks
    *("product:k=8,parts=2", "product:k=16,parts=2", "product:k=32,parts=8"),
    *("residual:k=8,stages=2", "residual:k=16,stages=2"),
    *("residual:k=8,stages=4", "residual:k=16,stages=4"),
    # between, and more than levels of up to 31 have use for, at first
    "transform:rank=4,bits=16",
    # entropy-coded
    "product:k=16,parts=4,labels=entropy",
    "residual:k=8,stages=3,labels=entropy",
    *(f"quantized:bits={b},scale=payload,codes=entropy" for b in (2, 4)),
    # a shared basis in float32
    *(f"colr:rank={r}" for r in (1, 2, 4, 8)),
    # sparse, with the mean over those who sent an item
    *(
        f"top_entries:entries={n},dtype=float16,spec.feedback_rows=256"
        for n in (128, 512, 1280, 5120)
    ),
    # and without feedback
    *(f"top_rows:rows={n},dtype=float16" for n in (4, 8, 16, 32, 64, 128)),
    *(f"top_entries:entries={n},dtype=float16" for n in (128, 256, 512, 1024, 2048, 4096)),
    *(f"random_mask:keep={1 / n},dtype=float16" for n in (64, 32, 16, 8)),
    # hashed
    *(f"count_sketch:width={w},depth=3,dtype=float16" for w in (4, 8, 16, 32)),
    *(f"count_sketch:width={w},depth=1,dtype=float16" for w in (8, 32)),
    # fewer bits an entry, a scale a row or one for all
    *("quantized:bits=4", "quantized:bits=8", "quantized:bits=2,scale=payload"),
    "quantized:bits=1,scale=payload,spec.dim=32",
    *(f"rotated:bits={b}" for b in (3, 4)),
    *("dense:spec.dim=2", "dense:spec.dim=4", "dense:spec.dim=32"),
)

GRIDS = {
    "core": CORE,
    "published": PUBLISHED,
    "full": tuple(dict.fromkeys((*CORE, *MORE, *PUBLISHED))),
}

# Of `experiments.heterogeneity`. Failures and churn: one client in twenty fails in a round, and
# three in ten are away, for twenty rounds at a time. A slow uplink beside a fast downlink is where
# the number of actions matters most.
CHURN = "failure=0.05,availability=0.7,session=20"
PRESETS = ("constrained", "mobile", "three_tiers", "broadband")
SLOW_UPLINK = "homogeneous:up=20e3"
SCENARIOS = (
    *PRESETS,
    *(f"{name}:{CHURN}" for name in PRESETS),
    *(SLOW_UPLINK, f"{SLOW_UPLINK},{CHURN}"),
)

# Each arm's own downlink is the public table in 5 bits; where it is not named it is dense.
_OWN = "spec.snapshot_bits=5"
_ADAPTIVE = "spec.budget=adaptive"
_POLICIES = (
    "spec.budget=bandwidth,spec.budget_args.seconds=1.0,spec.budget_args.k_min=4",
    "spec.budget=distortion,spec.budget_args.tolerance=0.05",
    "spec.budget=joint,spec.budget_args.bytes_mean={bytes}",
    "spec.budget=round_time,spec.budget_args.seconds={seconds},spec.budget_args.k_min=4",
    "spec.budget=schedule,spec.budget_args.k=[4,16],spec.budget_args.until=[200]",
    _ADAPTIVE,
)
_FORMS = {"directional": 750, "actions": 2500}  # and the bytes of `joint`


def timed(scenario: str) -> tuple[str, ...]:
    """The arms of one of `SCENARIOS`.

    Beside the forms of actions what the downlink alone, and leaving out untouched rows, bring. With
    a dense downlink K=16 alone, and the default policy on the presets without churn: downloads
    are nearly all of the clock then, whatever the number of actions.
    """
    arms = ["dense", f"dense:{_OWN}", f"rows:{_OWN}"]
    slow, churn = scenario.startswith(SLOW_UPLINK), scenario.endswith(CHURN)
    for form, mean in _FORMS.items():
        policies = (p.format(bytes=mean, seconds=1.3 if slow else 60.0) for p in _POLICIES)
        arms += [f"{form}:k={k},{_OWN}" for k in ((2, 4, 8, 16) if slow else (4, 8, 16))]
        arms += [f"{form}:k=16,{_OWN},{policy}" for policy in policies]
        arms += [f"{form}:k=16"] if slow or churn else [f"{form}:k=16", f"{form}:k=16,{_ADAPTIVE}"]
    return tuple(arms)

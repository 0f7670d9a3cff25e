"""The arms of `experiments.pareto`, if none are named.

Budgets are bytes up of a client with about 830 touched rows of 3,706 items at D=64 (MovieLens-1M,
4 negatives), nearest to 1, 2, 4 and 8 kB where a codec can be that small: the touched set alone is
about 360 bytes, and a bit for each entry of its rows is 6.6 kB.
"""

# Not compressed, or in one form only. A narrower table is what a codec has to beat.
SINGLE = ("dense", "rows", "ternary", "sign", "dense:spec.dim=8", "dense:spec.dim=16")

BUDGETS = (
    # ours: levels along few directions, and rows of the paper
    *("directional:k=4", "directional:k=16"),
    *("directional:k=64,rank=2", "directional:k=64,rank=4"),
    *(f"actions:k={k},dtype=float16" for k in (4, 8, 16, 32)),
    # several codebooks
    "product:k=4,parts=2",
    *("product:k=16,parts=2", "product:k=16,parts=4", "product:k=32,parts=8"),
    "residual:k=2,stages=2",
    *("residual:k=4,stages=2", "residual:k=8,stages=2", "residual:k=8,stages=4"),
    # low rank
    *(f"svd:rank={r}" for r in (1, 2, 4, 8)),
    # sparse
    *(f"top_rows:rows={n},dtype=float16" for n in (8, 16, 32, 64)),
    *(f"top_entries:entries={n},dtype=float16" for n in (256, 512, 1024, 2048)),
    # hashed
    *(f"count_sketch:width={w},depth=3,dtype=float16" for w in (4, 8, 16, 32)),
    # fewer bits an entry: none is below 6.6 kB
    *(f"quantized:bits={b}" for b in (1, 2, 4, 8)),
    *(f"rotated:bits={b}" for b in (1, 2, 3, 4)),
)

MORE = (
    *(f"directional:k={k},labels=entropy" for k in (4, 16, 64)),
    *("directional:k=2", "directional:k=64", "directional:k=16,rank=2"),
    *(f"actions:k={k},dtype=float16" for k in (2, 64)),
    "actions:k=16",
    *(f"actions:k={k},dtype=float16,labels=entropy" for k in (4, 16, 64)),
    *("product:k=8,parts=2", "product:k=16,parts=8"),
    *("residual:k=16,stages=2", "residual:k=16,stages=4"),
    *(f"top_rows:rows={n},dtype=float16" for n in (4, 128)),
    *(f"top_entries:entries={n},dtype=float16" for n in (128, 4096)),
    *(f"random_mask:keep={1 / n},dtype=float16" for n in (64, 32, 16, 8)),
    *(f"colr:rank={r}" for r in (1, 2, 4, 8)),
    *(f"count_sketch:width={w},depth=1,dtype=float16" for w in (8, 32)),
    *("dense:spec.dim=2", "dense:spec.dim=4", "dense:spec.dim=32"),
)

GRIDS = {"core": (*SINGLE, *BUDGETS), "full": (*SINGLE, *BUDGETS, *MORE)}

# Of `experiments.heterogeneity`. Failures and churn: one client in twenty fails in a round, and
# three in ten are away, for twenty rounds at a time.
CHURN = "failure=0.05,availability=0.7,session=20"
PRESETS = ("constrained", "mobile", "three_tiers", "broadband")
SCENARIOS = (*PRESETS, *(f"{name}:{CHURN}" for name in PRESETS))

# Each arm's own downlink is the public table in 5 bits; the last ones have a dense one.
_OWN = "spec.snapshot_bits=5"
_POLICIES = (
    "spec.budget=bandwidth,spec.budget_args.seconds=1.0,spec.budget_args.k_min=4",
    "spec.budget=distortion,spec.budget_args.tolerance=0.05",
    "spec.budget=joint,spec.budget_args.bytes_mean={bytes}",
    "spec.budget=round_time,spec.budget_args.seconds=60.0,spec.budget_args.k_min=4",
    "spec.budget=schedule,spec.budget_args.k=[4,16],spec.budget_args.until=[200]",
    "spec.budget=adaptive",
)
TIMED = (
    "dense",
    *(f"directional:k={k},{_OWN}" for k in (2, 4, 8, 16, 32)),
    *(f"directional:k=16,{_OWN},{p.format(bytes=750)}" for p in _POLICIES),
    *(f"actions:k={k},{_OWN}" for k in (2, 4, 8, 16, 32)),
    *(f"actions:k=16,{_OWN},{p.format(bytes=2500)}" for p in _POLICIES),
    *("directional:k=16", "directional:k=16,spec.budget=adaptive"),
    *("actions:k=16", "actions:k=16,spec.budget=adaptive"),
)

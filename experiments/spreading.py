"""The flag that spreads item tables over devices, for the binaries that can."""

from absl import flags

SPREAD_ITEMS = flags.DEFINE_bool(
    "spread_items", False, "Spread the item tables over the devices too, if none can hold them."
)

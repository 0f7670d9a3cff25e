"""What clients' devices and networks are like: presets with sources, drawn with a seed.

Arrays are NumPy, float32 or int32 with leading axis U; speeds are bit/s and examples/s, latencies
round trips in seconds. Which client gets what depends on the seed alone.

Every figure below has its source beside it; what has none is called our choice. The level of
`compute` is our choice throughout: a small matrix factorisation (D = 64) costs about 1 kFLOP an
example, and we let a phone sustain 100 MFLOP/s, a microcontroller 10 and a computer 1000.

Sources:
  FedScale: github.com/SymbioticLab/FedScale, arXiv:2105.11367; its file `client_device_capacity`
    has one speed and one bandwidth for each of 500 000 clients.
  AwareNet: github.com/sijoon-sung/AwareNet, a third party that summed up that file.
  FLASH: github.com/PKU-Chengxu/FLASH, arXiv:2006.06983; `models/speed_distri.json` has mean and
    deviation of 19 Wi-Fi lines.
  Firefox: the throttling table of its developer tools, devtools/docs/user/network_monitor.
  WebPageTest: github.com/catchpoint/WebPageTest, www/settings/connectivity.ini.sample.
  Ookla 2022: telecompetitor.com/cox-nears-200-mbps-download-in-june-ookla-speedtest-results, the
    United States.
  Ofcom 2011: thinkbroadband.com/news/5010, recombu.com/digital (m10264). Ofcom 2023:
    techdigest.tv/2023/09/latest-home-broadband-speed-increases-to-69-mb-s-claims-ofcom-report.html.
  M5Stack: docs.m5stack.com/zh_CN/module/nb-iot. mbedded: blog.mbedded.ninja, Cellular.
  RF Wireless World: rfwireless-world.com, LTE-M device categories. Arduino: arduino/docs-content.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from fedras_jax.errors import SpecError
from fedras_jax.types import Profile

_PHONE, _MICROCONTROLLER, _COMPUTER = 1e5, 1e4, 1e6  # examples/s, our choice

# FLASH: a Wi-Fi line's deviation is 0.37 to 0.40 of its mean (median of 19 lines, down and up),
# 0.36 to 0.38 as that of a logarithm. That other radios are as unsteady is our choice.
_RADIO_JITTER = 0.37


class _Tier(NamedTuple):
    """A kind of client: its weight against the other kinds, and what all of them have."""

    weight: int
    compute: float
    up: float
    down: float
    latency: float


class _Spread(NamedTuple):
    """A lognormal: its median, and the standard deviation of its logarithm."""

    median: float
    sigma: float


class _Spreads(NamedTuple):
    """The lognormals of a preset without tiers."""

    compute: _Spread
    up: _Spread
    down: _Spread
    latency: _Spread


# Three kinds of device: the weights are our choice. Networks: Firefox's "Regular 3G", "Regular
# 4G/LTE" and "Wi-Fi". Compute: the medians of the slowest 4/10, the middle 3/10 and the fastest
# 3/10 of FedScale's spread (below), exp(0.6 z) at the quantiles 0.2, 0.55 and 0.85.
_THREE_TIERS = (
    _Tier(4, 0.60 * _PHONE, up=250e3, down=750e3, latency=0.100),
    _Tier(3, 1.08 * _PHONE, up=3e6, down=4e6, latency=0.020),
    _Tier(3, 1.86 * _PHONE, up=15e6, down=30e6, latency=0.002),
)

# Compute: FedScale's own alternative to its file is a lognormal with sigma 0.6 (`tail_skew` in
# fedscale/cloud/internal/client_metadata.py). The AI-Benchmark list of phones that FLASH ships is
# far wider (307 models, unweighted, quartiles 1544 and 13864: sigma 1.6); it scores accelerators,
# which this model would not use.
# Bandwidth: median 6.1 Mbit/s and 26 % below 3 Mbit/s (AwareNet, scripts/analysis/
# simchk_realism.py), hence sigma ln(6.1 / 3) / 0.643 = 1.1. FedScale has one bandwidth for both
# directions, and so have we. The file's description gives no unit; its first aggregator divides
# kbit by it (issue 9), while a later comment speaks of MB. We read kbit/s; were it kB/s, all
# would be 8 times faster.
# Latency: the middle one of three operators, 31, 32 and 34 ms (Ookla 2022); sigma: our choice.
_MOBILE = _Spreads(
    compute=_Spread(_PHONE, 0.6),
    up=_Spread(6.1e6, 1.1),
    down=_Spread(6.1e6, 1.1),
    latency=_Spread(0.032, 0.5),
)

# FLASH: medians 3286 up and 4318 down, deviations of the logarithm 0.70 and 0.48 (19 lines). The
# code calls the unit "kb/s" and divides kilobytes by it (`graph_size` is in bytes), so that we
# read kB/s: 26 and 35 Mbit/s, near Firefox's "Wi-Fi" of 15 and 30. As kbit/s all would be 8 times
# slower. Compute: as above. Latency: the median of fixed lines (Ookla 2022); sigma: our choice.
_WIFI = _Spreads(
    compute=_Spread(_PHONE, 0.6),
    up=_Spread(8 * 3286e3, 0.70),
    down=_Spread(8 * 4318e3, 0.48),
    latency=_Spread(0.014, 0.5),
)

# The weights are our choice. Rates are the standards' peaks, which the field rarely sees.
_CONSTRAINED = (
    # NB-IoT Cat NB1, single tone: 15.625 up, 21.25 down (M5Stack); 1.6 s to 10 s (mbedded).
    _Tier(3, _MICROCONTROLLER, up=15.625e3, down=21.25e3, latency=1.6),
    # GPRS (Firefox).
    _Tier(3, _MICROCONTROLLER, up=20e3, down=50e3, latency=0.5),
    # NB-IoT Cat NB1, multi-tone: 62.5 up (M5Stack), the rest as with a single tone.
    _Tier(3, _MICROCONTROLLER, up=62.5e3, down=21.25e3, latency=1.6),
    # LTE-M Cat M1, half duplex: 375 up, 300 down (RF Wireless World); 50 to 100 ms (Arduino).
    _Tier(1, _MICROCONTROLLER, up=375e3, down=300e3, latency=0.1),
)

# Weights: 12 % of British lines are below 30 Mbit/s (Ofcom 2023), which we let be ADSL; cable
# against fibre is our choice.
_BROADBAND = (
    # ADSL2+: 7.0 down (thinkbroadband) and 0.8 up (recombu; both Ofcom 2011); 50 ms (WebPageTest).
    _Tier(12, _COMPUTER, up=0.8e6, down=7.0e6, latency=0.050),
    # Cable: Xfinity's medians (Ookla 2022).
    _Tier(50, _COMPUTER, up=18.88e6, down=184.08e6, latency=0.014),
    # Fibre: Verizon's medians (Ookla 2022).
    _Tier(38, _COMPUTER, up=112.36e6, down=171.01e6, latency=0.008),
)


def homogeneous(
    n_clients: int,
    *,
    seed: int = 0,
    availability: float = 1.0,
    session: int = 1,
    failure: float = 0.0,
    jitter: float = 0.0,
    compute: float = _PHONE,
    up: float = _MOBILE.up.median,
    down: float = _MOBILE.down.median,
    latency: float = _MOBILE.latency.median,
) -> Profile:
    """Everyone is alike: by default a phone with the medians of `mobile`. `seed` changes nothing.

    Args:
      compute: examples/s; up, down: bit/s; latency: s; the others as in `types.Profile`.

    Raises:
      SpecError: no clients, or a value out of its range (see `check`).
    """
    columns = _by_tier((_Tier(1, compute, up, down, latency),), n_clients, seed)
    return _finish(columns, n_clients, availability, session, failure, jitter)


def three_tiers(
    n_clients: int,
    *,
    seed: int = 0,
    availability: float = 1.0,
    session: int = 1,
    failure: float = 0.0,
    jitter: float = 0.0,
) -> Profile:
    """Weak, medium and strong devices, 4:3:3: 3G, 4G and Wi-Fi as Firefox emulates them.

    Clients of unequal means are those of heterogeneous federated recommendation (HeteFedRec,
    arXiv:2307.12810, gives them models of different sizes); three kinds, 4:3:3, are our choice.

    Raises:
      SpecError: no clients, or a value out of its range (see `check`).
    """
    columns = _by_tier(_THREE_TIERS, n_clients, seed)
    return _finish(columns, n_clients, availability, session, failure, jitter)


def mobile(
    n_clients: int,
    *,
    seed: int = 0,
    availability: float = 1.0,
    session: int = 1,
    failure: float = 0.0,
    jitter: float = _RADIO_JITTER,
    correlation: float = 0.0,
) -> Profile:
    """Phones on cellular networks, spread as FedScale's: median 6.1 Mbit/s, a quarter below 3.

    `tier` is the tercile of the uplink.

    Args:
      correlation: between the logarithms of compute and of the network's speeds, -1 to 1. By
        default none, as FedScale takes the two from separate data sets.

    Raises:
      SpecError: no clients, or a value out of its range (see `check`).
    """
    columns = _by_spread(_MOBILE, n_clients, seed, correlation)
    return _finish(columns, n_clients, availability, session, failure, jitter)


def wifi(
    n_clients: int,
    *,
    seed: int = 0,
    availability: float = 1.0,
    session: int = 1,
    failure: float = 0.0,
    jitter: float = _RADIO_JITTER,
    correlation: float = 0.0,
) -> Profile:
    """Phones on Wi-Fi, spread as the lines that FLASH measured: medians 26 Mbit/s up, 35 down.

    `tier` is the tercile of the uplink; `correlation` is as in `mobile`.

    Raises:
      SpecError: no clients, or a value out of its range (see `check`).
    """
    columns = _by_spread(_WIFI, n_clients, seed, correlation)
    return _finish(columns, n_clients, availability, session, failure, jitter)


def constrained(
    n_clients: int,
    *,
    seed: int = 0,
    availability: float = 1.0,
    session: int = 1,
    failure: float = 0.0,
    jitter: float = _RADIO_JITTER,
) -> Profile:
    """Microcontrollers on low-power and 2G links; six in ten send at 20 kbit/s or less.

    Tiers: NB-IoT single tone, GPRS, NB-IoT multi-tone, LTE-M; 3:3:3:1, our choice.

    Raises:
      SpecError: no clients, or a value out of its range (see `check`).
    """
    columns = _by_tier(_CONSTRAINED, n_clients, seed)
    return _finish(columns, n_clients, availability, session, failure, jitter)


def broadband(
    n_clients: int,
    *,
    seed: int = 0,
    availability: float = 1.0,
    session: int = 1,
    failure: float = 0.0,
    jitter: float = 0.1,
) -> Profile:
    """Computers on fixed lines that download faster than they upload, ADSL and cable 9-fold.

    Tiers: ADSL, cable, fibre; 12:50:38. The jitter is our choice.

    Raises:
      SpecError: no clients, or a value out of its range (see `check`).
    """
    columns = _by_tier(_BROADBAND, n_clients, seed)
    return _finish(columns, n_clients, availability, session, failure, jitter)


class _Rule(NamedTuple):
    """What a column is cast to, its bounds, whether they are allowed, and how messages put it."""

    kind: type
    low: float
    high: float
    closed: tuple[bool, bool]
    choose: str


_INT32 = 2.0**31
_RULES = {
    "compute": _Rule(np.float32, 0, np.inf, (False, False), "more than 0 examples/s"),
    "up": _Rule(np.float32, 0, np.inf, (False, False), "more than 0 bit/s"),
    "down": _Rule(np.float32, 0, np.inf, (False, False), "more than 0 bit/s"),
    "latency": _Rule(np.float32, 0, np.inf, (True, False), "0 s or more"),
    "availability": _Rule(np.float32, 0, 1, (False, True), "a share in (0, 1]"),
    "session": _Rule(np.int32, 1, _INT32, (True, False), "whole rounds, 1 or more"),
    "failure": _Rule(np.float32, 0, 1, (True, False), "a probability in [0, 1)"),
    "jitter": _Rule(np.float32, 0, np.inf, (True, False), "a deviation of 0 or more"),
    "tier": _Rule(np.int32, 0, _INT32, (True, False), "a whole number, 0 or more"),
}

_AWAY = _Rule(np.float32, 0, 1, (True, True), "a share in [0, 1]")


def check(
    profile: Profile, n_entries: int, *, away: bool = False, owner: np.ndarray | None = None
) -> Profile:
    """The profile as NumPy float32 and int32, once it is known to be one of so many entries.

    Args:
      profile: one entry a client, or a stretch of a trace.
      n_entries: how many.
      away: whether availability may be 0, for a while.
      owner: int [n_entries], the clients that entries belong to; one each when None.

    Raises:
      SpecError: no clients; a column of another length, or of anything but numbers; a value that
        is not finite once cast, or out of its range, with its column and the first such client.
    """
    if n_entries < 1:
        raise SpecError(f"a profile of {n_entries} clients: choose 1 or more")
    columns: dict[str, Any] = {
        name: _checked(name, np.asarray(getattr(profile, name)), n_entries, away, owner)
        for name in _RULES
    }
    return Profile(**columns)


def _checked(
    name: str, found: np.ndarray, n_entries: int, away: bool, owner: np.ndarray | None
) -> np.ndarray:
    """A column, cast."""
    rule = _AWAY if away and name == "availability" else _RULES[name]
    if found.shape != (n_entries,):
        raise SpecError(
            f"the profile's {name}: expected {n_entries} of them, one a client, got {found.shape}"
        )
    if found.dtype.kind not in "iuf":
        raise SpecError(f"the profile's {name}: expected numbers, got {found.dtype}")
    values = found
    if rule.kind is np.float32:
        with np.errstate(over="ignore", under="ignore"):
            values = found.astype(np.float32)
    above = values >= rule.low if rule.closed[0] else values > rule.low
    below = values <= rule.high if rule.closed[1] else values < rule.high
    # NaN is neither; infinity is not below infinity.
    good = above & below
    if rule.kind is np.int32:
        good &= values == np.floor(values)
    if not good.all():
        at = int(np.argmin(good))
        client = at if owner is None else owner[at]
        raise SpecError(
            f"the profile's {name} of client {client} is {found[at].item()}: choose {rule.choose}"
        )
    return values.astype(rule.kind)


def _by_tier(tiers: tuple[_Tier, ...], n_clients: int, seed: int) -> dict[str, np.ndarray]:
    """Clients in tiers, whose sizes are off their shares by less than one, in a drawn order."""
    rng = _generator(n_clients, seed)
    weights = np.cumsum([tier.weight for tier in tiers])
    # Each tier ends at its cumulated share of the clients, rounded; integers, so that it is exact.
    ends = (2 * weights * n_clients + weights[-1]) // (2 * weights[-1])
    tier = rng.permutation(np.searchsorted(ends, np.arange(n_clients), side="right"))
    table = np.array(tiers)
    columns = {name: table[tier, _Tier._fields.index(name)] for name in _Tier._fields[1:]}
    return {**columns, "tier": tier}


def _by_spread(
    spreads: _Spreads, n_clients: int, seed: int, correlation: float
) -> dict[str, np.ndarray]:
    """Lognormal draws: a Gaussian copula of the device and its network.

    One standard normal number moves up, down and, the other way, latency.
    """
    rng = _generator(n_clients, seed)
    if not -1 <= correlation <= 1:
        raise SpecError(f"correlation {correlation} of compute and network: choose -1 to 1")
    network, own = rng.standard_normal((2, n_clients))
    device = correlation * network + math.sqrt(1 - correlation**2) * own
    normal = {"compute": device, "up": network, "down": network, "latency": -network}
    columns = {
        name: getattr(spreads, name).median * np.exp(getattr(spreads, name).sigma * z)
        for name, z in normal.items()
    }
    tier = np.empty(n_clients, np.int32)
    tier[np.argsort(network)] = 3 * np.arange(n_clients) // n_clients
    return {**columns, "tier": tier}


def _generator(n_clients: int, seed: int) -> np.random.Generator:
    if n_clients < 1:
        raise SpecError(f"a profile of {n_clients} clients: choose 1 or more")
    if seed < 0:
        raise SpecError(f"the profile's seed {seed}: choose 0 or more")
    return np.random.default_rng(seed)


def _finish(
    columns: dict[str, np.ndarray],
    n_clients: int,
    availability: float,
    session: int,
    failure: float,
    jitter: float,
) -> Profile:
    """Adds what all clients share, and checks."""
    shared = {
        "availability": availability,
        "session": session,
        "failure": failure,
        "jitter": jitter,
    }
    every: dict[str, Any] = {
        **columns,
        **{name: np.full(n_clients, value) for name, value in shared.items()},
    }
    return check(Profile(**every), n_clients)

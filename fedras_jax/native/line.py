"""`kmeans1d`: optimal clusters of binned values on the line, and what is read off the table."""

import numpy as np

from fedras_jax.native import bridge
from fedras_jax.native.vectors import fill

_F = np.float32
_REFINEMENTS = 4  # those of `kmeans1d`
_TINY = _F(1e-30)


@bridge.loop
def place_in(unit, low, n_bins, place):
    """The last bin that begins at or below each value, by comparing with every edge."""
    fill(place, 0)
    b = 1
    while b + 4 <= n_bins:
        p, q, r, s = low[b], low[b + 1], low[b + 2], low[b + 3]
        for i in range(unit.shape[0]):
            x = unit[i]
            place[i] += np.int32(x >= p) + np.int32(x >= q) + np.int32(x >= r) + np.int32(x >= s)
        b += 4
    while b < n_bins:
        p = low[b]
        for i in range(unit.shape[0]):
            place[i] += np.int32(unit[i] >= p)
        b += 1


@bridge.exact
def adaptive_bins(unit, weight, bins, low, high, place, mass, share, fresh):
    """`kmeans1d._adaptive_bins` into `low`; the others are scratch."""
    n = bins // _REFINEMENTS
    for b in range(n):
        low[b], high[b] = _F(b) / _F(n), _F(b + 1) / _F(n)
    for level in range(1, _REFINEMENTS):
        size = bins * (level + 1) // _REFINEMENTS
        place_in(unit, low, n, place)
        fill(mass[:n], 0)
        for i in range(unit.shape[0]):
            mass[place[i]] += weight[i]
        total, filled = _F(0), 0
        for b in range(n):
            share[b] = 0
            if mass[b] > 0:
                filled += 1
                width = high[b] - low[b]
                share[b] = np.cbrt(mass[b] * width * width)
                total += share[b]
        spare = _F(size - filled)
        running, before, used = _F(0), _F(0), 0
        for b in range(n):
            if not mass[b] > 0:
                continue
            width = high[b] - low[b]
            running += share[b]
            # A thousandth more, so that rounding in the last place does not decide on a bin.
            reach = np.floor(running / max(total, _TINY) * spare + _F(1e-3))
            parts = 1 + int(reach - before)
            before = reach
            for part in range(parts):
                fresh[0, used] = low[b] + width * (_F(part) / _F(parts))
                fresh[1, used] = (
                    high[b] if part + 1 == parts else low[b] + width * (_F(part + 1) / _F(parts))
                )
                used += 1
        for b in range(size):
            low[b] = fresh[0, b] if b < used else np.inf
            high[b] = fresh[1, b] if b < used else np.inf
        n = size


@bridge.loop
def interval_costs(mass, mean, cost, across, run):
    """`cost[end, begin]` of the bins from begin to end in one cluster, and `across` transposed."""
    n = mass.shape[0]
    total, centre, error = run[0], run[1], run[2]
    for b in range(n + 1):
        total[b], centre[b], error[b] = 0, 0, 0
        fill(cost[b], np.inf)
        fill(across[b], np.inf)
    cost[0, 0], across[0, 0] = 0, 0
    for j in range(n):
        w, m = mass[j], mean[j]
        for b in range(j + 1):
            gap = m - centre[b]
            share = w / max(total[b] + w, _TINY)
            error[b] += total[b] * share * gap * gap
            centre[b] += share * gap
            total[b] += w
            cost[j + 1, b] = error[b]
        for b in range(j + 2):
            across[b, j + 1] = error[b]
        cost[j + 1, j + 1] = 0


@bridge.loop
def lower(best, before, cost):
    for e in range(best.shape[0]):
        found, old = before + cost[e], best[e]
        best[e] = found if found < old else old


@bridge.loop
def programme(across, best):
    """Least costs of the first bins, for one cluster more in every row of `best`."""
    n = across.shape[0]
    fill(best[0], np.inf)
    best[0, 0] = 0
    for k in range(1, best.shape[0]):
        fill(best[k], np.inf)
        for b in range(n):
            lower(best[k, b:], best[k - 1, b], across[b, b:])


@bridge.exact
def finite(values, mask):
    """Whether all that counts is."""
    wrong = 0
    for i in range(values.shape[0]):
        wrong += np.int32(mask[i] and not np.isfinite(values[i]))
    return wrong == 0


@bridge.loop
def table(values, mask, weight, error, best, cost, mass, mean, scratch, place):
    if not finite(values, mask):
        fill(error, np.nan)
        fill(mass, np.nan)
        fill(mean, np.nan)
        for k in range(best.shape[0]):
            fill(best[k], np.nan)
        for b in range(cost.shape[0]):
            fill(cost[b], np.nan)
        return
    n, bins = values.shape[0], mass.shape[0]
    low, high, some = _F(np.inf), _F(-np.inf), False
    for i in range(n):
        if mask[i]:
            some = True
            low = values[i] if values[i] < low else low
            high = values[i] if values[i] > high else high
    low, high = (low, high) if some else (_F(0), _F(0))
    scale = high - low if high > low else _F(1)
    at = 5 * (bins + 1)
    edges = scratch[:at].reshape(5, bins + 1)
    across = scratch[at : at + (bins + 1) ** 2].reshape(bins + 1, bins + 1)
    at += (bins + 1) ** 2
    run = scratch[at : at + 3 * (bins + 1)].reshape(3, bins + 1)
    unit = scratch[at + 3 * (bins + 1) : at + 3 * (bins + 1) + n]
    for i in range(n):
        unit[i] = (values[i] - low) / scale if mask[i] else _F(0)
    adaptive_bins(unit, weight, bins, edges[0], edges[1], place, mass, edges[2], edges[3:])
    place_in(unit, edges[0], bins, place)
    fill(mass, 0)
    fill(mean, 0)
    for i in range(n):
        mass[place[i]] += weight[i]
        mean[place[i]] += weight[i] * unit[i]
    for b in range(bins):
        mean[b] /= max(mass[b], _TINY)
    interval_costs(mass, mean, cost, across, run)
    programme(across, best)
    within, nothing = _F(0), _F(0)
    for i in range(n):
        gap = unit[i] - mean[place[i]]
        within += weight[i] * gap * gap
        nothing += weight[i] * values[i] * values[i] if mask[i] else _F(0)
    error[0] = nothing
    for k in range(1, error.shape[0]):
        error[k] = (best[k, bins] + within) * scale * scale
    for b in range(bins):
        mean[b] = mean[b] * scale + low


def table_scratch(n, bins):
    """Numbers that `table` needs room for."""
    return (bins + 1) ** 2 + 8 * (bins + 1) + n


@bridge.loop
def nearest(values, level, k, label, least):
    """The nearest of the first k levels, the lowest where two are equally near."""
    for i in range(values.shape[0]):
        label[i] = 0
        least[i] = abs(values[i] - level[0])
    for c in range(1, k):
        at = level[c]
        for i in range(values.shape[0]):
            # All is read before it is chosen from: what may not be read is no vector.
            gap, before, old = abs(values[i] - at), least[i], label[i]
            label[i] = np.int32(c) if gap < before else old
            least[i] = gap if gap < before else before


@bridge.exact
def read(best, cost, mass, mean, k, level):
    """The levels of k clusters, from the last to the first."""
    end = mass.shape[0]
    for cluster in range(k, 0, -1):
        begin, least = 0, _F(np.inf)
        for b in range(end + 1):
            total = best[cluster - 1, b] + cost[end, b]
            if total < least:
                begin, least = b, total
        weight, total = _F(0), _F(0)
        for b in range(begin, end):
            weight += mass[b]
            total += mass[b] * mean[b]
        # An empty cluster repeats the value where it would begin, and takes no points.
        level[cluster - 1] = total / weight if weight > 0 else mean[min(end, mass.shape[0] - 1)]
        end = begin


@bridge.exact
def levels(values, mask, weight, best, cost, mass, mean, k, polish, level, label, scratch):
    n, n_clusters = values.shape[0], level.shape[0]
    if np.isnan(mean[0]) or not finite(values, mask):
        fill(level, np.nan)
        fill(label, 0)
        return
    k = min(max(k, 0), n_clusters)
    fill(level, 0)
    read(best, cost, mass, mean, k, level)
    least, mass_of = scratch[:n], scratch[n : n + n_clusters]
    sum_of = scratch[n + n_clusters : n + 2 * n_clusters]
    for _ in range(polish):
        nearest(values, level, k, label, least)
        fill(mass_of, 0)
        fill(sum_of, 0)
        for i in range(n):
            mass_of[label[i]] += weight[i]
            # From the level: sums of values far from zero would lose its digits.
            sum_of[label[i]] += weight[i] * (values[i] - level[label[i]])
        for c in range(k):
            level[c] += sum_of[c] / mass_of[c] if mass_of[c] > 0 else _F(0)
    nearest(values, level, k, label, least)
    for i in range(n):
        label[i] = label[i] if mask[i] else 0
    for c in range(k, n_clusters):
        level[c] = level[k - 1] if k > 0 else _F(0)


def levels_scratch(n, n_clusters):
    """Numbers that `levels` needs room for."""
    return n + 2 * n_clusters


@bridge.target("line_table")
def run_table(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            table(
                bridge.f32_1(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.f32_1(bridge.operand(frame, 2), like, at),
                bridge.f32_1(like, like, at),
                bridge.f32_2(bridge.result(frame, 1), like, at),
                bridge.f32_2(bridge.result(frame, 2), like, at),
                bridge.f32_1(bridge.result(frame, 3), like, at),
                bridge.f32_1(bridge.result(frame, 4), like, at),
                bridge.f32_1(bridge.result(frame, 5), like, at),
                bridge.i32_1(bridge.result(frame, 6), like, at),
            )
    return 0


@bridge.target("line_levels")
def run_levels(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            levels(
                bridge.f32_1(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.f32_1(bridge.operand(frame, 2), like, at),
                bridge.f32_2(bridge.operand(frame, 3), like, at),
                bridge.f32_2(bridge.operand(frame, 4), like, at),
                bridge.f32_1(bridge.operand(frame, 5), like, at),
                bridge.f32_1(bridge.operand(frame, 6), like, at),
                bridge.i32_0(bridge.operand(frame, 7), like, at)[0],
                bridge.i32_0(bridge.operand(frame, 8), like, at)[0],
                bridge.f32_1(like, like, at),
                bridge.i32_1(bridge.result(frame, 1), like, at),
                bridge.f32_1(bridge.result(frame, 2), like, at),
            )
    return 0

"""`kmeans1d`: optimal clusters of binned values on the line, and what is read off the table."""

import numpy as np

from fedras_jax.native import bridge, maths, sorting
from fedras_jax.native.lanes import LANES, lower
from fedras_jax.native.vectors import dot, fill, summed

_F = np.float32
_REFINEMENTS = 4  # those of `kmeans1d`
_TINY = _F(1e-30)


@bridge.exact
def first_from(values, first, last, least):
    """Where values in order, from first to last, are at or above `least` from."""
    size = last - first
    while size > 0:
        half = size // 2
        above = values[first + half] >= least
        first = first if above else first + half + 1
        size = half if above else size - half - 1
    return first


@bridge.exact
def shares(mass, low, high, share):
    """By what each bin is to be divided further; 0 for what holds nothing, whatever its width."""
    for b in range(mass.shape[0]):
        width = high[b] - low[b]
        share[b] = maths.cbrt(mass[b] * width * width if mass[b] > 0 else _F(0))


@bridge.exact
def adaptive_bins(unit, weight, bins, low, high, begin, mass, share, fresh):
    """`kmeans1d._adaptive_bins` of values in order into `low`.

    In `begin` comes where each bin's values begin, and where the last one's end; `high`, `mass`,
    `share` and `fresh` are scratch.
    """
    n = bins // _REFINEMENTS
    for b in range(n):
        low[b], high[b] = _F(b) / _F(n), _F(b + 1) / _F(n)
    for level in range(1, _REFINEMENTS + 1):
        # Values below the first edge belong to the first bin.
        begin[0], begin[n] = 0, unit.shape[0]
        for b in range(1, n):
            begin[b] = first_from(unit, begin[b - 1], unit.shape[0], low[b])
        if level == _REFINEMENTS:
            return
        size = bins * (level + 1) // _REFINEMENTS
        total, filled = _F(0), 0
        for b in range(n):
            mass[b] = summed(weight[begin[b] : begin[b + 1]])
        shares(mass[:n], low, high, share)
        for b in range(n):
            filled += np.int64(mass[b] > 0)
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
def interval_costs(mass, mean, cost, run):
    """`cost[begin, end]` of the bins from begin to end in one cluster; infinite for no such run."""
    n = mass.shape[0]
    total, centre, error = run[0], run[1], run[2]
    for b in range(cost.shape[0]):
        total[b], centre[b], error[b] = 0, 0, 0
        fill(cost[b], np.inf)
    cost[0, 0] = 0
    for j in range(n):
        w, m = mass[j], mean[j]
        for b in range(j + 1):
            gap = m - centre[b]
            share = w / max(total[b] + w, _TINY)
            error[b] += total[b] * share * gap * gap
            centre[b] += share * gap
            total[b] += w
        for b in range(j + 2):
            cost[b, j + 1] = error[b]


@bridge.loop
def programme(cost, n, best):
    """Least costs of the first of n bins, for one cluster more in every row of `best`.

    For some ends at a time, all numbers of clusters: so their costs stay in the first cache.
    """
    for k in range(best.shape[0]):
        fill(best[k], np.inf)
        best[k, 0] = 0  # of no bins, all clusters are empty
    if n < LANES:
        for k in range(1, best.shape[0]):
            for b in range(n):
                for e in range(b + 1, n + 1):
                    best[k, e] = min(best[k, e], best[k - 1, b] + cost[b, e])
        return
    for at in range(0, n, LANES):
        first = 1 + min(at, n - LANES)  # of the last ones, some are looked at twice
        for k in range(1, best.shape[0]):
            now, before = best[k, first:], best[k - 1]
            for b in range(0, first + LANES, 4):
                c, d, e = min(b + 1, n), min(b + 2, n), min(b + 3, n)
                lower(
                    now,
                    (before[b], before[c], before[d], before[e]),
                    (cost[b, first:], cost[c, first:], cost[d, first:], cost[e, first:]),
                )


@bridge.exact
def finite(values, mask):
    """Whether all that counts is."""
    wrong = 0
    for i in range(values.shape[0]):
        wrong += np.int32(mask[i] and not np.isfinite(values[i]))
    return wrong == 0


@bridge.exact
def in_order(values, mask, order, key, spare, count):
    """Places of the unmasked values into `order`, the lowest value first; returns how many.

    `key` u32[N], `spare` u32[2, N] and `count` are scratch.
    """
    bits, n = values.view(np.int32), 0
    for i in range(values.shape[0]):
        if mask[i]:
            key[n], order[n] = sorting.key_of(bits[i]), i
            n += 1
    sorting.sort(key[:n], order[:n], 32, spare, count)
    for i in range(n, values.shape[0]):
        order[i] = values.shape[0]
    return n


@bridge.loop
def inside(unit, weight, mean):
    """Weighted squared error of values about a mean."""
    total = _F(0)
    for i in range(unit.shape[0]):
        gap = unit[i] - mean
        total += weight[i] * gap * gap
    return total


@bridge.loop
def table(values, mask, weight, error, best, cost, mass, mean, order, scratch, words):
    if not finite(values, mask):
        fill(error, np.nan)
        fill(mass, np.nan)
        fill(mean, np.nan)
        fill(order, values.shape[0])
        for k in range(best.shape[0]):
            fill(best[k], np.nan)
        for b in range(cost.shape[0]):
            fill(cost[b], np.nan)
        return
    size, bins = values.shape[0], mass.shape[0]
    at = 5 * (bins + 1)
    edges = scratch[:at].reshape(5, bins + 1)
    run = scratch[at : at + 3 * (bins + 1)].reshape(3, bins + 1)
    at += 3 * (bins + 1)
    unit, heavy = scratch[at : at + size], scratch[at + size : at + 2 * size]
    spare, count = words[size : 3 * size].reshape(2, size), words[3 * size :]
    n = in_order(values, mask, order, words[:size], spare, count[: 2**sorting.DIGIT])
    begin = count[: bins + 1]  # has been of use
    low = values[order[0]] if n > 0 else _F(0)
    high = values[order[n - 1]] if n > 0 else _F(0)
    scale = high - low if high > low else _F(1)
    nothing = 0.0
    for i in range(n):
        x, w = values[order[i]], weight[order[i]]
        unit[i], heavy[i] = (x - low) / scale, w
        nothing += np.float64(w) * x * x
    unit, heavy = unit[:n], heavy[:n]
    adaptive_bins(unit, heavy, bins, edges[0], edges[1], begin, mass, edges[2], edges[3:])
    within, filled = _F(0), 0
    for b in range(bins):
        first, last = begin[b], begin[b + 1]
        if first < last:
            mass[filled] = summed(heavy[first:last])
            total = dot(heavy[first:last], unit[first:last])
            mean[filled] = total / max(mass[filled], _TINY)
            within += inside(unit[first:last], heavy[first:last], mean[filled])
            filled += 1
    interval_costs(mass[:filled], mean[:filled], cost, run)
    programme(cost, filled, best)
    # Then come those that hold nothing, and cost nothing.
    fill(mass[filled:], 0)
    fill(mean[filled:], 0)
    for b in range(bins + 1):
        fill(cost[b, max(b, filled + 1) :], cost[b, filled] if b < filled else _F(0))
    for k in range(best.shape[0]):
        fill(best[k, filled + 1 :], best[k, filled])
    error[0] = nothing
    for k in range(1, error.shape[0]):
        error[k] = (best[k, filled] + within) * scale * scale
    for b in range(bins):
        mean[b] = mean[b] * scale + low


def table_scratch(n, bins):
    """Numbers that `table` needs room for, and words."""
    return 8 * (bins + 1) + 2 * n, 3 * n + max(2**sorting.DIGIT, bins + 1)


@bridge.exact
def nearest(values, level, k, begin):
    """Where the values that are nearest to each of the first k levels begin, and where they end.

    Values and levels are in order. Of equally near levels the lowest counts, and the further a
    value is up, the nearer it is to the upper one of two, also as rounded.
    """
    begin[0] = 0
    for c in range(1, k):
        first, size = 0, values.shape[0]
        while size > 0:
            half = size // 2
            x = values[first + half]
            upper = abs(x - level[c]) < abs(x - level[c - 1])
            first = first if upper else first + half + 1
            size = half if upper else size - half - 1
        begin[c] = first
    begin[k] = values.shape[0]
    # No value is nearer to the second of two equal levels than to the first, but to a further one.
    for c in range(k - 1, 0, -1):
        begin[c] = min(begin[c], begin[c + 1])


@bridge.exact
def read(best, cost, mass, mean, k, level):
    """The levels of k clusters, from the last to the first."""
    end = mass.shape[0]
    for cluster in range(k, 0, -1):
        begin, least = 0, _F(np.inf)
        for b in range(end + 1):
            total = best[cluster - 1, b] + cost[b, end]
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
def ascend(level):
    """Levels in order, in place: rounding may have changed places of two that are an ulp apart."""
    for c in range(1, level.shape[0]):
        level[c] = max(level[c], level[c - 1])


@bridge.loop
def settled(values, weight, level):
    """The mean of values, from a level that is near: of those far from zero, sums lose digits."""
    mass, total = _F(0), _F(0)
    for i in range(values.shape[0]):
        mass += weight[i]
        total += weight[i] * (values[i] - level)
    return level + (total / mass if mass > 0 else _F(0))


@bridge.exact
def levels(values, weight, order, best, cost, mass, mean, k, polish, level, label, scratch, begin):
    size, n_clusters, n = values.shape[0], level.shape[0], 0
    fill(label, 0)
    if np.isnan(mean[0]):
        fill(level, np.nan)
        return
    k = min(max(k, 0), n_clusters)
    fill(level, 0)
    if k == 0:
        return
    read(best, cost, mass, mean, k, level)
    ascend(level[:k])
    along, heavy = scratch[:size], scratch[size : 2 * size]
    while n < size and order[n] < size:
        along[n], heavy[n] = values[order[n]], weight[order[n]]
        n += 1
    for _ in range(polish):
        nearest(along[:n], level, k, begin)
        for c in range(k):
            first, last = begin[c], begin[c + 1]
            level[c] = settled(along[first:last], heavy[first:last], level[c])
        ascend(level[:k])
    nearest(along[:n], level, k, begin)
    for c in range(k):
        for i in range(begin[c], begin[c + 1]):
            label[order[i]] = c
    for c in range(k, n_clusters):
        level[c] = level[k - 1]


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
                bridge.i32_1(bridge.result(frame, 5), like, at),
                bridge.f32_1(bridge.result(frame, 6), like, at),
                bridge.u32_1(bridge.result(frame, 7), like, at),
            )
    return 0


@bridge.target("line_levels")
def run_levels(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            levels(
                bridge.f32_1(bridge.operand(frame, 0), like, at),
                bridge.f32_1(bridge.operand(frame, 1), like, at),
                bridge.i32_1(bridge.operand(frame, 2), like, at),
                bridge.f32_2(bridge.operand(frame, 3), like, at),
                bridge.f32_2(bridge.operand(frame, 4), like, at),
                bridge.f32_1(bridge.operand(frame, 5), like, at),
                bridge.f32_1(bridge.operand(frame, 6), like, at),
                bridge.i32_0(bridge.operand(frame, 7), like, at)[0],
                bridge.i32_0(bridge.operand(frame, 8), like, at)[0],
                bridge.f32_1(like, like, at),
                bridge.i32_1(bridge.result(frame, 1), like, at),
                bridge.f32_1(bridge.result(frame, 2), like, at),
                bridge.i32_1(bridge.result(frame, 3), like, at),
            )
    return 0

"""`examples.draw`: one client's examples in the order of its minibatches."""

import numpy as np

from fedras_jax.native import bridge
from fedras_jax.native.vectors import copy, fill


@bridge.exact
def shuffle(words, x, n):
    """`rng.shuffled` in place: words u32[R, 2], x u32[N] below n."""
    size = np.uint32(n)
    for r in range(words.shape[0]):
        pivot, salt = np.uint32(words[r, 0] % size), words[r, 1]
        for i in range(x.shape[0]):
            at = x[i]
            other = np.uint32(pivot - at)
            if at > pivot:
                other = np.uint32(other + size)
            h = np.uint32(np.uint32(max(at, other) + salt) * np.uint32(0x9E3779B1))
            h = np.uint32((h ^ (h >> np.uint32(15))) * np.uint32(0x85EBCA77))
            h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE3D))
            x[i] = other if h >> np.uint32(31) == 1 else at


@bridge.exact
def outside(seen, rank, unseen, begin):
    """`rng.outside` in place: ranks below `unseen` become items that are not in `seen`.

    Entry i of `seen` has seen[i] - i unseen items below it. Ranks are cut into as many spans as
    `begin` has room for, of a power of two each, and a search starts where its span does: few
    entries are looked at.
    """
    shift, n_seen = np.uint32(0), seen.shape[0]
    while (unseen - 1) >> shift >= begin.shape[0]:
        shift += np.uint32(1)
    n_spans = ((unseen - 1) >> shift) + 1
    fill(begin[:n_spans], 0)
    for i in range(n_seen):
        span = (seen[i] - i + (1 << shift) - 1) >> shift  # the first that begins at or after it
        if span < n_spans:
            begin[span] += np.uint32(1)
    for s in range(1, n_spans):
        begin[s] += begin[s - 1]
    for j in range(rank.shape[0]):
        i = np.int64(begin[rank[j] >> shift])
        while i < n_seen and seen[i] - i <= rank[j]:
            i += 1
        rank[j] += np.uint32(i)


@bridge.exact
def draw(orders, seen, live, n_items, negatives, item, label, mask, short, scratch):
    n_seen = seen.shape[0]
    unseen = n_items - n_seen
    n_negatives = min(n_seen * negatives, unseen)
    short[0] = n_seen * negatives - n_negatives if live else 0
    n = n_seen + n_negatives if live else 0
    if unseen < 0 or n > item.shape[0]:  # against the contract: nothing is drawn
        n, n_negatives, short[0] = 0, 0, 0
    fill(item[n:], n_items)
    fill(label[n:], 0)
    fill(mask[:n], True)
    fill(mask[n:], False)
    if n == 0:
        return
    source, pool, begin = scratch[0, :n], scratch[1, :n], scratch[2]
    for i in range(n):
        source[i] = i
    for i in range(n_seen):
        pool[i] = seen[i]
    drawn = pool[n_seen:]
    for i in range(n_negatives):
        drawn[i] = i
    shuffle(orders[0], source, n)
    if n_negatives > 0:
        shuffle(orders[1], drawn, unseen)
        outside(seen, drawn, unseen, begin)
    for i in range(n):
        label[i] = source[i] < n_seen
        item[i] = pool[source[i]]


@bridge.target("shuffled")
def run_shuffled(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            out = bridge.u32_1(like, like, at)
            copy(out, bridge.u32_1(bridge.operand(frame, 1), like, at))
            size = bridge.u32_0(bridge.operand(frame, 2), like, at)[0]
            shuffle(bridge.u32_2(bridge.operand(frame, 0), like, at), out, size)
    return 0


@bridge.target("draw")
def run(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            offset = bridge.i32_1(bridge.operand(frame, 1), like, at)
            item = bridge.i32_1(bridge.operand(frame, 2), like, at)
            client = bridge.i32_0(bridge.operand(frame, 3), like, at)[0]
            client = min(max(client, 0), offset.shape[0] - 2)
            sizes = bridge.i32_1(bridge.operand(frame, 5), like, at)
            draw(
                bridge.u32_3(bridge.operand(frame, 0), like, at),
                item[offset[client] : offset[client + 1]],
                bridge.bool_0(bridge.operand(frame, 4), like, at)[0],
                sizes[0],
                sizes[1],
                bridge.i32_1(like, like, at),
                bridge.f32_1(bridge.result(frame, 1), like, at),
                bridge.bool_1(bridge.result(frame, 2), like, at),
                bridge.i32_0(bridge.result(frame, 3), like, at),
                bridge.u32_2(bridge.result(frame, 4), like, at),
            )
    return 0

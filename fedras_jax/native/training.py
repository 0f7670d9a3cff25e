"""`factored.factored`'s training on one client, where rows step anywhere."""

import numpy as np

from fedras_jax.native import bridge, maths
from fedras_jax.native.vectors import combine, dot, products

_F = np.float32


def scratch_size(n_slots, dim, epochs, size):
    """Numbers that `train` needs room for: what allocating it a client costs is no less."""
    size = min(size, n_slots)
    return epochs * (n_slots + -(-n_slots // size) * dim) + 2 * size + dim + epochs + 1


@bridge.loop
def train(private, rows, label, mask, lr, decay, epochs, size, stepped, delta, loss, scratch):
    n_slots, dim = rows.shape
    end = n_slots
    while end > 0 and not mask[end - 1]:
        end -= 1
    delta[end:] = 0
    stepped[:] = private
    keep = _F(1) - lr * decay
    size = min(size, n_slots)
    n_batches = (end + size - 1) // size
    at = epochs * n_slots
    coef = scratch[:at].reshape(epochs, n_slots)
    to = at + (n_slots + size - 1) // size * epochs * dim
    vector = scratch[at:to].reshape(-1, epochs, dim)
    score, gap = scratch[to : to + size], scratch[to + size : to + 2 * size]
    to += 2 * size
    grad, power = scratch[to : to + dim], scratch[to + dim : to + dim + epochs + 1]
    power[0] = 1
    for f in range(epochs):
        power[f + 1] = power[f] * keep
    total, n_all = _F(0), 0
    for e in range(epochs):
        total, n_all = _F(0), 0
        for b in range(n_batches):
            first, last = b * size, min((b + 1) * size, end)
            products(rows, stepped, first, last, score)
            for i in range(last - first):
                score[i] *= power[e]
            for f in range(e):
                along = power[e - 1 - f] * dot(vector[b, f], stepped)
                for i in range(last - first):
                    score[i] += along * coef[f, first + i]
            n = 0
            for i in range(last - first):
                live = _F(mask[first + i])
                gap[i] = (maths.sigmoid(score[i]) - label[first + i]) * live
                n += mask[first + i]
            if e == epochs - 1:
                for i in range(last - first):
                    one = maths.softplus(score[i]) - label[first + i] * score[i]
                    total += one * _F(mask[first + i])
            n_all += n
            combine(rows, gap, first, last, grad)
            for j in range(dim):
                grad[j] *= power[e]
            for f in range(e):
                along = power[e - 1 - f] * dot(coef[f, first:last], gap[: last - first])
                for j in range(dim):
                    grad[j] += along * vector[b, f, j]
            for i in range(last - first):
                coef[e, first + i] = -lr * gap[i]
            vector[b, e] = stepped
            if n > 0:
                share = lr / _F(n)
                for j in range(dim):
                    stepped[j] -= share * grad[j] + lr * decay * stepped[j]
    loss[0] = total / _F(max(n_all, 1))
    lost = power[epochs] - _F(1)
    for i in range(end):
        if mask[i]:
            for j in range(dim):
                delta[i, j] = lost * rows[i, j]
            for f in range(epochs):
                b, c = i // size, power[epochs - 1 - f] * coef[f, i]
                for j in range(dim):
                    delta[i, j] += c * vector[b, f, j]
        else:
            for j in range(dim):
                delta[i, j] = 0


@bridge.target("train")
def run(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 1)):
            plan = bridge.i32_1(bridge.operand(frame, 6), like, at)
            train(
                bridge.f32_1(bridge.operand(frame, 0), like, at),
                bridge.f32_2(bridge.operand(frame, 1), like, at),
                bridge.f32_1(bridge.operand(frame, 2), like, at),
                bridge.bool_1(bridge.operand(frame, 3), like, at),
                bridge.f32_0(bridge.operand(frame, 4), like, at)[0],
                bridge.f32_0(bridge.operand(frame, 5), like, at)[0],
                plan[0],
                plan[1],
                bridge.f32_1(like, like, at),
                bridge.f32_2(bridge.result(frame, 1), like, at),
                bridge.f32_0(bridge.result(frame, 2), like, at),
                bridge.f32_1(bridge.result(frame, 3), like, at),
            )
    return 0

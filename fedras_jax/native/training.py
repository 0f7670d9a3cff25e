"""`factored.factored`'s training on one client, where rows step anywhere."""

import numpy as np

from fedras_jax.native import bridge, maths
from fedras_jax.native.vectors import BLOCK, add_up, copy, dot, fill, products, summed

_F = np.float32


def scratch_size(n_slots, dim, epochs, size):
    """Numbers that `train` needs room for."""
    n_batches = -(-n_slots // min(size, n_slots))
    return (epochs + 1) * n_slots + epochs * n_batches * dim + BLOCK + dim + 2 * epochs + 1


@bridge.loop
def gaps(score, label, live, gap):
    """gap = sigmoid(score) - label, and 0 where it is not live."""
    for i in range(label.shape[0]):
        gap[i] = (maths.sigmoid(score[i]) - label[i]) * live[i]


@bridge.loop
def losses(score, label, live):
    """Sum of logistic losses."""
    total = _F(0)
    for i in range(label.shape[0]):
        total += (maths.softplus(score[i]) - label[i] * score[i]) * live[i]
    return total


@bridge.loop
def add(out, a, v):
    for i in range(v.shape[0]):
        out[i] += a * v[i]


@bridge.loop
def move(delta, kept, rows, own, one, other, first, last):
    """delta = kept delta + own rows + c gap v of one and of another epoch, row by row."""
    (c, gap, v), (d, further, w) = one, other
    for i in range(first, last):
        x, y = c * gap[i], d * further[i]
        if kept == 0:
            for j in range(v.shape[0]):
                delta[i, j] = own * rows[i, j] + x * v[j] + y * w[j]
        else:
            for j in range(v.shape[0]):
                delta[i, j] += x * v[j] + y * w[j]


@bridge.loop
def train(private, rows, label, mask, lr, decay, epochs, size, stepped, delta, loss, scratch):
    n_slots, dim = rows.shape
    size = min(size, n_slots)
    end = n_slots
    while end > 0 and not mask[end - 1]:
        end -= 1
    n_batches = (end + size - 1) // size
    at = epochs * n_slots
    gap = scratch[:at].reshape(epochs, n_slots)  # what moves a row along its minibatch's vector
    to = at + epochs * dim * ((n_slots + size - 1) // size)
    vector = scratch[at:to].reshape(-1, epochs, dim)
    score, grad = scratch[to : to + BLOCK], scratch[to + BLOCK : to + BLOCK + dim]
    to += BLOCK + dim
    along, power = scratch[to : to + epochs], scratch[to + epochs : to + 2 * epochs + 1]
    live = scratch[to + 2 * epochs + 1 : to + 2 * epochs + 1 + end]
    for i in range(end):
        live[i] = mask[i]
    power[0] = 1  # of what an epoch's weight decay leaves of a row
    for e in range(epochs):
        power[e + 1] = power[e] * (_F(1) - lr * decay)
    copy(stepped, private)
    total = _F(0)
    for e in range(epochs):
        for b in range(n_batches):
            first, last = b * size, min((b + 1) * size, end)
            for f in range(e):
                along[f] = -lr * power[e - 1 - f] * dot(vector[b, f], stepped)
            fill(grad, 0)
            for at in range(first, last, BLOCK):
                to = min(at + BLOCK, last)
                products(rows, stepped, at, to, score)
                for i in range(to - at):
                    score[i] *= power[e]
                for f in range(e):
                    add(score, along[f], gap[f, at:to])
                gaps(score, label[at:to], live[at:to], gap[e, at:to])
                add_up(rows, gap[e, at:to], at, to, grad)
                if e == epochs - 1:
                    total += losses(score, label[at:to], live[at:to])
            for j in range(dim):
                grad[j] *= power[e]
            for f in range(e):
                back = -lr * power[e - 1 - f] * dot(gap[f, first:last], gap[e, first:last])
                add(grad, back, vector[b, f])
            copy(vector[b, e], stepped)
            n = summed(live[first:last])
            if n > 0:
                share = lr / n
                for j in range(dim):
                    stepped[j] -= share * grad[j] + lr * decay * stepped[j]
    loss[0] = total / max(summed(live[:end]), _F(1))
    lost = power[epochs] - _F(1)
    for b in range(n_batches):
        first, last = b * size, min((b + 1) * size, end)
        for f in range(0, epochs, 2):
            # Two epochs at a time; of an odd number the last one again, without weight.
            g = min(f + 1, epochs - 1)
            c, d = -lr * power[epochs - 1 - f], -lr * power[epochs - 1 - g] * _F(g > f)
            kept, own = (_F(0), lost) if f == 0 else (_F(1), _F(0))
            of, to = (c, gap[f], vector[b, f]), (d, gap[g], vector[b, g])
            move(delta, kept, rows, own, of, to, first, last)
        for i in range(first, last):
            if not mask[i]:
                fill(delta[i], 0)
    for i in range(end, n_slots):
        fill(delta[i], 0)


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

"""Small worlds that several tests share."""

import jax.numpy as jnp
import numpy as np

from fedras_jax.types import Histories

# For `jax.jit`: as users' programs are compiled, whatever `conftest` says.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def make_histories(lengths, n_items: int, seed: int = 0) -> Histories:
    """Ascending distinct random items, `lengths[u]` of them for client u, less popular upwards."""
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, n_items + 1)
    popularity /= popularity.sum()
    rows = [np.sort(rng.choice(n_items, n, replace=False, p=popularity)) for n in lengths]
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    items = np.concatenate([*rows, np.zeros(0)]).astype(np.int32)
    return Histories(offset=jnp.asarray(offset), item=jnp.asarray(items))


def history_of(data: Histories, client: int) -> np.ndarray:
    """One client's training items."""
    offset = np.asarray(data.offset)
    return np.asarray(data.item)[offset[client] : offset[client + 1]]


def plain_training(
    private, rows, label, mask, *, lr, decay, epochs, batch_size, weight=None, bias=0.0
):
    """A client's local training written for reading, in float64: MF, or GMF given its weight.

    Returns the private vector, the change of every row, the last epoch's mean loss, and the
    shared weight and bias.
    """
    p, q, y = (np.asarray(x, np.float64) for x in (private, rows, label))
    start, q = q, q.copy()
    h, b = np.ones(len(p)) if weight is None else np.asarray(weight, np.float64), float(bias)
    loss = 0.0
    for _ in range(epochs):
        loss = 0.0
        for begin in range(0, len(q), batch_size):
            batch = [i for i in range(begin, min(begin + batch_size, len(q))) if mask[i]]
            if not batch:
                continue
            p_grad, h_grad, b_grad, q_new = 0.0, 0.0, 0.0, {}
            for i in batch:
                score = np.sum(h * p * q[i]) + b
                loss += np.log1p(np.exp(score)) - y[i] * score
                gap = 1 / (1 + np.exp(-score)) - y[i]
                p_grad += gap * h * q[i] / len(batch)
                h_grad += gap * p * q[i] / len(batch)
                b_grad += gap / len(batch)
                q_new[i] = q[i] - lr * (gap * h * p + decay * q[i])
            p = p - lr * (p_grad + decay * p)
            if weight is not None:
                h, b = h - lr * (h_grad + decay * h), b - lr * (b_grad + decay * b)
            for i, row in q_new.items():
                q[i] = row
    return p, q - start, loss / max(int(np.sum(mask)), 1), h, b

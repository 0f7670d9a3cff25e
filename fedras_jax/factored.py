"""Local training of a dot-product model by plain SGD, without ever updating an item row.

An item row moves only along the client's own vectors: after epoch e it is

    q_e = a^e q_0 + sum_{f < e} a^(e-1-f) c_f p_f,      a = 1 - lr * weight_decay,

with one coefficient c_f per epoch and p_f the client's vector at the row's minibatch in epoch f.
Scores in later epochs follow from q_0 . p and the few products p_f . p, so the rows are read and
never written, and the delta is formed once at the end. Same training as `client.autodiff` with
`client.sgd`; exact up to rounding. The factorisation is ours.

Given a basis, rows step within its span: with P the projection on it, a row moves along P p_f, and
its decay is projected too, so that what lies off the span stays:

    q_e = q_0 + (a^e - 1) P q_0 + sum_{f < e} a^(e-1-f) c_f P p_f.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedras_jax.types import LocalResult, LocalTraining

PRECISION = jax.lax.Precision.HIGHEST

# Up to so many minibatches are compiled one by one: a loop copies each one's rows out of the stack,
# which takes longer than to train on them. More would take too long to compile.
UNROLLED = 8


def factored(
    lr: float | Array,
    weight_decay: float | Array = 0.0,
    *,
    epochs: int = 2,
    batch_size: int = 256,
) -> LocalTraining:
    """Minibatch SGD on the logistic loss of `rows @ private`.

    Args:
      lr: step size; may be a tracer.
      weight_decay: L2 coefficient; may be a tracer.
      epochs: passes over the examples; work per row grows with their square, so this form is
        for a handful.
      batch_size: examples per minibatch.
    """
    decay = 1 - lr * weight_decay

    def past(coefs, vectors):
        """(coefficient block, vector, power of the decay) of every finished epoch."""
        n = len(coefs)
        powers = [decay ** (n - 1 - f) for f in range(n)]
        return list(zip(coefs, vectors, powers, strict=True))

    def minibatch(private, rows, label, mask, coefs, vectors, basis):
        """One step on one minibatch.

        Returns the new private vector, the rows' coefficients, the vector along which they move,
        and the loss.
        """
        seen = decay ** len(coefs)
        if basis is None:
            score = seen * jnp.dot(rows, private, precision=PRECISION)
        else:  # what decay leaves of a row is linear and symmetric: apply it to the one vector
            score = jnp.dot(rows, decayed(private, seen, basis), precision=PRECISION)
        for c, v, power in past(coefs, vectors):
            score += power * jnp.dot(v, private, precision=PRECISION) * c
        live = mask.astype(rows.dtype)
        gap = (jax.nn.sigmoid(score) - label) * live
        grad = decayed(jnp.dot(gap, rows, precision=PRECISION), seen, basis)
        for c, v, power in past(coefs, vectors):
            grad += power * jnp.dot(c, gap, precision=PRECISION) * v
        n = mask.sum(dtype=jnp.int32)
        stepped = private - lr * (grad / jnp.maximum(n, 1) + weight_decay * private)
        loss = jnp.dot(jax.nn.softplus(score) - label * score, live, precision=PRECISION)
        return jnp.where(n > 0, stepped, private), -lr * gap, project(private, basis), loss

    def run(private, rows, label, mask, coefs, vectors, basis):
        """`minibatch` on a segment: one minibatch, or a stack of them with a leading axis."""
        if rows.ndim == 2:
            return minibatch(private, rows, label, mask, coefs, vectors, basis)

        def body(private, block):
            q, y, m, c, v = block
            stepped, *out = minibatch(private, q, y, m, c, v, basis)
            return stepped, tuple(out)

        private, (c, v, losses) = jax.lax.scan(body, private, (rows, label, mask, coefs, vectors))
        return private, c, v, losses.sum()

    def train(
        private: Float[Array, " d"],
        shared: tuple,
        rows: Float[Array, "l d"],
        label: Float[Array, " l"],
        mask: Bool[Array, " l"],
        basis: Float[Array, "r d"] | None = None,
    ) -> LocalResult:
        rows = rows * mask[:, None]
        parts = (_segments(x, batch_size) for x in (rows, label, mask))
        segments = list(zip(*parts, strict=True))
        coefs: list[tuple] = [() for _ in segments]
        vectors: list[tuple] = [() for _ in segments]
        loss = jnp.zeros(())
        for _ in range(epochs):
            loss = jnp.zeros(())
            for s, (q, y, m) in enumerate(segments):
                private, c, v, part = run(private, q, y, m, coefs[s], vectors[s], basis)
                coefs[s], vectors[s], loss = (*coefs[s], c), (*vectors[s], v), loss + part

        def delta(q, coefs, vectors):
            change = (decay**epochs - 1) * project(q, basis)
            for c, v, power in past(coefs, vectors):
                change += power * c[..., None] * v[..., None, :]
            return change.reshape(-1, q.shape[-1])

        change = jnp.concatenate(
            [delta(s[0], c, v) for s, c, v in zip(segments, coefs, vectors, strict=True)]
        )
        return LocalResult(
            private=private,
            rows=jnp.where(mask[:, None], change, 0),
            shared=shared,
            loss=loss / jnp.maximum(mask.sum(), 1),
            epochs=epochs,
        )

    return train


def project(x: Float[Array, "*n d"], basis: Float[Array, "r d"] | None) -> Float[Array, "*n d"]:
    """x on the span of an orthonormal basis; x itself when there is none."""
    if basis is None:
        return x
    coords = jnp.dot(x, basis.T, precision=PRECISION)
    return jnp.dot(coords, basis, precision=PRECISION)


def decayed(
    x: Float[Array, " d"], share: float | Array, basis: Float[Array, "r d"] | None
) -> Float[Array, " d"]:
    """x with its part in the span shrunk to `share`; all of it when there is no basis."""
    return share * x if basis is None else x + (share - 1) * project(x, basis)


def _segments(x: Array, size: int) -> list[Array]:
    """x cut into minibatches: one by one, or where they are many, whole ones as a stack.

    The last one may be smaller.
    """
    n, whole = x.shape[0], x.shape[0] // size
    if n <= UNROLLED * size:
        return [x[at : at + size] for at in range(0, n, size)]
    stack = x[: whole * size].reshape(whole, size, *x.shape[1:])
    return [part for part in (stack, x[whole * size :]) if part.shape[0]]

"""Local training of a dot-product model by plain SGD, without ever updating an item row.

An item row moves only along the client's own vectors: after epoch e it is

    q_e = a^e q_0 + sum_{f < e} a^(e-1-f) c_f p_f,      a = 1 - lr * weight_decay,

with one coefficient c_f per epoch and p_f the client's vector at the row's minibatch in epoch f.
Scores in later epochs follow from q_0 . p and the few products p_f . p, so the rows are read and
never written, and the delta is formed once at the end. Same training as `client.autodiff` with
`client.sgd`; exact up to rounding. The factorisation is ours.

Given a basis, rows step within its span, s times as far: with P the projection on it, a row moves
along s P p_f, and its decay is projected too, so that what lies off the span stays:

    q_e = q_0 + (a^e - 1) P q_0 + sum_{f < e} a^(e-1-f) c_f s P p_f,

with a = 1 - s * lr * weight_decay.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from fedras_jax import native
from fedras_jax.errors import SpecError
from fedras_jax.native import forms
from fedras_jax.types import LocalResult, LocalTraining, RecModel

PRECISION = jax.lax.Precision.HIGHEST

# Up to so many steps are compiled one by one: a loop copies each minibatch's rows out of the stack,
# which takes longer than to train on them. More would take too long to compile.
UNROLLED = 16


def factored(
    model: RecModel,
    lr: float | Array,
    weight_decay: float | Array = 0.0,
    *,
    epochs: int = 2,
    batch_size: int = 256,
) -> LocalTraining:
    """Minibatch SGD on the logistic loss of `rows @ private`.

    Args:
      model: what to train; it must be that dot product (`RecModel.is_dot_product`).
      lr: step size; may be a tracer.
      weight_decay: L2 coefficient; may be a tracer.
      epochs: passes over the examples; work per row grows with their square, so this form is
        for a handful.
      batch_size: examples per minibatch.

    Raises:
      SpecError: another model.
      ValueError: one of the two is below 1.
    """
    if not model.is_dot_product:
        raise SpecError("this model is no dot product: train it with client.autodiff")
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1, not {epochs} and {batch_size}")

    def past(coefs, vectors, span):
        """(coefficient block, vector, power of the decay) of every finished epoch."""
        n = len(coefs)
        powers = [span.decay ** (n - 1 - f) for f in range(n)]
        return list(zip(coefs, vectors, powers, strict=True))

    def minibatch(private, rows, label, mask, coefs, vectors, span):
        """One step on one minibatch.

        Returns the new private vector, the rows' coefficients, the vector along which they move,
        and the loss.
        """
        # What decay leaves of a row is linear and symmetric: apply it to the one vector instead.
        score = jnp.dot(rows, decayed(private, len(coefs), span), precision=PRECISION)
        for c, v, power in past(coefs, vectors, span):
            score += power * jnp.dot(v, private, precision=PRECISION) * c
        live = mask.astype(rows.dtype)
        gap = (jax.nn.sigmoid(score) - label) * live
        grad = decayed(jnp.dot(gap, rows, precision=PRECISION), len(coefs), span)
        for c, v, power in past(coefs, vectors, span):
            grad += power * jnp.dot(c, gap, precision=PRECISION) * v
        n = mask.sum(dtype=jnp.int32)
        stepped = private - lr * (grad / jnp.maximum(n, 1) + weight_decay * private)
        loss = jnp.dot(jax.nn.softplus(score) - label * score, live, precision=PRECISION)
        return jnp.where(n > 0, stepped, private), -lr * gap, stretched(private, span), loss

    def run(private, rows, label, mask, coefs, vectors, span):
        """`minibatch` on a segment: one minibatch, or a stack of them with a leading axis."""
        if rows.ndim == 2:
            return minibatch(private, rows, label, mask, coefs, vectors, span)

        def body(private, block):
            q, y, m, c, v = block
            stepped, *out = minibatch(private, q, y, m, c, v, span)
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
        if basis is None and native.on():
            stepped, change, loss = forms.train(
                private, rows, label, mask, lr, weight_decay, epochs, batch_size
            )
            return LocalResult(stepped, change, shared, loss, epochs)
        stretch = 1.0 if basis is None else jnp.sum(basis[0] * basis[0])
        span = Span(basis, stretch, 1 - lr * stretch * weight_decay)
        rows = rows * mask[:, None]
        parts = (_segments(x, batch_size, UNROLLED // epochs) for x in (rows, label, mask))
        segments = list(zip(*parts, strict=True))
        coefs: list[tuple] = [() for _ in segments]
        vectors: list[tuple] = [() for _ in segments]
        loss = jnp.zeros(())
        for _ in range(epochs):
            loss = jnp.zeros(())
            for s, (q, y, m) in enumerate(segments):
                private, c, v, part = run(private, q, y, m, coefs[s], vectors[s], span)
                coefs[s], vectors[s], loss = (*coefs[s], c), (*vectors[s], v), loss + part

        def delta(q, coefs, vectors):
            change = (span.decay**epochs - 1) * projected(q, span)
            for c, v, power in past(coefs, vectors, span):
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


class Span(NamedTuple):
    """Where rows may step.

    Attributes:
      basis: f32[r, D], orthogonal vectors of one length; None: anywhere.
      stretch: that length's square.
      decay: what an epoch's weight decay leaves of a row within the span.
    """

    basis: Array | None
    stretch: float | Array
    decay: float | Array


def stretched(x: Float[Array, "*n d"], span: Span) -> Float[Array, "*n d"]:
    """A step, as rows make it."""
    if span.basis is None:
        return x
    coords = jnp.dot(x, span.basis.T, precision=PRECISION)
    return jnp.dot(coords, span.basis, precision=PRECISION)


def projected(x: Float[Array, "*n d"], span: Span) -> Float[Array, "*n d"]:
    """What of x lies within the span."""
    return x if span.basis is None else stretched(x, span) / span.stretch


def decayed(x: Float[Array, " d"], epochs: int, span: Span) -> Float[Array, " d"]:
    """What so many epochs of weight decay leave of x, which is all that lies off the span."""
    share = span.decay**epochs
    return share * x if span.basis is None else x + (share - 1) * projected(x, span)


def _segments(x: Array, size: int, few: int) -> list[Array]:
    """x cut into minibatches: up to a few one by one, and of more the whole ones as a stack.

    The last one may be smaller.
    """
    n, whole = x.shape[0], x.shape[0] // size
    if n <= max(few, 1) * size:
        return [x[at : at + size] for at in range(0, n, size)]
    stack = x[: whole * size].reshape(whole, size, *x.shape[1:])
    return [part for part in (stack, x[whole * size :]) if part.shape[0]]

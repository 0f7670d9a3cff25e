"""One client's local training, for any model and any optax optimizer, by automatic differentiation.

The reference training: minibatches; private and shared parameters step by the *mean* gradient of
the minibatch, every item row by its *own* example's gradient. (Rows are looked up once per
example, so a mean would only shrink their step by the minibatch size.) `factored` computes the
same for dot-product models and plain SGD, faster; a test holds the two together.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from fedras_jax import optimizers
from fedras_jax.types import LocalResult, LocalTraining, Number, PyTree, RecModel


def sgd(lr: float | Array, weight_decay: float | Array = 0.0) -> optax.GradientTransformation:
    """Plain SGD with L2 weight decay inside the gradient: w - lr (g + weight_decay w)."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(lr))


def adamw(
    lr: Number,
    weight_decay: Number = 0.0,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay; its moments live for one round."""
    optimizers.check("adamw", b1=b1, b2=b2, eps=eps)
    return optax.adamw(lr, b1, b2, eps, weight_decay=weight_decay)


def within(basis: Float[Array, "r d"]) -> optax.GradientTransformation:
    """Updates projected on the span of orthogonal vectors of one length.

    They become as many times longer as the square of that length, as coordinates are products with
    these vectors.

    Last in a chain, because an optimizer that scales coordinates (Adam) leaves the span again.
    """

    def project(update, params):
        del params
        coords = jnp.dot(update, basis.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.dot(coords, basis, precision=jax.lax.Precision.HIGHEST)

    return optax.stateless(project)


def autodiff(
    model: RecModel,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int = 2,
    batch_size: int = 256,
) -> LocalTraining:
    """Minibatch epochs over a client's examples.

    The optimizer's state starts afresh every round: a client keeps its private parameters and
    nothing else. A row's optimizer state belongs to the row's minibatch, so each row sees as many
    updates as there are epochs. Minibatches are those of the round's order in every epoch, the
    last one may be smaller, and one without real examples changes nothing.

    Args:
      model: what to train.
      optimizer: any optax transformation; its floats may be tracers.
      epochs: passes over the examples.
      batch_size: examples per minibatch.

    Given a basis, `train` keeps the rows' steps in its span (`within`), whatever the optimizer made
    of the gradient: also their weight decay moves only what lies in the span.
    """

    def example_losses(params, rows, label):
        return model.loss(model.score(params["private"], params["shared"], rows), label)

    def minibatch_loss(params, rows, label, mask):
        return jnp.sum(jnp.where(mask, example_losses(params, rows, label), 0))

    def train(
        private: PyTree,
        shared: PyTree,
        rows: Float[Array, "l d"],
        label: Float[Array, " l"],
        mask: Bool[Array, " l"],
        basis: Float[Array, "r d"] | None = None,
    ) -> LocalResult:
        rows_optimizer = optimizer if basis is None else optax.chain(optimizer, within(basis))
        n_slots = rows.shape[0]
        n_blocks = -(-n_slots // batch_size)
        blocks = [_blocks(x, n_blocks, min(batch_size, n_slots)) for x in (rows, label, mask)]
        params = {"private": private, "shared": shared}
        rows_state = jax.lax.map(rows_optimizer.init, blocks[0])

        def minibatch(carry, block):
            params, state = carry
            rows, rows_state, label, mask = block
            n = mask.sum()
            loss, (grad, row_grad) = jax.value_and_grad(minibatch_loss, argnums=(0, 1))(
                params, rows, label, mask
            )
            grad = jax.tree.map(lambda g: g / jnp.maximum(n, 1), grad)
            stepped = _step(optimizer, params, grad, state)
            stepped_rows = _step(rows_optimizer, rows, row_grad, rows_state)
            carry, row_carry = _keep_if(
                n > 0, (stepped, stepped_rows), ((params, state), (rows, rows_state))
            )
            return carry, (*row_carry, loss)

        def epoch(carry, _):
            carry, rows, rows_state = carry
            carry, (rows, rows_state, losses) = jax.lax.scan(
                minibatch, carry, (rows, rows_state, *blocks[1:])
            )
            return (carry, rows, rows_state), losses.sum()

        start = ((params, optimizer.init(params)), blocks[0], rows_state)
        ((params, _), trained, _), losses = jax.lax.scan(epoch, start, length=epochs)
        trained = trained.reshape(-1, rows.shape[1])[:n_slots]
        return LocalResult(
            private=params["private"],
            rows=jnp.where(mask[:, None], trained - rows, 0),
            shared=jax.tree.map(jnp.subtract, params["shared"], shared),
            loss=losses[-1] / jnp.maximum(mask.sum(), 1),
            epochs=epochs,
        )

    return train


def _blocks(x: Array, n_blocks: int, size: int) -> Array:
    """x in `n_blocks` blocks of `size` along its first axis, the last filled up with zeros."""
    short = n_blocks * size - x.shape[0]
    return jnp.pad(x, [(0, short)] + [(0, 0)] * (x.ndim - 1)).reshape(n_blocks, size, *x.shape[1:])


def _step(optimizer, params, grad, state):
    update, state = optimizer.update(grad, state, params)
    return optax.apply_updates(params, update), state


def _keep_if(condition, new, old):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)

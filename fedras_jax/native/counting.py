"""How often symbols occur, of which entropy coders make their tables (`bits`)."""

from fedras_jax.native import bridge
from fedras_jax.native.vectors import fill


@bridge.exact
def often(symbol, mask, lowest, found):
    """found[s, j]: in how many unmasked rows column j holds the symbol lowest + s."""
    for s in range(found.shape[0]):
        fill(found[s], 0)
    for i in range(symbol.shape[0]):
        if mask[i]:
            for j in range(symbol.shape[1]):
                s = symbol[i, j] - lowest
                if 0 <= s < found.shape[0]:
                    found[s, j] += 1


@bridge.target("often")
def run(frame):
    if bridge.asked(frame):
        like = bridge.result(frame, 0)
        for at in range(bridge.entries(like, 2)):
            often(
                bridge.i32_2(bridge.operand(frame, 0), like, at),
                bridge.bool_1(bridge.operand(frame, 1), like, at),
                bridge.i32_0(bridge.operand(frame, 2), like, at)[0],
                bridge.i32_2(like, like, at),
            )
    return 0

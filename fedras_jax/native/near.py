"""Rows of tables that no cache of a core holds: asked for before they are read or written.

Left alone, a core copies or adds one row after the other and waits for each; asked for together,
they are on their way at once.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from fedras_jax.native import bridge

LINE = 16  # float32 entries that come together
# Entries to ask for at once, whole lines: they stay in a second-level cache until they are read.
BLOCK = 2**13
# Entries of a table from which on it pays: rounds of 20,000 x 64 were as fast without, of
# 30,000 x 64 a tenth slower, of 100,000 x 32 a third (dense, 2 cores of an AMD EPYC with 1 MiB of
# second-level cache each). `benchmarks.million` and `benchmarks.scaling` with another number here
# tell what it brings elsewhere.
FAR = 1_500_000


@intrinsic
def _fetch(typing, table, m, d):
    """Ask for what lies at table[m, d]."""
    if table.dtype != types.float32 or table.ndim != 2:
        raise TypingError(f"{table}: must be a matrix of float32")
    del typing

    def generate(context, builder, signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        strides = cgutils.unpack_tuple(builder, array.strides)
        at = builder.add(*map(builder.mul, arguments[1:], strides))
        place = builder.gep(builder.bitcast(array.data, byte), [at])
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(function, [place, word(0), word(3), word(1)])  # to read, into all caches, data
        return context.get_dummy_value()

    return types.void(table, types.int64, types.int64), generate


@bridge.exact
def at_once(table):
    """Rows that are asked for together; 0 where the table is near already."""
    return max(1, BLOCK // max(table.shape[1], LINE)) if table.size > FAR else 0


@bridge.exact
def fetch(table, item):
    """Ask for the rows of these items, as far as there are such rows."""
    for i in range(item.shape[0]):
        m = item[i]
        if 0 <= m < table.shape[0]:
            for d in range(0, table.shape[1], LINE):
                _fetch(table, m, d)
            _fetch(table, m, table.shape[1] - 1)  # a row may end in a line of its own

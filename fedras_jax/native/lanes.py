"""Vectors of a length that is known beforehand, where a loop that short would become none."""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

LANES = 16  # entries that `lower` takes


@intrinsic
def lower(typing, out, shift, rows):
    """out = the least of itself and of shift[i] + rows[i], entry by entry, for the first `LANES`.

    Raises:
      TypingError: entries that are not float32, or do not lie beside each other.
    """
    del typing
    for one in (out, *rows):
        if one.dtype != types.float32 or one.ndim != 1 or one.layout != "C":
            raise TypingError(f"{one}: entries must be float32, and lie beside each other")
    vector = ir.VectorType(ir.FloatType(), LANES)

    def generate(context, builder, signature, arguments):
        def place(kind, value):
            data = cgutils.create_struct_proxy(kind)(context, builder, value).data
            return builder.bitcast(data, vector.as_pointer())

        kind, _, kinds = signature.args
        undefined = ir.Constant(vector, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        to = place(kind, arguments[0])
        least = builder.load(to, align=4)
        for i, of in enumerate(kinds):
            row = builder.load(place(of, builder.extract_value(arguments[2], i)), align=4)
            number = builder.extract_value(arguments[1], i)
            lane = builder.insert_element(undefined, number, ir.IntType(32)(0))
            total = builder.fadd(builder.shuffle_vector(lane, undefined, zeros), row)
            least = builder.select(builder.fcmp_ordered("<", total, least), total, least)
        builder.store(least, to, align=4)
        return context.get_dummy_value()

    return types.void(out, shift, rows), generate

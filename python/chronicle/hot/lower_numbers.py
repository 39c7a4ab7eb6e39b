"""Primitives on numbers and text: arithmetic, comparison, conversion, `math`, as Python has them.

What differs between Python and a processor is settled here: an int that leaves 64 bits is a
failure, and so is a division by zero; ``//`` rounds down, an int and a float are compared exactly,
``int / int`` is rounded once, ``int(x)`` of what does not fit fails. Under a mask of constant bits,
``(h * K) & 0xFFFF_FFFF``, only low bits are wanted, and those wrap around.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from llvmlite import ir
from numba.core import types

from chronicle.hot.info import I64_MIN
from chronicle.hot.lower_target import primitive
from chronicle.hot.lower_types import (
    F64,
    I1,
    I64,
    BufferType,
    BytesType,
    CellsType,
    CharsType,
    Emit,
    Refusal,
    TableType,
    describe,
    kind_of,
)

__all__ = ["NUMBERS", "math_primitive"]

I128: Final = ir.IntType(128)
EXACT_MAX: Final = 1 << 53
"""All integers up to here are floats."""
OVERFLOW_TEXT: Final = "an integer left 64 bits; for a hash, mask it: (h * K) & 0xFFFF_FFFF"
TWO_63: Final = float(1 << 63)

Lower = Callable[[Emit, list[Any], list[Any]], Any]


def _checked(choose: Callable[[Any, Any], Any], lower: Lower) -> Any:
    """Make a primitive ``(handler, a, b, site)``; `choose` gives its type from those of a and b."""

    @primitive
    def made(_handler: Any, a: Any, b: Any, _site: Any) -> Any:
        kinds = [kind_of(a), kind_of(b)]
        return choose(a, b), lambda emit, values: lower(emit, list(values[1:3]), kinds)

    return made


def _checked_one(choose: Callable[[Any], Any], lower: Lower) -> Any:
    """Make a primitive ``(handler, a, site)``."""

    @primitive
    def made(_handler: Any, a: Any, _site: Any) -> Any:
        return choose(a), lambda emit, values: lower(emit, [values[1]], [kind_of(a)])

    return made


def _plain(choose: Callable[[Any, Any], Any], lower: Lower) -> Any:
    """Make a primitive ``(a, b)`` that cannot fail."""

    @primitive
    def made(a: Any, b: Any) -> Any:
        kinds = [kind_of(a), kind_of(b)]
        return choose(a, b), lambda emit, values: lower(emit, list(values), kinds)

    return made


def _plain_one(choose: Callable[[Any], Any], lower: Lower) -> Any:
    """Make a primitive ``(a)`` that cannot fail."""

    @primitive
    def made(a: Any) -> Any:
        return choose(a), lambda emit, values: lower(emit, list(values), [kind_of(a)])

    return made


# --- Types of results ---


def _numbers(what: str, *kinds: Any) -> bool:
    """Return whether any is a float; refuse what is no number."""
    found = [kind_of(kind) for kind in kinds]
    for kind, name in zip(kinds, found, strict=True):
        if name not in ("int", "float", "bool"):
            raise Refusal(f"{what} of {describe(kind)}", "use numbers")
    return "float" in found


def _arithmetic(symbol: str) -> Callable[[Any, Any], Any]:
    def choose(a: Any, b: Any) -> Any:
        return types.float64 if _numbers(symbol, a, b) else types.int64

    return choose


def _always_float(symbol: str) -> Callable[..., Any]:
    def choose(*kinds: Any) -> Any:
        _numbers(symbol, *kinds)
        return types.float64

    return choose


def _integers(symbol: str) -> Callable[..., Any]:
    def choose(*kinds: Any) -> Any:
        if _numbers(symbol, *kinds):
            raise Refusal(f"{symbol} of a float", "write int(...) around it")
        return types.int64

    return choose


# --- Arithmetic ---

_FLOAT_OPERATORS: Final = {"add": "fadd", "sub": "fsub", "mul": "fmul"}


def _plain_arithmetic(name: str) -> Lower:
    """Add, subtract or multiply; an int that leaves 64 bits is a failure."""

    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        builder = emit.builder
        if "float" in kinds:
            a, b = (emit.as_f64(v, k) for v, k in zip(values, kinds, strict=True))
            return getattr(builder, _FLOAT_OPERATORS[name])(a, b)
        a, b = (emit.as_i64(v, k) for v, k in zip(values, kinds, strict=True))
        both = getattr(builder, f"s{name}_with_overflow")(a, b)
        _overflow(emit, builder.extract_value(both, 1))
        return builder.extract_value(both, 0)

    return lower


def _wrapping(name: str) -> Lower:
    """Add, subtract, multiply or shift where only low bits are kept."""

    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        a, b = (emit.as_i64(v, k) for v, k in zip(values, kinds, strict=True))
        return getattr(emit.builder, name)(a, b)

    return lower


def _overflow(emit: Emit, bad: Any) -> None:
    emit.fail_if(bad, "OverflowError", OVERFLOW_TEXT)


def _negated(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    if kinds[0] == "float":
        return emit.builder.fneg(values[0])
    zero = I64(0)
    return _plain_arithmetic("sub")(emit, [zero, values[0]], ["int", kinds[0]])


def _unchanged(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    return values[0] if kinds[0] == "float" else emit.as_i64(values[0], kinds[0])


def _sign_type(symbol: str) -> Callable[[Any], Any]:
    def choose(a: Any) -> Any:
        return types.float64 if _numbers(symbol, a) else types.int64

    return choose


def _zero_division(emit: Emit, divisor: Any) -> None:
    builder = emit.builder
    if divisor.type == F64:
        bad = builder.fcmp_ordered("==", divisor, F64(0.0))
    else:
        bad = builder.icmp_unsigned("==", divisor, I64(0))
    emit.fail_if(bad, "ZeroDivisionError", "division by zero")


def _divide_integers(emit: Emit, a: Any, b: Any) -> tuple[Any, Any]:
    """Return quotient and remainder, rounded down. `b` is not zero."""
    builder = emit.builder
    # The processor traps at -2**63 / -1, so -1 is not given to it.
    is_minus_one = builder.icmp_signed("==", b, I64(-1))
    lowest = builder.icmp_signed("==", a, I64(I64_MIN))
    _overflow(emit, builder.and_(is_minus_one, lowest))
    divisor = builder.select(is_minus_one, I64(1), b)
    quotient = builder.sdiv(a, divisor)
    remainder = builder.sub(a, builder.mul(quotient, divisor))
    quotient = builder.select(is_minus_one, builder.neg(a), quotient)
    apart = builder.icmp_signed("<", builder.xor(remainder, b), I64(0))
    down = builder.and_(apart, builder.icmp_signed("!=", remainder, I64(0)))
    quotient = builder.select(down, builder.sub(quotient, I64(1)), quotient)
    remainder = builder.select(down, builder.add(remainder, b), remainder)
    return quotient, remainder


def _divide_floats(emit: Emit, a: Any, b: Any) -> tuple[Any, Any]:
    """Return quotient and remainder as CPython's ``float_divmod`` has them. `b` is not zero."""
    builder = emit.builder
    mod = builder.frem(a, b)
    div = builder.fdiv(builder.fsub(a, mod), b)
    zero = F64(0.0)
    has_rest = builder.fcmp_unordered("une", mod, zero)
    mod_negative = builder.fcmp_ordered("<", mod, zero)
    b_negative = builder.fcmp_ordered("<", b, zero)
    apart = builder.and_(has_rest, builder.xor(mod_negative, b_negative))
    div = builder.select(apart, builder.fsub(div, F64(1.0)), div)
    moved = builder.select(apart, builder.fadd(mod, b), mod)
    mod = builder.select(has_rest, moved, emit.rounded("copysign", zero, b))
    down = emit.rounded("floor", div)
    far = builder.fcmp_ordered(">", builder.fsub(div, down), F64(0.5))
    down = builder.select(far, builder.fadd(down, F64(1.0)), down)
    is_zero = builder.fcmp_ordered("==", div, zero)
    signed_zero = emit.rounded("copysign", zero, builder.fdiv(a, b))
    return builder.select(is_zero, signed_zero, down), mod


def _division(part: int) -> Lower:
    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        if "float" in kinds:
            a, b = (emit.as_f64(v, k) for v, k in zip(values, kinds, strict=True))
            _zero_division(emit, b)
            return _divide_floats(emit, a, b)[part]
        a, b = (emit.as_i64(v, k) for v, k in zip(values, kinds, strict=True))
        _zero_division(emit, b)
        return _divide_integers(emit, a, b)[part]

    return lower


def _truediv(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    builder = emit.builder
    if "float" in kinds:
        a, b = (emit.as_f64(v, k) for v, k in zip(values, kinds, strict=True))
        _zero_division(emit, b)
        return builder.fdiv(a, b)
    a, b = (emit.as_i64(v, k) for v, k in zip(values, kinds, strict=True))
    _zero_division(emit, b)
    quick = builder.fdiv(builder.sitofp(a, F64), builder.sitofp(b, F64))
    limit = I64(2 * EXACT_MAX)
    large_a = builder.icmp_unsigned(">", builder.add(a, I64(EXACT_MAX)), limit)
    large_b = builder.icmp_unsigned(">", builder.add(b, I64(EXACT_MAX)), limit)
    is_zero = builder.icmp_signed("==", a, I64(0))
    slow = builder.and_(builder.or_(large_a, large_b), builder.not_(is_zero))
    entry = builder.block
    with builder.if_then(slow, likely=False):
        exact = builder.call(_exact_division(builder.module), [a, b])
        inner = builder.block
    joined = builder.phi(F64)
    joined.add_incoming(quick, entry)
    joined.add_incoming(exact, inner)
    return joined


def _shared_function(module: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Return a helper in machine code, and whether its body is still to be written."""
    if name in module.globals:
        return module.globals[name], False
    made = ir.Function(module, ir.FunctionType(result, arguments), name)
    made.linkage = "linkonce_odr"
    made.attributes.add("nounwind")
    return made, True


def _exact_division(module: Any) -> Any:
    """Return a function that divides integers of any size, rounding once, as Python does.

    Both are moved up to their top bits; 64 steps of long division give more bits than a float
    holds; the lowest says whether anything was left, so that the conversion rounds correctly.
    """
    function, is_new = _shared_function(module, "chr_divide_integers", F64, [I64, I64])
    if not is_new:
        return function
    entry, loop, done = (function.append_basic_block(n) for n in ("entry", "loop", "done"))
    builder = ir.IRBuilder(entry)
    a, b = function.args
    zero = I64(0)
    negative = builder.icmp_signed("<", builder.xor(a, b), zero)
    size_a = builder.select(builder.icmp_signed("<", a, zero), builder.neg(a), a)
    size_b = builder.select(builder.icmp_signed("<", b, zero), builder.neg(b), b)
    shift_a = builder.ctlz(size_a, I1(0))
    shift_b = builder.ctlz(size_b, I1(0))
    top_a = builder.zext(builder.shl(size_a, shift_a), I128)
    top_b = builder.zext(builder.shl(size_b, shift_b), I128)
    builder.branch(loop)

    builder.position_at_end(loop)
    count = builder.phi(I64)
    quotient = builder.phi(I64)
    rest = builder.phi(I128)
    fits = builder.icmp_unsigned(">=", rest, top_b)
    left = builder.select(fits, builder.sub(rest, top_b), rest)
    bit = builder.zext(fits, I64)
    grown = builder.or_(builder.shl(quotient, I64(1)), bit)
    doubled = builder.shl(left, I128(1))
    counted = builder.add(count, I64(1))
    builder.cbranch(builder.icmp_unsigned("<", counted, I64(64)), loop, done)
    for phi, first, later in (
        (count, zero, counted),
        (quotient, zero, grown),
        (rest, top_a, doubled),
    ):
        phi.add_incoming(first, entry)
        phi.add_incoming(later, loop)

    builder.position_at_end(done)
    sticky = builder.zext(builder.icmp_unsigned("!=", doubled, I128(0)), I64)
    rounded = builder.uitofp(builder.or_(grown, sticky), F64)
    exponent = builder.add(builder.sub(shift_b, shift_a), I64(1023 - 63))
    scale = builder.bitcast(builder.shl(exponent, I64(52)), F64)
    result = builder.fmul(rounded, scale)
    builder.ret(builder.select(negative, builder.fneg(result), result))
    return function


def _power(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    builder = emit.builder
    if "float" not in kinds:
        a, b = (emit.as_i64(v, k) for v, k in zip(values, kinds, strict=True))
        bad = builder.icmp_signed("<", b, I64(0))
        emit.fail_if(bad, "ValueError", "int ** negative int is no int: exponent={value}", b)
        both = builder.call(_integer_power(builder.module), [a, b])
        _overflow(emit, builder.extract_value(both, 1))
        return builder.extract_value(both, 0)
    a, b = (emit.as_f64(v, k) for v, k in zip(values, kinds, strict=True))
    zero = F64(0.0)
    infinite = builder.or_(emit.is_infinite(a), emit.is_infinite(b))
    bad = builder.and_(builder.fcmp_ordered("==", a, zero), builder.fcmp_ordered("<", b, zero))
    bad = builder.and_(bad, builder.not_(infinite))
    emit.fail_if(bad, "ZeroDivisionError", "zero to a negative power: exponent={value}", b)
    broken = builder.fcmp_ordered("!=", emit.rounded("floor", b), b)
    bad = builder.and_(builder.fcmp_ordered("<", a, zero), broken)
    bad = builder.and_(bad, builder.not_(infinite))
    text = "a negative number to a broken power is complex: base={value}"
    emit.fail_if(bad, "TypeError", text, a)
    made = _libm(emit, "pow", [a, b])
    bad = builder.and_(emit.is_infinite(made), builder.not_(infinite))
    emit.fail_if(bad, "OverflowError", "result too large: base={value}", a)
    return made


def _integer_power(module: Any) -> Any:
    """Return a function that multiplies and squares; it also tells whether that overflowed."""
    pair = ir.LiteralStructType([I64, I1])
    function, is_new = _shared_function(module, "chr_integer_power", pair, [I64, I64])
    if not is_new:
        return function
    entry, loop, body, done = (
        function.append_basic_block(n) for n in ("entry", "loop", "body", "done")
    )
    builder = ir.IRBuilder(entry)
    builder.branch(loop)
    builder.position_at_end(loop)
    result, base, left = builder.phi(I64), builder.phi(I64), builder.phi(I64)
    lost, too_large = builder.phi(I1), builder.phi(I1)
    builder.cbranch(builder.icmp_signed("!=", left, I64(0)), body, done)
    builder.position_at_end(body)
    odd = builder.trunc(left, I1)
    product = builder.smul_with_overflow(result, base)
    grown = builder.select(odd, builder.extract_value(product, 0), result)
    # A base that no longer fits only matters if it is used.
    wrong = builder.and_(odd, builder.or_(too_large, builder.extract_value(product, 1)))
    square = builder.smul_with_overflow(base, base)
    halved = builder.lshr(left, I64(1))
    for phi, first, later in (
        (result, I64(1), grown),
        (base, function.args[0], builder.extract_value(square, 0)),
        (left, function.args[1], halved),
        (lost, I1(0), builder.or_(lost, wrong)),
        (too_large, I1(0), builder.or_(too_large, builder.extract_value(square, 1))),
    ):
        phi.add_incoming(first, entry)
        phi.add_incoming(later, body)
    builder.branch(loop)
    builder.position_at_end(done)
    made = builder.insert_value(ir.Constant(pair, ir.Undefined), result, 0)
    builder.ret(builder.insert_value(made, lost, 1))
    return function


def _shift(direction: str, *, wraps: bool = False) -> Lower:
    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        builder = emit.builder
        a, b = (emit.as_i64(v, k) for v, k in zip(values, kinds, strict=True))
        bad = builder.icmp_signed("<", b, I64(0))
        emit.fail_if(bad, "ValueError", "negative shift count: count={value}", b)
        far = builder.icmp_signed(">", b, I64(63))
        if direction == "right":
            return builder.ashr(a, builder.select(far, I64(63), b))
        count = builder.select(far, I64(63), b)
        moved = builder.select(far, I64(0), builder.shl(a, count))
        if not wraps:
            back = builder.ashr(moved, count)
            _overflow(emit, builder.icmp_signed("!=", back, a))
        return moved

    return lower


def _invert(emit: Emit, values: list[Any], _kinds: list[Any]) -> Any:
    return emit.builder.not_(values[0])


def _invert_type(kind: Any) -> Any:
    if kind_of(kind) != "int":
        raise Refusal(f"~ of {describe(kind)}", "use `not` for a bool, int(...) for a float")
    return types.int64


def _step(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    value = emit.as_i64(values[0], kinds[0])
    bad = emit.builder.icmp_unsigned("==", value, I64(0))
    emit.fail_if(bad, "ValueError", "range() arg 3 must not be zero")
    return value


def _span(emit: Emit, values: list[Any], _kinds: list[Any]) -> Any:
    """Return the end of a range, or fail if it is too far from the start to be counted."""
    builder = emit.builder
    both = builder.ssub_with_overflow(values[1], values[0])
    lowest = builder.icmp_signed("==", builder.extract_value(both, 0), I64(I64_MIN))
    _overflow(emit, builder.or_(builder.extract_value(both, 1), lowest))
    return values[1]


# --- Comparison ---


def _compared(symbol: str) -> Callable[[Any, Any], Any]:
    def choose(a: Any, b: Any) -> Any:
        found = {kind_of(a), kind_of(b)}
        if found == {"chars"}:
            return types.boolean
        if "" in found or "chars" in found:
            raise Refusal(
                f"{describe(a)} {symbol} {describe(b)}",
                "compare numbers with numbers, and text with b'...'",
            )
        return types.boolean

    return choose


def _comparison(symbol: str) -> Lower:
    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        builder = emit.builder
        if kinds[0] == "chars":
            return _compare_text(emit, symbol, *values)
        if kinds == ["float", "float"]:
            return _compare_floats(builder, symbol, *values)
        if "float" not in kinds:
            a, b = (emit.as_i64(v, k) for v, k in zip(values, kinds, strict=True))
            return builder.icmp_signed(symbol, a, b)
        if kinds[0] == "float":
            turned = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(symbol, symbol)
            return _compare_mixed(emit, turned, emit.as_i64(values[1], kinds[1]), values[0])
        return _compare_mixed(emit, symbol, emit.as_i64(values[0], kinds[0]), values[1])

    return lower


def _compare_floats(builder: Any, symbol: str, a: Any, b: Any) -> Any:
    if symbol == "!=":
        return builder.fcmp_unordered(symbol, a, b)
    return builder.fcmp_ordered(symbol, a, b)


def _compare_mixed(emit: Emit, symbol: str, a: Any, b: Any) -> Any:
    """Compare an int with a float, exactly.

    Rounding keeps order, so wherever the rounded int differs from the float, that is the answer.
    Where it does not, the float is a whole number, and the two are compared as ints; 2**63 alone
    is none, and larger than all.
    """
    builder = emit.builder
    rounded = builder.sitofp(a, F64)
    is_same = builder.fcmp_ordered("==", rounded, b)
    too_large = builder.fcmp_ordered("==", b, F64(TWO_63))
    usable = builder.and_(is_same, builder.not_(too_large))
    whole = builder.fptosi(builder.select(usable, b, F64(0.0)), I64)
    exact = builder.icmp_signed(symbol, a, whole)
    below = I1(1 if symbol in ("<", "<=", "!=") else 0)
    exact = builder.select(too_large, below, exact)
    return builder.select(is_same, exact, _compare_floats(builder, symbol, rounded, b))


def _compare_text(emit: Emit, symbol: str, a: Any, b: Any) -> Any:
    builder = emit.builder
    width = max(a.type.width, b.type.width) // 8
    if symbol in ("==", "!="):
        return builder.icmp_unsigned(symbol, emit.widen(a, width), emit.widen(b, width))
    # The first byte decides, so it must be the highest; the swap takes an even number of bytes.
    width += width % 2
    a, b = (builder.bswap(emit.widen(value, width)) for value in (a, b))
    return builder.icmp_unsigned(symbol, a, b)


@primitive
def _contains(a: Any, items: Any) -> Any:
    kinds = [types.unliteral(each) for each in items.types]
    choose, compare = _compared("in"), _comparison("==")
    for kind in kinds:
        choose(a, kind)

    def write(emit: Emit, values: Sequence[Any]) -> Any:
        found = I1(0)
        for index, kind in enumerate(kinds):
            item = emit.element(values[1], index, kind)
            same = compare(emit, [values[0], item], [kind_of(a), kind_of(kind)])
            found = emit.builder.or_(found, same)
        return found

    return types.boolean, write


def _truth_type(kind: Any) -> Any:
    if not kind_of(kind):
        raise Refusal(f"{describe(kind)} as a condition", "compare a number: x > 0, len(x) > 0")
    return types.boolean


def _truth(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    value = values[0]
    if kinds[0] == "float":
        return emit.builder.fcmp_unordered("!=", value, F64(0.0))
    return emit.builder.icmp_unsigned("!=", value, value.type(0))


def _same_kind(name: str) -> Callable[[Any, Any], Any]:
    def choose(a: Any, b: Any) -> Any:
        _numbers(f"{name}()", a, b)
        if kind_of(a) != kind_of(b):
            raise Refusal(
                f"{name}() of {describe(a)} and {describe(b)}",
                "give both the same type: write 0.0 for 0, or float(x)",
            )
        return types.unliteral(a)

    return choose


def _choice(symbol: str) -> Lower:
    compare = _comparison(symbol)

    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        # As Python: the second only if it is better.
        better = compare(emit, [values[1], values[0]], [kinds[1], kinds[0]])
        return emit.builder.select(better, values[1], values[0])

    return lower


# --- Conversion ---


def _float_to_int(emit: Emit, value: Any, what: str) -> Any:
    builder = emit.builder
    bad = builder.fcmp_unordered("uno", value, value)
    emit.fail_if(bad, "ValueError", f"cannot convert float NaN to integer, in {what}")
    bad = builder.fcmp_ordered(">=", emit.rounded("fabs", value), F64(TWO_63))
    text = f"a float does not fit into 64 bits, in {what}: value={{value}}"
    emit.fail_if(bad, "OverflowError", text, value)
    return builder.fptosi(value, I64)


def _to_int(rounding: str, what: str) -> Lower:
    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        if kinds[0] != "float":
            return emit.as_i64(values[0], kinds[0])
        value = values[0]
        if rounding:
            value = emit.rounded(rounding, value)
        return _float_to_int(emit, value, what)

    return lower


def _int_type(kind: Any) -> Any:
    _numbers("conversion to int", kind)
    return types.int64


def _absolute_type(kind: Any) -> Any:
    return types.float64 if _numbers("abs()", kind) else types.int64


def _absolute(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    builder = emit.builder
    if kinds[0] == "float":
        return emit.rounded("fabs", values[0])
    value = emit.as_i64(values[0], kinds[0])
    _overflow(emit, builder.icmp_signed("==", value, I64(I64_MIN)))
    negative = builder.icmp_signed("<", value, I64(0))
    return builder.select(negative, builder.neg(value), value)


def _to_float(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    return emit.as_f64(values[0], kinds[0])


def _to_index(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    return emit.as_i64(values[0], kinds[0])


@primitive
def _len(a: Any) -> Any:
    if isinstance(a, CellsType | TableType | types.BaseTuple):
        return types.int64, lambda _emit, _values: I64(a.count)
    if isinstance(a, BufferType):
        return types.int64, lambda _emit, _values: I64(a.size)
    if isinstance(a, BytesType):
        return types.int64, lambda emit, values: emit.builder.extract_value(values[0], 1)
    if not isinstance(a, CharsType):
        raise Refusal(f"len() of {describe(a)}", "use len() of arrays, tables, text and bytes")
    return types.int64, lambda emit, values: text_length(emit.builder, values[0], a.width)


def text_length(builder: Any, value: Any, width: int) -> Any:
    """Return how many bytes are left of text without its padding."""
    zeros = builder.ctlz(value, I1(0))
    bits = zeros.type.width
    if bits < 64:
        zeros = builder.zext(zeros, I64)
    elif bits > 64:
        zeros = builder.trunc(zeros, I64)
    return builder.sub(I64(width), builder.lshr(zeros, I64(3)))


# --- Helpers of `chronicle.hot.functions` ---


def _symbol_key_type(kind: Any) -> Any:
    if not isinstance(kind, CharsType):
        raise Refusal(f"symbol_key of {describe(kind)}", "pass text, such as trade.symbol")
    return types.int64


def _symbol_key(emit: Emit, values: list[Any], _kinds: list[Any]) -> Any:
    value = values[0]
    return emit.fit_text(value, value.type.width // 8, 8, "symbol_key's text")


def _mix64(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
    builder = emit.builder
    z = builder.add(emit.as_i64(values[0], kinds[0]), I64(0x9E37_79B9_7F4A_7C15))
    for shift, factor in ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)):
        z = builder.mul(builder.xor(z, builder.lshr(z, I64(shift))), I64(factor))
    z = builder.xor(z, builder.lshr(z, I64(31)))
    return builder.and_(z, I64(0x7FFF_FFFF_FFFF_FFFF))


# --- math ---

_LIBM_CHECKED: Final = frozenset(
    {
        *("acos", "acosh", "asin", "asinh", "atan", "atanh", "cbrt", "cos", "cosh", "erf"),
        *("erfc", "exp", "expm1", "log1p", "sin", "sinh", "tan", "tanh"),
    }
)


def _libm(emit: Emit, name: str, values: list[Any]) -> Any:
    # Not known to the optimizer: its own idea of a function may differ in the last bit.
    function = emit.declare(name, F64, [F64] * len(values))
    function.attributes.add("nobuiltin")
    return emit.builder.call(function, values)


def _is_nan(builder: Any, value: Any) -> Any:
    return builder.fcmp_unordered("uno", value, value)


def _domain(emit: Emit, name: str, made: Any, values: list[Any]) -> Any:
    """Fail as `math` does: a NaN or an infinity that does not come from the arguments."""
    builder = emit.builder
    had_nan, had_infinity = I1(0), I1(0)
    for value in values:
        had_nan = builder.or_(had_nan, _is_nan(builder, value))
        had_infinity = builder.or_(had_infinity, emit.is_infinite(value))
    bad = builder.and_(_is_nan(builder, made), builder.not_(had_nan))
    emit.fail_if(bad, "ValueError", f"math domain error in math.{name}: value={{value}}", values[0])
    either = builder.or_(had_nan, had_infinity)
    bad = builder.and_(emit.is_infinite(made), builder.not_(either))
    can_overflow = name in ("cosh", "exp", "expm1", "sinh", "pow")
    emit.fail_if(
        bad,
        "OverflowError" if can_overflow else "ValueError",
        f"math range error in math.{name}: value={{value}}",
        values[0],
    )
    return made


def _math_float(name: str) -> Lower:
    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        builder = emit.builder
        given = [emit.as_f64(v, k) for v, k in zip(values, kinds, strict=True)]
        if name in ("fabs", "copysign"):
            return emit.rounded(name, *given)
        if name in ("degrees", "radians"):
            pi = 3.141592653589793
            return builder.fmul(given[0], F64(180.0 / pi if name == "degrees" else pi / 180.0))
        if name == "sqrt":
            return _domain(emit, name, emit.rounded("sqrt", given[0]), given)
        if name in ("log", "log2", "log10"):
            bad = builder.fcmp_ordered("<=", given[0], F64(0.0))
            text = f"math domain error in math.{name}: value={{value}}"
            emit.fail_if(bad, "ValueError", text, given[0])
            return _libm(emit, name, given)
        if name == "atan2":
            return _libm(emit, name, given)
        if name == "pow":
            bad = builder.and_(
                builder.fcmp_ordered("==", given[0], F64(0.0)),
                builder.and_(
                    builder.fcmp_ordered("<", given[1], F64(0.0)),
                    builder.not_(emit.is_infinite(given[1])),
                ),
            )
            emit.fail_if(bad, "ValueError", "math domain error in math.pow: base={value}", given[0])
        return _domain(emit, name, _libm(emit, name, given), given)

    return lower


def _math_test(name: str) -> Lower:
    def lower(emit: Emit, values: list[Any], kinds: list[Any]) -> Any:
        value = emit.as_f64(values[0], kinds[0])
        if name == "isnan":
            return _is_nan(emit.builder, value)
        infinite = emit.is_infinite(value)
        if name == "isinf":
            return infinite
        return emit.builder.not_(emit.builder.or_(infinite, _is_nan(emit.builder, value)))

    return lower


def _math_bool_type(kind: Any) -> Any:
    _numbers("this test", kind)
    return types.boolean


def math_primitive(name: str) -> Any:
    """Return the primitive for a function of `math`."""
    if name in ("floor", "ceil", "trunc"):
        return _checked_one(_int_type, _to_int(name, f"math.{name}"))
    if name in ("isnan", "isinf", "isfinite"):
        return _checked_one(_math_bool_type, _math_test(name))
    if name in ("atan2", "copysign", "fmod", "pow"):
        return _checked(_always_float(f"math.{name}"), _math_float(name))
    return _checked_one(_always_float(f"math.{name}"), _math_float(name))


NUMBERS: Final[dict[str, Any]] = {
    "add": _checked(_arithmetic("+"), _plain_arithmetic("add")),
    "sub": _checked(_arithmetic("-"), _plain_arithmetic("sub")),
    "mul": _checked(_arithmetic("*"), _plain_arithmetic("mul")),
    "neg": _checked_one(_sign_type("-"), _negated),
    "pos": _plain_one(_sign_type("+"), _unchanged),
    "wrap_add": _checked(_integers("+ under a mask"), _wrapping("add")),
    "wrap_sub": _checked(_integers("- under a mask"), _wrapping("sub")),
    "wrap_mul": _checked(_integers("* under a mask"), _wrapping("mul")),
    "wrap_lshift": _checked(_integers("<<"), _shift("left", wraps=True)),
    "truediv": _checked(_always_float("/"), _truediv),
    "floordiv": _checked(_arithmetic("//"), _division(0)),
    "mod": _checked(_arithmetic("%"), _division(1)),
    "pow": _checked(_arithmetic("**"), _power),
    "lshift": _checked(_integers("<<"), _shift("left")),
    "rshift": _checked(_integers(">>"), _shift("right")),
    "span": _checked(_integers("range()"), _span),
    "step": _checked_one(_integers("range()"), _step),
    "invert": _plain_one(_invert_type, _invert),
    "eq": _plain(_compared("=="), _comparison("==")),
    "ne": _plain(_compared("!="), _comparison("!=")),
    "lt": _plain(_compared("<"), _comparison("<")),
    "le": _plain(_compared("<="), _comparison("<=")),
    "gt": _plain(_compared(">"), _comparison(">")),
    "ge": _plain(_compared(">="), _comparison(">=")),
    "contains": _contains,
    "truth": _plain_one(_truth_type, _truth),
    "min": _plain(_same_kind("min"), _choice("<")),
    "max": _plain(_same_kind("max"), _choice(">")),
    "int": _checked_one(_int_type, _to_int("", "int()")),
    "round": _checked_one(_int_type, _to_int("rint", "round()")),
    "abs": _checked_one(_absolute_type, _absolute),
    "float": _plain_one(_always_float("float()"), _to_float),
    "index": _plain_one(_integers("range()"), _to_index),
    "len": _len,
    "symbol_key": _checked_one(_symbol_key_type, _symbol_key),
    "mix64": _checked_one(_integers("mix64()"), _mix64),
}
"""The primitives of this module by their names."""

"""Decode attention's products over a cache of e4m3: in fp16, its values read as pairs of columns.

Every e4m3 number is one of fp16, and an instruction widens two of them; to bfloat16 it takes four,
most of them slow. A register of the matrix units holds two tokens of one column, and a piece of
memory two columns of one token. So columns of even and of odd index are products apart, until all
is summed and `joined`.

Up to 8 heads are the columns of the instruction, and tokens its rows, of which no fewer than 16 can
be: half of what 16 heads would take, in instructions and registers.

Invariant: nothing overflows, and what is rounded is rounded less than in bfloat16. A query is taken
by a power of two to where its largest number is in [2^14, 2^15), and its scores are taken back:
down to 2^-28 of the largest no bit of a number is lost, and below no more than 2^-39 of it. A score
is a sum in fp32 of products below 2^15 * 448. Weights are in [0, 1].
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

import triton
import triton.language as tl

from quire.kernels.attention.decode_merge import merge

_WIDENED = """{
    .reg .b16 even, odd;
    .reg .b32 both;
    prmt.b32 both, $1, 0, 0x3120;
    mov.b32 {even, odd}, both;
    cvt.rn.f16x2.e4m3x2 $0, COLUMN;
}"""
_EVEN = tl.constexpr(_WIDENED.replace("COLUMN", "even"))
_ODD = tl.constexpr(_WIDENED.replace("COLUMN", "odd"))


@triton.jit
def queries_in_fp16(q, scale):
    """q [heads, DP] in fp16, and what each head's scores are to be multiplied by for `scale`."""
    wide = q.to(tl.float32)
    exponent = tl.max(tl.abs(wide), 1).to(tl.int32, bitcast=True) >> 23  # by 127 too large
    exponent = tl.maximum(exponent, 16)  # zeros too have a power of two that a float holds
    up = ((127 + 127 + 14 - exponent) << 23).to(tl.float32, bitcast=True)
    down = ((exponent - 14) << 23).to(tl.float32, bitcast=True)
    return (wide * up[:, None]).to(tl.float16), down * scale


@triton.jit
def weighted(p, v, PAIRS: tl.constexpr, PRECISION: tl.constexpr):
    """p [heads, TILE] times the values v [TILE, DP]: [heads, DP], twice. With PAIRS v is of int16,
    two columns in one, and the results are those of the even and of the odd ones."""
    if PAIRS:  # the compiler sees that both pieces of machine code begin alike
        p = p.to(tl.float16)
        even = tl.inline_asm_elementwise(_EVEN, "=r,r", [v], tl.float16, is_pure=True, pack=2)
        odd = tl.inline_asm_elementwise(_ODD, "=r,r", [v], tl.float16, is_pure=True, pack=2)
        if p.shape[0] < 16:  # heads are columns
            across = tl.trans(p)
            acc = tl.trans(tl.dot(tl.trans(even), across))
            acc_odd = tl.trans(tl.dot(tl.trans(odd), across))
        else:
            acc = tl.dot(p, even)
            acc_odd = tl.dot(p, odd)
    else:
        acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        acc_odd = acc
    return acc, acc_odd


@triton.jit
def merge_both(m, total, acc, odd, m_new, total_new, acc_new, odd_new, PAIRS: tl.constexpr):
    """`merge` of sums whose odd columns lie apart, if PAIRS."""
    if PAIRS:
        _, _, odd = merge(m, total, odd, m_new, total_new, odd_new)
    m, total, acc = merge(m, total, acc, m_new, total_new, acc_new)
    return m, total, acc, odd


@triton.jit
def joined(acc, odd, PAIRS: tl.constexpr):
    """The columns in order: [heads, DP]."""
    if PAIRS:
        acc = tl.reshape(tl.join(acc, odd), [acc.shape[0], 2 * acc.shape[1]])
    return acc

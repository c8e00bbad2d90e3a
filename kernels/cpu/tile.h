/* A tile of one level and one kind of weight: up to ROWS rows of x by four rows of the weight.
 *
 * Included by products.c once a kind, with NUMBER (the weight's), FIRST(p) and SECOND(p) (two
 * vectors of floats from 2 * LANES numbers at p), and TILED(x), which names what is defined here.
 */

#define LINES (4 * STEP * (int)sizeof(NUMBER) / LINE_BYTES) /* that a step reads */
#ifndef WIDE
#define WIDE float
#define WIDE_VECTOR V
#define LOAD_WIDE(p) LOAD(p)
#define ADD(x, w, sum) FMA(x, w, sum)
#endif

TARGET INLINE void TILED(step)(int rows, V sums[ROWS][4], const WIDE *x, long x_stride,
                               const NUMBER *w, long w_stride)
{
    ADD_HALF(FIRST, 0)
#ifdef SECOND
    ADD_HALF(SECOND, LANES)
#endif
}

/* Sums of `rows` rows of x, at x and x_stride further on, with four rows of the weight. With
 * `ahead`, the four rows after them are fetched meanwhile: what the machine does by itself begins
 * anew at each of the tile's rows, and leaves a third of the memory's rate. */
TARGET INLINE void TILED(tile)(int rows, const WIDE *x, long x_stride, const NUMBER *w, long k,
                               int ahead, __m128 *out)
{
    V sums[ROWS][4];
    UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < 4; c++) sums[r][c] = ZERO;
    long whole = k - k % STEP;
    for (long i = 0; i < whole; i += STEP) {
        if (ahead) UNROLL for (int line = 0; line < LINES; line++)
            _mm_prefetch((const char *)(w + 4 * (k + i)) + line * LINE_BYTES, _MM_HINT_T0);
        TILED(step)(rows, sums, x + i, x_stride, w + i, k);
    }
    if (whole < k) {
        NUMBER rest[4 * STEP] = {0};
        for (int c = 0; c < 4; c++)
            memcpy(rest + c * STEP, w + c * k + whole, (k - whole) * sizeof(NUMBER));
        TILED(step)(rows, sums, x + whole, x_stride, rest, STEP);
    }
    UNROLL for (int r = 0; r < rows; r++) out[r] = totals(sums[r]);
}

/* One row of the weight (those that four do not divide): the same sums, beside three of zeros. */
TARGET static void TILED(lone)(int rows, const WIDE *x, long x_stride, const NUMBER *w, long k,
                               __m128 *out)
{
    for (int r = 0; r < rows; r++, x += x_stride) {
        V sums[4] = {ZERO, ZERO, ZERO, ZERO};
        for (long i = 0; i < k; i += STEP) {
            NUMBER here[STEP] = {0};
            memcpy(here, w + i, (k - i < STEP ? k - i : STEP) * sizeof(NUMBER));
            sums[0] = ADD(LOAD_WIDE(x + i), FIRST(here), sums[0]);
#ifdef SECOND
            sums[0] = ADD(LOAD_WIDE(x + i + LANES), SECOND(here), sums[0]);
#endif
        }
        out[r] = totals(sums);
    }
}

TARGET static void TILED(block)(const Product *p, long first, long last)
{
    const WIDE *wide = p->wide;
    const NUMBER *weight = p->weight;
    __m128 out[ROWS];
    for (long top = 0; top < p->rows; top += p->rows_at_once) {
        long bottom = top + p->rows_at_once < p->rows ? top + p->rows_at_once : p->rows;
        for (long n = first; n < last;) {
            const NUMBER *w = weight + n * p->k;
            int columns = last - n < 4 ? 1 : 4;
            for (long m = top; m < bottom; m += ROWS) {
                const WIDE *x = wide + m * p->wide_stride;
                int rows = bottom - m < ROWS ? (int)(bottom - m) : ROWS;
                int ahead = m == 0; /* what follows finds the weight in the core's cache */
                if (columns == 1)
                    TILED(lone)(rows, x, p->wide_stride, w, p->k, out);
                else
                    switch (rows) {
                    case 1: TILED(tile)(1, x, p->wide_stride, w, p->k, ahead, out); break;
                    case 2: TILED(tile)(2, x, p->wide_stride, w, p->k, ahead, out); break;
#if ROWS > 3
                    case 3: TILED(tile)(3, x, p->wide_stride, w, p->k, ahead, out); break;
                    case 4: TILED(tile)(4, x, p->wide_stride, w, p->k, ahead, out); break;
                    case 5: TILED(tile)(5, x, p->wide_stride, w, p->k, ahead, out); break;
#endif
                    default: TILED(tile)(ROWS, x, p->wide_stride, w, p->k, ahead, out);
                    }
                for (int r = 0; r < rows; r++) put(p, m + r, n, columns, out[r]);
            }
            n += columns;
        }
    }
}

#undef NUMBER
#undef LINES
#undef TILED
#undef WIDE
#undef WIDE_VECTOR
#undef LOAD_WIDE
#undef ADD
#undef FIRST
#undef SECOND

/* Products of a few rows, or many, with weights that are read at the memory's rate.
 *
 * y = x @ weight.T, sums in fp32. A number of y depends on its row of x and its row of the weight
 * alone, bit for bit: not on the rows beside it, their count, or the thread that computed it. So
 * a token has the same bits as a part of a prompt, in a batch, and by itself.
 *
 * The order of sums, on a level of L lanes (avx2: 8; avx512, avx512_bf16: 16), is the same for any
 * number of rows. Lane j adds products one by one, each by a fused multiply-add, over the steps
 * i = 0, 1, ...:
 *     bf16 weights          2 L i + 2 j, then 2 L i + 2 j + 1
 *     int8, float weights   2 L i + j, then 2 L i + L + j
 * Numbers beyond K are zeros. The lanes are then added as a tree. The scale of an int8 row
 * multiplies the sum. On avx512_bf16 both products of bf16 weights come by one instruction.
 * Levels differ in bits, as machines do.
 *
 * What stands around a product comes with it, a row at a time: RMSNorm before it (squares summed in
 * SUMS partial sums, then as a tree), silu(gate) * up or a residual after it. Each is rounded
 * to the kind of x or y where the twin rounds.
 */

#include "numbers.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

#define UNROLL _Pragma("GCC unroll 16")
#define ROW_BYTES (192L << 10)    /* of x, widened, that stay in a core's cache */
#define WEIGHT_BYTES (128L << 10) /* and of a weight */
#define SHARES 4                  /* that a thread takes of a product, at least, if there are columns */
#define TOGETHER 16               /* rows from which threads widen and activate them together */
#define LINE_BYTES 64             /* of a cache */
#define SUMS 16                   /* partial sums of squares */

enum WideKind { SPLIT, PLAIN, AS_PAIRS };

typedef struct {
    const void *x, *weight, *norm, *residual;
    const float *scale;
    void *y, *wide, *activated;
    float eps;
    long rows, outputs, k, wide_stride, rows_at_once, columns_at_once;
    int x_kind, weight_kind, y_kind, wide_kind;
    atomic_long next; /* the first row, or column, that no thread has taken yet */
} Product;

/* `columns` sums of row m, from column n on, scaled and rounded. */
INLINE void put(const Product *p, long m, long n, int columns, __m128 sums)
{
    float numbers[4];
    _mm_storeu_ps(numbers, sums);
    for (int c = 0; c < columns; c++) {
        float number = p->scale ? numbers[c] * p->scale[n + c] : numbers[c];
        long at = m * p->outputs + n + c;
        if (p->residual) number = as_kind(number, p->y_kind) + number_at(p->residual, p->y_kind, at);
        put_at(p->y, p->y_kind, at, number);
    }
}

/* The level: AVX2, AVX512, or AVX512_BF16 is defined. */

#if defined(AVX2)
#define TARGET __attribute__((target("avx2,fma")))
#define V __m256
#define LANES 8
#define ROWS 3
#define ZERO _mm256_setzero_ps()
#define LOAD(p) _mm256_loadu_ps(p)
#define FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define HALVES(v) (v)
#define BITS(p) _mm256_loadu_si256((const __m256i *)(p))
#define EVEN_BF16(p) _mm256_castsi256_ps(_mm256_slli_epi32(BITS(p), 16))
#define ODD_BF16(p) \
    _mm256_castsi256_ps(_mm256_and_si256(BITS(p), _mm256_set1_epi32((int)0xFFFF0000)))
#define WIDEN_BYTES(p) \
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#else
#if defined(AVX512_BF16)
#define TARGET __attribute__((target("avx512f,avx512bf16,avx2,fma")))
#define PAIRS __m512bh
#define BF16_WIDE AS_PAIRS
#define LOAD_PAIRS(p) ((__m512bh)_mm512_loadu_si512(p))
#define ADD_PAIRS(x, w, sum) _mm512_dpbf16_ps(sum, x, w)
#else
#define TARGET __attribute__((target("avx512f,avx2,fma")))
#endif
#define V __m512
#define LANES 16
#define ROWS 6
#define ZERO _mm512_setzero_ps()
#define LOAD(p) _mm512_loadu_ps(p)
#define FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define UPPER(v) _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1))
#define HALVES(v) _mm256_add_ps(_mm512_castps512_ps256(v), UPPER(v))
#define EVEN_BF16(p) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))
#define ODD_BF16(p) \
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32((int)0xFFFF0000)))
#define WIDEN_BYTES(p) \
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#endif
#define STEP (2 * LANES)
#ifndef PAIRS
#define BF16_WIDE SPLIT
#endif

/* Four vectors' sums, lanes added as a tree. */
TARGET INLINE __m128 totals(const V *sums)
{
    __m256 pairs = _mm256_hadd_ps(HALVES(sums[0]), HALVES(sums[1]));
    __m256 others = _mm256_hadd_ps(HALVES(sums[2]), HALVES(sums[3]));
    __m256 fours = _mm256_hadd_ps(pairs, others);
    return _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1));
}

/* What RMSNorm multiplies row m by, before its weight; 1 without a norm. */
TARGET static float norm_scale(const Product *p, long m)
{
    float sums[SUMS] = {0};
    if (!p->norm) return 1.0f;
    for (long i = 0; i < p->k; i += SUMS)
        for (long j = 0; j < SUMS && i + j < p->k; j++) {
            float number = number_at(p->x, p->x_kind, m * p->k + i + j);
            sums[j] = __builtin_fmaf(number, number, sums[j]);
        }
    for (int n = SUMS / 2; n; n /= 2)
        for (int j = 0; j < n; j++) sums[j] += sums[j + n];
    return 1.0f / sqrtf(sums[0] / (float)p->k + p->eps);
}

/* Number i of row m, normed. */
TARGET INLINE float number_of_x(const Product *p, long m, long i, float scale)
{
    float number = number_at(p->x, p->x_kind, m * p->k + i);
    return p->norm ? as_kind(number * scale * number_at(p->norm, p->x_kind, i), p->x_kind) : number;
}

/* Rows [first, last) of x as the tiles read them. */
TARGET static void widen(const Product *p, long first, long last)
{
    for (long m = first; m < last; m++) {
        float scale = norm_scale(p, m);
        if (p->wide_kind == AS_PAIRS) {
            uint16_t *to = (uint16_t *)p->wide + m * p->wide_stride;
            for (long i = 0; i < p->k; i++) to[i] = rounded(number_of_x(p, m, i, scale));
            memset(to + p->k, 0, (p->wide_stride - p->k) * 2);
            continue;
        }
        float *to = (float *)p->wide + m * p->wide_stride;
        for (long i = 0; i < p->wide_stride; i += STEP)
            for (long j = 0; j < STEP; j++) {
                long lane = p->wide_kind == SPLIT ? (j % 2) * LANES + j / 2 : j;
                to[i + lane] = i + j < p->k ? number_of_x(p, m, i + j, scale) : 0.0f;
            }
    }
}

/* Rows [first, last) of y, gate and up side by side, to silu(gate) * up. */
TARGET static void activate(const Product *p, long first, long last)
{
    long width = p->outputs / 2;
    for (long m = first; m < last; m++)
        for (long i = 0; i < width; i++) {
            float gate = number_at(p->y, p->y_kind, m * p->outputs + i);
            float up = number_at(p->y, p->y_kind, m * p->outputs + width + i);
            float silu = as_kind(gate / (1.0f + exponential(-gate)), p->y_kind);
            put_at(p->activated, p->y_kind, m * width + i, silu * up);
        }
}

/* Adds a half of a step: vectors of x at `ahead`, times those of four rows of the weight. */
#define ADD_HALF(widened, ahead)                                                               \
    {                                                                                          \
        WIDE_VECTOR of_x[ROWS];                                                                \
        UNROLL for (int r = 0; r < rows; r++) of_x[r] = LOAD_WIDE(x + r * x_stride + ahead);   \
        UNROLL for (int c = 0; c < 4; c++) {                                                   \
            WIDE_VECTOR of_w = widened(w + c * w_stride);                                      \
            UNROLL for (int r = 0; r < rows; r++) sums[r][c] = ADD(of_x[r], of_w, sums[r][c]); \
        }                                                                                      \
    }

#define NUMBER uint16_t
#define TILED(x) x##_bf16
#ifdef PAIRS
#define WIDE uint16_t
#define WIDE_VECTOR PAIRS
#define LOAD_WIDE(p) LOAD_PAIRS(p)
#define ADD(x, w, sum) ADD_PAIRS(x, w, sum)
#define FIRST(p) LOAD_PAIRS(p)
#else
#define FIRST(p) EVEN_BF16(p)
#define SECOND(p) ODD_BF16(p)
#endif
#include "tile.h"

#define NUMBER int8_t
#define TILED(x) x##_int8
#define FIRST(p) WIDEN_BYTES(p)
#define SECOND(p) WIDEN_BYTES((p) + LANES)
#include "tile.h"

#define NUMBER float
#define TILED(x) x##_float
#define FIRST(p) LOAD(p)
#define SECOND(p) LOAD((p) + LANES)
#include "tile.h"

/* ----------------------------------------------------------------- calls */

static long at_most(long one, long other) { return one < other ? one : other; }

static void widen_share(void *argument)
{
    Product *p = argument;
    for (long first; (first = atomic_fetch_add(&p->next, ROWS)) < p->rows;)
        widen(p, first, at_most(first + ROWS, p->rows));
}

static void multiply_share(void *argument)
{
    static void (*const blocks[])(const Product *, long, long) = {
        block_bf16, block_int8, block_float};
    Product *p = argument;
    long step = p->columns_at_once;
    for (long first; (first = atomic_fetch_add(&p->next, step)) < p->outputs;)
        blocks[p->weight_kind](p, first, at_most(first + step, p->outputs));
}

static void activate_share(void *argument)
{
    Product *p = argument;
    for (long first; (first = atomic_fetch_add(&p->next, ROWS)) < p->rows;)
        activate(p, first, at_most(first + ROWS, p->rows));
}

static void on_threads(Parallel parallel, int threads, void (*share)(void *), Product *p)
{
    atomic_store(&p->next, 0);
    if (threads > 1) parallel(share, p, (unsigned)threads, 0);
    else share(p);
}

static long padded(long k) { return (k + STEP - 1) / STEP * STEP; }

/* Bytes of `wide` for quire_product. */
long quire_wide_bytes(long rows, long k) { return rows * padded(k) * (long)sizeof(float); }

/* How much a thread takes at a time, so that its rows of x and of the weight stay in its cache. */
static void set_shares(Product *p, int threads)
{
    static const long sizes[] = {2, 1, 4};
    long rows = ROW_BYTES / (p->wide_stride * 4 + 1) / ROWS * ROWS;
    p->rows_at_once = rows > ROWS ? rows : ROWS;
    long columns = WEIGHT_BYTES / (p->k * sizes[p->weight_kind] + 1);
    columns = at_most(columns, p->outputs / (SHARES * threads)) / 4 * 4;
    p->columns_at_once = columns > 4 ? columns : 4;
}

/* y = x @ weight.T. x: [rows, k]; weight: [outputs, k]; scale: [outputs] or null; y: [rows,
 * outputs]; all contiguous, the kinds of bf16 weights and of their x both BF16. norm: [k] of x's
 * kind or null; residual: as y, or null; activated: [rows, outputs / 2] of y's kind, or null. wide:
 * what quire_wide_bytes says. parallel: GOMP_parallel, which runs a function on each of `threads`.
 */
void quire_product(Parallel parallel, int threads, const void *x, int x_kind, const void *norm,
                   float eps, const void *weight, int weight_kind, const float *scale,
                   const void *residual, void *y, int y_kind, void *activated, void *wide,
                   long rows, long outputs, long k)
{
    Product p = {.x = x, .weight = weight, .scale = scale, .y = y, .wide = wide, .rows = rows,
                 .outputs = outputs, .k = k, .wide_stride = padded(k), .x_kind = x_kind,
                 .weight_kind = weight_kind, .y_kind = y_kind, .norm = norm, .eps = eps,
                 .residual = residual, .activated = activated};
    int few = rows < TOGETHER ? 1 : threads;
    p.wide_kind = weight_kind == BF16 ? BF16_WIDE : PLAIN;
    set_shares(&p, threads);
    on_threads(parallel, few, widen_share, &p);
    on_threads(parallel, threads, multiply_share, &p);
    if (activated) on_threads(parallel, few, activate_share, &p);
}

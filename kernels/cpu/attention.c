/* Attention of one-token rows over the paged cache, and what writes the cache before it.
 *
 * All in fp32. What a row gets depends on its own numbers and its context alone, bit for bit: not
 * on the rows beside it or the threads, nor on the level. Order of sums: dot products in 2 * LANES
 * partial sums, each taking every so many dimensions, then added as a tree; softmax over TOKENS positions at a
 * time from the first on (Milakov and Gimelshein, 2018), values added position by position.
 */

#include "numbers.h"

#include <math.h>
#include <stdatomic.h>

#define LANES 8
#define TOKENS 64     /* positions whose scores are held */
#define MAX_GROUP 16  /* query heads that share keys */
#define MAX_DIM 256

#define TARGET __attribute__((target("avx2,fma")))

/* The sum of a[i] * b[i]; n is a multiple of 2 * LANES. */
TARGET INLINE float dot(const float *a, const float *b, long n)
{
    __m256 even = _mm256_setzero_ps(), odd = even;
    for (long i = 0; i < n; i += 2 * LANES) {
        even = _mm256_fmadd_ps(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i), even);
        odd = _mm256_fmadd_ps(_mm256_loadu_ps(a + i + LANES), _mm256_loadu_ps(b + i + LANES), odd);
    }
    even = _mm256_add_ps(even, odd);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(even), _mm256_extractf128_ps(even, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

/* to[d] += weight * from[d], each by one fused multiply-add; n is a multiple of LANES. */
TARGET INLINE void add_scaled(float *to, float weight, const float *from, long n)
{
    __m256 by = _mm256_set1_ps(weight);
    for (long d = 0; d < n; d += LANES)
        _mm256_storeu_ps(to + d, _mm256_fmadd_ps(by, _mm256_loadu_ps(from + d), _mm256_loadu_ps(to + d)));
}

/* ------------------------------------------------------------- norm, rotation, write */

typedef struct {
    const void *qkv, *q_norm, *k_norm;
    const float *cos_sin;
    const long *positions, *slots;
    float *k_cache, *v_cache;
    void *q;
    float eps;
    long tokens, q_heads, kv_heads, dim, block_size;
    int kind;
    atomic_long next;
} Write;

/* A head of q or k: normed if there is a norm, rotated; to: [dim]. */
TARGET static void turned(const Write *p, long token, long head, const void *norm, float *to)
{
    long half = p->dim / 2, heads = p->q_heads + 2 * p->kv_heads;
    const float *cosines = p->cos_sin + p->positions[token] * p->dim, *sines = cosines + half;
    float numbers[MAX_DIM];
    for (long d = 0; d < p->dim; d++)
        numbers[d] = number_at(p->qkv, p->kind, (token * heads + head) * p->dim + d);
    if (norm) {
        float scale = 1.0f / sqrtf(dot(numbers, numbers, p->dim) / (float)p->dim + p->eps);
        for (long d = 0; d < p->dim; d++) numbers[d] = numbers[d] * scale * number_at(norm, p->kind, d);
    }
    for (long d = 0; d < half; d++) {
        float first = numbers[d], second = numbers[half + d];
        to[d] = as_kind(first * cosines[d] - second * sines[d], p->kind);
        to[half + d] = as_kind(second * cosines[d] + first * sines[d], p->kind);
    }
}

TARGET static void write_token(const Write *p, long token)
{
    float head[MAX_DIM];
    long heads = p->q_heads + 2 * p->kv_heads, dim = p->dim;
    for (long h = 0; h < p->q_heads; h++) {
        turned(p, token, h, p->q_norm, head);
        for (long d = 0; d < dim; d++) put_at(p->q, p->kind, (token * p->q_heads + h) * dim + d, head[d]);
    }
    long block = p->slots[token] / p->block_size, offset = p->slots[token] % p->block_size;
    for (long h = 0; h < p->kv_heads; h++) {
        long at = ((block * p->kv_heads + h) * p->block_size + offset) * dim;
        turned(p, token, p->q_heads + h, p->k_norm, p->k_cache + at);
        long value = (token * heads + p->q_heads + p->kv_heads + h) * dim;
        for (long d = 0; d < dim; d++) p->v_cache[at + d] = number_at(p->qkv, p->kind, value + d);
    }
}

static void write_share(void *argument)
{
    Write *p = argument;
    for (long token; (token = atomic_fetch_add(&p->next, 1)) < p->tokens;) write_token(p, token);
}

/* Norm q and k, rotate, write k and v; q: [tokens, q_heads, dim]. As in the twin of that name. */
void quire_write(Parallel parallel, int threads, const void *qkv, int kind, const void *q_norm,
                 const void *k_norm, float eps, const float *cos_sin, const long *positions,
                 const long *slots, float *k_cache, float *v_cache, void *q, long tokens,
                 long q_heads, long kv_heads, long dim, long block_size)
{
    Write p = {.qkv = qkv, .q_norm = q_norm, .k_norm = k_norm, .cos_sin = cos_sin,
               .positions = positions, .slots = slots, .k_cache = k_cache, .v_cache = v_cache,
               .q = q, .eps = eps, .tokens = tokens, .q_heads = q_heads, .kv_heads = kv_heads,
               .dim = dim, .block_size = block_size, .kind = kind};
    atomic_store(&p.next, 0);
    if (threads > 1 && tokens > 4) parallel(write_share, &p, (unsigned)threads, 0);
    else write_share(&p);
}

/* ------------------------------------------------------------- attention */

typedef struct {
    const void *q;
    void *out;
    const float *k_cache, *v_cache;
    const int *tables, *contexts;
    float scale;
    long rows, q_heads, kv_heads, dim, block_size, table_stride;
    int kind;
    atomic_long next;
} Attend;

typedef struct {
    float q[MAX_GROUP][MAX_DIM], out[MAX_GROUP][MAX_DIM], scores[MAX_GROUP][TOKENS];
    float most[MAX_GROUP], total[MAX_GROUP];
} Heads;

/* Takes scores of `count` positions into a head's sums; v: their values. */
TARGET INLINE void add_values(Heads *h, long g, const float *v, long count, long dim)
{
    float most = h->most[g];
    for (long t = 0; t < count; t++) most = h->scores[g][t] > most ? h->scores[g][t] : most;
    float kept = h->most[g] == most ? 1.0f : exponential(h->most[g] - most);
    for (long t = 0; t < count; t++) h->scores[g][t] = exponential(h->scores[g][t] - most);
    h->most[g] = most;
    h->total[g] *= kept;
    for (long d = 0; d < dim; d++) h->out[g][d] *= kept;
    for (long t = 0; t < count; t++) {
        float weight = h->scores[g][t];
        h->total[g] += weight;
        add_scaled(h->out[g], weight, v + t * dim, dim);
    }
}

/* One row's query heads that share one head of keys. */
TARGET static void attend(const Attend *p, long row, long kv_head, Heads *h)
{
    long dim = p->dim, group = p->q_heads / p->kv_heads, context = p->contexts[row];
    long first = (row * p->q_heads + kv_head * group) * dim;
    for (long g = 0; g < group; g++) {
        for (long d = 0; d < dim; d++) {
            h->q[g][d] = number_at(p->q, p->kind, first + g * dim + d) * p->scale;
            h->out[g][d] = 0.0f;
        }
        h->most[g] = -INFINITY, h->total[g] = 0.0f;
    }
    long step = p->block_size < TOKENS ? p->block_size : TOKENS;
    for (long at = 0; at < context; at += step) {
        long count = context - at < step ? context - at : step;
        long block = p->tables[row * p->table_stride + at / p->block_size];
        long begin = ((block * p->kv_heads + kv_head) * p->block_size + at % p->block_size) * dim;
        for (long t = 0; t < count; t++)
            for (long g = 0; g < group; g++)
                h->scores[g][t] = dot(h->q[g], p->k_cache + begin + t * dim, dim);
        for (long g = 0; g < group; g++) add_values(h, g, p->v_cache + begin, count, dim);
    }
    for (long g = 0; g < group; g++)
        for (long d = 0; d < dim; d++)
            put_at(p->out, p->kind, first + g * dim + d, context ? h->out[g][d] / h->total[g] : 0.0f);
}

static void attend_share(void *argument)
{
    Attend *p = argument;
    Heads heads;
    for (long task; (task = atomic_fetch_add(&p->next, 1)) < p->rows * p->kv_heads;)
        attend(p, task / p->kv_heads, task % p->kv_heads, &heads);
}

/* One token a row over its context: q, out: [rows, q_heads, dim]. As decode_attention's twin. */
void quire_attend(Parallel parallel, int threads, const void *q, int kind, const float *k_cache,
                  const float *v_cache, const int *tables, long table_stride, const int *contexts,
                  float scale, void *out, long rows, long q_heads, long kv_heads, long dim,
                  long block_size)
{
    Attend p = {.q = q, .out = out, .k_cache = k_cache, .v_cache = v_cache, .tables = tables,
                .contexts = contexts, .scale = scale, .rows = rows, .q_heads = q_heads,
                .kv_heads = kv_heads, .dim = dim, .block_size = block_size,
                .table_stride = table_stride, .kind = kind};
    atomic_store(&p.next, 0);
    if (threads > 1) parallel(attend_share, &p, (unsigned)threads, 0);
    else attend_share(&p);
}

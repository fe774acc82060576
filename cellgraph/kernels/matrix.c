/* Matrix products for recurrent cells: few rows, and one weight matrix used in every time step.

Layout. Weight matrices are packed once a sequence, into panels of up to NR columns (matrix.h). A
product reads them from front to back in one stream; the left operand is read in place, element by
element.

Tiles. All arithmetic happens in `tile`: a few rows of `a` times one panel, with all sums in
registers while it walks along the depth. Six rows times four vectors are 24 sums, four vectors of
the panel and one element of `a` in all lanes: 29 of 32 registers, and 10 loads for 24 multiply-adds
(the processor does 2 of each per cycle). Eight rows times three vectors are as good: 28 registers,
11 loads. With 16 registers a panel has two vectors: 12 + 2 + 1. A multiply-add takes 4 cycles, so 8
sums must be under way at least; for that a tile of one vector has up to 12 rows. Rows are spread
evenly: 20 are 5 + 5 + 5 + 5, not 6 + 6 + 6 + 2.

Blocks. A panel is cut at DEPTH, so that 256 KB of it stay in the second-level cache while all rows
go past. More rows than A_BLOCK bytes of `a` (but MIN_ROWS at least, which pay for fetching the
panels again) are cut into blocks, for the same reason. Sums start at zero, and `c` is requested at
the beginning of a tile and added at its end: whole sequences of gates do not stay in any cache.

Nothing is padded along the depth, and columns of padding end in registers: whatever infinity times
zero makes of them, it gets into no real column. */

#include <string.h>

#include "vector.h"
#include "matrix.h"

#if defined(__AVX512F__) || defined(__aarch64__)
#define VECTORS 4 /* of a panel: 32 registers */
#else
#define VECTORS 2
#endif
#define NR (VECTORS * LANES)

enum {
    MOST_ROWS = 12, /* of any tile */
    DEPTH = 4096 / sizeof(real),
    A_BLOCK = 128 * 1024,
    MIN_ROWS = 24,
    LINE = 64 / sizeof(real),  /* a cache line */
    SLICE = 192 / sizeof(real) /* columns of `a` that `gradients` takes at a time: whole lines */
};

#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* What is known of p is forgotten. Else gcc keeps the addresses of all sums across the loop over
the depth, where registers are wanted: up to 7 % slower. */
#define OPAQUE(p) __asm__("" : "+r"(p))
/* No load moves up to here. Else gcc for Arm loads a whole column of `a` first and spills sums. */
#define IN_ORDER __asm__ volatile("" : : : "memory")

static inline long lesser(long a, long b) { return a < b ? a : b; }
static inline long greater(long a, long b) { return a > b ? a : b; }
static inline long round_up(long n, long to) { return (n + to - 1) / to * to; }
static inline long parts(long n, long most) { return (n + most - 1) / most; }

/* What tiles have in common. Strides are in elements; a step goes to the next depth index. */
typedef struct {
    long depth, columns; /* of the panel */
    long a_row, a_step, b_step, c_row;
    int accumulate;
    const real *ahead; /* to be prefetched meanwhile, or NULL: `depth` rows */
    long ahead_row, ahead_columns;
} Job;

typedef void Tile(const Job *job, const real *a, const real *b, real *c, const real *ahead);

INLINE void tile(const int rows, const int vectors, const int prefetch, const Job *job,
                 const real *a, const real *b, real *c, const real *ahead)
{
    const long a_row = job->a_row, a_step = job->a_step, b_step = job->b_step;
    const long ahead_row = job->ahead_row;
    long depth = job->depth;
    V sum[MOST_ROWS][VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            sum[i][j] = (V){0};
    if (job->accumulate) {
        const real *row = c;
        UNROLL for (int i = 0; i < rows; i++) {
            UNROLL for (int j = 0; j < vectors; j++)
                if (j * sizeof(V) % 64 == 0)
                    __builtin_prefetch(row + j * LANES, 1);
            row += job->c_row;
            OPAQUE(row);
        }
    }
    do {
        V panel[VECTORS];
        UNROLL for (int j = 0; j < vectors; j++)
            panel[j] = load(b + j * LANES);
        if (prefetch) {
            __builtin_prefetch(ahead, 0, 2);
            ahead += ahead_row;
        }
        UNROLL for (int i = 0; i < rows; i++) {
            const V x = splat(a[i * a_row]);
            IN_ORDER;
            UNROLL for (int j = 0; j < vectors; j++)
                sum[i][j] += x * panel[j];
        }
        a += a_step;
        b += b_step;
    } while (--depth != 0);
    OPAQUE(job);
    const int accumulate = job->accumulate;
    const long c_row = job->c_row, left = job->columns - (vectors - 1) * LANES;
    UNROLL for (int i = 0; i < rows; i++) {
        UNROLL for (int j = 0; j < vectors; j++) {
            const long columns = j < vectors - 1 ? LANES : left;
            if (accumulate)
                sum[i][j] += load_part(c + j * LANES, columns);
            store_part(c + j * LANES, sum[i][j], columns);
        }
        c += c_row;
        OPAQUE(c);
    }
}

#define TILE(name, rows, vectors, prefetch)                                                        \
    static void name##_##rows(const Job *job, const real *a, const real *b, real *c,               \
                              const real *ahead)                                                   \
    {                                                                                              \
        tile(rows, vectors, prefetch, job, a, b, c, ahead);                                        \
    }
#define TILES(name, vectors, prefetch)                                                             \
    TILE(name, 1, vectors, prefetch) TILE(name, 2, vectors, prefetch)                              \
    TILE(name, 3, vectors, prefetch) TILE(name, 4, vectors, prefetch)                              \
    TILE(name, 5, vectors, prefetch) TILE(name, 6, vectors, prefetch)
#define TABLE(name) name##_1, name##_2, name##_3, name##_4, name##_5, name##_6

TILES(one, 1, 0)
TILE(one, 7, 1, 0) TILE(one, 8, 1, 0) TILE(one, 9, 1, 0)
TILE(one, 10, 1, 0) TILE(one, 11, 1, 0) TILE(one, 12, 1, 0)
TILES(two, 2, 0)
#if VECTORS == 4
TILES(three, 3, 0)
TILE(three, 7, 3, 0) TILE(three, 8, 3, 0)
TILES(four, 4, 0)
#endif
TILES(prefetching, VECTORS, 1)

static Tile *const tiles[VECTORS + 1][MOST_ROWS] = {
    {TABLE(one), one_7, one_8, one_9, one_10, one_11, one_12},
    {TABLE(two)},
#if VECTORS == 4
    {TABLE(three), three_7, three_8},
    {TABLE(four)},
#endif
    {TABLE(prefetching)},
};
static const int most_rows[] = {12, 6, 8, 6}; /* of tiles of 1, 2, 3, 4 vectors */

/* m rows times one panel. */
static void times_panel(const Job *job, long m, const real *a, const real *b, real *c)
{
    const long vectors = parts(job->columns, LANES), count = parts(m, most_rows[vectors - 1]);
    const long shorter = m / count, taller = m % count;
    /* One line of each row a tile; they need not begin with one, so there is one line more. */
    const long lines = job->ahead && vectors == VECTORS ? parts(job->ahead_columns, LINE) + 1 : 0;
    for (long t = 0; t < count; t++) {
        const long rows = shorter + (t < taller);
        const int prefetch = t < lines;
        const real *const ahead =
            prefetch ? job->ahead + lesser(t * LINE, job->ahead_columns - 1) : NULL;
        tiles[prefetch ? VECTORS : vectors - 1][rows - 1](job, a, b, c, ahead);
        a += rows * job->a_row;
        c += rows * job->c_row;
    }
}

/* How many columns the first panel gets if `columns` are spread evenly over as few panels as can
be: 13 vectors are 4 + 3 + 3 + 3, not 4 + 4 + 4 + 1. */
static long even_panel(long columns)
{
    const long vectors = parts(columns, LANES);
    return lesser(columns, parts(vectors, parts(vectors, VECTORS)) * LANES);
}

static void product(long m, long n, long k, const real *a, long lda, const real *panels, real *c,
                    long ldc, int accumulate)
{
    const long rows = parts(m, parts(m, greater(A_BLOCK / sizeof(real) / k, MIN_ROWS)));
    const long depth = parts(k, parts(k, DEPTH));
    for (long i = 0; i < m; i += rows)
        for (long j = 0, columns; j < n; j += columns) {
            columns = even_panel(n - j);
            const long width = round_up(columns, LANES);
            for (long d = 0; d < k; d += depth) {
                const Job job = {
                    .depth = lesser(depth, k - d),
                    .columns = columns,
                    .a_row = lda,
                    .a_step = 1,
                    .b_step = width,
                    .c_row = ldc,
                    .accumulate = accumulate || d > 0,
                };
                times_panel(&job, lesser(rows, m - i), a + i * lda + d,
                            panels + k * j + d * width, c + i * ldc + j);
            }
        }
}

/* The lower or upper halves of a and b, their lanes alternating. */
#if LANES == 16
#define LOWER 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define UPPER 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOWER 0, 8, 1, 9, 2, 10, 3, 11
#define UPPER 4, 12, 5, 13, 6, 14, 7, 15
#elif LANES == 4
#define LOWER 0, 4, 1, 5
#define UPPER 2, 6, 3, 7
#else
#define LOWER 0, 2
#define UPPER 1, 3
#endif
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (I){__VA_ARGS__})
#endif

/* to[k * width + c] = from[c][k] for c < LANES, k < rows; zero for c >= columns. Interleaving the
first half of the vectors with the second doubles the length of the runs that belong to one column
of the result: log2(LANES) times, and it is transposed. */
INLINE void transpose(real *to, long width, const real *const *from, long k0, long columns,
                      long rows)
{
    V v[LANES], w[LANES];
    UNROLL for (int c = 0; c < LANES; c++)
        v[c] = c < columns ? load_part(from[c] + k0, rows) : (V){0};
    UNROLL for (int run = 1; run < LANES; run *= 2) {
        UNROLL for (int i = 0; i < LANES / 2; i++) {
            w[2 * i] = SHUFFLE(v[i], v[i + LANES / 2], LOWER);
            w[2 * i + 1] = SHUFFLE(v[i], v[i + LANES / 2], UPPER);
        }
        UNROLL for (int i = 0; i < LANES; i++)
            v[i] = w[i];
    }
    UNROLL for (int k = 0; k < LANES; k++)
        if (k < rows)
            store(to + k * width, v[k]);
}

/* A panel, or some rows of one, from memory where its columns are neighbours too. */
static void pack_panel(real *to, long rows, long columns, const real *from, long stride)
{
    for (long k = 0; k < rows; k++, to += round_up(columns, LANES)) {
        const real *const row = from + k * stride;
        const real *const ahead = from + lesser(k + 16, rows - 1) * stride;
        for (long j = 0; j < columns; j += LANES) {
            __builtin_prefetch(ahead + j); /* rows may be pages apart */
            store(to + j, load_part(row + j, columns - j));
        }
    }
}

static void pack_rows(real *panels, long depth, const long *m, long n, const real *const *matrices)
{
    for (long j = 0, columns; j < n; j += columns) {
        columns = even_panel(n - j);
        for (long i = 0, k = 0; k < depth; k += m[i++])
            pack_panel(panels + depth * j + k * round_up(columns, LANES), m[i], columns,
                       matrices[i] + j, n);
    }
}

/* A vector of columns may begin in one matrix and end in another. */
static void pack_columns(real *panels, long columns, const long *m, long n,
                         const real *const *matrices)
{
    const real *from[LANES], *next = *matrices, *end = next + *m * n;
    for (long first = 0, width; first < columns; first += width) {
        width = even_panel(columns - first);
        for (long j = 0; j < width; j += LANES) {
            const long found = lesser(LANES, width - j), step = round_up(width, LANES);
            for (long c = 0; c < found; c++, next += n) {
                if (next == end) {
                    next = *++matrices;
                    end = next + *++m * n;
                }
                from[c] = next;
            }
            real *const to = panels + n * first + j;
            for (long k = 0; k < n; k += LANES)
                if (found == LANES && n - k >= LANES)
                    transpose(to + k * step, step, from, k, LANES, LANES);
                else
                    transpose(to + k * step, step, from, k, found, n - k);
        }
    }
}

static void pack(real *panels, long count, const long *m, long n, const real *const *matrices,
                 int transposed)
{
    long rows = 0;
    for (long i = 0; i < count; i++)
        rows += m[i];
    (transposed ? pack_columns : pack_rows)(panels, rows, m, n, matrices);
}

static long gradients_work(long count, const long *m, long n, long rows)
{
    (void)count, (void)m; /* one slice of one operand is packed at a time */
    return lesser(rows, DEPTH) * (round_up(n, LANES) + SLICE);
}

/* Depth is the rows of both operands here, cut into blocks. Up to four panels wide, an element of
`a` takes part in too few multiply-adds to pay for packing it: `a` is read in place, in shorter
blocks (a row of it may lie in a page of its own), and so is `b` if it has whole vectors. Else b's
block becomes panels, and each slice of a's too. From the third panel on it pays to prefetch: a
slice goes through all panels while the first panel's tiles ask for the next slice. */
static void gradients(long count, long rows, const real *const *a, const long *m, long lda,
                      const real *b, long n, long ldb, real *const *c, const int *accumulate,
                      real *work)
{
    const int in_place = n <= 4 * NR, b_in_place = in_place && n % LANES == 0;
    const int sliced = n > 2 * NR;
    const long most = parts(rows, parts(rows, in_place ? DEPTH / 2 : DEPTH));
    for (long r = 0; r < rows; r += most) {
        const long depth = lesser(most, rows - r);
        const real *const right = b_in_place ? b + r * ldb : work;
        real *const slice = work + depth * round_up(n, LANES);
        for (long j = 0, columns; j < n && !b_in_place; j += columns) {
            columns = even_panel(n - j);
            pack_panel(work + depth * j, depth, columns, b + r * ldb + j, ldb);
        }
        for (long i = 0; i < count; i++) {
            const long tall = sliced ? SLICE : m[i];
            for (long p = 0; c[i] && p < m[i]; p += tall) {
                const real *const left = a[i] + r * lda + p;
                const long height = lesser(tall, m[i] - p);
                Job job = {
                    .depth = depth,
                    .a_row = 1,
                    .a_step = in_place ? lda : round_up(height, LANES),
                    .c_row = n,
                    .accumulate = accumulate[i] || r > 0,
                    .ahead_row = lda,
                };
                if (sliced && p + tall < m[i]) {
                    job.ahead = left + tall;
                    job.ahead_columns = lesser(tall, m[i] - p - tall);
                } else if (sliced && i + 1 < count && c[i + 1]) {
                    job.ahead = a[i + 1] + r * lda;
                    job.ahead_columns = lesser(tall, m[i + 1]);
                }
                if (!in_place)
                    pack_panel(slice, depth, height, left, lda);
                for (long j = 0, columns; j < n; j += columns, job.ahead = NULL) {
                    columns = job.columns = even_panel(n - j);
                    job.b_step = b_in_place ? ldb : round_up(columns, LANES);
                    times_panel(&job, height, in_place ? left : slice,
                                right + (b_in_place ? j : depth * j), c[i] + p * n + j);
                }
            }
        }
    }
}

/* Four rows at a time, as they lie in memory; the sums stay in the first-level cache. */
static void column_sums(long rows, long n, const real *a, long lda, real *out, int accumulate)
{
    if (!accumulate)
        memset(out, 0, n * sizeof(real));
    for (; rows >= 4; rows -= 4, a += 4 * lda)
        for (long j = 0; j < n; j += LANES) {
            const long left = n - j;
            const V even = load_part(a + j, left) + load_part(a + 2 * lda + j, left);
            const V odd = load_part(a + lda + j, left) + load_part(a + 3 * lda + j, left);
            store_part(out + j, load_part(out + j, left) + (even + odd), left);
        }
    for (; rows > 0; rows--, a += lda)
        for (long j = 0; j < n; j += LANES)
            store_part(out + j, load_part(out + j, n - j) + load_part(a + j, n - j), n - j);
}

const Matrix *matrix_functions(void)
{
    static const Matrix functions = {pack, product, gradients_work, gradients, column_sums};
    return &functions;
}

long lanes(void) { return LANES; }

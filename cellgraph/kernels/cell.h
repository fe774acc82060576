/* What every generated cell starts from: vectors, matrix products, rows. */
#ifndef CELL_H
#define CELL_H

#include "vector.h"
#include "matrix.h"

/* A cell's two functions call products and loops; how fast they do so does not matter, but optimising
 * them took half of a cell's compile time. All work on vectors is in the loops. */
#ifdef __clang__
#define GLUE __attribute__((visibility("default"), noinline, optnone))
#else
#define GLUE __attribute__((visibility("default"), noinline, optimize("O0")))
#endif

/* Rows of states and of scratch are padded to whole vectors, the columns of a row of the tape are
 * not. All are read in whole vectors: lanes behind an end hold anything. */
static inline long padded(long n) { return (n + LANES - 1) / LANES * LANES; }

/* A vector of n elements that may be read in whole vectors: itself, or a copy at *room. */
static inline const real *whole(const real *from, long n, real **room)
{
    if (n % LANES == 0)
        return from;
    real *const to = *room;
    *room += padded(n);
    memset(to, 0, padded(n) * sizeof(real));
    memcpy(to, from, n * sizeof(real));
    return to;
}

static inline void copy_rows(real *to, long to_stride, const real *from, long from_stride, long rows,
                             long n)
{
    for (long r = 0; r < rows; r++)
        memcpy(to + r * to_stride, from + r * from_stride, n * sizeof(real));
}

/* `from` NULL: zeros. */
static inline void set_rows(real *to, long stride, const real *from, long rows, long n)
{
    if (from)
        copy_rows(to, stride, from, n, rows, n);
    else
        memset(to, 0, rows * stride * sizeof(real));
}

/* to += from over n elements. */
static inline void add_row(real *to, const real *from, long n)
{
    for (long j = 0; j < n; j += LANES)
        store_part(to + j, load_part(to + j, n - j) + load_part(from + j, n - j), n - j);
}

/* The row of x that a row of the sequence reads. */
static inline long entry(const long *tokens, long row) { return tokens ? tokens[row] : row; }

/* The gradient of a row of x; rows that look up one entry of a table share it. */
static inline void give(real *to, V gradient, long n, int shared)
{
    if (shared)
        gradient += load_part(to, n);
    store_part(to, gradient, n);
}

static inline real *part(real **room, long elements)
{
    real *const begin = *room;
    *room += elements;
    return begin;
}

#endif

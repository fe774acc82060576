/* The matrix kernels that generated cells call; see matrix.c for how they work.

`real` comes from vector.h. Sizes are at least 1; sizes and strides are in elements. All functions
may run in several threads at once. Memory need not be aligned, but panels that begin with a cache
line are read faster. Nothing outside of the operands is read or written. Where `accumulate` is 0,
the old contents of the result are not read.

A packed operand of depth × columns lies in panels of four vectors of columns (two on machines with
16 vector registers), the last one as narrow as a multiple of LANES allows: depth times columns
rounded up to LANES elements in all. Within a panel each row is contiguous. */
#ifndef MATRIX_H
#define MATRIX_H

typedef struct {
    /* Element (k0 + k, c0 + c) of the packed operand becomes source[k * row_stride + c *
    col_stride], k < rows, c < cols; columns up to the next multiple of LANES become 0. c0 is a
    multiple of LANES. Fast if one of the strides is 1. */
    void (*pack)(real *panels, long depth, long columns, long k0, long c0, long rows, long cols,
                 const real *source, long row_stride, long col_stride);

    /* c[i * ldc + j] (+)= sum over d < k of A(i, d) * panels(d, j), i < m, j < n, where A(i, d) is
    a[i * lda + d / segment * stride + d % segment]: plain rows if segment >= k, else k is a
    multiple of segment. */
    void (*product)(long m, long n, long k, long segment, long stride, const real *a, long lda,
                    const real *panels, real *c, long ldc, int accumulate);

    /* How many elements of scratch memory `gradients` needs. */
    long (*gradients_work)(long count, const long *m, long n, long rows);

    /* c[i][p * n + q] (+)= sum over r < rows of a[i][r * lda + p] * b[r * ldb + q], p < m[i],
    q < n, for each i < count whose c[i] is not NULL. */
    void (*gradients)(long count, long rows, const real *const *a, const long *m, long lda,
                      const real *b, long n, long ldb, real *const *c, const int *accumulate,
                      real *work);

    /* out[q] (+)= sum over r < rows of a[r * lda + q], q < n. */
    void (*column_sums)(long rows, long n, const real *a, long lda, real *out, int accumulate);
} Matrix;

#endif

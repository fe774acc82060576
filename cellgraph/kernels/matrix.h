/* The matrix kernels that generated cells call; see matrix.c for how they work.

`real` comes from vector.h. Sizes are at least 1; sizes and strides are in elements. All functions
may run in several threads at once. Memory need not be aligned, but panels that begin with a cache
line are read faster. Nothing outside of the operands is read or written. Where `accumulate` is 0,
the old contents of the result are not read.

A packed operand of depth × columns lies in panels of up to four vectors of columns (two on
machines with 16 vector registers): as few as can be, each as wide as the next or one vector wider,
so that 13 vectors are 4 + 3 + 3 + 3. Columns up to the next multiple of LANES are 0: depth times
columns rounded up to LANES elements in all. Within a panel each row is contiguous. */
#ifndef MATRIX_H
#define MATRIX_H

typedef struct {
    /* Packs `count` dense matrices of m[i] × n on top of each other, an operand of sum(m) × n; or
    the transpose of that: n × sum(m), where they lie transposed and side by side. */
    void (*pack)(real *panels, long count, const long *m, long n, const real *const *matrices,
                 int transposed);

    /* c[i * ldc + j] (+)= sum over d < k of a[i * lda + d] * panels(d, j), i < m, j < n. */
    void (*product)(long m, long n, long k, const real *a, long lda, const real *panels, real *c,
                    long ldc, int accumulate);

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

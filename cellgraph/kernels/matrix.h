/* The matrix kernels that generated cells call; see matrix.c. `real` comes from vector.h. */
#ifndef MATRIX_H
#define MATRIX_H

typedef struct {
    void (*pack)(real *panels, long depth, long columns, long k0, long c0, long rows, long cols,
                 const real *source, long row_stride, long col_stride);
    void (*product)(long m, long n, long k, long segment, long stride, const real *a, long lda,
                    const real *panels, real *c, long ldc, int accumulate);
    long (*gradients_work)(long count, const long *m, long n, long rows);
    void (*gradients)(long count, long rows, const real *const *a, const long *m, long lda,
                      const real *b, long n, long ldb, real *const *c, const int *accumulate,
                      real *work);
    void (*column_sums)(long rows, long n, const real *a, long lda, real *out, int accumulate);
} Matrix;

#endif

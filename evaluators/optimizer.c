/* Clipping, SGD and Adam in one pass over a model; see optimizer.py, which says the same in torch.
 *
 * A model is a list of parameters: parameter i has size[i] elements, its gradient lies at
 * gradient[i] (NULL: zeros), its value and moments at at[i] of the flat vectors.
 */
#include "vector.h"

/* The squared norm of all gradients. */
double squared_norm(long count, const long *size, const real *const *gradient)
{
    double total = 0;
    for (long i = 0; i < count; i++) {
        const real *const g = gradient[i];
        for (long from = 0; g && from < size[i]; from += 64 * LANES) {
            const long to = from + 64 * LANES < size[i] ? from + 64 * LANES : size[i];
            V sum = splat(0);  /* of at most 64 squares a lane; floats lose nothing to speak of */
            for (long j = from; j < to; j += LANES) {
                const V v = load_part(g + j, to - j);
                sum += v * v;
            }
            for (int lane = 0; lane < LANES; lane++)
                total += sum[lane];
        }
    }
    return total;
}

/* value -= rate * scale * gradient */
void sgd(long count, const long *size, const long *at, const real *const *gradient, double scale,
         double rate, real *value)
{
    for (long i = 0; i < count; i++)
        for (long j = 0; gradient[i] && j < size[i]; j += LANES) {
            const long n = size[i] - j;
            real *const to = value + at[i] + j;
            const V g = load_part(gradient[i] + j, n) * splat(scale);
            store_part(to, load_part(to, n) - splat(rate) * g, n);
        }
}

/* Kingma and Ba 2015, algorithm 1; correction1 and 2 are 1 - beta^t. */
void adam(long count, const long *size, const long *at, const real *const *gradient, double scale,
          double rate, double beta1, double beta2, double epsilon, double correction1,
          double correction2, real *value, real *mean, real *square)
{
    const V keep1 = splat(beta1), take1 = splat(1 - beta1);
    const V keep2 = splat(beta2), take2 = splat(1 - beta2);
    const V factor = splat(rate / correction1), root = splat(1 / sqrt(splat(correction2))[0]);
    for (long i = 0; i < count; i++)
        for (long j = 0; j < size[i]; j += LANES) {
            const long n = size[i] - j, k = at[i] + j;
            V g = splat(0);
            if (gradient[i])
                g = load_part(gradient[i] + j, n) * splat(scale);
            /* What lies between two parameters is zero and stays zero: whole vectors do no harm. */
            const V m = keep1 * load(mean + k) + take1 * g;
            const V s = keep2 * load(square + k) + take2 * (g * g);
            store(mean + k, m);
            store(square + k, s);
            store(value + k, load(value + k) - factor * m / (sqrt(s) * root + splat(epsilon)));
        }
}

/* Vectors of reals: loads and stores, selection, and the elementary functions of the op table.

Everything that generated cells and matrix.c need to know about the machine's vectors lives here; no
loops over arrays do. It is included for every cell, so it stays small (gcc reads it in 2 ms) and
includes no intrinsics. Vectors are those of gcc and clang (`vector_size`), with the operators of C;
the few things that cannot be said with them use a builtin of gcc where there is one, beside a
portable form.

Compile with -O2 -ffp-contract=fast, so that a * b + c becomes one instruction where there is one
(gcc does that from -O2 on), and never with -ffast-math: rounding tricks, NaN and infinities must
survive. Include system headers before this one, whose macros (at the end) have common names.

NaN gives NaN, infinities what they give in <math.h>, and no lane knows of its neighbours. Largest
errors for normal results, in units in the last place; float over all 2^32 arguments, double over
samples, each with and without fused multiply-add:

               float  double
    exp          2.6     2.6
    log          0.9     0.9
    log1p        2.5     2.5
    sqrt         0.5     0.5
    tanh         2.8     3.1
    sigmoid      2.5     2.5
    sin          2.9     2.8
    cos          3.6     2.8
    erf          2.6     1.9
    fabs         0.0     0.0
*/
#ifndef VECTOR_H
#define VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Literal numbers, for the preprocessor to compare. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif

#ifdef REAL_DOUBLE
typedef double real;
typedef long long integer; /* int64_t, as the builtins for x86 have it */
#define LANES (VECTOR_BYTES / 8)
#define MANTISSA 52
#define BIAS 1023
#define LIBM(name) name
#else
typedef float real;
typedef int32_t integer;
#define LANES (VECTOR_BYTES / 4)
#define MANTISSA 23
#define BIAS 127
#define LIBM(name) name##f
#endif

/* As aligned as a real and no more, and allowed to alias, so that any array of reals can be read.
   I is what comparing two V gives: -1 (all bits set) where true, 0 where false. */
#define VECTOR vector_size(VECTOR_BYTES), aligned(_Alignof(real)), may_alias
typedef real V __attribute__((VECTOR));
typedef integer I __attribute__((VECTOR));

#define INLINE static inline __attribute__((always_inline))

/* Not {0} + x, which turns -0 into 0. */
INLINE V splat(real x) { return x - (V){0}; }
#define R(number) splat((real)(number))

INLINE V load(const real *p) { return *(const V *)p; }
INLINE void store(real *p, V v) { *(V *)p = v; }

/* condition ? a : b in each lane. The comparison keeps gcc from rearranging what it otherwise turns
   into one blend. */
INLINE V v_select(I condition, V a, V b)
{
    I mask = condition != 0;
    return (V)((mask & (I)a) | (~mask & (I)b));
}
#define select(condition, a, b) v_select((I)(condition), a, b)

/* SMALLER is a < b ? a : b, LARGER is a > b ? a : b, so both are b where either is NaN. x86 has
   them as one instruction, which clang finds by itself and gcc does not (a sigmoid takes 2.3 ns
   without, 1.7 ns with it). */
#if defined(__SSE2__) && defined(__GNUC__) && !defined(__clang__)
#ifdef REAL_DOUBLE
#define X86(name, size) __builtin_ia32_##name##pd##size
#else
#define X86(name, size) __builtin_ia32_##name##ps##size
#endif
#if VECTOR_BYTES == 64 /* the further arguments: all lanes, current rounding mode */
#define SMALLER(a, b) X86(min, 512_mask)(a, b, a, -1, 4)
#define LARGER(a, b) X86(max, 512_mask)(a, b, a, -1, 4)
#define SQRT(a) X86(sqrt, 512_mask)(a, a, -1, 4)
#elif VECTOR_BYTES == 32
#define SMALLER(a, b) X86(min, 256)(a, b)
#define LARGER(a, b) X86(max, 256)(a, b)
#define SQRT(a) X86(sqrt, 256)(a)
#else
#define SMALLER(a, b) X86(min, )(a, b)
#define LARGER(a, b) X86(max, )(a, b)
#define SQRT(a) X86(sqrt, )(a)
#endif
#else
#define SMALLER(a, b) select((a) < (b), a, b)
#define LARGER(a, b) select((a) > (b), a, b)
#endif

/* load_part and store_part: the first n (1 to LANES; more means all) elements, nothing beyond them.
   Masked, a part makes no detour through memory. A whole vector is not masked: where the cache had
   to fetch a line first that the vector replaces, forward passes took up to 5 % longer. */
#if defined(X86) && VECTOR_BYTES == 64
#define FIRST(n) ((1u << (n)) - 1)
#define load_first(p, n) X86(loadu, 512_mask)(p, (V){0}, FIRST(n))
#define store_first(p, v, n) X86(storeu, 512_mask)(p, v, FIRST(n))
#elif defined(X86) && VECTOR_BYTES == 32
static const integer masks[2 * LANES] = {[0 ... LANES - 1] = -1};
#define FIRST(n) (*(const I *)(masks + LANES - (n)))
#define load_first(p, n) X86(maskload, 256)((const void *)(p), FIRST(n))
#define store_first(p, v, n) X86(maskstore, 256)((void *)(p), FIRST(n), v)
#else
/* Fixed sizes, which compile to moves: a call of memcpy would cost more than a tanh. */
INLINE void move_part(real *to, const real *from, long n)
{
#define MOVE(size)                               \
    if (LANES > (size) && (n & (size))) {        \
        memcpy(to, from, (size) * sizeof(real)); \
        to += (size);                            \
        from += (size);                          \
    }
    MOVE(8) MOVE(4) MOVE(2) MOVE(1)
#undef MOVE
}
INLINE V load_first(const real *p, long n)
{
    real part[LANES] = {0};
    move_part(part, p, n);
    return load(part);
}
INLINE void store_first(real *p, V v, long n)
{
    real part[LANES];
    store(part, v);
    move_part(p, part, n);
}
#endif
INLINE V load_part(const real *p, long n)
{
    if (n >= LANES)
        return load(p);
    return load_first(p, n);
}
INLINE void store_part(real *p, V v, long n)
{
    if (n >= LANES)
        store(p, v);
    else
        store_first(p, v, n);
}

INLINE V v_fabs(V x) { return (V)((I)x & ~(I)R(-0.0)); }

INLINE V v_sqrt(V x)
{
#ifdef SQRT
    return SQRT(x);
#else
    real lanes[LANES]; /* an array, which compilers vectorise */
    store(lanes, x);
    for (int i = 0; i < LANES; i++)
        lanes[i] = LIBM(sqrt)(lanes[i]);
    return load(lanes);
#endif
}

/* x within [low, high]; NaN stays NaN. */
INLINE V clamp(V x, real low, real high)
{
    V v = LARGER(splat(low), x);
    return SMALLER(splat(high), v);
}

/* c[0] + c[1] x + ... All coefficients here are our own minimax fits (Remez exchange in mpmath with
   220 bits or more, weighted for the relative error of the function computed), then rounded; the
   error of the fit stands beside them. Half a unit in the last place is 2^-25 to 2^-24 of a float,
   2^-54 to 2^-53 of a double. */
#define POLYNOMIAL(x, c) polynomial(x, c, sizeof(c) / sizeof *(c))
INLINE V polynomial(V x, const real *c, int count)
{
    V y = splat(c[count - 1]);
#pragma GCC unroll 17
    for (int i = count - 2; i >= 0; i--)
        y = y * x + c[i];
    return y;
}

/* Added to a small number, ROUNDER rounds it to an integer, which is then in its last bits. */
#define ROUNDER ((real)1.5 * ((integer)1 << MANTISSA))
#define LOG2E ((real)1.4426950408889634)
#define LN2 ((real)0.69314718055994531)
/* ln 2 in two parts; multiples of the first up to 2^10 are exact without fused multiply-add too. */
#ifdef REAL_DOUBLE
#define LN2_HIGH ((real)0.6931471805592082)
#define LN2_LOW ((real)7.371002565167799e-13)
#else
#define LN2_HIGH ((real)0.693115234375)
#define LN2_LOW ((real)3.1946184945309415e-05)
#endif

/* The integer n next to k x / ln 2, and scale = 2^n, for -BIAS <= n <= BIAS + 1; the ends come out
   as 0 and infinity. Then e^(kx) = scale e^(kr) with r = x - n (ln 2 / k), |kr| <= ln(2) / 2. */
INLINE V exponent(V x, real k, V *scale)
{
    V t = x * (k * LOG2E) + (ROUNDER + BIAS);
    *scale = (V)((I)t << MANTISSA);
    return t - (ROUNDER + BIAS);
}

/* e^x = scale^2 e^r with |r| <= ln 2: one factor of 2^n would overflow before the result does, two
   do not, so that all is right up to the largest number and down to the least denormal. The wider
   range of r costs a coefficient or two, less than splitting n. */
INLINE V v_exp(V x)
{
#ifdef REAL_DOUBLE
    static const real C[] = {/* 2^-56.5 */
        1, 1, 0.4999999999999993, 0.16666666666666938, 0.041666666666702185, 0.008333333333269728,
        0.001388888888356443, 0.00019841269892902175, 2.4801590836448497e-05, 2.755730061677336e-06,
        2.755615658478629e-07, 2.505503721109774e-08, 2.1062449706846325e-09,
        1.5935481805067363e-10};
    x = clamp(x, -747, 711);
#else
    static const real C[] = {/* 2^-26.1 */
        1, 1, 0.50000036, 0.16666614, 0.04166127, 0.008336103, 0.0014104473, 0.000196117};
    x = clamp(x, -105, 90);
#endif
    V scale, n = exponent(x, (real)0.5, &scale);
    V r = x - n * (2 * LN2_HIGH) - n * (2 * LN2_LOW);
    return POLYNOMIAL(r, C) * scale * scale;
}

/* sigmoid and tanh divide anyway, so they take e^r from a quotient: with t = r coth(r / 2), which
   is even in r and needs a third of the coefficients of e^r, e^r = (t + r) / (t - r). COTH(k) are
   the coefficients of r coth(k r) in r^2. (A rational function of x saves further operations of a
   tanh but hardly any time, and is wrong by 5 units where it saturates.) */
#define CUBE(k) ((k) * (k) * (k))
#ifdef REAL_DOUBLE
#define COTH(k)                                                                                \
    { /* 2^-62.3 */                                                                            \
        1 / (k), 0.3333333333333311 * (k), -0.022222222221354147 * CUBE(k),                    \
        0.0021164019997435275 * CUBE(k) * (k) * (k),                                           \
        -0.00021163310358501738 * CUBE(k) * CUBE(k) * (k),                                     \
        2.117639204361812e-05 * CUBE(k) * CUBE(k) * CUBE(k)                                    \
    }
#else
#define COTH(k) {1 / (k), 0.33333236 * (k), -0.022127803 * CUBE(k)} /* 2^-30.8 */
#endif

/* 1 / (1 + e^-x) with e^-x = scale (t - r) / (t + r). Where the result would be denormal (below
   -88.4 for float, -709.4 for double) scale is infinite and the result zero. */
INLINE V v_sigmoid(V x)
{
    static const real C[] = COTH(0.5);
#ifdef REAL_DOUBLE
    x = clamp(x, -710, 709);
#else
    x = clamp(x, -89, 88);
#endif
    V scale, n = exponent(x, -1, &scale);
    V r = x + n * LN2_HIGH + n * LN2_LOW;
    V t = POLYNOMIAL(r * r, C);
    V up = t + r;
    return up / (scale * (t - r) + up);
}

/* (e^2x - 1) / (e^2x + 1) with e^2x = scale (t + r) / (t - r) is (w + r) / (w + t) with
   w = (scale - 1) (t + r) / 2. Small x keep their relative accuracy (scale = 1, w = 0); towards 1
   the rounding errors of t and w cancel, and r < t keeps the quotient from exceeding 1. Of |x|, to
   be exactly odd. */
INLINE V v_tanh(V x)
{
    static const real C[] = COTH(1.0);
    I sign = (I)x & (I)R(-0.0);
#ifdef REAL_DOUBLE
    V y = SMALLER(R(20), v_fabs(x));
#else
    V y = SMALLER(R(10), v_fabs(x));
#endif
    V scale, n = exponent(y, 2, &scale);
    V r = y - n * (LN2 / 2); /* one part is enough: where n is large, little depends on r */
    V t = POLYNOMIAL(r * r, C);
    V w = (scale * (real)0.5 - (real)0.5) * (t + r);
    return (V)((I)((w + r) / (w + t)) | sign);
}

/* log x = k ln 2 + log(1 + f) with 1 + f in [sqrt(1/2), sqrt(2)). With s = f / (2 + f),
   log(1 + f) = log((1 + s) / (1 - s)) = 2s + s rest(s^2), which is f - (f^2/2 - s (f^2/2 + rest)):
   f is exact and what is subtracted small. */
static inline V v_log(V x)
{
#ifdef REAL_DOUBLE
    static const real C[] = {/* 2^-59.5 */
        0.6666666666666735, 0.39999999999411334, 0.2857142874321749, 0.22222198480011934,
        0.1818356955447023, 0.15313907501282883, 0.14797469159627955};
    const integer sqrt_half = 0x3fe6a09e667f3bcd;
    const real least_normal = 0x1p-1022;
#else
    static const real C[] = {0.66666776, 0.39977497, 0.29873034}; /* 2^-30.2 */
    const integer sqrt_half = 0x3f3504f3;
    const real least_normal = 0x1p-126f;
#endif
    I denormal = (I)(x < least_normal);
    I bits = (I)select(denormal, x * (real)((integer)2 << MANTISSA), x);
    I e = (bits - sqrt_half) >> MANTISSA;
    V k = (V)((I)R(ROUNDER) + e) - ROUNDER; /* e as a real */
    k -= (V)(denormal & (I)R(MANTISSA + 1));
    V f = (V)(bits - (e << MANTISSA)) - (real)1;
    V s = f / (f + (real)2), z = s * s;
    V rest = z * POLYNOMIAL(z, C), half = f * f * (real)0.5;
    V y = k * LN2_HIGH + (f - (half - (s * (half + rest) + k * LN2_LOW)));
    y = select(x < (real)INFINITY, y, x);
    return select(x > (real)0, y, select(x == (real)0, R(-INFINITY), R(NAN)));
}

/* log(u) x / (u - 1) with u the rounded 1 + x: the quotient makes up for the rounding. Where x is
   u - 1 it is 1, infinite x included; where u is 1 the result is x. */
static inline V v_log1p(V x)
{
    V u = x + (real)1, d = u - (real)1;
    V y = v_log(u) * select(d == x, R(1), x / d);
    return select(d == (real)0, x, y);
}

/* x p(x^2) near zero, else 1 - exp(|x| q(|x|)), since log(1 - erf) is nearly quadratic. */
static inline V v_erf(V x)
{
#ifdef REAL_DOUBLE
    static const real P[] = {/* 2^-60.5 */
        1.1283791670955126, -0.37612638903183726, 0.11283791670953702, -0.026866170644806342,
        0.005223977621600151, -0.0008548326754733015, 0.00012055321035137287,
        -1.4925299568523018e-05, 1.6455211277238077e-06, -1.6275450575666687e-07,
        1.4045908746240157e-08, -8.481525981728522e-10};
    static const real Q[] = {/* 2^-54.0 */
        -1.1283790323410523, -0.6366210745283174, -0.10276686189800233, 0.019113246783738182,
        0.00023580191165209277, -0.00172772344529062, 0.0006138120140380818,
        -3.268059050359854e-05, -7.29030346387804e-05, 4.4139040652585375e-05,
        -1.5427130112621215e-05, 3.793688180352052e-06, -6.812092842729703e-07,
        8.8233000786684e-08, -7.846034033802614e-09, 4.296580670867278e-10,
        -1.093249924798264e-11};
    V y = SMALLER(R(5.95), v_fabs(x));
#else
    static const real P[] = {/* 2^-26.3 */
        1.1283791, -0.37612525, 0.11282141, -0.026778892, 0.0050119287, -0.00060901523};
    static const real Q[] = {/* 2^-28.3 */
        -1.12852, -0.63569933, -0.10528689, 0.02290605, -0.0032199805, 0.00021459554};
    V y = SMALLER(R(3.95), v_fabs(x));
#endif
    V small = x * POLYNOMIAL(y * y, P);
    V large = (real)1 - v_exp(y * POLYNOMIAL(y, Q));
    large = (V)((I)large | ((I)x & (I)R(-0.0)));
    return select(y < (real)0.9, small, large);
}

/* pi/2 in parts: up to |x| = FAR, multiples of all but the last are exact without fused
   multiply-add too (9 bits each for float, 33 for double). */
#ifdef REAL_DOUBLE
#define FAR 1e6
#define HALF_PI {1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21}
#else
#define FAR 50000
#define HALF_PI {1.5703125, 0.00048351287841796875, 3.1385570764541626e-07, 6.0771006e-11}
#endif

/* sin(x + quarter pi/2) for |x| <= FAR: x = n pi/2 + r, |r| <= pi/4. */
static inline V wave(V x, integer quarter)
{
#ifdef REAL_DOUBLE
    static const real S[] = {/* 2^-57.9 */
        1, -0.1666666666666663, 0.008333333333322063, -0.00019841269829542783,
        2.755731360456438e-06, -2.505074504123139e-08, 1.5896067602013705e-10};
    static const real C[] = {/* 2^-63.9 */
        1, -0.5, 0.041666666666666595, -0.001388888888887298, 2.4801587288801675e-05,
        -2.755731416427634e-07, 2.0875698732139574e-09, -1.1358424085891583e-11};
#else
    static const real S[] = {1, -0.16666655, 0.008332158, -0.0001951497};            /* 2^-28.0 */
    static const real C[] = {1, -0.5, 0.041666646, -0.0013887313, 2.4432788e-05}; /* 2^-33.0 */
#endif
    static const real parts[] = HALF_PI;
    V t = x * (real)0.63661977236758134 + ROUNDER;
    V n = t - ROUNDER, r = x;
#pragma GCC unroll 4
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++)
        r = r - n * parts[i];
    V z = r * r;
    I q = (I)t + quarter;
    V y = select((q & 1) != 0, POLYNOMIAL(z, C), r * POLYNOMIAL(z, S));
    return (V)((I)y ^ ((q & 2) << (8 * sizeof(real) - 2)));
}

/* y, but f(x) in the lanes where |x| > FAR, infinities included. */
__attribute__((noinline, cold, unused)) static V far_lanes(V y, V x, real (*f)(real))
{
    for (int i = 0; i < LANES; i++)
        if (LIBM(fabs)(x[i]) > (real)FAR)
            y[i] = f(x[i]);
    return y;
}

static inline int any(I condition)
{
    uint64_t words[VECTOR_BYTES / 8], all = 0;
    memcpy(words, &condition, sizeof words);
    for (unsigned i = 0; i < VECTOR_BYTES / 8; i++)
        all |= words[i];
    return all != 0;
}

static inline V v_sin(V x)
{
    V y = wave(x, 0);
    return __builtin_expect(any((I)(v_fabs(x) > (real)FAR)), 0) ? far_lanes(y, x, LIBM(sin)) : y;
}

static inline V v_cos(V x)
{
    V y = wave(x, 1);
    return __builtin_expect(any((I)(v_fabs(x) > (real)FAR)), 0) ? far_lanes(y, x, LIBM(cos)) : y;
}

/* For generated text. */
#define exp(x) v_exp(x)
#define log(x) v_log(x)
#define log1p(x) v_log1p(x)
#define sqrt(x) v_sqrt(x)
#define tanh(x) v_tanh(x)
#define sigmoid(x) v_sigmoid(x)
#define sin(x) v_sin(x)
#define cos(x) v_cos(x)
#define erf(x) v_erf(x)
#define fabs(x) v_fabs(x)

#endif

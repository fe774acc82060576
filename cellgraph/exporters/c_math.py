"""Functions in C for words of the op table that libm does not have, or has too slow.

sigmoid and tanh take most of a step: the functions of libm are called value by value, and on
processors without double arithmetic some work in emulated double. These are straight lines of
float arithmetic, of which compilers make vectors, accurate to a few units in the last place. The
formulas are those of the compiled backend (`kernels/vector.h`), with one more rule: no choice
between floats, of which gcc makes branches, since a comparison could trap.
"""

from __future__ import annotations

#: By the word in the C column: the name of the function, and its text.
OWN = {
    "sigmoid": (
        "sigmoid",
        """\
/* 1 / (1 + e^-a), from e^-|a| = 2^n (t - r) / (t + r) with t = r coth(r / 2); what would be
   denormal is zero. */
static float sigmoid(float a)
{
    const float x = magnitude(a, 88.0f);
    const int n = nearest(x * -1.442695f);
    const float r = x + (float)n * 0.693115234375f + (float)n * 3.1946184e-05f;
    const float t = 2.0f + r * r * (0.16666618f - r * r * 0.0027659754f);
    const float up = t + r, down = power_of_two(n) * (t - r);

    return (a < 0.0f ? down : up) / (down + up);
}
""",
    ),
    "tanh": (
        "tanh_float",
        """\
/* tanh a = (w + r) / (w + t) with w = (2^n - 1) (t + r) / 2 and t = r coth(r), of |a|. */
static float tanh_float(float a)
{
    const float x = magnitude(a, 10.0f);
    const int n = nearest(x * 2.88539f);
    const float r = x - (float)n * 0.34657359f;
    const float t = 1.0f + r * r * (0.33333236f - r * r * 0.022127803f);
    const float w = (power_of_two(n) * 0.5f - 0.5f) * (t + r);

    return copysignf((w + r) / (w + t), a);
}
""",
    ),
}

#: What stands before the first of them.
BITS = """\
/* The bits of a float; they are in the order of the numbers, and 2^23 and more have no fraction. */
typedef union {
    float value;
    uint32_t bits;
} word;

/* |a|, but no more than `most`; NaN stays NaN. */
static float magnitude(float a, float most)
{
    word found, limit;

    found.value = fabsf(a);
    limit.value = most;
    limit.bits = found.bits > 0x7f800000u ? found.bits : limit.bits;
    found.bits = found.bits < limit.bits ? found.bits : limit.bits;
    return found.value;
}

/* The whole number next to a, |a| < 2^22: the last bits of a + 3 * 2^22. */
static int nearest(float a)
{
    word sum;

    sum.value = a + 12582912.0f;
    return (int)(sum.bits - 0x4b400000u);
}

/* 2^n for n from -126 to 127; 0 for -127 and infinity for 128. */
static float power_of_two(int n)
{
    word found;

    found.bits = ((uint32_t)n + 127u) << 23;
    return found.value;
}
"""

#: Names in these texts at file scope.
NAMES = ("word", "magnitude", "nearest", "power_of_two", *(name for name, _ in OWN.values()))

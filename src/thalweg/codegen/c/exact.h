/* Correctly rounded operations in integers, for machines that have no instruction for them. Included by vector.h.
 *
 * C99 and nothing else: no 128-bit integers, no calls of a library.
 */
typedef union { float value; uint32_t bits; } tw_float_bits;
typedef union { double value; uint64_t bits; } tw_double_bits;

/* The upper 64 bits of a * b; *lower gets the others. */
TW_INLINE uint64_t tw_upper_half_u64(uint64_t a, uint64_t b, uint64_t *lower) {
    uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    uint64_t middle = a1 * b0 + (a0 * b0 >> 32), other = a0 * b1 + (uint32_t)middle;
    *lower = a * b;
    return a1 * b1 + (middle >> 32) + (other >> 32);
}
/* The zeros above the highest bit of x, which is not 0. */
TW_COLD int tw_leading_zeros_u64(uint64_t x) {
    int count = 0;
    for (int step = 32; step; step >>= 1)
        if (!(x >> (64 - step))) x <<= step, count += step;
    return count;
}
/* 2^e for a normal number. */
TW_COLD double tw_power_of_two_f64(int e) {
    tw_double_bits r;
    r.bits = (uint64_t)(e + 1023) << 52;
    return r.value;
}
/* x = mantissa * 2^exponent with bit 52 the highest of the mantissa; x is finite and not zero. */
TW_COLD uint64_t tw_split_f64(double x, int *exponent) {
    tw_double_bits number;
    number.value = x;
    int e = (int)(number.bits >> 52 & 0x7ff);
    uint64_t mantissa = (number.bits & 0xfffffffffffffu) | (e ? (uint64_t)1 << 52 : 0);
    int shift = e ? 0 : tw_leading_zeros_u64(mantissa) - 11;
    *exponent = (e ? e : 1) - 1075 - shift;
    return mantissa << shift;
}
/* mantissa * 2^e rounded to nearest even, where bit 62 is the highest of the mantissa and its lowest bit stands for
 * everything below. */
TW_COLD double tw_rounded_f64(uint64_t mantissa, int e, int negative) {
    int drop = e + 62 < -1022 ? -1074 - e : 10;
    double r = 0;
    if (drop < 64) {
        uint64_t half = (uint64_t)1 << (drop - 1), rest = mantissa & (half - 1 + half), kept = mantissa >> drop;
        kept += rest > half || (rest == half && (kept & 1));
        e += drop;
        if (e > 971) r = 1e308 * 10;
        else r = (double)(int64_t)kept * tw_power_of_two_f64(e / 2) * tw_power_of_two_f64(e - e / 2);
    }
    return negative ? -r : r;
}
/* a * b + c, rounded once. The product and c as 128-bit integers of one exponent; what is shifted out stays as the lowest
 * bit, which is far below the last bit of the result. */
TW_COLD double tw_fma_scalar_f64(double a, double b, double c) {
    if (a == 0 || b == 0 || a - a != 0 || b - b != 0 || c - c != 0) return a * b + c;
    if (c == 0) return a * b;
    int ea, eb, ec;
    uint64_t ma = tw_split_f64(a, &ea) << 1, mb = tw_split_f64(b, &eb) << 1, mc = tw_split_f64(c, &ec) << 1;
    uint64_t low, high = tw_upper_half_u64(ma, mb, &low), other_low = mc, other_high = 0;
    int e = ea + eb - 2, up = ec - 1 - e, negative = (a < 0) != (b < 0);
    if (up <= 0) {
        if (up < -63) other_low = 1;
        else if (up < 0) other_low = mc >> -up | ((mc << (64 + up)) != 0);
    } else if (up < 64) {
        other_high = mc >> (64 - up), other_low = mc << up;
    } else {
        int down = up - 64;
        e = ec - 1 - 64, other_high = mc, other_low = 0;
        if (down > 63) high = 0, low = 1;
        else if (down > 0) low = high << (64 - down) | low >> down | ((low << (64 - down)) != 0), high >>= down;
    }
    if (negative == (c < 0)) {
        low += other_low;
        high += other_high + (low < other_low);
    } else {
        uint64_t before = low;
        low -= other_low;
        high -= other_high + (before < low);
        if (high >> 63) low = 0 - low, high = ~high + (low == 0), negative = !negative;
    }
    if (high) {
        int zeros = tw_leading_zeros_u64(high) - 1;
        e += 64 - zeros;
        if (zeros) high = high << zeros | low >> (64 - zeros);
        return tw_rounded_f64(high | ((low << zeros) != 0), e, negative);
    }
    if (!low) return 0;
    int zeros = tw_leading_zeros_u64(low) - 1;
    if (zeros < 0) return tw_rounded_f64(low >> 1 | (low & 1), e + 1, negative);
    return tw_rounded_f64(low << zeros, e - zeros, negative);
}
/* The product of two floats is exact in double; the sum is rounded to odd (its error decides the last bit), so that the
 * second rounding, to float, is the only one that counts. */
TW_INLINE float tw_fma_scalar_f32(float a, float b, float c) {
    tw_double_bits sum;
    double product = (double)a * b, other = c;
    sum.value = product + other;
    double part = sum.value - product, error = (product - (sum.value - part)) + (other - part);
    if (error != 0 && error == error && !(sum.bits & 1)) sum.bits += (error > 0) == (sum.value > 0) ? 1 : (uint64_t)-1;
    return (float)sum.value;
}
/* The square root of a number whose binary digits begin at bit 63, to `count` digits, the last one rounded away. A root
 * never lies in the middle between two numbers of half its operand's digits. */
TW_COLD uint64_t tw_root_digits(uint64_t digits, int count) {
    uint64_t root = 0, rest = 0;
    while (count--) {
        uint64_t test = root << 2 | 1;
        rest = rest << 2 | digits >> 62;
        digits <<= 2;
        root <<= 1;
        if (rest >= test) rest -= test, root |= 1;
    }
    return (root + 1) >> 1;
}
TW_COLD double tw_sqrt_scalar_f64(double a) {
    int e;
    if (a == 0 || a != a || a - a != 0 || a < 0) return a < 0 ? (a - a) / 0.0 : a;
    uint64_t mantissa = tw_split_f64(a, &e);
    int odd = e & 1;
    return (double)(int64_t)tw_root_digits(mantissa << (10 + odd), 54) * tw_power_of_two_f64((e - odd) / 2 - 26);
}
TW_COLD float tw_sqrt_scalar_f32(float a) {
    int e;
    if (a == 0 || a != a || a - a != 0 || a < 0) return a < 0 ? (a - a) / 0.0f : a;
    uint64_t mantissa = tw_split_f64(a, &e) >> 29; /* a float's 24 digits */
    int odd = (e + 29) & 1;
    uint64_t root = tw_root_digits(mantissa << (40 - odd), 25);
    return (float)((double)(int64_t)root * tw_power_of_two_f64((e + 27 + odd) / 2 - 11));
}

/* The 16 virtual lanes as an array of 16 scalars: the types and operations of vector.h in C99 without any extension.
 *
 * vector.h includes this file instead of its own types where TW_SCALAR is 1. The bits are those of every other target. A
 * compiler may still vectorise the loops over lanes.
 */
#define TW_AVX512 0
#define TW_AVX2 0
#define TW_SSE2 0
#ifndef __GNUC__ /* what the generated text uses of GNU C is a hint, or has a plain form */
#undef __attribute__
#define __attribute__(list)
#define __builtin_expect(value, likely) (value)
#define __builtin_prefetch(...) ((void)0)
#define __builtin_memcpy tw_copy
#define __builtin_clzll tw_leading_zeros_u64
#define __builtin_signbit(x) (((tw_double_bits){x}).bits >> 63)
#define __builtin_inff() ((float)(1e308 * 10))
#define __builtin_inf() (1e308 * 10)
#define __builtin_nanf(text) ((float)(1e308 * 10 - 1e308 * 10))
#define __builtin_nan(text) (1e308 * 10 - 1e308 * 10)
static inline void tw_copy(void *to, const void *from, uint64_t bytes) {
    for (uint64_t i = 0; i < bytes; i++) ((unsigned char *)to)[i] = ((const unsigned char *)from)[i];
}
#endif
#ifdef __GNUC__
#define TW_INLINE static inline __attribute__((always_inline, unused)) /* on scalars */
#define TW_LANES static __attribute__((noinline, unused)) /* on 16 lanes: one copy, since kernels call them thousands of times */
#else
#define TW_INLINE static inline
#define TW_LANES static inline
#endif
#include "exact.h"

#define TW_TYPE(t, scalar, word, wide)                                                             \
    typedef scalar t TW_ALIAS;                                                                     \
    typedef word t##_word; /* unsigned, as wide as t */                                            \
    typedef wide t##_wide; /* unsigned, and not narrower than int: arithmetic in it wraps */       \
    typedef struct { t lane[16]; } t##x16;                                                         \
    typedef union { t##x16 whole; t lane[16]; } t##_lanes;
TW_TYPE(i8, int8_t, uint8_t, uint32_t)
TW_TYPE(u8, uint8_t, uint8_t, uint32_t)
TW_TYPE(i16, int16_t, uint16_t, uint32_t)
TW_TYPE(u16, uint16_t, uint16_t, uint32_t)
TW_TYPE(i32, int32_t, uint32_t, uint32_t)
TW_TYPE(u32, uint32_t, uint32_t, uint32_t)
TW_TYPE(f32, float, uint32_t, uint32_t)
TW_TYPE(i64, int64_t, uint64_t, uint64_t)
TW_TYPE(u64, uint64_t, uint64_t, uint64_t)
TW_TYPE(f64, double, uint64_t, uint64_t)

/* The lanes of r from an expression in i. */
#define TW_EACH(r, expression)                                                                     \
    r##x16 result;                                                                                 \
    for (int i = 0; i < 16; i++) result.lane[i] = (r)(expression);                                 \
    return result;
#define TW_EACH1(name, r, t, expression) TW_LANES r##x16 name(t##x16 a) { TW_EACH(r, expression) }
#define TW_EACH2(name, r, t, expression) TW_LANES r##x16 name(t##x16 a, t##x16 b) { TW_EACH(r, expression) }
#define TW_A a.lane[i]
#define TW_B b.lane[i]

/* ---- Loads, stores, lanes. ---- */
#define TW_MEMORY(t)                                                                               \
    TW_LANES t##x16 load_##t(const t *pointer) { TW_EACH(t, pointer[i]) }                          \
    TW_LANES void store_##t(t *pointer, t##x16 v) { for (int i = 0; i < 16; i++) pointer[i] = v.lane[i]; } \
    TW_LANES t##x16 broadcast_##t(t scalar) { TW_EACH(t, scalar) }                                 \
    TW_LANES t##x16 iota_##t(void) { TW_EACH(t, i) }                                               \
    TW_LANES t lane_##t(t##x16 v, int index) { return v.lane[index]; }                             \
    TW_LANES t##x16 load_strided_##t(const t *base, int64_t stride) { TW_EACH(t, base[i * stride]) } \
    TW_LANES void store_strided_##t(t *base, int64_t stride, t##x16 v) {                           \
        for (int i = 0; i < 16; i++) base[i * stride] = v.lane[i];                                 \
    }                                                                                              \
    TW_LANES t##x16 gather_##t(const t *base, i32x16 a) { TW_EACH(t, base[TW_A]) }                 \
    TW_LANES t##x16 gather_wide_##t(const t *base, i64x16 a) { TW_EACH(t, base[TW_A]) }            \
    TW_LANES t##x16 load_partial_##t(const t *pointer, int n) { TW_EACH(t, i < n ? pointer[i] : 0) } \
    TW_LANES void store_partial_##t(t *pointer, t##x16 v, int n) {                                 \
        for (int i = 0; i < n; i++) pointer[i] = v.lane[i];                                        \
    }

/* The tree of vector.h: lane i with lane i + 8, then + 4, + 2, + 1; f(a, b) on two scalars. */
#define TW_REDUCE(name, t, f)                                                                      \
    TW_LANES t name##_##t(t##x16 v) {                                                              \
        for (int n = 8; n; n /= 2)                                                                 \
            for (int i = 0; i < n; i++) v.lane[i] = (t)f(v.lane[i], v.lane[i + n]);                \
        return v.lane[0];                                                                          \
    }

#define TW_COMMON(t, w)                                                                            \
    TW_MEMORY(t)                                                                                   \
    TW_EACH2(equal_##t, i##w, t, -(TW_A == TW_B))                                                  \
    TW_EACH2(not_equal_##t, i##w, t, -(TW_A != TW_B))                                              \
    TW_EACH2(less_##t, i##w, t, -(TW_A < TW_B))                                                    \
    TW_EACH2(less_equal_##t, i##w, t, -(TW_A <= TW_B))                                             \
    TW_EACH2(greater_##t, i##w, t, -(TW_A > TW_B))                                                 \
    TW_EACH2(greater_equal_##t, i##w, t, -(TW_A >= TW_B))                                          \
    TW_LANES t##x16 select_##t(i##w##x16 mask, t##x16 a, t##x16 b) { TW_EACH(t, mask.lane[i] ? TW_A : TW_B) }

/* ---- Integers. ---- */
#define TW_WRAP(t, a, operator, b) ((t##_wide)(a) operator (t##_wide)(b))
#define TW_INTEGER(t, w)                                                                           \
    TW_COMMON(t, w)                                                                                \
    TW_EACH2(add_##t, t, t, TW_WRAP(t, TW_A, +, TW_B))                                             \
    TW_EACH2(subtract_##t, t, t, TW_WRAP(t, TW_A, -, TW_B))                                        \
    TW_EACH2(multiply_##t, t, t, TW_WRAP(t, TW_A, *, TW_B))                                        \
    TW_EACH1(negative_##t, t, t, TW_WRAP(t, 0, -, TW_A))                                           \
    TW_EACH2(minimum_##t, t, t, TW_B < TW_A ? TW_B : TW_A)                                         \
    TW_EACH2(maximum_##t, t, t, TW_A < TW_B ? TW_B : TW_A)                                         \
    TW_EACH2(bitwise_and_##t, t, t, TW_A & TW_B)                                                   \
    TW_EACH2(bitwise_or_##t, t, t, TW_A | TW_B)                                                    \
    TW_EACH2(bitwise_xor_##t, t, t, TW_A ^ TW_B)                                                   \
    TW_EACH1(bitwise_invert_##t, t, t, ~TW_A)                                                      \
    TW_EACH2(left_shift_##t, t, t, (t##_word)TW_B < w ? (t##_wide)TW_A << (t##_word)TW_B : 0)      \
    TW_EACH2(right_shift_##t, t, t, (t##_word)TW_B < w ? TW_A >> (t##_word)TW_B : TW_A < (t)1 && TW_A ? (t)-1 : 0) \
    TW_INLINE t tw_sum_of_##t(t a, t b) { return (t)TW_WRAP(t, a, +, b); }                         \
    TW_INLINE t tw_product_of_##t(t a, t b) { return (t)TW_WRAP(t, a, *, b); }                     \
    TW_INLINE t tw_smaller_of_##t(t a, t b) { return b < a ? b : a; }                              \
    TW_INLINE t tw_larger_of_##t(t a, t b) { return a < b ? b : a; }                               \
    TW_REDUCTIONS(t)
#define TW_REDUCTIONS(t)                                                                           \
    TW_REDUCE(sum, t, tw_sum_of_##t)                                                               \
    TW_REDUCE(product, t, tw_product_of_##t)                                                       \
    TW_REDUCE(min, t, tw_smaller_of_##t)                                                           \
    TW_REDUCE(max, t, tw_larger_of_##t)
TW_INTEGER(i8, 8)
TW_INTEGER(u8, 8)
TW_INTEGER(i16, 16)
TW_INTEGER(u16, 16)
TW_INTEGER(i32, 32)
TW_INTEGER(u32, 32)
TW_INTEGER(i64, 64)
TW_INTEGER(u64, 64)

/* ---- Floating point. The fused multiply-add and the square root are instructions where the compiler is known to turn
 * the built-in functions into them, else exact in integers: never calls of a library. ---- */
#if defined __FP_FAST_FMAF || (defined __GNUC__ && defined __FMA__)
#define TW_FMA_f32(a, b, c) __builtin_fmaf(a, b, c)
#else
#define TW_FMA_f32(a, b, c) tw_fma_scalar_f32(a, b, c)
#endif
#if defined __FP_FAST_FMA || (defined __GNUC__ && defined __FMA__)
#define TW_FMA_f64(a, b, c) __builtin_fma(a, b, c)
#else
#define TW_FMA_f64(a, b, c) tw_fma_scalar_f64(a, b, c)
#endif
#if defined __NO_MATH_ERRNO__ && (defined __SSE2__ || defined __aarch64__)
#define TW_SQRT_f32(a) __builtin_sqrtf(a)
#define TW_SQRT_f64(a) __builtin_sqrt(a)
#else
#define TW_SQRT_f32(a) tw_sqrt_scalar_f32(a)
#define TW_SQRT_f64(a) tw_sqrt_scalar_f64(a)
#endif

#define TW_FLOAT(t, w, format, bits_of, digits)                                                    \
    TW_COMMON(t, w)                                                                                \
    TW_EACH2(add_##t, t, t, TW_A + TW_B)                                                           \
    TW_EACH2(subtract_##t, t, t, TW_A - TW_B)                                                      \
    TW_EACH2(multiply_##t, t, t, TW_A * TW_B)                                                      \
    TW_EACH2(divide_##t, t, t, TW_A / TW_B)                                                        \
    TW_LANES t##x16 fma_##t(t##x16 a, t##x16 b, t##x16 c) { TW_EACH(t, TW_FMA_##t(TW_A, TW_B, c.lane[i])) } \
    TW_EACH1(sqrt_##t, t, t, TW_SQRT_##t(TW_A))                                                    \
    TW_INLINE t##_word tw_bits_##t(t x) {                                                          \
        bits_of number;                                                                            \
        number.value = x;                                                                          \
        return number.bits;                                                                        \
    }                                                                                              \
    TW_INLINE t tw_number_##t(t##_word bits) {                                                     \
        bits_of number;                                                                            \
        number.bits = bits;                                                                        \
        return number.value;                                                                       \
    }                                                                                              \
    TW_INLINE t tw_copysign_##t(t size, t sign) {                                                  \
        const t##_word top = (t##_word)1 << (w - 1);                                               \
        return tw_number_##t((tw_bits_##t(size) & ~top) | (tw_bits_##t(sign) & top));              \
    }                                                                                              \
    TW_INLINE t tw_absolute_##t(t x) { return tw_number_##t(tw_bits_##t(x) & ~((t##_word)1 << (w - 1))); } \
    /* Adding and subtracting 2^(bits of the mantissa) rounds to a whole number. */                \
    TW_INLINE t tw_rint_##t(t x) {                                                                 \
        t size = tw_absolute_##t(x), sum = size + digits;                                          \
        return size < digits ? tw_copysign_##t(sum - digits, x) : x;                               \
    }                                                                                              \
    TW_INLINE t tw_floor_##t(t x) {                                                                \
        t r = tw_rint_##t(x);                                                                      \
        return tw_copysign_##t(r > x ? r - 1 : r, x);                                              \
    }                                                                                              \
    TW_INLINE t tw_ceil_##t(t x) {                                                                 \
        t r = tw_rint_##t(x);                                                                      \
        return tw_copysign_##t(r < x ? r + 1 : r, x);                                              \
    }                                                                                              \
    TW_INLINE t tw_sum_of_##t(t a, t b) { return a + b; }                                          \
    TW_INLINE t tw_product_of_##t(t a, t b) { return a * b; }                                      \
    TW_INLINE t tw_smaller_of_##t(t a, t b) { return b != b ? b : b < a ? b : a; }                 \
    TW_INLINE t tw_larger_of_##t(t a, t b) { return b != b ? b : b > a ? b : a; }                  \
    TW_REDUCTIONS(t)                                                                               \
    TW_EACH1(negative_##t, t, t, tw_number_##t(tw_bits_##t(TW_A) ^ ((t##_word)1 << (w - 1))))      \
    TW_EACH1(absolute_##t, t, t, tw_absolute_##t(TW_A))                                            \
    TW_EACH2(copysign_##t, t, t, tw_copysign_##t(TW_A, TW_B))                                      \
    TW_EACH2(maximum_##t, t, t, tw_larger_of_##t(TW_A, TW_B))                                      \
    TW_EACH2(minimum_##t, t, t, tw_smaller_of_##t(TW_A, TW_B))                                     \
    TW_LANES t##x16 clamp_##t(t##x16 x, t##x16 low, t##x16 high) { return maximum_##t(minimum_##t(x, high), low); } \
    TW_EACH1(rint_##t, t, t, tw_rint_##t(TW_A))                                                    \
    TW_EACH1(floor_##t, t, t, tw_floor_##t(TW_A))                                                  \
    TW_EACH1(ceil_##t, t, t, tw_ceil_##t(TW_A))                                                    \
    TW_EACH1(trunc_##t, t, t, tw_copysign_##t(tw_floor_##t(tw_absolute_##t(TW_A)), TW_A))          \
    TW_EACH1(is_nan_##t, i##w, t, -(TW_A != TW_A))                                                 \
    TW_EACH1(is_finite_##t, i##w, t, -(TW_A - TW_A == 0))                                          \
    TW_EACH1(is_infinite_##t, i##w, t, -(TW_A - TW_A != 0 && TW_A == TW_A))                        \
    TW_EACH1(bits_of_##t, i##w, t, tw_bits_##t(TW_A))                                              \
    TW_EACH1(from_bits_##t, t, i##w, tw_number_##t((t##_word)TW_A))
TW_FLOAT(f32, 32, float, tw_float_bits, 0x1p23f)
TW_FLOAT(f64, 64, double, tw_double_bits, 0x1p52)

/* ---- Conversions, as vector.h defines them. ---- */
TW_INLINE int32_t tw_whole_i32(double x) { return x > -0x1p31 - 1 && x < 0x1p31 ? (int32_t)x : INT32_MIN; }
TW_INLINE int64_t tw_whole_i64(double x) { return x >= -0x1p63 && x < 0x1p63 ? (int64_t)x : INT64_MIN; }
TW_INLINE uint64_t tw_whole_u64(double x) {
    return x >= 0x1p63 ? (uint64_t)tw_whole_i64(x - 0x1p63) ^ (uint64_t)1 << 63 : (uint64_t)tw_whole_i64(x);
}
#define TW_CONVERT(s, d, value) TW_EACH1(convert_##s##_to_##d, d, s, value)
#define TW_CONVERT_INTEGER(s)                                                                      \
    TW_CONVERT(s, i8, TW_A)                                                                        \
    TW_CONVERT(s, u8, TW_A)                                                                        \
    TW_CONVERT(s, i16, TW_A)                                                                       \
    TW_CONVERT(s, u16, TW_A)                                                                       \
    TW_CONVERT(s, i32, TW_A)                                                                       \
    TW_CONVERT(s, u32, TW_A)                                                                       \
    TW_CONVERT(s, i64, TW_A)                                                                       \
    TW_CONVERT(s, u64, TW_A)                                                                       \
    TW_CONVERT(s, f32, TW_A)                                                                       \
    TW_CONVERT(s, f64, TW_A)
TW_CONVERT_INTEGER(i8)
TW_CONVERT_INTEGER(u8)
TW_CONVERT_INTEGER(i16)
TW_CONVERT_INTEGER(u16)
TW_CONVERT_INTEGER(i32)
TW_CONVERT_INTEGER(u32)
TW_CONVERT_INTEGER(i64)
TW_CONVERT_INTEGER(u64)
#define TW_CONVERT_FLOAT(s, other)                                                                 \
    TW_CONVERT(s, i8, tw_whole_i32(TW_A))                                                          \
    TW_CONVERT(s, u8, tw_whole_i32(TW_A))                                                          \
    TW_CONVERT(s, i16, tw_whole_i32(TW_A))                                                         \
    TW_CONVERT(s, u16, tw_whole_i32(TW_A))                                                         \
    TW_CONVERT(s, i32, tw_whole_i32(TW_A))                                                         \
    TW_CONVERT(s, u32, tw_whole_i64(TW_A))                                                         \
    TW_CONVERT(s, i64, tw_whole_i64(TW_A))                                                         \
    TW_CONVERT(s, u64, tw_whole_u64(TW_A))                                                         \
    TW_CONVERT(s, other, TW_A)
TW_CONVERT_FLOAT(f32, f64)
TW_CONVERT_FLOAT(f64, f32)

/* Bit i of the result: lane i of the mask. */
#define TW_MASK_BITS(t)                                                                            \
    TW_LANES uint32_t mask_bits_##t(t##x16 m) {                                                    \
        uint32_t bits = 0;                                                                         \
        for (int i = 0; i < 16; i++) bits |= (uint32_t)(m.lane[i] & 1) << i;                       \
        return bits;                                                                               \
    }
TW_MASK_BITS(i8)
TW_MASK_BITS(i16)
TW_MASK_BITS(i32)
TW_MASK_BITS(i64)

/* ---- Blocks of 16 x 16. ---- */
TW_LANES void transpose_f32(f32x16 row[16]) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            f32 other = row[i].lane[j];
            row[i].lane[j] = row[j].lane[i];
            row[j].lane[i] = other;
        }
}
TW_LANES f32x16 sum_rows_f32(f32x16 row[16]) {
    f32x16 result;
    for (int i = 0; i < 16; i++) result.lane[i] = sum_f32(row[i]);
    return result;
}

/* Every second element, the last one at pointer[30]; two vectors element by element in turn. */
TW_LANES f32x16 load_even_f32(const f32 *pointer) { TW_EACH(f32, pointer[2 * i]) }
TW_LANES void store_zipped_f32(f32 *pointer, f32x16 x, f32x16 y) {
    for (int i = 0; i < 16; i++) pointer[2 * i] = x.lane[i], pointer[2 * i + 1] = y.lane[i];
}

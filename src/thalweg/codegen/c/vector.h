/* Thalweg vector library: 16 virtual lanes.
 *
 * All generated C computes on vectors of 16 elements, whatever the element type and the instruction set. Every function
 * here gives the same bits on AVX-512, AVX2, SSE2, NEON and scalar machines, with gcc 9+ and clang 10+. The one exception
 * is the sign and payload of a NaN made by an operation.
 *
 * RULE FOR CALLERS: compute with the functions, never with C operators on the vectors. A vector wider than the machine's
 * registers is a struct of register-sized parts, because gcc keeps over-wide vectors in memory (10 times slower).
 * Compile with -DTW_BYTES=16 to see whether a text keeps to the rule.
 *
 * Names.  Element types: f32 f64 i8 i16 i32 i64 u8 u16 u32 u64. Vectors: f32x16, ... A function ends in the element type
 * that it works on: add_f32(a, b).
 * Masks.  A boolean in a register is a vector of integers 0 / -1 as wide as the compared type: m8x16 = i8x16, m16x16,
 * m32x16, m64x16 (the same types as i8x16 ...). less_f32 gives m32x16, less_f64 gives m64x16, select_f64 takes m64x16.
 * Change the width of a mask with the integer conversions (convert_i32_to_i64). In memory a boolean is one byte 0 or 1.
 * Half precision exists in memory only (uint16_t): load_f16 / load_bf16 give f32x16.
 *
 * With -DTW_SCALAR=1 the same functions come from scalar.h, in C99 without extensions (exported programs choose it for
 * compilers and machines that this file does not know).
 *
 * Compiler flags: -O2 -ffp-contract=off -fno-math-errno -fno-trapping-math; rounding to nearest, no flush to zero.
 */
#ifndef THALWEG_VECTOR_H
#define THALWEG_VECTOR_H
#include <stdint.h>

#if defined __GNUC__ && !defined __clang__
#pragma GCC diagnostic ignored "-Wpsabi" /* only static functions of one translation unit pass vectors */
#endif
#ifndef __has_builtin
#define __has_builtin(name) 0
#endif

#ifndef TW_SCALAR
#define TW_SCALAR 0
#endif
#ifdef __GNUC__
#define TW_COLD static __attribute__((noinline, cold, unused)) /* rare slow paths */
#define TW_ALIAS __attribute__((may_alias)) /* one arena holds values of different types, one after another */
#else
#define TW_COLD static
#define TW_ALIAS
#endif

#if TW_SCALAR
#define TW_BYTES 0
#include "scalar.h"
#else
/* Bytes of a machine register. It may be set smaller by hand, to check texts for narrower machines. */
#ifndef TW_BYTES
#if defined __AVX512F__ && defined __AVX512BW__ && defined __AVX512DQ__ && defined __AVX512VL__
#define TW_BYTES 64
#elif defined __AVX2__ && defined __FMA__
#define TW_BYTES 32
#else
#define TW_BYTES 16
#endif
#endif
#define TW_AVX512 (TW_BYTES == 64)
#define TW_AVX2 (TW_BYTES == 32)
#if TW_BYTES == 16 && defined __SSE2__
#define TW_SSE2 1
#else
#define TW_SSE2 0
#endif

#define TW_INLINE static inline __attribute__((always_inline, unused))
#include "exact.h"

/* ---- Types. t_part: one register; t_half: half of one; t_bits / t_mask: (un)signed integers of the same width. ---- */
#define TW_TYPE(t, scalar, bits, mask, bytes, vector)                                              \
    typedef scalar t TW_ALIAS;                                                                     \
    typedef scalar t##_part __attribute__((vector_size(bytes)));                                   \
    typedef scalar t##_half __attribute__((vector_size(bytes / 2)));                               \
    typedef scalar t##_memory __attribute__((vector_size(bytes), aligned(sizeof(scalar)), may_alias)); \
    typedef bits t##_bits __attribute__((vector_size(bytes)));                                     \
    typedef mask t##_mask __attribute__((vector_size(bytes)));                                     \
    typedef bits t##_word;                                                                         \
    typedef union { t##_part whole; t##_half half[2]; } t##_split;                                 \
    typedef vector(t##_part) t##x16;                                                               \
    typedef union { t##x16 whole; t lane[16]; } t##_lanes;
#define TW_VECTOR_P1(part) part
#define TW_VECTOR_P2(part) struct { part p[2]; }
#define TW_VECTOR_P4(part) struct { part p[4]; }
#define TW_VECTOR_P8(part) struct { part p[8]; }

/* TW_xxx_P<parts> are written once per number of parts; TW_xxx_<width of the element> picks the one of this machine. */
#if TW_BYTES == 64
#define TW_PICK_8(name) name##_P1
#define TW_PICK_16(name) name##_P1
#define TW_PICK_32(name) name##_P1
#define TW_PICK_64(name) name##_P2
#define TW_SIZE_16 32
#define TW_SIZE_32 64
#define TW_SIZE_64 64
#define TW_LANES_16 16
#define TW_LANES_32 16
#define TW_LANES_64 8
#elif TW_BYTES == 32
#define TW_PICK_8(name) name##_P1
#define TW_PICK_16(name) name##_P1
#define TW_PICK_32(name) name##_P2
#define TW_PICK_64(name) name##_P4
#define TW_SIZE_16 32
#define TW_SIZE_32 32
#define TW_SIZE_64 32
#define TW_LANES_16 16
#define TW_LANES_32 8
#define TW_LANES_64 4
#else
#define TW_PICK_8(name) name##_P1
#define TW_PICK_16(name) name##_P2
#define TW_PICK_32(name) name##_P4
#define TW_PICK_64(name) name##_P8
#define TW_SIZE_16 16
#define TW_SIZE_32 16
#define TW_SIZE_64 16
#define TW_LANES_16 8
#define TW_LANES_32 4
#define TW_LANES_64 2
#endif
#define TW_LANES_8 16

TW_TYPE(i8, int8_t, uint8_t, int8_t, 16, TW_VECTOR_P1)
TW_TYPE(u8, uint8_t, uint8_t, int8_t, 16, TW_VECTOR_P1)
TW_TYPE(i16, int16_t, uint16_t, int16_t, TW_SIZE_16, TW_PICK_16(TW_VECTOR))
TW_TYPE(u16, uint16_t, uint16_t, int16_t, TW_SIZE_16, TW_PICK_16(TW_VECTOR))
TW_TYPE(i32, int32_t, uint32_t, int32_t, TW_SIZE_32, TW_PICK_32(TW_VECTOR))
TW_TYPE(u32, uint32_t, uint32_t, int32_t, TW_SIZE_32, TW_PICK_32(TW_VECTOR))
TW_TYPE(f32, float, uint32_t, int32_t, TW_SIZE_32, TW_PICK_32(TW_VECTOR))
TW_TYPE(i64, int64_t, uint64_t, int64_t, TW_SIZE_64, TW_PICK_64(TW_VECTOR))
TW_TYPE(u64, uint64_t, uint64_t, int64_t, TW_SIZE_64, TW_PICK_64(TW_VECTOR))
TW_TYPE(f64, double, uint64_t, int64_t, TW_SIZE_64, TW_PICK_64(TW_VECTOR))

/* ---- Maps over parts: operand type t, result type r, f a macro or function f(t, a, ...) on parts. ---- */
#define TW_MAP1_P1(t, r, f, a) ((r##x16)f(t, a))
#define TW_PART1(r, f, t, a, i) (r##_part)f(t, (a).p[i])
#define TW_MAP1_P2(t, r, f, a) ((r##x16){{TW_PART1(r, f, t, a, 0), TW_PART1(r, f, t, a, 1)}})
#define TW_MAP1_P4(t, r, f, a)                                                                     \
    ((r##x16){{TW_PART1(r, f, t, a, 0), TW_PART1(r, f, t, a, 1), TW_PART1(r, f, t, a, 2), TW_PART1(r, f, t, a, 3)}})
#define TW_MAP1_P8(t, r, f, a)                                                                     \
    ((r##x16){{TW_PART1(r, f, t, a, 0), TW_PART1(r, f, t, a, 1), TW_PART1(r, f, t, a, 2), TW_PART1(r, f, t, a, 3), \
               TW_PART1(r, f, t, a, 4), TW_PART1(r, f, t, a, 5), TW_PART1(r, f, t, a, 6), TW_PART1(r, f, t, a, 7)}})
#define TW_MAP2_P1(t, r, f, a, b) ((r##x16)f(t, a, b))
#define TW_PART2(r, f, t, a, b, i) (r##_part)f(t, (a).p[i], (b).p[i])
#define TW_MAP2_P2(t, r, f, a, b) ((r##x16){{TW_PART2(r, f, t, a, b, 0), TW_PART2(r, f, t, a, b, 1)}})
#define TW_MAP2_P4(t, r, f, a, b)                                                                  \
    ((r##x16){{TW_PART2(r, f, t, a, b, 0), TW_PART2(r, f, t, a, b, 1),                             \
               TW_PART2(r, f, t, a, b, 2), TW_PART2(r, f, t, a, b, 3)}})
#define TW_MAP2_P8(t, r, f, a, b)                                                                  \
    ((r##x16){{TW_PART2(r, f, t, a, b, 0), TW_PART2(r, f, t, a, b, 1),                             \
               TW_PART2(r, f, t, a, b, 2), TW_PART2(r, f, t, a, b, 3),                             \
               TW_PART2(r, f, t, a, b, 4), TW_PART2(r, f, t, a, b, 5),                             \
               TW_PART2(r, f, t, a, b, 6), TW_PART2(r, f, t, a, b, 7)}})
#define TW_MAP3_P1(t, r, f, a, b, c) ((r##x16)f(t, a, b, c))
#define TW_PART3(r, f, t, a, b, c, i) (r##_part)f(t, (a).p[i], (b).p[i], (c).p[i])
#define TW_MAP3_P2(t, r, f, a, b, c) ((r##x16){{TW_PART3(r, f, t, a, b, c, 0), TW_PART3(r, f, t, a, b, c, 1)}})
#define TW_MAP3_P4(t, r, f, a, b, c)                                                               \
    ((r##x16){{TW_PART3(r, f, t, a, b, c, 0), TW_PART3(r, f, t, a, b, c, 1),                       \
               TW_PART3(r, f, t, a, b, c, 2), TW_PART3(r, f, t, a, b, c, 3)}})
#define TW_MAP3_P8(t, r, f, a, b, c)                                                               \
    ((r##x16){{TW_PART3(r, f, t, a, b, c, 0), TW_PART3(r, f, t, a, b, c, 1),                       \
               TW_PART3(r, f, t, a, b, c, 2), TW_PART3(r, f, t, a, b, c, 3),                       \
               TW_PART3(r, f, t, a, b, c, 4), TW_PART3(r, f, t, a, b, c, 5),                       \
               TW_PART3(r, f, t, a, b, c, 6), TW_PART3(r, f, t, a, b, c, 7)}})
#define TW_MAP1(w, ...) TW_PICK_##w(TW_MAP1)(__VA_ARGS__)
#define TW_MAP2(w, ...) TW_PICK_##w(TW_MAP2)(__VA_ARGS__)
#define TW_MAP3(w, ...) TW_PICK_##w(TW_MAP3)(__VA_ARGS__)

/* Shuffles of one or two parts by constant lane numbers. */
#ifdef __clang__
#define TW_SHUFFLE(t, v, ...) __builtin_shufflevector(v, v, __VA_ARGS__)
#define TW_SHUFFLE2(t, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define TW_SHUFFLE(t, v, ...) __builtin_shuffle(v, (t##_mask){__VA_ARGS__})
#define TW_SHUFFLE2(t, a, b, ...) __builtin_shuffle(a, b, (t##_mask){__VA_ARGS__})
#endif

/* ---- Loads, stores, lanes. Pointers need the alignment of one element only. ---- */
#define TW_LOAD_P1(t, n, q) (*(const t##_memory *)(q))
#define TW_LOADED(t, n, q, i) *(const t##_memory *)((q) + i * n)
#define TW_LOAD_P2(t, n, q) ((t##x16){{TW_LOADED(t, n, q, 0), TW_LOADED(t, n, q, 1)}})
#define TW_LOAD_P4(t, n, q)                                                                        \
    ((t##x16){{TW_LOADED(t, n, q, 0), TW_LOADED(t, n, q, 1), TW_LOADED(t, n, q, 2), TW_LOADED(t, n, q, 3)}})
#define TW_LOAD_P8(t, n, q)                                                                        \
    ((t##x16){{TW_LOADED(t, n, q, 0), TW_LOADED(t, n, q, 1), TW_LOADED(t, n, q, 2), TW_LOADED(t, n, q, 3), \
               TW_LOADED(t, n, q, 4), TW_LOADED(t, n, q, 5), TW_LOADED(t, n, q, 6), TW_LOADED(t, n, q, 7)}})
#define TW_STORE_P1(t, n, q, v) (void)(*(t##_memory *)(q) = (v))
#define TW_STORED(t, n, q, v, i) *(t##_memory *)((q) + i * n) = (v).p[i]
#define TW_STORE_P2(t, n, q, v) TW_STORED(t, n, q, v, 0), TW_STORED(t, n, q, v, 1)
#define TW_STORE_P4(t, n, q, v) TW_STORE_P2(t, n, q, v), TW_STORED(t, n, q, v, 2), TW_STORED(t, n, q, v, 3)
#define TW_STORE_P8(t, n, q, v)                                                                    \
    TW_STORE_P4(t, n, q, v), TW_STORED(t, n, q, v, 4), TW_STORED(t, n, q, v, 5),                   \
    TW_STORED(t, n, q, v, 6), TW_STORED(t, n, q, v, 7)
#define TW_REPEAT2(x) x, x
#define TW_REPEAT4(x) x, x, x, x
#define TW_REPEAT8(x) TW_REPEAT4(x), TW_REPEAT4(x)
#define TW_REPEAT16(x) TW_REPEAT8(x), TW_REPEAT8(x)
#define TW_JOIN_(a, b) a##b
#define TW_JOIN(a, b) TW_JOIN_(a, b)
#define TW_SPREAD(t, w, x) ((t##_part){TW_JOIN(TW_REPEAT, TW_LANES_##w)(x)})
#define TW_BROADCAST_P1(t, s) (s)
#define TW_BROADCAST_P2(t, s) ((t##x16){{TW_REPEAT2(s)}})
#define TW_BROADCAST_P4(t, s) ((t##x16){{TW_REPEAT4(s)}})
#define TW_BROADCAST_P8(t, s) ((t##x16){{TW_REPEAT8(s)}})

#define TW_LANE_P1(n, v, i) (v)[i]
#define TW_LANE_P2(n, v, i) (v).p[(i) / n][(i) % n]
#define TW_LANE_P4 TW_LANE_P2
#define TW_LANE_P8 TW_LANE_P2
#define TW_FROM2(i) base[(i)*stride], base[((i) + 1) * stride]
#define TW_FROM4(i) TW_FROM2(i), TW_FROM2(i + 2)
#define TW_FROM8(i) TW_FROM4(i), TW_FROM4(i + 4)
#define TW_FROM16(i) TW_FROM8(i), TW_FROM8(i + 8)
#define TW_STRIDED_P1(t) ((t##x16){TW_FROM16(0)})
#define TW_STRIDED_P2(t) ((t##x16){{{TW_FROM8(0)}, {TW_FROM8(8)}}})
#define TW_STRIDED_P4(t) ((t##x16){{{TW_FROM4(0)}, {TW_FROM4(4)}, {TW_FROM4(8)}, {TW_FROM4(12)}}})
#define TW_STRIDED_P8(t)                                                                        \
    ((t##x16){{{TW_FROM2(0)}, {TW_FROM2(2)}, {TW_FROM2(4)}, {TW_FROM2(6)},                         \
               {TW_FROM2(8)}, {TW_FROM2(10)}, {TW_FROM2(12)}, {TW_FROM2(14)}}})

#define TW_MEMORY(t, w)                                                                            \
    /* 16 elements from memory / to memory. */                                                     \
    TW_INLINE t##x16 load_##t(const t *pointer) { return TW_PICK_##w(TW_LOAD)(t, TW_LANES_##w, pointer); } \
    TW_INLINE void store_##t(t *pointer, t##x16 v) { TW_PICK_##w(TW_STORE)(t, TW_LANES_##w, pointer, v); } \
    /* One scalar in every lane. */                                                                \
    TW_INLINE t##x16 broadcast_##t(t scalar) {                                                     \
        t##_part part = TW_SPREAD(t, w, scalar);                                                   \
        return TW_PICK_##w(TW_BROADCAST)(t, part);                                                 \
    }                                                                                              \
    /* 0, 1, ..., 15. */                                                                           \
    TW_INLINE t##x16 iota_##t(void) {                                                              \
        return ((t##_lanes){.lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}).whole; \
    }                                                                                              \
    /* Lane number 0 <= index < 16 of a vector; slow when index is not a constant. */              \
    TW_INLINE t lane_##t(t##x16 v, int index) { return TW_PICK_##w(TW_LANE)(TW_LANES_##w, v, index); }             \
    /* base[0], base[stride], ...; stride in elements. */                                          \
    TW_INLINE t##x16 load_strided_##t(const t *base, int64_t stride) {                             \
        return TW_PICK_##w(TW_STRIDED)(t);                                           \
    }                                                                                              \
    TW_INLINE void store_strided_##t(t *base, int64_t stride, t##x16 v) {                          \
        t##_lanes r = {v};                                                                         \
        for (int i = 0; i < 16; i++) base[i * stride] = r.lane[i];                                 \
    }                                                                                              \
    /* base[index[0]], base[index[1]], ...: every index must be valid. */                          \
    TW_INLINE t##x16 gather_##t(const t *base, i32x16 index) {                                     \
        i32_lanes at = {index};                                                                    \
        t##_lanes r;                                                                               \
        for (int i = 0; i < 16; i++) r.lane[i] = base[at.lane[i]];                                 \
        return r.whole;                                                                           \
    }                                                                                              \
    TW_INLINE t##x16 gather_wide_##t(const t *base, i64x16 index) {                                \
        i64_lanes at = {index};                                                                    \
        t##_lanes r;                                                                               \
        for (int i = 0; i < 16; i++) r.lane[i] = base[at.lane[i]];                                 \
        return r.whole;                                                                           \
    }

/* The first n elements (0 <= n <= 16), other lanes zero; memory past n is never touched. */
#if TW_AVX512
#define TW_FIRST(n) ((1u << (n)) - 1u)
#define TW_MASKED(t, w, name, vector, mask) TW_MASKED_##w(t, name, vector, mask)
#define TW_MASKED_8(t, name, vector, mask)                                                         \
    TW_INLINE t##x16 load_partial_##t(const t *pointer, int n) {                                   \
        return (t##x16)__builtin_ia32_load##name##_mask((const void *)pointer, (vector){0}, (mask)TW_FIRST(n)); \
    }                                                                                              \
    TW_INLINE void store_partial_##t(t *pointer, t##x16 v, int n) {                                \
        __builtin_ia32_store##name##_mask((void *)pointer, (vector)v, (mask)TW_FIRST(n));          \
    }
#define TW_MASKED_16 TW_MASKED_8
#define TW_MASKED_32 TW_MASKED_8
#define TW_MASKED_64(t, name, vector, mask)                                                        \
    TW_INLINE t##x16 load_partial_##t(const t *pointer, int n) {                                   \
        vector zero = {0};                                                                         \
        uint32_t first = TW_FIRST(n);                                                              \
        return (t##x16){{(t##_part)__builtin_ia32_load##name##_mask((const void *)pointer, zero, (mask)first), \
                         (t##_part)__builtin_ia32_load##name##_mask((const void *)(pointer + 8), zero, (mask)(first >> 8))}}; \
    }                                                                                              \
    TW_INLINE void store_partial_##t(t *pointer, t##x16 v, int n) {                                \
        uint32_t first = TW_FIRST(n);                                                              \
        __builtin_ia32_store##name##_mask((void *)pointer, (vector)v.p[0], (mask)first);           \
        __builtin_ia32_store##name##_mask((void *)(pointer + 8), (vector)v.p[1], (mask)(first >> 8)); \
    }
typedef char tw_v16qi __attribute__((vector_size(16)));
typedef short tw_v16hi __attribute__((vector_size(32)));
typedef int tw_v16si __attribute__((vector_size(64)));
typedef long long tw_v8di __attribute__((vector_size(64)));
#else
#define TW_MASKED_STORE(t)                                                                         \
    TW_INLINE void store_partial_##t(t *pointer, t##x16 v, int n) {                                \
        t##_lanes r = {v};                                                                         \
        for (int i = 0; i < n; i++) pointer[i] = r.lane[i];                                        \
    }
#define TW_MASKED_8(t)                                                                             \
    TW_INLINE t##x16 load_partial_##t(const t *pointer, int n) {                                   \
        t##_lanes r = {.lane = {0}};                                                               \
        for (int i = 0; i < n; i++) r.lane[i] = pointer[i];                                        \
        return r.whole;                                                                            \
    }                                                                                              \
    TW_MASKED_STORE(t)
#define TW_MASKED_16 TW_MASKED_8
#if TW_AVX2
typedef long long tw_v4di __attribute__((vector_size(32)));
#define TW_MASKED_32(t)                                                                            \
    TW_INLINE t##x16 load_partial_##t(const t *pointer, int n) {                                   \
        i32_part lane = {0, 1, 2, 3, 4, 5, 6, 7}, low = lane < n, high = lane < n - 8;             \
        return (t##x16){{(t##_part)__builtin_ia32_maskloadd256((const void *)pointer, low),        \
                         (t##_part)__builtin_ia32_maskloadd256((const void *)(pointer + 8), high)}}; \
    }                                                                                              \
    TW_MASKED_STORE(t)
#define TW_FOUR(t, i) (t##_part)__builtin_ia32_maskloadq256((const void *)(pointer + i), (tw_v4di)(lane < last - i))
#define TW_MASKED_64(t)                                                                            \
    TW_INLINE t##x16 load_partial_##t(const t *pointer, int n) {                                   \
        i64_part lane = {0, 1, 2, 3};                                                              \
        int64_t last = n;                                                                          \
        return (t##x16){{TW_FOUR(t, 0), TW_FOUR(t, 4), TW_FOUR(t, 8), TW_FOUR(t, 12)}};            \
    }                                                                                              \
    TW_MASKED_STORE(t)
#else
#define TW_MASKED_32 TW_MASKED_8
#define TW_MASKED_64 TW_MASKED_8
#endif
#define TW_MASKED(t, w, name, vector, mask) TW_MASKED_##w(t)
#endif
TW_MASKED(i8, 8, dquqi128, tw_v16qi, uint16_t)
TW_MASKED(u8, 8, dquqi128, tw_v16qi, uint16_t)
TW_MASKED(i16, 16, dquhi256, tw_v16hi, uint16_t)
TW_MASKED(u16, 16, dquhi256, tw_v16hi, uint16_t)
TW_MASKED(i32, 32, dqusi512, tw_v16si, uint16_t)
TW_MASKED(u32, 32, dqusi512, tw_v16si, uint16_t)
TW_MASKED(f32, 32, ups512, f32_part, uint16_t)
TW_MASKED(i64, 64, dqudi512, tw_v8di, uint8_t)
TW_MASKED(u64, 64, dqudi512, tw_v8di, uint8_t)
TW_MASKED(f64, 64, upd512, f64_part, uint8_t)

/* ---- Operations on one part. Signed integers are computed as unsigned ones, so that overflow wraps. ---- */
#define TW_ADD(t, a, b) ((a) + (b))
#define TW_SUBTRACT(t, a, b) ((a) - (b))
#define TW_MULTIPLY(t, a, b) ((a) * (b))
#define TW_DIVIDE(t, a, b) ((a) / (b))
#define TW_WRAP_ADD(t, a, b) ((t##_part)((t##_bits)(a) + (t##_bits)(b)))
#define TW_WRAP_SUBTRACT(t, a, b) ((t##_part)((t##_bits)(a) - (t##_bits)(b)))
#define TW_WRAP_MULTIPLY(t, a, b) ((t##_part)((t##_bits)(a) * (t##_bits)(b)))
#define TW_EQUAL(t, a, b) ((a) == (b))
#define TW_NOT_EQUAL(t, a, b) ((a) != (b))
#define TW_LESS(t, a, b) ((a) < (b))
#define TW_LESS_EQUAL(t, a, b) ((a) <= (b))
#define TW_AND(t, a, b) ((a) & (b))
#define TW_OR(t, a, b) ((a) | (b))
#define TW_XOR(t, a, b) ((a) ^ (b))
#define TW_INVERT(t, a) (~(a))
#define TW_CAST(t, a) (a)
#define TW_SELECT(t, m, a, b) ((t##_part)(((t##_mask)(m) & (t##_mask)(a)) | (~(t##_mask)(m) & (t##_mask)(b))))

/* Sums etc. of 16 lanes in one fixed tree: lane i with lane i + 8, then + 4, + 2, + 1. */
#define TW_FOLD_P1(t, f, v) (v)
#define TW_FOLD_P2(t, f, v) f(t, (v).p[0], (v).p[1])
#define TW_FOLD_P4(t, f, v) f(t, f(t, (v).p[0], (v).p[2]), f(t, (v).p[1], (v).p[3]))
#define TW_FOLD_P8(t, f, v)                                                                        \
    f(t, f(t, f(t, (v).p[0], (v).p[4]), f(t, (v).p[2], (v).p[6])), f(t, f(t, (v).p[1], (v).p[5]), f(t, (v).p[3], (v).p[7])))
#define TW_TREE2(t, f, v) v = f(t, v, TW_SHUFFLE(t, v, 1, 0));
#define TW_TREE4(t, f, v)                                                                          \
    v = f(t, v, TW_SHUFFLE(t, v, 2, 3, 0, 1));                                                     \
    v = f(t, v, TW_SHUFFLE(t, v, 1, 0, 3, 2));
#define TW_TREE8(t, f, v)                                                                          \
    v = f(t, v, TW_SHUFFLE(t, v, 4, 5, 6, 7, 0, 1, 2, 3));                                         \
    v = f(t, v, TW_SHUFFLE(t, v, 2, 3, 0, 1, 6, 7, 4, 5));                                         \
    v = f(t, v, TW_SHUFFLE(t, v, 1, 0, 3, 2, 5, 4, 7, 6));
#define TW_TREE16(t, f, v)                                                                         \
    v = f(t, v, TW_SHUFFLE(t, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));           \
    v = f(t, v, TW_SHUFFLE(t, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));           \
    v = f(t, v, TW_SHUFFLE(t, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));           \
    v = f(t, v, TW_SHUFFLE(t, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
#define TW_REDUCE(name, t, w, f)                                                                   \
    TW_INLINE t name##_##t(t##x16 v) {                                                             \
        t##_part part = TW_PICK_##w(TW_FOLD)(t, f, v);                                             \
        TW_JOIN(TW_TREE, TW_LANES_##w)(t, f, part)                                                 \
        return part[0];                                                                            \
    }

#define TW_COMMON(t, w)                                                                            \
    TW_MEMORY(t, w)                                                                                \
    /* Comparisons give masks; an unordered pair (NaN) is unequal and neither less nor greater. */ \
    TW_INLINE i##w##x16 equal_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, i##w, TW_EQUAL, a, b); } \
    TW_INLINE i##w##x16 not_equal_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, i##w, TW_NOT_EQUAL, a, b); } \
    TW_INLINE i##w##x16 less_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, i##w, TW_LESS, a, b); } \
    TW_INLINE i##w##x16 less_equal_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, i##w, TW_LESS_EQUAL, a, b); } \
    TW_INLINE i##w##x16 greater_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, i##w, TW_LESS, b, a); } \
    TW_INLINE i##w##x16 greater_equal_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, i##w, TW_LESS_EQUAL, b, a); } \
    /* mask ? a : b, by bits. */                                                                   \
    TW_INLINE t##x16 select_##t(i##w##x16 mask, t##x16 a, t##x16 b) { return TW_MAP3(w, t, t, TW_SELECT, mask, a, b); }

#define TW_INTEGER(t, w)                                                                           \
    TW_COMMON(t, w)                                                                                \
    /* Arithmetic wraps modulo 2^width. */                                                         \
    TW_INLINE t##x16 add_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_WRAP_ADD, a, b); }   \
    TW_INLINE t##x16 subtract_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_WRAP_SUBTRACT, a, b); } \
    TW_INLINE t##x16 multiply_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_WRAP_MULTIPLY, a, b); } \
    TW_INLINE t##x16 negative_##t(t##x16 a) { return subtract_##t(broadcast_##t(0), a); }          \
    TW_INLINE t##x16 minimum_##t(t##x16 a, t##x16 b) { return select_##t(less_##t(b, a), b, a); }  \
    TW_INLINE t##x16 maximum_##t(t##x16 a, t##x16 b) { return select_##t(less_##t(a, b), b, a); }  \
    TW_INLINE t##x16 bitwise_and_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_AND, a, b); } \
    TW_INLINE t##x16 bitwise_or_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_OR, a, b); }  \
    TW_INLINE t##x16 bitwise_xor_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_XOR, a, b); } \
    TW_INLINE t##x16 bitwise_invert_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_INVERT, a); }       \
    TW_REDUCE(sum, t, w, TW_WRAP_ADD)                                                              \
    TW_REDUCE(product, t, w, TW_WRAP_MULTIPLY)                                                     \
    TW_INLINE t##_part tw_less_part_##t(t##_part a, t##_part b) { return TW_SELECT(t, b < a, b, a); } \
    TW_INLINE t##_part tw_more_part_##t(t##_part a, t##_part b) { return TW_SELECT(t, a < b, b, a); } \
    TW_REDUCE(min, t, w, TW_LESS_OF)                                                               \
    TW_REDUCE(max, t, w, TW_MORE_OF)                                                               \
    TW_SHIFTS(t, w)
#define TW_LESS_OF(t, a, b) tw_less_part_##t(a, b)
#define TW_MORE_OF(t, a, b) tw_more_part_##t(a, b)

/* Shifts by any count: a count >= width (or negative) gives 0, or the sign for the right shift of a signed type. */
#define TW_SHIFTS(t, w)                                                                            \
    TW_INLINE t##_part tw_left_shift_part_##t(t##_part a, t##_part count) {                        \
        t##_bits width = (t##_bits){0} + (t##_word)w, n = (t##_bits)count;                         \
        return (t##_part)(((t##_bits)a << (n & (width - (t##_word)1))) & (t##_bits)(n < width));   \
    }                                                                                              \
    TW_INLINE t##_part tw_right_shift_part_##t(t##_part a, t##_part count) {                       \
        t##_bits width = (t##_bits){0} + (t##_word)w, n = (t##_bits)count, inside = (t##_bits)(n < width); \
        if ((t)-1 > (t)0) return (t##_part)(((t##_bits)a >> (n & (width - (t##_word)1))) & inside); \
        return a >> (t##_part)((n & inside) | ((width - (t##_word)1) & ~inside));                  \
    }                                                                                              \
    TW_INLINE t##x16 left_shift_##t(t##x16 a, t##x16 count) { return TW_MAP2(w, t, t, TW_LEFT_SHIFT, a, count); } \
    TW_INLINE t##x16 right_shift_##t(t##x16 a, t##x16 count) { return TW_MAP2(w, t, t, TW_RIGHT_SHIFT, a, count); }
#define TW_LEFT_SHIFT(t, a, b) tw_left_shift_part_##t(a, b)
#define TW_RIGHT_SHIFT(t, a, b) tw_right_shift_part_##t(a, b)

TW_INTEGER(i8, 8)
TW_INTEGER(u8, 8)
TW_INTEGER(i16, 16)
TW_INTEGER(u16, 16)
TW_INTEGER(i32, 32)
TW_INTEGER(u32, 32)
TW_INTEGER(i64, 64)
TW_INTEGER(u64, 64)

/* ---- Floating point: one macro per compiler and instruction set, then the functions. ---- */
#if __has_builtin(__builtin_elementwise_fma) && (defined __FMA__ || defined __FP_FAST_FMA || defined __aarch64__)
#define TW_FMA(t, a, b, c) __builtin_elementwise_fma(a, b, c)
#elif TW_AVX512
#define TW_FMA(t, a, b, c) TW_FMA_##t(a, b, c)
#define TW_FMA_f32(a, b, c) __builtin_ia32_vfmaddps512_mask(a, b, c, (uint16_t)-1, 4)
#define TW_FMA_f64(a, b, c) __builtin_ia32_vfmaddpd512_mask(a, b, c, (uint8_t)-1, 4)
#elif TW_AVX2
#define TW_FMA(t, a, b, c) TW_FMA_##t(a, b, c)
#define TW_FMA_f32(a, b, c) __builtin_ia32_vfmaddps256(a, b, c)
#define TW_FMA_f64(a, b, c) __builtin_ia32_vfmaddpd256(a, b, c)
#elif defined __FMA__
#define TW_FMA(t, a, b, c) TW_FMA_##t(a, b, c)
#define TW_FMA_f32(a, b, c) __builtin_ia32_vfmaddps(a, b, c)
#define TW_FMA_f64(a, b, c) __builtin_ia32_vfmaddpd(a, b, c)
#elif defined __aarch64__ && !defined __clang__
#define TW_FMA(t, a, b, c) TW_FMA_##t(a, b, c)
#define TW_FMA_f32(a, b, c) __builtin_aarch64_fmav4sf(a, b, c)
#define TW_FMA_f64(a, b, c) __builtin_aarch64_fmav2df(a, b, c)
#else
#ifdef __FP_FAST_FMAF
#define TW_FMA_SCALAR_f32 __builtin_fmaf
#else
#define TW_FMA_SCALAR_f32 tw_fma_scalar_f32
#endif
#ifdef __FP_FAST_FMA
#define TW_FMA_SCALAR_f64 __builtin_fma
#else
#define TW_FMA_SCALAR_f64 tw_fma_scalar_f64
#endif
#define TW_FMA(t, a, b, c) tw_fma_part_##t(a, b, c)
TW_COLD f32_part tw_fma_part_f32(f32_part a, f32_part b, f32_part c) {
    for (int i = 0; i < TW_LANES_32; i++) a[i] = TW_FMA_SCALAR_f32(a[i], b[i], c[i]);
    return a;
}
TW_COLD f64_part tw_fma_part_f64(f64_part a, f64_part b, f64_part c) {
    for (int i = 0; i < TW_LANES_64; i++) a[i] = TW_FMA_SCALAR_f64(a[i], b[i], c[i]);
    return a;
}
#endif

/* x86: the larger (smaller) of two, the second when they compare equal or one is NaN. TW_ROUND mode: 8 nearest even,
 * 9 down, 10 up, 11 to zero. */
#if TW_AVX512
#define TW_NATIVE_ROUND 1
#define TW_ROUND(t, a, mode) TW_ROUND_##t(a, mode)
#define TW_ROUND_f32(a, mode) __builtin_ia32_rndscaleps_mask(a, mode, a, (uint16_t)-1, 4)
#define TW_ROUND_f64(a, mode) __builtin_ia32_rndscalepd_mask(a, mode, a, (uint8_t)-1, 4)
#ifdef __clang__
#define TW_SQRT_f32(a) __builtin_ia32_sqrtps512(a, 4)
#define TW_SQRT_f64(a) __builtin_ia32_sqrtpd512(a, 4)
#define TW_MAX_f32(a, b) __builtin_ia32_maxps512(a, b, 4)
#define TW_MAX_f64(a, b) __builtin_ia32_maxpd512(a, b, 4)
#define TW_MIN_f32(a, b) __builtin_ia32_minps512(a, b, 4)
#define TW_MIN_f64(a, b) __builtin_ia32_minpd512(a, b, 4)
#else
#define TW_SQRT_f32(a) __builtin_ia32_sqrtps512_mask(a, a, (uint16_t)-1, 4)
#define TW_SQRT_f64(a) __builtin_ia32_sqrtpd512_mask(a, a, (uint8_t)-1, 4)
#define TW_MAX_f32(a, b) __builtin_ia32_maxps512_mask(a, b, a, (uint16_t)-1, 4)
#define TW_MAX_f64(a, b) __builtin_ia32_maxpd512_mask(a, b, a, (uint8_t)-1, 4)
#define TW_MIN_f32(a, b) __builtin_ia32_minps512_mask(a, b, a, (uint16_t)-1, 4)
#define TW_MIN_f64(a, b) __builtin_ia32_minpd512_mask(a, b, a, (uint8_t)-1, 4)
#endif
#elif TW_AVX2
#define TW_NATIVE_ROUND 1
#define TW_ROUND(t, a, mode) TW_ROUND_##t(a, mode)
#define TW_ROUND_f32(a, mode) __builtin_ia32_roundps256(a, mode)
#define TW_ROUND_f64(a, mode) __builtin_ia32_roundpd256(a, mode)
#define TW_SQRT_f32(a) __builtin_ia32_sqrtps256(a)
#define TW_SQRT_f64(a) __builtin_ia32_sqrtpd256(a)
#define TW_MAX_f32(a, b) __builtin_ia32_maxps256(a, b)
#define TW_MAX_f64(a, b) __builtin_ia32_maxpd256(a, b)
#define TW_MIN_f32(a, b) __builtin_ia32_minps256(a, b)
#define TW_MIN_f64(a, b) __builtin_ia32_minpd256(a, b)
#else
#define TW_NATIVE_ROUND 0
#if TW_SSE2
#define TW_MAX_f32(a, b) __builtin_ia32_maxps(a, b)
#define TW_MAX_f64(a, b) __builtin_ia32_maxpd(a, b)
#define TW_MIN_f32(a, b) __builtin_ia32_minps(a, b)
#define TW_MIN_f64(a, b) __builtin_ia32_minpd(a, b)
#else
#define TW_MAX_f32(a, b) TW_SELECT(f32, (a) > (b), a, b)
#define TW_MAX_f64(a, b) TW_SELECT(f64, (a) > (b), a, b)
#define TW_MIN_f32(a, b) TW_SELECT(f32, (a) < (b), a, b)
#define TW_MIN_f64(a, b) TW_SELECT(f64, (a) < (b), a, b)
#endif
#if defined __NO_MATH_ERRNO__ && defined __aarch64__
#define TW_SQRT_SCALAR_f32 __builtin_sqrtf
#define TW_SQRT_SCALAR_f64 __builtin_sqrt
#else
#define TW_SQRT_SCALAR_f32 tw_sqrt_scalar_f32
#define TW_SQRT_SCALAR_f64 tw_sqrt_scalar_f64
#endif
#define TW_SQRT_f32(a) tw_sqrt_part_f32(a)
#define TW_SQRT_f64(a) tw_sqrt_part_f64(a)
TW_INLINE f32_part tw_sqrt_part_f32(f32_part a) {
#if TW_SSE2
    return __builtin_ia32_sqrtps(a);
#else
    for (int i = 0; i < TW_LANES_32; i++) a[i] = TW_SQRT_SCALAR_f32(a[i]);
    return a;
#endif
}
TW_INLINE f64_part tw_sqrt_part_f64(f64_part a) {
#if TW_SSE2
    return __builtin_ia32_sqrtpd(a);
#else
    for (int i = 0; i < TW_LANES_64; i++) a[i] = TW_SQRT_SCALAR_f64(a[i]);
    return a;
#endif
}
#endif

/* Rounding to a whole number on one part; without an instruction, by adding and subtracting 2^(bits of the mantissa). */
#define TW_ABSOLUTE(t, a) ((t##_part)((t##_bits)(a) & ~tw_sign_##t()))
#define TW_NEGATIVE(t, a) ((t##_part)((t##_bits)(a) ^ tw_sign_##t()))
#define TW_COPYSIGN(t, a, b) ((t##_part)(((t##_bits)(a) & ~tw_sign_##t()) | ((t##_bits)(b) & tw_sign_##t())))
#if TW_NATIVE_ROUND
#define TW_ROUND_PART(t)                                                                           \
    TW_INLINE t##_part tw_rint_part_##t(t##_part a) { return TW_ROUND(t, a, 8); }                  \
    TW_INLINE t##_part tw_floor_part_##t(t##_part a) { return TW_ROUND(t, a, 9); }                 \
    TW_INLINE t##_part tw_ceil_part_##t(t##_part a) { return TW_ROUND(t, a, 10); }                 \
    TW_INLINE t##_part tw_trunc_part_##t(t##_part a) { return TW_ROUND(t, a, 11); }
#else
#define TW_ROUND_PART(t)                                                                           \
    TW_INLINE t##_part tw_rint_part_##t(t##_part a) {                                              \
        t##_part whole = (t##_part){0} + (t)(sizeof(t) == 4 ? 0x1p23 : 0x1p52);                    \
        t##_part size = TW_ABSOLUTE(t, a), r = (size + whole) - whole;                             \
        return TW_SELECT(t, size < whole, TW_COPYSIGN(t, r, a), a);                                \
    }                                                                                              \
    TW_INLINE t##_part tw_floor_part_##t(t##_part a) {                                             \
        t##_part r = tw_rint_part_##t(a), lower = r - (t)1;                                        \
        return TW_COPYSIGN(t, TW_SELECT(t, r > a, lower, r), a);                                   \
    }                                                                                              \
    TW_INLINE t##_part tw_ceil_part_##t(t##_part a) {                                              \
        t##_part r = tw_rint_part_##t(a), higher = r + (t)1;                                       \
        return TW_COPYSIGN(t, TW_SELECT(t, r < a, higher, r), a);                                  \
    }                                                                                              \
    TW_INLINE t##_part tw_trunc_part_##t(t##_part a) {                                             \
        return TW_COPYSIGN(t, tw_floor_part_##t(TW_ABSOLUTE(t, a)), a);                            \
    }
#endif

#if __has_builtin(__builtin_elementwise_sqrt)
#define TW_SQRT(t, a) __builtin_elementwise_sqrt(a)
#else
#define TW_SQRT(t, a) TW_SQRT_##t(a)
#endif
#define TW_RINT(t, a) tw_rint_part_##t(a)
#define TW_FLOOR(t, a) tw_floor_part_##t(a)
#define TW_CEIL(t, a) tw_ceil_part_##t(a)
#define TW_TRUNC(t, a) tw_trunc_part_##t(a)
#define TW_LARGER(t, a, b) tw_larger_part_##t(a, b)
#define TW_SMALLER(t, a, b) tw_smaller_part_##t(a, b)

#define TW_FLOAT(t, w)                                                                             \
    TW_COMMON(t, w)                                                                                \
    TW_INLINE t##_bits tw_sign_##t(void) { return (t##_bits){0} + ((t##_word)1 << (w - 1)); }      \
    TW_ROUND_PART(t)                                                                               \
    TW_INLINE t##_part tw_larger_part_##t(t##_part a, t##_part b) { return TW_SELECT(t, b != b, b, TW_MAX_##t(b, a)); } \
    TW_INLINE t##_part tw_smaller_part_##t(t##_part a, t##_part b) { return TW_SELECT(t, b != b, b, TW_MIN_##t(b, a)); } \
    TW_INLINE t##x16 add_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_ADD, a, b); }        \
    TW_INLINE t##x16 subtract_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_SUBTRACT, a, b); } \
    TW_INLINE t##x16 multiply_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_MULTIPLY, a, b); } \
    TW_INLINE t##x16 divide_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_DIVIDE, a, b); }  \
    /* a * b + c, rounded once. */                                                                 \
    TW_INLINE t##x16 fma_##t(t##x16 a, t##x16 b, t##x16 c) { return TW_MAP3(w, t, t, TW_FMA, a, b, c); } \
    TW_INLINE t##x16 sqrt_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_SQRT, a); }                   \
    /* On the sign bit only, also of zeros and NaN. */                                             \
    TW_INLINE t##x16 negative_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_NEGATIVE, a); }           \
    TW_INLINE t##x16 absolute_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_ABSOLUTE, a); }           \
    TW_INLINE t##x16 copysign_##t(t##x16 size, t##x16 sign) { return TW_MAP2(w, t, t, TW_COPYSIGN, size, sign); } \
    /* NaN when either is NaN; of two equal ones (also +0 and -0) the first. */                    \
    TW_INLINE t##x16 maximum_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_LARGER, a, b); } \
    TW_INLINE t##x16 minimum_##t(t##x16 a, t##x16 b) { return TW_MAP2(w, t, t, TW_SMALLER, a, b); } \
    /* x cut to low..high; NaN when one of the three is. */                                        \
    TW_INLINE t##x16 clamp_##t(t##x16 x, t##x16 low, t##x16 high) { return maximum_##t(minimum_##t(x, high), low); } \
    /* To a whole number: nearest with ties to even, down, up, to zero. Zeros keep their sign. */  \
    TW_INLINE t##x16 rint_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_RINT, a); }                   \
    TW_INLINE t##x16 floor_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_FLOOR, a); }                 \
    TW_INLINE t##x16 ceil_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_CEIL, a); }                   \
    TW_INLINE t##x16 trunc_##t(t##x16 a) { return TW_MAP1(w, t, t, TW_TRUNC, a); }                 \
    TW_INLINE i##w##x16 is_nan_##t(t##x16 a) { return not_equal_##t(a, a); }                       \
    TW_INLINE i##w##x16 is_finite_##t(t##x16 a) { return less_##t(absolute_##t(a), broadcast_##t(__builtin_inff())); } \
    TW_INLINE i##w##x16 is_infinite_##t(t##x16 a) { return equal_##t(absolute_##t(a), broadcast_##t(__builtin_inff())); } \
    /* The bits as integers, and back. */                                                          \
    TW_INLINE i##w##x16 bits_of_##t(t##x16 a) { return TW_MAP1(w, t, i##w, TW_CAST, a); }          \
    TW_INLINE t##x16 from_bits_##t(i##w##x16 a) { return TW_MAP1(w, i##w, t, TW_CAST, a); }        \
    TW_REDUCE(sum, t, w, TW_ADD)                                                                   \
    TW_REDUCE(product, t, w, TW_MULTIPLY)                                                          \
    TW_REDUCE(max, t, w, TW_LARGER)                                                                \
    TW_REDUCE(min, t, w, TW_SMALLER)
TW_FLOAT(f32, 32)
TW_FLOAT(f64, 64)

/* ---- Conversions convert_<from>_to_<to>, between every pair of types (NumPy's astype on x86-64).
 * integer -> integer: modulo 2^width. integer -> float: nearest even. f64 -> f32: nearest even, overflow to infinity.
 * float -> i32, i64: toward zero; NaN and values out of range give the most negative number.
 * float -> i8, i16, u8, u16: through i32, then modulo 2^width (so NaN gives 0).
 * float -> u32: through i64, then modulo 2^32. float -> u64: negative values modulo 2^64, NaN 2^63, values >= 2^64 give 0.
 * Boolean -> number: select of 1 and 0. Number -> boolean: not_equal to 0. */
#define TW_HALF(s, v, i) (((s##_split){v}).half[i])
#define TW_WIDE(s, d, v, i) TW_GROW_##s##_##d(TW_HALF(s, v, i))
#define TW_WIDEN_P1_P1(s, d, v) ((d##_part)TW_GROW_##s##_##d(v))
#define TW_WIDEN_P1_P2(s, d, v) ((d##x16){{(d##_part)TW_WIDE(s, d, v, 0), (d##_part)TW_WIDE(s, d, v, 1)}})
#define TW_WIDER(s, d, v, i) (d##_part)TW_WIDE(s, d, (v).p[i], 0), (d##_part)TW_WIDE(s, d, (v).p[i], 1)
#define TW_WIDEN_P2_P4(s, d, v) ((d##x16){{TW_WIDER(s, d, v, 0), TW_WIDER(s, d, v, 1)}})
#define TW_WIDEN_P4_P8(s, d, v)                                                                    \
    ((d##x16){{TW_WIDER(s, d, v, 0), TW_WIDER(s, d, v, 1), TW_WIDER(s, d, v, 2), TW_WIDER(s, d, v, 3)}})
/* gcc takes __builtin_convertvector apart into scalars where clang finds the instruction. */
#if TW_AVX512 && !defined __clang__
#define TW_GROW_i8_i16(x) __builtin_ia32_pmovsxbw256((tw_v16qi)(x))
#define TW_GROW_u8_u16(x) __builtin_ia32_pmovzxbw256((tw_v16qi)(x))
#define TW_GROW_i8_i32(x) __builtin_ia32_pmovsxbd512_mask((tw_v16qi)(x), (tw_v16si){0}, (uint16_t)-1)
#define TW_GROW_u8_u32(x) __builtin_ia32_pmovzxbd512_mask((tw_v16qi)(x), (tw_v16si){0}, (uint16_t)-1)
#define TW_GROW_i16_i32(x) __builtin_ia32_pmovsxwd512_mask((tw_v16hi)(x), (tw_v16si){0}, (uint16_t)-1)
#define TW_GROW_u16_u32(x) __builtin_ia32_pmovzxwd512_mask((tw_v16hi)(x), (tw_v16si){0}, (uint16_t)-1)
#define TW_GROW_i32_i64(x) __builtin_ia32_pmovsxdq512_mask((i32_half)(x), (tw_v8di){0}, (uint8_t)-1)
#define TW_GROW_u32_u64(x) __builtin_ia32_pmovzxdq512_mask((i32_half)(x), (tw_v8di){0}, (uint8_t)-1)
#define TW_GROW_f32_f64(x) __builtin_ia32_cvtps2pd512_mask(x, (f64_part){0}, (uint8_t)-1, 4)
#define TW_GROW_i32_f64(x) __builtin_ia32_cvtdq2pd512_mask(x, (f64_part){0}, (uint8_t)-1)
#define TW_GROW_u32_f64(x) __builtin_ia32_cvtudq2pd512_mask((i32_half)(x), (f64_part){0}, (uint8_t)-1)
#elif TW_AVX2 && !defined __clang__
typedef char tw_v16qi __attribute__((vector_size(16)));
typedef short tw_v8hi __attribute__((vector_size(16)));
#define TW_GROW_i8_i16(x) __builtin_ia32_pmovsxbw256((tw_v16qi)(x))
#define TW_GROW_u8_u16(x) __builtin_ia32_pmovzxbw256((tw_v16qi)(x))
#define TW_GROW_i16_i32(x) __builtin_ia32_pmovsxwd256((tw_v8hi)(x))
#define TW_GROW_u16_u32(x) __builtin_ia32_pmovzxwd256((tw_v8hi)(x))
#define TW_GROW_i32_i64(x) __builtin_ia32_pmovsxdq256((i32_half)(x))
#define TW_GROW_u32_u64(x) __builtin_ia32_pmovzxdq256((i32_half)(x))
#define TW_GROW_f32_f64(x) __builtin_ia32_cvtps2pd256(x)
#define TW_GROW_i32_f64(x) __builtin_ia32_cvtdq2pd256(x)
#define TW_GROW_u32_f64(x) __builtin_convertvector(x, f64_part)
#else
#define TW_GROW_i8_i16(x) __builtin_convertvector(x, i16_part)
#define TW_GROW_u8_u16(x) __builtin_convertvector(x, u16_part)
#define TW_GROW_i8_i32(x) __builtin_convertvector(x, i32_part)
#define TW_GROW_u8_u32(x) __builtin_convertvector(x, u32_part)
#define TW_GROW_i16_i32(x) __builtin_convertvector(x, i32_part)
#define TW_GROW_u16_u32(x) __builtin_convertvector(x, u32_part)
#define TW_GROW_i32_i64(x) __builtin_convertvector(x, i64_part)
#define TW_GROW_u32_u64(x) __builtin_convertvector(x, u64_part)
#define TW_GROW_f32_f64(x) __builtin_convertvector(x, f64_part)
#define TW_GROW_i32_f64(x) __builtin_convertvector(x, f64_part)
#define TW_GROW_u32_f64(x) __builtin_convertvector(x, f64_part)
#endif
/* Two halves as one register. */
#if __has_builtin(__builtin_shufflevector) && TW_BYTES == 64
#define TW_BOTH(d, a, b) ((d##_part)__builtin_shufflevector((f64_half)(a), (f64_half)(b), 0, 1, 2, 3, 4, 5, 6, 7))
#elif __has_builtin(__builtin_shufflevector) && TW_BYTES == 32
#define TW_BOTH(d, a, b) ((d##_part)__builtin_shufflevector((f64_half)(a), (f64_half)(b), 0, 1, 2, 3))
#else
#define TW_BOTH(d, a, b) (((d##_split){.half = {a, b}}).whole)
#endif
/* The lower half of every integer: the even lanes of the pair, seen as narrow integers. */
#define TW_EVEN_4 0, 2, 4, 6
#define TW_EVEN_8 TW_EVEN_4, 8, 10, 12, 14
#define TW_EVEN_16 TW_EVEN_8, 16, 18, 20, 22, 24, 26, 28, 30
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "The Thalweg vector library needs a little-endian machine."
#endif
#define TW_EVEN_LANES(d, lanes, a, b) TW_SHUFFLE2(d, (d##_part)(a), (d##_part)(b), TW_JOIN(TW_EVEN_, lanes))
#define TW_LOWER_P2_P1(d, n, v) TW_EVEN_LANES(d, n, (v).p[0], (v).p[1])
#define TW_LOWER_P4_P2(d, n, v) ((d##x16){{TW_EVEN_LANES(d, n, (v).p[0], (v).p[1]), TW_EVEN_LANES(d, n, (v).p[2], (v).p[3])}})
#define TW_LOWER_P8_P4(d, n, v)                                                                    \
    ((d##x16){{TW_EVEN_LANES(d, n, (v).p[0], (v).p[1]), TW_EVEN_LANES(d, n, (v).p[2], (v).p[3]),   \
               TW_EVEN_LANES(d, n, (v).p[4], (v).p[5]), TW_EVEN_LANES(d, n, (v).p[6], (v).p[7])}})
#define TW_LOWER_P1_P1(d, n, v) __builtin_convertvector(v, d##_part)
#define TW_NEAR(s, d, v) __builtin_convertvector(v, d##_half)
#define TW_NARROW(s, d, f, a, b) TW_BOTH(d, f(s, d, a), f(s, d, b))
#define TW_NARROW_P2_P1(s, d, f, v) TW_NARROW(s, d, f, (v).p[0], (v).p[1])
#define TW_NARROW_P4_P2(s, d, f, v) ((d##x16){{TW_NARROW(s, d, f, (v).p[0], (v).p[1]), TW_NARROW(s, d, f, (v).p[2], (v).p[3])}})
#define TW_NARROW_P8_P4(s, d, f, v)                                                                \
    ((d##x16){{TW_NARROW(s, d, f, (v).p[0], (v).p[1]), TW_NARROW(s, d, f, (v).p[2], (v).p[3]),     \
               TW_NARROW(s, d, f, (v).p[4], (v).p[5]), TW_NARROW(s, d, f, (v).p[6], (v).p[7])}})
#if TW_BYTES == 64
#define TW_WIDEN_8 TW_WIDEN_P1_P1
#define TW_WIDEN_16 TW_WIDEN_P1_P1
#define TW_WIDEN_32 TW_WIDEN_P1_P2
#define TW_LOWER_16 TW_LOWER_P1_P1
#define TW_LOWER_32 TW_LOWER_P1_P1
#define TW_LOWER_64 TW_LOWER_P2_P1
#define TW_NARROW_64 TW_NARROW_P2_P1
#elif TW_BYTES == 32
#define TW_WIDEN_8 TW_WIDEN_P1_P1
#define TW_WIDEN_16 TW_WIDEN_P1_P2
#define TW_WIDEN_32 TW_WIDEN_P2_P4
#define TW_LOWER_16 TW_LOWER_P1_P1
#define TW_LOWER_32 TW_LOWER_P2_P1
#define TW_LOWER_64 TW_LOWER_P4_P2
#define TW_NARROW_64 TW_NARROW_P4_P2
#else
#define TW_WIDEN_8 TW_WIDEN_P1_P2
#define TW_WIDEN_16 TW_WIDEN_P2_P4
#define TW_WIDEN_32 TW_WIDEN_P4_P8
#define TW_LOWER_16 TW_LOWER_P2_P1
#define TW_LOWER_32 TW_LOWER_P4_P2
#define TW_LOWER_64 TW_LOWER_P8_P4
#define TW_NARROW_64 TW_NARROW_P8_P4
#endif
#define TW_AS_i32(t, v) __builtin_convertvector(v, i32_part)
#define TW_AS_i64(t, v) __builtin_convertvector(v, i64_part)
#define TW_AS_f32(t, v) __builtin_convertvector(v, f32_part)
#define TW_AS_f64(t, v) __builtin_convertvector(v, f64_part)

/* Float to integer on one part: x86 gives the most negative number out of range, others are made to. */
#if TW_AVX512
#define TW_TO_i32_f32(t, v) __builtin_ia32_cvttps2dq512_mask(v, (tw_v16si){0}, (uint16_t)-1, 4)
#define TW_TO_i32_f64(s, d, v) __builtin_ia32_cvttpd2dq512_mask(v, (i32_half){0}, (uint8_t)-1, 4)
#define TW_TO_i64_f64(t, v) __builtin_ia32_cvttpd2qq512_mask(v, (tw_v8di){0}, (uint8_t)-1, 4)
#else
#if TW_AVX2
#define TW_TO_i32_f32(t, v) __builtin_ia32_cvttps2dq256(v)
#define TW_TO_i32_f64(s, d, v) __builtin_ia32_cvttpd2dq256(v)
#else
TW_INLINE f64_part tw_range_i32_f64(f64_part v) {
    f64_part low = (f64_part){0} - 0x1p31;
    return TW_SELECT(f64, (v > low - 1.0) & (v < -low), v, low);
}
#define TW_TO_i32_f64(s, d, v) __builtin_convertvector(tw_range_i32_f64(v), i32_half)
#if TW_SSE2
#define TW_TO_i32_f32(t, v) __builtin_ia32_cvttps2dq(v)
#else
TW_INLINE f32_part tw_range_i32_f32(f32_part v) {
    f32_part low = (f32_part){0} - 0x1p31f;
    return TW_SELECT(f32, (v >= low) & (v < -low), v, low);
}
#define TW_TO_i32_f32(t, v) __builtin_convertvector(tw_range_i32_f32(v), i32_part)
#endif
#endif
TW_INLINE i64_part tw_to_i64_f64(f64_part v) {
    f64_part low = (f64_part){0} - 0x1p63;
    return __builtin_convertvector(TW_SELECT(f64, (v >= low) & (v < -low), v, low), i64_part);
}
#define TW_TO_i64_f64(t, v) tw_to_i64_f64(v)
#endif
TW_INLINE u64_part tw_to_u64_f64(f64_part v) {
    f64_part top = (f64_part){0} + 0x1p63;
    i64_mask large = v >= top;
    u64_part upper = (u64_part)TW_TO_i64_f64(f64, v - top) ^ ((u64_part){0} + (1ull << 63));
    return TW_SELECT(u64, large, upper, (u64_part)TW_TO_i64_f64(f64, v));
}
#define TW_TO_u64_f64(t, v) tw_to_u64_f64(v)

#define TW_CONVERT(s, d, value) TW_INLINE d##x16 convert_##s##_to_##d(s##x16 v) { return value; }
#define TW_SAME(s, d, w) TW_CONVERT(s, d, TW_MAP1(w, s, d, TW_CAST, v)) TW_CONVERT(d, s, TW_MAP1(w, d, s, TW_CAST, v))
#define TW_VIA(s, m, d) TW_CONVERT(s, d, convert_##m##_to_##d(convert_##s##_to_##m(v)))
TW_SAME(i8, u8, 8)
TW_SAME(i16, u16, 16)
TW_SAME(i32, u32, 32)
TW_SAME(i64, u64, 64)
/* wider integers */
TW_CONVERT(i8, i16, TW_WIDEN_8(i8, i16, v))
TW_CONVERT(u8, u16, TW_WIDEN_8(u8, u16, v))
TW_CONVERT(i16, i32, TW_WIDEN_16(i16, i32, v))
TW_CONVERT(u16, u32, TW_WIDEN_16(u16, u32, v))
TW_CONVERT(i32, i64, TW_WIDEN_32(i32, i64, v))
TW_CONVERT(u32, u64, TW_WIDEN_32(u32, u64, v))
#if TW_AVX512
TW_CONVERT(i8, i32, TW_WIDEN_8(i8, i32, v))
TW_CONVERT(u8, u32, TW_WIDEN_8(u8, u32, v))
#else
TW_VIA(i8, i16, i32)
TW_VIA(u8, u16, u32)
#endif
TW_VIA(i8, i16, u16)
TW_VIA(u8, u16, i16)
TW_VIA(i8, i32, u32)
TW_VIA(u8, u32, i32)
TW_VIA(i16, i32, u32)
TW_VIA(u16, u32, i32)
TW_VIA(i32, i64, u64)
TW_VIA(u32, u64, i64)
TW_VIA(i8, i32, i64)
TW_VIA(i8, i32, u64)
TW_VIA(u8, u32, i64)
TW_VIA(u8, u32, u64)
TW_VIA(i16, i32, i64)
TW_VIA(i16, i32, u64)
TW_VIA(u16, u32, i64)
TW_VIA(u16, u32, u64)
/* narrower integers */
TW_CONVERT(i64, i32, TW_LOWER_64(i32, TW_LANES_32, v))
TW_CONVERT(i32, i16, TW_LOWER_32(i16, TW_LANES_16, v))
TW_CONVERT(i16, i8, TW_LOWER_16(i8, TW_LANES_8, v))
#if TW_AVX512
TW_CONVERT(i32, i8, TW_LOWER_32(i8, TW_LANES_8, v))
#else
TW_VIA(i32, i16, i8)
#endif
TW_VIA(i64, i32, u32)
TW_VIA(u64, i64, i32)
TW_VIA(u64, i64, u32)
TW_VIA(i32, i16, u16)
TW_VIA(u32, i32, i16)
TW_VIA(u32, i32, u16)
TW_VIA(i16, i8, u8)
TW_VIA(u16, i16, i8)
TW_VIA(u16, i16, u8)
TW_VIA(i32, i8, u8)
TW_VIA(u32, i32, i8)
TW_VIA(u32, i32, u8)
TW_VIA(i64, i32, i16)
TW_VIA(i64, i32, u16)
TW_VIA(i64, i32, i8)
TW_VIA(i64, i32, u8)
TW_VIA(u64, i32, i16)
TW_VIA(u64, i32, u16)
TW_VIA(u64, i32, i8)
TW_VIA(u64, i32, u8)
/* integer to float */
TW_CONVERT(i32, f32, TW_MAP1(32, i32, f32, TW_AS_f32, v))
TW_CONVERT(u32, f32, TW_MAP1(32, u32, f32, TW_AS_f32, v))
TW_CONVERT(i64, f32, TW_NARROW_64(i64, f32, TW_NEAR, v))
TW_CONVERT(u64, f32, TW_NARROW_64(u64, f32, TW_NEAR, v))
TW_CONVERT(i32, f64, TW_WIDEN_32(i32, f64, v))
TW_CONVERT(u32, f64, TW_WIDEN_32(u32, f64, v))
TW_CONVERT(i64, f64, TW_MAP1(64, i64, f64, TW_AS_f64, v))
TW_CONVERT(u64, f64, TW_MAP1(64, u64, f64, TW_AS_f64, v))
TW_VIA(i8, i32, f32)
TW_VIA(u8, i32, f32)
TW_VIA(i16, i32, f32)
TW_VIA(u16, i32, f32)
TW_VIA(i8, i32, f64)
TW_VIA(u8, i32, f64)
TW_VIA(i16, i32, f64)
TW_VIA(u16, i32, f64)
/* float to float, float to integer */
TW_CONVERT(f32, f64, TW_WIDEN_32(f32, f64, v))
TW_CONVERT(f64, f32, TW_NARROW_64(f64, f32, TW_NEAR, v))
TW_CONVERT(f32, i32, TW_MAP1(32, f32, i32, TW_TO_i32_f32, v))
TW_CONVERT(f64, i32, TW_NARROW_64(f64, i32, TW_TO_i32_f64, v))
TW_CONVERT(f64, i64, TW_MAP1(64, f64, i64, TW_TO_i64_f64, v))
TW_CONVERT(f64, u64, TW_MAP1(64, f64, u64, TW_TO_u64_f64, v))
TW_VIA(f32, i32, i8)
TW_VIA(f32, i32, u8)
TW_VIA(f32, i32, i16)
TW_VIA(f32, i32, u16)
TW_VIA(f64, i32, i8)
TW_VIA(f64, i32, u8)
TW_VIA(f64, i32, i16)
TW_VIA(f64, i32, u16)
TW_VIA(f64, i64, u32)
TW_VIA(f32, f64, i64)
TW_VIA(f32, f64, u32)
TW_VIA(f32, f64, u64)

/* Bit i of the result: lane i of the mask. */
#if TW_AVX512
TW_INLINE uint32_t mask_bits_i8(i8x16 m) { return (uint32_t)(uint16_t)__builtin_ia32_cvtb2mask128((tw_v16qi)m); }
TW_INLINE uint32_t mask_bits_i16(i16x16 m) { return (uint32_t)(uint16_t)__builtin_ia32_cvtw2mask256((tw_v16hi)m); }
TW_INLINE uint32_t mask_bits_i32(i32x16 m) { return (uint32_t)(uint16_t)__builtin_ia32_cvtd2mask512((tw_v16si)m); }
TW_INLINE uint32_t mask_bits_i64(i64x16 m) {
    return (uint32_t)(uint8_t)__builtin_ia32_cvtq2mask512((tw_v8di)m.p[0]) | (uint32_t)(uint8_t)__builtin_ia32_cvtq2mask512((tw_v8di)m.p[1]) << 8;
}
#else
#if TW_AVX2 || TW_SSE2
typedef char tw_bytes __attribute__((vector_size(16)));
TW_INLINE uint32_t mask_bits_i8(i8x16 m) { return (uint32_t)__builtin_ia32_pmovmskb128((tw_bytes)m); }
#else
TW_INLINE uint32_t mask_bits_i8(i8x16 m) {
    uint32_t bits = 0;
    for (int i = 0; i < 16; i++) bits |= (uint32_t)(m[i] & 1) << i;
    return bits;
}
#endif
TW_INLINE uint32_t mask_bits_i16(i16x16 m) { return mask_bits_i8(convert_i16_to_i8(m)); }
#if TW_AVX2
TW_INLINE uint32_t mask_bits_i32(i32x16 m) {
    return (uint32_t)(__builtin_ia32_movmskps256((f32_part)m.p[0]) | __builtin_ia32_movmskps256((f32_part)m.p[1]) << 8);
}
TW_INLINE uint32_t mask_bits_i64(i64x16 m) {
    return (uint32_t)(__builtin_ia32_movmskpd256((f64_part)m.p[0]) | __builtin_ia32_movmskpd256((f64_part)m.p[1]) << 4 |
                      __builtin_ia32_movmskpd256((f64_part)m.p[2]) << 8 | __builtin_ia32_movmskpd256((f64_part)m.p[3]) << 12);
}
#else
TW_INLINE uint32_t mask_bits_i32(i32x16 m) { return mask_bits_i8(convert_i32_to_i8(m)); }
TW_INLINE uint32_t mask_bits_i64(i64x16 m) { return mask_bits_i8(convert_i64_to_i8(m)); }
#endif
#endif
#endif
typedef i8x16 m8x16;
typedef i16x16 m16x16;
typedef i32x16 m32x16;
typedef i64x16 m64x16;

/* |a|; the most negative number stays itself. */
TW_INLINE i8x16 absolute_i8(i8x16 a) { return maximum_i8(a, negative_i8(a)); }
TW_INLINE i16x16 absolute_i16(i16x16 a) { return maximum_i16(a, negative_i16(a)); }
TW_INLINE i32x16 absolute_i32(i32x16 a) { return maximum_i32(a, negative_i32(a)); }
TW_INLINE i64x16 absolute_i64(i64x16 a) { return maximum_i64(a, negative_i64(a)); }
TW_INLINE u8x16 absolute_u8(u8x16 a) { return a; }
TW_INLINE u16x16 absolute_u16(u16x16 a) { return a; }
TW_INLINE u32x16 absolute_u32(u32x16 a) { return a; }
TW_INLINE u64x16 absolute_u64(u64x16 a) { return a; }

/* ---- Booleans. In memory one byte: read, every byte but 0 is true; written, 0 or 1. In registers m8x16, 0 / -1. ---- */
TW_INLINE m8x16 load_bool(const uint8_t *pointer) { return not_equal_u8(load_u8(pointer), broadcast_u8(0)); }
TW_INLINE void store_bool(uint8_t *pointer, m8x16 v) { store_u8(pointer, convert_i8_to_u8(negative_i8(v))); }
TW_INLINE m8x16 load_partial_bool(const uint8_t *pointer, int n) { return not_equal_u8(load_partial_u8(pointer, n), broadcast_u8(0)); }
TW_INLINE void store_partial_bool(uint8_t *pointer, m8x16 v, int n) { store_partial_u8(pointer, convert_i8_to_u8(negative_i8(v)), n); }
TW_INLINE m8x16 load_strided_bool(const uint8_t *base, int64_t stride) { return not_equal_u8(load_strided_u8(base, stride), broadcast_u8(0)); }
TW_INLINE m8x16 gather_bool(const uint8_t *base, i32x16 index) { return not_equal_u8(gather_u8(base, index), broadcast_u8(0)); }
TW_INLINE m8x16 gather_wide_bool(const uint8_t *base, i64x16 index) { return not_equal_u8(gather_wide_u8(base, index), broadcast_u8(0)); }

/* Lanes i < n as a mask; whether any / all lanes are true (0 or 1). */
#define TW_MASK(t)                                                                                 \
    TW_INLINE t##x16 first_lanes_##t(int n) { return less_##t(iota_##t(), broadcast_##t((t)n)); }  \
    TW_INLINE int any_##t(t##x16 mask) { return mask_bits_##t(mask) != 0; }                        \
    TW_INLINE int all_##t(t##x16 mask) { return mask_bits_##t(mask) == 0xffff; }
TW_MASK(i8)
TW_MASK(i16)
TW_MASK(i32)
TW_MASK(i64)

/* ---- Integer division: the quotient rounds down, the remainder has the divisor's sign (Python, NumPy). By zero both are 0;
 * the most negative number / -1 wraps. The floating-point quotient rounds to the right side of every whole number as
 * long as the dividend has fewer digits than the format. ---- */
#define TW_DIVIDE_SHORT(t)                                                                         \
    TW_INLINE t##x16 floor_divide_##t(t##x16 a, t##x16 b) {                                        \
        return convert_f32_to_##t(floor_f32(divide_f32(convert_##t##_to_f32(a), convert_##t##_to_f32(b)))); \
    }
TW_DIVIDE_SHORT(i8)
TW_DIVIDE_SHORT(u8)
TW_DIVIDE_SHORT(i16)
TW_DIVIDE_SHORT(u16)
TW_INLINE i32x16 floor_divide_i32(i32x16 a, i32x16 b) {
    i32x16 q = convert_f64_to_i32(floor_f64(divide_f64(convert_i32_to_f64(a), convert_i32_to_f64(b))));
    return select_i32(equal_i32(b, broadcast_i32(0)), b, q);
}
TW_INLINE u32x16 floor_divide_u32(u32x16 a, u32x16 b) {
    f64x16 q = floor_f64(divide_f64(convert_u32_to_f64(a), convert_u32_to_f64(b)));
    u32x16 low = convert_i64_to_u32(bits_of_f64(add_f64(q, broadcast_f64(0x1p52))));
    return select_u32(equal_u32(b, broadcast_u32(0)), b, low);
}
#define TW_DIVIDE_LANES(t)                                                                          \
    TW_COLD t##x16 tw_divide_lanes_##t(t##x16 a, t##x16 b) {                                       \
        t##_lanes x = {a}, y = {b};                                                                \
        for (int i = 0; i < 16; i++) {                                                             \
            t n = x.lane[i], d = y.lane[i];                                                        \
            if (d == 0) x.lane[i] = 0;                                                             \
            else if (d == (t)-1 && (t)-1 < (t)1) x.lane[i] = (t)(0 - (t##_word)n);                 \
            else x.lane[i] = n / d - (n % d != 0 && (n < (t)1) != (d < (t)1));                     \
        }                                                                                          \
        return x.whole;                                                                            \
    }
TW_DIVIDE_LANES(i64)
TW_DIVIDE_LANES(u64)
#if TW_SCALAR
#define TW_DIVIDE_LONG(t) TW_INLINE t##x16 floor_divide_##t(t##x16 a, t##x16 b) { return tw_divide_lanes_##t(a, b); }
#else
#define TW_DIVIDE_LONG(t)                                                                          \
    TW_INLINE t##x16 floor_divide_##t(t##x16 a, t##x16 b) {                                        \
        /* -2^50 <= a, b < 2^50 and b not 0: adding 1.5 2^52 writes the number into the digits of a double */ \
        t##x16 magic = broadcast_##t(0x4338000000000000), half = broadcast_##t((t)-1 < (t)1 ? (t)1 << 50 : 0); \
        u64x16 limit = broadcast_u64(1ull << 51);                                                  \
        m64x16 easy = bitwise_and_i64(less_u64(TW_MAP1(64, t, u64, TW_CAST, add_##t(a, half)), limit), \
                                      less_u64(TW_MAP1(64, t, u64, TW_CAST, add_##t(b, half)), limit)); \
        easy = bitwise_and_i64(easy, not_equal_##t(b, broadcast_##t(0)));                          \
        if (__builtin_expect(!all_i64(easy), 0)) return tw_divide_lanes_##t(a, b);                 \
        f64x16 x = TW_MAP1(64, t, f64, TW_CAST, add_##t(a, magic)), y = TW_MAP1(64, t, f64, TW_CAST, add_##t(b, magic)); \
        f64x16 digits = broadcast_f64(0x1.8p52);                                                   \
        f64x16 q = add_f64(floor_f64(divide_f64(subtract_f64(x, digits), subtract_f64(y, digits))), digits); \
        return subtract_##t(TW_MAP1(64, f64, t, TW_CAST, q), magic);                               \
    }
#endif
TW_DIVIDE_LONG(i64)
TW_DIVIDE_LONG(u64)
#define TW_REMAINDER(t)                                                                            \
    TW_INLINE t##x16 remainder_##t(t##x16 a, t##x16 b) {                                           \
        t##x16 rest = subtract_##t(a, multiply_##t(floor_divide_##t(a, b), b));                    \
        return select_##t(equal_##t(b, broadcast_##t(0)), b, rest);                                \
    }
TW_REMAINDER(i8)
TW_REMAINDER(u8)
TW_REMAINDER(i16)
TW_REMAINDER(u16)
TW_REMAINDER(i32)
TW_REMAINDER(u32)
TW_REMAINDER(i64)
TW_REMAINDER(u64)

/* ---- float16 and bfloat16 in memory: 16 bits each. Stores round to nearest even, keep NaN (quiet), overflow to infinity. ---- */
#if TW_AVX512
TW_INLINE f32x16 convert_f16_to_f32(u16x16 v) {
    return (f32x16)__builtin_ia32_vcvtph2ps512_mask((tw_v16hi)v, (f32x16){0}, (uint16_t)-1, 4);
}
TW_INLINE u16x16 convert_f32_to_f16(f32x16 v) {
    return (u16x16)__builtin_ia32_vcvtps2ph512_mask(v, 0, (tw_v16hi){0}, (uint16_t)-1);
}
#else
TW_INLINE f32x16 convert_f16_to_f32(u16x16 v) {
    u32x16 bits = convert_u16_to_u32(v), sign = left_shift_u32(bitwise_and_u32(bits, broadcast_u32(0x8000)), broadcast_u32(16));
    u32x16 size = left_shift_u32(bitwise_and_u32(bits, broadcast_u32(0x7fff)), broadcast_u32(13));
    /* The scaled product is exact, also for subnormal numbers; infinity and NaN take the largest exponent by hand. */
    f32x16 value = multiply_f32(from_bits_f32(convert_u32_to_i32(size)), broadcast_f32(0x1p112f));
    u32x16 special = bitwise_or_u32(size, broadcast_u32(0x7f800000));
    special = bitwise_or_u32(special, select_u32(less_u32(broadcast_u32(0x7f800000), special), broadcast_u32(0x400000), broadcast_u32(0)));
    u32x16 r = select_u32(less_u32(size, broadcast_u32(0x0f800000)), convert_i32_to_u32(bits_of_f32(value)), special);
    return from_bits_f32(convert_u32_to_i32(bitwise_or_u32(r, sign)));
}
TW_INLINE u16x16 convert_f32_to_f16(f32x16 v) {
    u32x16 bits = convert_i32_to_u32(bits_of_f32(v)), size = bitwise_and_u32(bits, broadcast_u32(0x7fffffff));
    u32x16 sign = right_shift_u32(bitwise_and_u32(bits, broadcast_u32(0x80000000)), broadcast_u32(16));
    /* normal: round the mantissa to 10 bits; subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
    u32x16 odd = bitwise_and_u32(right_shift_u32(size, broadcast_u32(13)), broadcast_u32(1));
    u32x16 normal = right_shift_u32(add_u32(add_u32(size, broadcast_u32(0xc8000fff)), odd), broadcast_u32(13));
    normal = minimum_u32(normal, broadcast_u32(0x7c00));
    f32x16 small = add_f32(from_bits_f32(convert_u32_to_i32(size)), broadcast_f32(0.5f));
    u32x16 subnormal = subtract_u32(convert_i32_to_u32(bits_of_f32(small)), broadcast_u32(0x3f000000));
    u32x16 nan = bitwise_or_u32(bitwise_and_u32(right_shift_u32(size, broadcast_u32(13)), broadcast_u32(0x3ff)), broadcast_u32(0x7e00));
    u32x16 r = select_u32(less_u32(size, broadcast_u32(0x38800000)), subnormal, normal);
    r = select_u32(less_u32(broadcast_u32(0x7f800000), size), nan, r);
    return convert_u32_to_u16(bitwise_or_u32(r, sign));
}
#endif
TW_INLINE f32x16 convert_bf16_to_f32(u16x16 v) {
    return from_bits_f32(convert_u32_to_i32(left_shift_u32(convert_u16_to_u32(v), broadcast_u32(16))));
}
TW_INLINE u16x16 convert_f32_to_bf16(f32x16 v) {
    u32x16 bits = convert_i32_to_u32(bits_of_f32(v)), upper = right_shift_u32(bits, broadcast_u32(16));
    u32x16 odd = bitwise_and_u32(upper, broadcast_u32(1));
    u32x16 rounded = right_shift_u32(add_u32(add_u32(bits, broadcast_u32(0x7fff)), odd), broadcast_u32(16));
    return convert_u32_to_u16(select_u32(is_nan_f32(v), bitwise_or_u32(upper, broadcast_u32(0x40)), rounded));
}
#define TW_SHORT_FLOAT(t)                                                                          \
    TW_INLINE f32x16 load_##t(const uint16_t *pointer) { return convert_##t##_to_f32(load_u16(pointer)); } \
    TW_INLINE void store_##t(uint16_t *pointer, f32x16 v) { store_u16(pointer, convert_f32_to_##t(v)); } \
    TW_INLINE f32x16 load_partial_##t(const uint16_t *pointer, int n) { return convert_##t##_to_f32(load_partial_u16(pointer, n)); } \
    TW_INLINE void store_partial_##t(uint16_t *pointer, f32x16 v, int n) { store_partial_u16(pointer, convert_f32_to_##t(v), n); } \
    TW_INLINE f32x16 load_strided_##t(const uint16_t *base, int64_t stride) { return convert_##t##_to_f32(load_strided_u16(base, stride)); } \
    TW_INLINE f32x16 gather_##t(const uint16_t *base, i32x16 index) { return convert_##t##_to_f32(gather_u16(base, index)); } \
    TW_INLINE f32x16 gather_wide_##t(const uint16_t *base, i64x16 index) { return convert_##t##_to_f32(gather_wide_u16(base, index)); }
TW_SHORT_FLOAT(f16)
TW_SHORT_FLOAT(bf16)

/* ---- Pairs of bfloat16 numbers: the lower and the upper half of a 32-bit lane. ---- */
TW_INLINE u32x16 load_pairs_bf16(const uint16_t *pointer) { /* 32 numbers */
    u32x16 v;
    __builtin_memcpy(&v, pointer, sizeof v);
    return v;
}
TW_INLINE u32x16 load_partial_pairs_bf16(const uint16_t *pointer, int n) { /* the first n of 32, then zeros */
    uint16_t first[32] = {0};
    for (int i = 0; i < n; i++) first[i] = pointer[i];
    return load_pairs_bf16(first);
}
TW_INLINE u32x16 join_bf16(u16x16 lower, u16x16 upper) {
    return bitwise_or_u32(convert_u16_to_u32(lower), left_shift_u32(convert_u16_to_u32(upper), broadcast_u32(16)));
}
/* sum + upper a * upper b, then + lower a * lower b, each rounded once. The instruction (AVX512_BF16) does just that, but
 * takes subnormal numbers for zero. */
#if defined __AVX512BF16__ && TW_AVX512 && (!defined __clang__ || __clang_major__ >= 16)
#if defined __clang__ || __GNUC__ >= 13
typedef __bf16 tw_v32bf __attribute__((vector_size(64)));
#else
typedef short tw_v32bf __attribute__((vector_size(64)));
#endif
#ifdef __clang__
#define TW_DOT_BF16 __builtin_ia32_dpbf16ps_512
#else
#define TW_DOT_BF16 __builtin_ia32_dpbf16ps_v16sf
#endif
TW_INLINE f32x16 dot_bf16(u32x16 a, u32x16 b, f32x16 sum) { return TW_DOT_BF16(sum, (tw_v32bf)a, (tw_v32bf)b); }
#else
TW_INLINE f32x16 tw_upper_bf16(u32x16 v) {
    return from_bits_f32(convert_u32_to_i32(bitwise_and_u32(v, broadcast_u32(0xffff0000u))));
}
TW_INLINE f32x16 tw_lower_bf16(u32x16 v) {
    return from_bits_f32(convert_u32_to_i32(left_shift_u32(v, broadcast_u32(16))));
}
TW_INLINE f32x16 dot_bf16(u32x16 a, u32x16 b, f32x16 sum) {
    sum = fma_f32(tw_upper_bf16(a), tw_upper_bf16(b), sum);
    return fma_f32(tw_lower_bf16(a), tw_lower_bf16(b), sum);
}
#endif

#if !TW_SCALAR
/* ---- Transpose of a 16 x 16 block in registers: lane j of row[i] becomes lane i of row[j]. ---- */
#if TW_LANES_32 == 16
#define TW_ROW_PART(i, q) row[i]
#define TW_ROW_LOW_1 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30
#define TW_ROW_HIGH_1 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31
#define TW_ROW_LOW_2 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define TW_ROW_HIGH_2 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define TW_ROW_LOW_4 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27
#define TW_ROW_HIGH_4 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31
#define TW_ROW_LOW_8 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23
#define TW_ROW_HIGH_8 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31
#else
#define TW_ROW_PART(i, q) row[i].p[q]
#if TW_LANES_32 == 8
#define TW_ROW_LOW_1 0, 8, 2, 10, 4, 12, 6, 14
#define TW_ROW_HIGH_1 1, 9, 3, 11, 5, 13, 7, 15
#define TW_ROW_LOW_2 0, 1, 8, 9, 4, 5, 12, 13
#define TW_ROW_HIGH_2 2, 3, 10, 11, 6, 7, 14, 15
#define TW_ROW_LOW_4 0, 1, 2, 3, 8, 9, 10, 11
#define TW_ROW_HIGH_4 4, 5, 6, 7, 12, 13, 14, 15
#else
#define TW_ROW_LOW_1 0, 4, 2, 6
#define TW_ROW_HIGH_1 1, 5, 3, 7
#define TW_ROW_LOW_2 0, 1, 4, 5
#define TW_ROW_HIGH_2 2, 3, 6, 7
#endif
#endif
/* One stage exchanges the odd blocks of d lanes of row i with the even ones of row i + d. */
#define TW_ROW_STAGE(d)                                                                            \
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) {                                        \
        _Pragma("GCC unroll 4") for (int q = 0; q < 16 / TW_LANES_32; q++) {                       \
            if (i & d) continue;                                                                   \
            f32_part a = TW_ROW_PART(i, q), b = TW_ROW_PART(i + d, q);                             \
            TW_ROW_PART(i, q) = TW_SHUFFLE2(f32, a, b, TW_ROW_LOW_##d);                            \
            TW_ROW_PART(i + d, q) = TW_SHUFFLE2(f32, a, b, TW_ROW_HIGH_##d);                       \
        }                                                                                          \
    }
#define TW_ROW_EXCHANGE(d)                                                                         \
    _Pragma("GCC unroll 16") for (int i = 0; i < 16; i++) {                                        \
        _Pragma("GCC unroll 4") for (int q = 0; q < 16 / TW_LANES_32; q++) {                       \
            if ((i & d) || (q & (d / TW_LANES_32))) continue;                                      \
            f32_part a = TW_ROW_PART(i, q + d / TW_LANES_32);                                      \
            TW_ROW_PART(i, q + d / TW_LANES_32) = TW_ROW_PART(i + d, q);                           \
            TW_ROW_PART(i + d, q) = a;                                                             \
        }                                                                                          \
    }
TW_INLINE void transpose_f32(f32x16 row[16]) {
    TW_ROW_STAGE(1)
    TW_ROW_STAGE(2)
#if TW_LANES_32 >= 8
    TW_ROW_STAGE(4)
#else
    TW_ROW_EXCHANGE(4)
#endif
#if TW_LANES_32 >= 16
    TW_ROW_STAGE(8)
#else
    TW_ROW_EXCHANGE(8)
#endif
}

/* pointer[0], pointer[2], ..., pointer[30]; memory behind that is not touched. */
#if TW_LANES_32 == 16
#define TW_EVEN TW_SHUFFLE2(f32, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31)
#define TW_ZIPPED_LOW TW_SHUFFLE2(f32, a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define TW_ZIPPED_HIGH TW_SHUFFLE2(f32, a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#elif TW_LANES_32 == 8
#define TW_EVEN TW_SHUFFLE2(f32, a, b, 0, 2, 4, 6, 9, 11, 13, 15)
#define TW_ZIPPED_LOW TW_SHUFFLE2(f32, a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define TW_ZIPPED_HIGH TW_SHUFFLE2(f32, a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define TW_EVEN TW_SHUFFLE2(f32, a, b, 0, 2, 5, 7)
#define TW_ZIPPED_LOW TW_SHUFFLE2(f32, a, b, 0, 4, 1, 5)
#define TW_ZIPPED_HIGH TW_SHUFFLE2(f32, a, b, 2, 6, 3, 7)
#endif
TW_INLINE f32x16 load_even_f32(const f32 *pointer) {
    union { f32x16 whole; f32_part part[16 / TW_LANES_32]; } r;
    _Pragma("GCC unroll 4") for (int i = 0; i < 16 / TW_LANES_32; i++) {
        const f32_part a = *(const f32_memory *)(pointer + 2 * i * TW_LANES_32);
        const f32_part b = *(const f32_memory *)(pointer + 2 * i * TW_LANES_32 + TW_LANES_32 - 1);
        r.part[i] = TW_EVEN;
    }
    return r.whole;
}

/* x[0], y[0], x[1], y[1], ..., x[15], y[15] to memory. */
TW_INLINE void store_zipped_f32(f32 *pointer, f32x16 x, f32x16 y) {
    union { f32x16 whole; f32_part part[16 / TW_LANES_32]; } p = {x}, q = {y};
    _Pragma("GCC unroll 4") for (int i = 0; i < 16 / TW_LANES_32; i++) {
        const f32_part a = p.part[i], b = q.part[i];
        *(f32_memory *)(pointer + 2 * i * TW_LANES_32) = TW_ZIPPED_LOW;
        *(f32_memory *)(pointer + (2 * i + 1) * TW_LANES_32) = TW_ZIPPED_HIGH;
    }
}

/* Lane i of the result: the sum of row[i], by the same tree as sum_f32. */
TW_INLINE f32x16 sum_rows_f32(f32x16 row[16]) {
    transpose_f32(row);
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) row[i] = add_f32(row[i], row[i + 8]);
    _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) row[i] = add_f32(row[i], row[i + 4]);
    return add_f32(add_f32(row[0], row[2]), add_f32(row[1], row[3]));
}
#endif

#endif

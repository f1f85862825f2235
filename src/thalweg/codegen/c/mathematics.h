/* Thalweg mathematics: functions on 16-lane vectors, after vector.h. Every one gives the same bits on every instruction
 * set (up to the sign and payload of NaN) because it is made of correctly rounded operations only.
 *
 * The text is cut at the lines "@section name needs: ..."; library.py gives a program the sections that it uses. Names
 * that begin with tw_ are private. Special values are NumPy's (C99's for pow). Bounds are in units in the last place of
 * the exact result; tests/codegen/test_vector_library.py holds them. Polynomials were made with Sollya's fpminimax and
 * remez; the error of each one alone stands beside it.
 */
/* @section tw_base needs: */
#define F32(x) broadcast_f32(x)
#define F64(x) broadcast_f64(x)
/* c0 + c1 x + c2 x^2 + ... by Horner's rule, one FMA a step. */
#define TW_POLY2(t, x, c0, c1) fma_##t(broadcast_##t(c1), x, broadcast_##t(c0))
#define TW_POLY3(t, x, c0, ...) fma_##t(TW_POLY2(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY4(t, x, c0, ...) fma_##t(TW_POLY3(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY5(t, x, c0, ...) fma_##t(TW_POLY4(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY6(t, x, c0, ...) fma_##t(TW_POLY5(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY7(t, x, c0, ...) fma_##t(TW_POLY6(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY8(t, x, c0, ...) fma_##t(TW_POLY7(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY9(t, x, c0, ...) fma_##t(TW_POLY8(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY10(t, x, c0, ...) fma_##t(TW_POLY9(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY11(t, x, c0, ...) fma_##t(TW_POLY10(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY12(t, x, c0, ...) fma_##t(TW_POLY11(t, x, __VA_ARGS__), x, broadcast_##t(c0))
#define TW_POLY13(t, x, c0, ...) fma_##t(TW_POLY12(t, x, __VA_ARGS__), x, broadcast_##t(c0))
/* The float64 functions are long and rarely hot: one copy of each in a program instead of one per use. */
#define TW_CALL static __attribute__((noinline, unused))
/* Adding and subtracting this number rounds |x| < 2^22 (2^51) to a whole one; the low bits of the sum are that number. */
#define TW_MAGIC_f32 0x1.8p23f
#define TW_MAGIC_f64 0x1.8p52

/* @section tw_scale_f32 needs: tw_base */
/* v * 2^n rounded once, for 0.5 <= |v| <= 2 and whole n with |n| <= 250. */
#if TW_AVX512
#define TW_SCALE_f32(t, v, n) __builtin_ia32_scalefps512_mask(v, n, v, (uint16_t)-1, 4)
TW_INLINE f32x16 tw_scale_f32(f32x16 v, f32x16 n) { return TW_MAP2(32, f32, f32, TW_SCALE_f32, v, n); }
#else
TW_INLINE f32x16 tw_scale_f32(f32x16 v, f32x16 n) {
    f32x16 first = subtract_f32(fma_f32(n, F32(0.5f), F32(TW_MAGIC_f32)), F32(TW_MAGIC_f32)), magic = F32(TW_MAGIC_f32 + 127);
    i32x16 a = bits_of_f32(add_f32(first, magic)), b = bits_of_f32(add_f32(subtract_f32(n, first), magic)), up = broadcast_i32(23);
    return multiply_f32(multiply_f32(v, from_bits_f32(left_shift_i32(a, up))), from_bits_f32(left_shift_i32(b, up)));
}
#endif

/* @section tw_scale_f64 needs: tw_base */
/* v * 2^n rounded once, for 0.5 <= |v| <= 2 and whole n with |n| <= 2000. */
#if TW_AVX512
#define TW_SCALE_f64(t, v, n) __builtin_ia32_scalefpd512_mask(v, n, v, (uint8_t)-1, 4)
TW_INLINE f64x16 tw_scale_f64(f64x16 v, f64x16 n) { return TW_MAP2(64, f64, f64, TW_SCALE_f64, v, n); }
#else
TW_INLINE f64x16 tw_scale_f64(f64x16 v, f64x16 n) {
    f64x16 first = subtract_f64(fma_f64(n, F64(0.5), F64(TW_MAGIC_f64)), F64(TW_MAGIC_f64)), magic = F64(TW_MAGIC_f64 + 1023);
    i64x16 a = bits_of_f64(add_f64(first, magic)), b = bits_of_f64(add_f64(subtract_f64(n, first), magic)), up = broadcast_i64(52);
    return multiply_f64(multiply_f64(v, from_bits_f64(left_shift_i64(a, up))), from_bits_f64(left_shift_i64(b, up)));
}
#endif

/* @section exp_f32 needs: tw_scale_f32 */
/* e^x: 1 ulp. x = n ln 2 + r with |r| <= ln 2 / 2; polynomial 2^-28. */
TW_INLINE f32x16 exp_f32(f32x16 x) {
    x = clamp_f32(x, F32(-104.0f), F32(89.0f));
    f32x16 n = subtract_f32(fma_f32(x, F32(0x1.715476p0f), F32(TW_MAGIC_f32)), F32(TW_MAGIC_f32));
    f32x16 r = fma_f32(n, F32(-0x1.7f7d1cp-20f), fma_f32(n, F32(-0x1.62e4p-1f), x));
    f32x16 p = TW_POLY7(f32, r, 1, 1, 0x1.fffffap-2f, 0x1.555492p-3f, 0x1.555a26p-5f, 0x1.12397ep-7f, 0x1.694c8ep-10f);
    return tw_scale_f32(p, n);
}

/* @section tw_exp_f64 needs: tw_scale_f64 */
/* e^(x + tail) for |tail| far below |x|: 0.8 ulp, as the rounding errors of r and 1 + r are carried along; polynomial 2^-59. */
TW_INLINE f64x16 tw_exp_f64(f64x16 x, f64x16 tail) {
    x = clamp_f64(x, F64(-746.0), F64(710.0));
    f64x16 n = subtract_f64(fma_f64(x, F64(0x1.71547652b82fep0), F64(TW_MAGIC_f64)), F64(TW_MAGIC_f64));
    f64x16 whole = fma_f64(n, F64(-0x1.62e42fefa38p-1), x), near = fma_f64(n, F64(-0x1.ef35793c7673p-45), whole);
    tail = add_f64(tail, fma_f64(n, F64(-0x1.ef35793c7673p-45), subtract_f64(whole, near)));
    f64x16 r = add_f64(near, tail);
    tail = subtract_f64(tail, subtract_f64(r, near));
    f64x16 p = TW_POLY11(f64, r, 0x1p-1, 0x1.5555555555559p-3, 0x1.555555555554ep-5, 0x1.111111110f657p-7, 0x1.6c16c16c1a341p-10,
                         0x1.a01a01b0020aep-13, 0x1.a01a0190a2eap-16, 0x1.71ddf8143d8ecp-19, 0x1.27e50d7f7316p-22,
                         0x1.af5f2238036a9p-26, 0x1.1f234b8f97dcfp-29);
    f64x16 y = add_f64(F64(1), r), rest = add_f64(tail, subtract_f64(r, subtract_f64(y, F64(1))));
    return tw_scale_f64(add_f64(y, fma_f64(multiply_f64(r, r), p, rest)), n);
}

/* @section exp_f64 needs: tw_exp_f64 */
/* e^x: 0.8 ulp. */
TW_CALL f64x16 exp_f64(f64x16 x) { return tw_exp_f64(x, F64(0)); }

/* @section expm1_f32 needs: tw_base */
/* e^x - 1 as 2^n (e^r - 1) + (2^n - 1): 1.5 ulp. */
TW_INLINE f32x16 expm1_f32(f32x16 x) {
    f32x16 c = clamp_f32(x, F32(-20.0f), F32(89.0f));
    f32x16 sum = fma_f32(c, F32(0x1.715476p0f), F32(TW_MAGIC_f32)), n = subtract_f32(sum, F32(TW_MAGIC_f32));
    f32x16 r = fma_f32(n, F32(-0x1.7f7d1cp-20f), fma_f32(n, F32(-0x1.62e4p-1f), c));
    f32x16 p = TW_POLY6(f32, r, 0x1p-1f, 0x1.555554p-3f, 0x1.5554fp-5f, 0x1.111304p-7f, 0x1.6d436ep-10f, 0x1.9e111p-13f);
    p = fma_f32(multiply_f32(r, r), p, r);
    /* half = 2^(n - 1) does not overflow for n = 128; a tiny x would lose a bit in the halves and is its own result. */
    f32x16 half = from_bits_f32(left_shift_i32(bits_of_f32(add_f32(n, F32(TW_MAGIC_f32 + 126))), broadcast_i32(23)));
    f32x16 y = fma_f32(p, half, subtract_f32(half, F32(0.5f)));
    return select_f32(less_f32(absolute_f32(x), F32(0x1p-25f)), x, add_f32(y, y));
}

/* @section expm1_f64 needs: tw_base */
/* e^x - 1: 2 ulp. */
TW_CALL f64x16 expm1_f64(f64x16 x) {
    f64x16 c = clamp_f64(x, F64(-40.0), F64(710.0));
    f64x16 n = subtract_f64(fma_f64(c, F64(0x1.71547652b82fep0), F64(TW_MAGIC_f64)), F64(TW_MAGIC_f64));
    f64x16 r = fma_f64(n, F64(-0x1.ef35793c7673p-45), fma_f64(n, F64(-0x1.62e42fefa38p-1), c));
    f64x16 p = TW_POLY11(f64, r, 0x1p-1, 0x1.5555555555559p-3, 0x1.555555555554ep-5, 0x1.111111110f657p-7, 0x1.6c16c16c1a341p-10,
                         0x1.a01a01b0020aep-13, 0x1.a01a0190a2eap-16, 0x1.71ddf8143d8ecp-19, 0x1.27e50d7f7316p-22,
                         0x1.af5f2238036a9p-26, 0x1.1f234b8f97dcfp-29);
    p = fma_f64(multiply_f64(r, r), p, r);
    f64x16 half = from_bits_f64(left_shift_i64(bits_of_f64(add_f64(n, F64(TW_MAGIC_f64 + 1022))), broadcast_i64(52)));
    f64x16 y = fma_f64(p, half, subtract_f64(half, F64(0.5)));
    return select_f64(less_f64(absolute_f64(x), F64(0x1p-54)), x, add_f64(y, y));
}

/* @section tw_log_f32 needs: tw_base */
/* e ln 2 + log(1 + f) for whole e and sqrt(1/2) - 1 <= f <= sqrt(2) - 1; polynomial 2^-26. */
TW_INLINE f32x16 tw_log_f32(f32x16 e, f32x16 f) {
    f32x16 z = multiply_f32(f, f);
    f32x16 p = TW_POLY8(f32, f, 0x1.555574p-2f, -0x1.000236p-2f, 0x1.99929ep-3f, -0x1.546556p-3f, 0x1.23b8dcp-3f, -0x1.0ebe6cp-3f,
                        0x1.00c666p-3f, -0x1.2861e8p-4f);
    f32x16 y = fma_f32(multiply_f32(f, z), p, multiply_f32(e, F32(0x1.7f7d1cp-20f)));
    return fma_f32(e, F32(0x1.62e4p-1f), add_f32(f, fma_f32(F32(-0.5f), z, y)));
}

/* @section log_f32 needs: tw_log_f32 */
/* Natural logarithm: 1 ulp. */
TW_INLINE f32x16 log_f32(f32x16 x) {
    m32x16 small = less_f32(x, F32(0x1p-126f));
    i32x16 bits = subtract_i32(bits_of_f32(select_f32(small, multiply_f32(x, F32(0x1p23f)), x)), broadcast_i32(0x3f3504f3));
    f32x16 e = add_f32(convert_i32_to_f32(right_shift_i32(bits, broadcast_i32(23))), select_f32(small, F32(-23), F32(0)));
    i32x16 mantissa = add_i32(bitwise_and_i32(bits, broadcast_i32(0x7fffff)), broadcast_i32(0x3f3504f3));
    f32x16 y = tw_log_f32(e, subtract_f32(from_bits_f32(mantissa), F32(1)));
    y = select_f32(less_f32(x, F32(__builtin_inff())), y, x);
    f32x16 edge = select_f32(equal_f32(x, F32(0)), F32(-__builtin_inff()), F32(__builtin_nanf("")));
    return select_f32(greater_f32(x, F32(0)), y, edge);
}

/* @section log1p_f32 needs: tw_log_f32 */
/* log(1 + x): 1.5 ulp. 1 + x = 2^e (1 + f), where f = x 2^-e + (2^-e - 1) has one rounding. */
TW_INLINE f32x16 log1p_f32(f32x16 x) {
    i32x16 bits = subtract_i32(bits_of_f32(add_f32(x, F32(1))), broadcast_i32(0x3f3504f3));
    i32x16 e = right_shift_i32(bits, broadcast_i32(23));
    f32x16 scale = from_bits_f32(subtract_i32(broadcast_i32(0x3f800000), left_shift_i32(e, broadcast_i32(23))));
    f32x16 f = fma_f32(x, scale, subtract_f32(scale, F32(1)));
    /* 2^-e is no normal number for the largest x, where the rounding of 1 + x does not matter. */
    i32x16 mantissa = add_i32(bitwise_and_i32(bits, broadcast_i32(0x7fffff)), broadcast_i32(0x3f3504f3));
    f = select_f32(less_f32(x, F32(0x1p60f)), f, subtract_f32(from_bits_f32(mantissa), F32(1)));
    f32x16 y = tw_log_f32(convert_i32_to_f32(e), f);
    y = select_f32(less_f32(x, F32(__builtin_inff())), y, x);
    f32x16 edge = select_f32(equal_f32(x, F32(-1)), F32(-__builtin_inff()), F32(__builtin_nanf("")));
    return select_f32(equal_f32(x, F32(0)), x, select_f32(greater_f32(x, F32(-1)), y, edge));
}

/* @section tw_log_f64 needs: tw_base */
/* e ln 2 + log(1 + f) with s = f / (2 + f): log(1 + f) = f - (f^2/2 - s (f^2/2 + R(s^2))); polynomial 2^-59. */
TW_INLINE f64x16 tw_log_f64(f64x16 e, f64x16 f) {
    f64x16 s = divide_f64(f, add_f64(f, F64(2))), z = multiply_f64(s, s);
    f64x16 half = multiply_f64(multiply_f64(f, f), F64(0.5));
    f64x16 p = multiply_f64(z, TW_POLY7(f64, z, 0x1.5555555555592p-1, 0x1.999999997ff58p-2, 0x1.24924941dc60dp-2, 0x1.c71c5218e11e7p-3,
                                        0x1.74663bf27e498p-3, 0x1.39a2024d03472p-3, 0x1.2f02bc1c6ca58p-3));
    f64x16 y = fma_f64(s, add_f64(half, p), multiply_f64(e, F64(0x1.ef35793c7673p-45)));
    return fma_f64(e, F64(0x1.62e42fefa38p-1), subtract_f64(f, subtract_f64(half, y)));
}

/* @section tw_exponent_f64 needs: tw_base */
/* The whole number whose low bits (two's complement, |value| < 2^31) stand in bits 52 and up of an integer lane. */
TW_INLINE f64x16 tw_exponent_f64(i64x16 bits) {
    i64x16 biased = convert_u64_to_i64(right_shift_u64(convert_i64_to_u64(bits), broadcast_u64(52)));
    i64x16 whole = subtract_i64(bitwise_xor_i64(biased, broadcast_i64(0x800)), broadcast_i64(0x800));
    return subtract_f64(from_bits_f64(add_i64(whole, bits_of_f64(F64(TW_MAGIC_f64)))), F64(TW_MAGIC_f64));
}

/* @section log_f64 needs: tw_log_f64 tw_exponent_f64 */
/* Natural logarithm: 1 ulp. */
TW_CALL f64x16 log_f64(f64x16 x) {
    m64x16 small = less_f64(x, F64(0x1p-1022));
    i64x16 root = broadcast_i64(0x3fe6a09e667f3bcd);
    i64x16 bits = subtract_i64(bits_of_f64(select_f64(small, multiply_f64(x, F64(0x1p52)), x)), root);
    f64x16 e = add_f64(tw_exponent_f64(bits), select_f64(small, F64(-52), F64(0)));
    i64x16 mantissa = add_i64(bitwise_and_i64(bits, broadcast_i64(0xfffffffffffff)), root);
    f64x16 y = tw_log_f64(e, subtract_f64(from_bits_f64(mantissa), F64(1)));
    y = select_f64(less_f64(x, F64(__builtin_inf())), y, x);
    f64x16 edge = select_f64(equal_f64(x, F64(0)), F64(-__builtin_inf()), F64(__builtin_nan("")));
    return select_f64(greater_f64(x, F64(0)), y, edge);
}

/* @section log1p_f64 needs: tw_log_f64 tw_exponent_f64 */
/* log(1 + x): 2 ulp. */
TW_CALL f64x16 log1p_f64(f64x16 x) {
    i64x16 root = broadcast_i64(0x3fe6a09e667f3bcd), bits = subtract_i64(bits_of_f64(add_f64(x, F64(1))), root);
    i64x16 exponent = bitwise_and_i64(bits, broadcast_i64(-0x10000000000000));
    f64x16 scale = from_bits_f64(subtract_i64(bits_of_f64(F64(1)), exponent));
    f64x16 f = fma_f64(x, scale, subtract_f64(scale, F64(1)));
    i64x16 mantissa = add_i64(bitwise_and_i64(bits, broadcast_i64(0xfffffffffffff)), root);
    f = select_f64(less_f64(x, F64(0x1p900)), f, subtract_f64(from_bits_f64(mantissa), F64(1)));
    f64x16 y = tw_log_f64(tw_exponent_f64(exponent), f);
    y = select_f64(less_f64(x, F64(__builtin_inf())), y, x);
    f64x16 edge = select_f64(equal_f64(x, F64(-1)), F64(-__builtin_inf()), F64(__builtin_nan("")));
    return select_f64(equal_f64(x, F64(0)), x, select_f64(greater_f64(x, F64(-1)), y, edge));
}

/* @section tw_table_f32 needs: tw_base */
/* Piecewise polynomials: 0 <= a <= 15.49 / scale is cut at the 16 whole values of a * scale; lane i of the k-th row of
 * the table is the coefficient of the k-th power near i. One shuffle of 16 entries fetches a coefficient. */
TW_INLINE f32x16 tw_lookup_f32(const float row[16], i32x16 index) {
#if TW_AVX512 && defined __clang__
    return __builtin_ia32_permvarsf512(load_f32(row), index);
#elif TW_AVX512
    return __builtin_shuffle(load_f32(row), index);
#elif TW_AVX2
    f32x16 table = load_f32(row);
    i32x16 upper = left_shift_i32(index, broadcast_i32(28));
#define TW_LOOKUP(i) __builtin_ia32_blendvps256(__builtin_ia32_permvarsf256(table.p[0], index.p[i]), \
                                                __builtin_ia32_permvarsf256(table.p[1], index.p[i]), (f32_part)upper.p[i])
    return (f32x16){{TW_LOOKUP(0), TW_LOOKUP(1)}};
#else
    return gather_f32(row, bitwise_and_i32(index, broadcast_i32(15)));
#endif
}
TW_INLINE f32x16 tw_piece_f32(f32x16 a, float scale, i32x16 *index) {
    f32x16 sum = fma_f32(a, F32(scale), F32(TW_MAGIC_f32));
    *index = bits_of_f32(sum);
    return fma_f32(a, F32(scale), subtract_f32(F32(TW_MAGIC_f32), sum));
}

/* @section tanh_f32 needs: tw_table_f32 */
/* tanh(a) / a on 16 pieces, relative 2^-24. */
static const float tw_tanh_table[7][16] = {
    {0x1p0f, 0x1.ccbb82p-1f, 0x1.68f5bep-1f, 0x1.131456p-1f, 0x1.ae10bp-2f, 0x1.5c81fcp-2f, 0x1.239644p-2f, 0x1.f47c36p-3f,
     0x1.b61804p-3f, 0x1.8576a8p-3f, 0x1.5e87bep-3f, 0x1.3eaae4p-3f, 0x1.241cecp-3f, 0x1.0da49ep-3f, 0x1.f4c40ep-4f, 0x1.d361aap-4f},
    {-0x1.196a7p-24f, -0x1.6903c4p-3f, -0x1.88d618p-3f, -0x1.217a2ap-3f, -0x1.88886ep-4f, -0x1.0d5a6p-4f, -0x1.7fdda4p-5f, -0x1.1cae1p-5f,
     -0x1.b5614cp-6f, -0x1.59fe18p-6f, -0x1.185e78p-6f, -0x1.cf7c38p-7f, -0x1.85799ep-7f, -0x1.4bdda6p-7f, -0x1.1e26b2p-7f, -0x1.f28a32p-8f},
    {-0x1.d20a62p-4f, -0x1.78b7b6p-5f, 0x1.303d02p-6f, 0x1.afb99cp-6f, 0x1.32707ep-6f, 0x1.830b48p-7f, 0x1.e8e836p-8f, 0x1.3f39bcp-8f,
     0x1.b208e6p-9f, 0x1.329c3ep-9f, 0x1.c005cp-10f, 0x1.50f18p-10f, 0x1.03941cp-10f, 0x1.987b7ep-11f, 0x1.46f7ecp-11f, 0x1.09d584p-11f},
    {-0x1.f8432cp-16f, 0x1.0577fap-5f, 0x1.3c952cp-7f, -0x1.b1a32cp-10f, -0x1.62a63cp-9f, -0x1.e3ff28p-10f, -0x1.225012p-10f, -0x1.59be6ap-11f,
     -0x1.a7a5fap-12f, -0x1.0dacb6p-12f, -0x1.64d522p-13f, -0x1.e9332p-14f, -0x1.59e52p-14f, -0x1.f684c4p-15f, -0x1.75bb92p-15f, -0x1.1b99c8p-15f},
    {0x1.014716p-6f, -0x1.2e46dep-9f, -0x1.50e764p-8f, -0x1.07fa86p-10f, 0x1.322476p-13f, 0x1.cdc682p-13f, 0x1.29cd62p-13f, 0x1.5c8f6ap-14f,
     0x1.946d7cp-15f, 0x1.e33842p-16f, 0x1.346b48p-16f, 0x1.5881a6p-17f, 0x1.04ab68p-17f, 0x1.f72162p-19f, 0x1.0d56e6p-18f, 0x1.98aa56p-19f},
    {-0x1.d75416p-12f, -0x1.a8c588p-9f, 0x1.e729bep-11f, 0x1.fe2bep-12f, 0x1.2cfdfap-14f, -0x1.6c386ep-17f, -0x1.f8e224p-17f, -0x1.405184p-17f,
     -0x1.64238ap-18f, -0x1.8a13bcp-19f, -0x1.bd124ap-20f, -0x1.f39f3ap-21f, -0x1.2d9bb2p-21f, -0x1.7fb608p-22f, -0x1.ce3b5ap-23f, -0x1.41b0f2p-23f},
    {-0x1.ae6506p-10f, 0x1.0842eap-10f, 0x1.d96be2p-14f, -0x1.f6ab26p-14f, -0x1.226c6p-15f, 0x1.2160b6p-21f, 0x1.0e4daap-17f, 0x1.113ef8p-19f,
     -0x1.c46582p-21f, -0x1.13f40ap-19f, -0x1.d367c6p-19f, 0x1.7a69dcp-21f, -0x1.124a5cp-19f, 0x1.09ba6ep-19f, -0x1.facb96p-20f, -0x1.e2dee2p-20f},
};
/* Hyperbolic tangent: 2.5 ulp; exactly 1 from 9.05 on, as the product at the limit is. */
TW_INLINE f32x16 tanh_f32(f32x16 x) {
    i32x16 i;
    f32x16 a = minimum_f32(absolute_f32(x), F32(0x1.219998p3f)), r = tw_piece_f32(a, 0x1.b62b9p0f, &i);
    f32x16 p = fma_f32(tw_lookup_f32(tw_tanh_table[6], i), r, tw_lookup_f32(tw_tanh_table[5], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_tanh_table[4], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_tanh_table[3], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_tanh_table[2], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_tanh_table[1], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_tanh_table[0], i));
    return multiply_f32(p, copysign_f32(a, x));
}

/* @section erf_f32 needs: tw_table_f32 */
/* erf(a) / a on 16 pieces, relative 2^-24. */
static const float tw_erf_table[6][16] = {
    {0x1.20dd76p0f, 0x1.1ab95ap0f, 0x1.09a8b4p0f, 0x1.e257cap-1f, 0x1.ab15a2p-1f, 0x1.74e7e2p-1f, 0x1.446f9ep-1f, 0x1.1b81c2p-1f,
     0x1.f3fd6cp-2f, 0x1.bda8aep-2f, 0x1.917056p-2f, 0x1.6d07fcp-2f, 0x1.4ea19ap-2f, 0x1.34e4eap-2f, 0x1.1ed4bcp-2f, 0x1.0bb582p-2f},
    {-0x1.3dcc8ep-19f, -0x1.817238p-5f, -0x1.579f74p-4f, -0x1.ac2b2ep-4f, -0x1.bdf0b2p-4f, -0x1.9ec068p-4f, -0x1.66735ep-4f, -0x1.28b914p-4f,
     -0x1.e1fc9cp-5f, -0x1.86d7e6p-5f, -0x1.3fc3d8p-5f, -0x1.0927d6p-5f, -0x1.be0afap-6f, -0x1.7c274ap-6f, -0x1.47cd92p-6f, -0x1.1d8e44p-6f},
    {-0x1.904954p-6f, -0x1.63958cp-6f, -0x1.df2d1p-7f, -0x1.8abbc4p-8f, 0x1.534498p-10f, 0x1.7cf2c8p-8f, 0x1.ed1e2ap-8f, 0x1.df899p-8f,
     0x1.970e12p-8f, 0x1.429a22p-8f, 0x1.f1395cp-9f, 0x1.7e0284p-9f, 0x1.28841ap-9f, 0x1.d38542p-10f, 0x1.768482p-10f, 0x1.3096fcp-10f},
    {-0x1.01d2bcp-13f, 0x1.cee852p-10f, 0x1.6d6612p-9f, 0x1.6c9cap-9f, 0x1.07a0dp-9f, 0x1.07561ep-10f, 0x1.8f4614p-13f, -0x1.1aafbep-12f,
     -0x1.c047fp-12f, -0x1.b156e4p-12f, -0x1.5f9e6cp-12f, -0x1.08b26p-12f, -0x1.84d548p-13f, -0x1.1e4c0ap-13f, -0x1.ab7326p-14f, -0x1.44d9f6p-14f},
    {0x1.7cbc62p-11f, 0x1.838b4ap-12f, 0x1.074cf2p-13f, -0x1.e6f3f8p-14f, -0x1.fcc758p-13f, -0x1.f6502cp-13f, -0x1.51e0d4p-13f, -0x1.3666a4p-14f,
     -0x1.a0e7f4p-17f, 0x1.00f0ecp-16f, 0x1.60a7cp-16f, 0x1.3bbbc8p-16f, 0x1.f3f1c4p-17f, 0x1.66f3b8p-17f, 0x1.0ab9aap-17f, 0x1.55b788p-18f},
    {-0x1.89bd3ep-13f, -0x1.4763a6p-15f, -0x1.b689cp-15f, -0x1.46bbe8p-15f, -0x1.78fbf8p-17f, 0x1.67d35p-17f, 0x1.35aa76p-16f, 0x1.067b8p-16f,
     0x1.186552p-17f, 0x1.7bebb8p-19f, 0x1.69ddp-23f, -0x1.a53ffep-21f, -0x1.0d59b4p-20f, -0x1.9c4376p-21f, -0x1.3c163p-21f, -0x1.4a580ep-22f},
};
/* Error function: 2.5 ulp; exactly 1 from 3.95 on, as the product at the limit is. */
TW_INLINE f32x16 erf_f32(f32x16 x) {
    i32x16 i;
    f32x16 a = minimum_f32(absolute_f32(x), F32(3.95f)), r = tw_piece_f32(a, 0x1.f5f456p1f, &i);
    f32x16 p = fma_f32(tw_lookup_f32(tw_erf_table[5], i), r, tw_lookup_f32(tw_erf_table[4], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_erf_table[3], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_erf_table[2], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_erf_table[1], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_erf_table[0], i));
    return multiply_f32(p, copysign_f32(a, x));
}

/* @section gelu_erf_f32 needs: tw_table_f32 */
/* a / 2 erfc(a / sqrt 2) on 16 pieces: absolute 1.6e-8, relative 2^-24 on the first. */
static const float tw_gelu_table[6][16] = {
    {0.0f, 0x1.150e1p-3f, 0x1.5bdf5ap-3f, 0x1.23cb2p-3f, 0x1.80dde8p-4f, 0x1.a2ae18p-5f, 0x1.7f15b8p-6f, 0x1.299dap-7f,
     0x1.8aa278p-9f, 0x1.bfde42p-11f, 0x1.b3ce16p-13f, 0x1.6c0232p-15f, 0x1.052cd2p-17f, 0x1.421bdp-20f, 0x1.558b6p-23f, 0x1.3770fap-26f},
    {0x1.8ca49ap-3f, 0x1.46a87cp-4f, -0x1.eb5c88p-9f, -0x1.67cc98p-5f, -0x1.8e24a8p-5f, -0x1.24120cp-5f, -0x1.4b54b2p-6f, -0x1.31338ap-7f,
     -0x1.d2952ap-9f, -0x1.2b6116p-10f, -0x1.44b296p-12f, -0x1.2aec58p-14f, -0x1.d491aep-17f, -0x1.394e5ap-19f, -0x1.65fdccp-22f, -0x1.5de9c4p-25f},
    {-0x1.ea5702p-5f, -0x1.a4c576p-5f, -0x1.fc77c6p-6f, -0x1.445c12p-7f, 0x1.d91b16p-9f, 0x1.07348ap-7f, 0x1.c00fb6p-8f, 0x1.09dc08p-8f,
     0x1.ea49ap-10f, 0x1.6dcd12p-11f, 0x1.c28636p-13f, 0x1.cf317p-15f, 0x1.90614cp-17f, 0x1.245f52p-19f, 0x1.69f5eep-22f, 0x1.7ccefp-25f},
    {-0x1.1b98ep-18f, 0x1.5e56d4p-8f, 0x1.ee12d8p-8f, 0x1.8cf13ap-8f, 0x1.79f164p-9f, 0x1.2bba7cp-12f, -0x1.bb2126p-11f, -0x1.d25574p-11f,
     -0x1.211f52p-11f, -0x1.0872c4p-12f, -0x1.7d5c3ep-14f, -0x1.be995ap-16f, -0x1.afa006p-18f, -0x1.5bb43p-20f, -0x1.d60612p-23f, -0x1.0bca28p-25f},
    {0x1.8dd4eep-10f, 0x1.0c9722p-10f, 0x1.8d69c2p-15f, -0x1.661892p-11f, -0x1.9d1fa4p-11f, -0x1.ec52aap-12f, -0x1.f2bffap-14f, 0x1.fafc1p-15f,
     0x1.7322cap-14f, 0x1.e0a20ep-15f, 0x1.b16f18p-16f, 0x1.2c8bacp-17f, 0x1.4da398p-19f, 0x1.2ebcb2p-21f, 0x1.c6bd34p-24f, 0x1.1d05a4p-26f},
    {-0x1.71d1ep-15f, -0x1.6178d8p-13f, -0x1.96866p-13f, -0x1.652a48p-14f, 0x1.230b4cp-15f, 0x1.481d06p-14f, 0x1.cf9b7ap-15f, 0x1.2ab378p-16f,
     -0x1.aa29f2p-19f, -0x1.ed99p-18f, -0x1.44f228p-18f, -0x1.1a69aap-19f, -0x1.717308p-21f, -0x1.7e2574p-23f, -0x1.40680ap-25f, -0x1.b9eb64p-28f},
};
/* x (1 + erf(x / sqrt 2)) / 2 as max(x, 0) - h(|x|): within 2.5e-7 absolute for |x| < 6, else max(x, 0); 0 at -infinity. */
TW_INLINE f32x16 gelu_erf_f32(f32x16 x) {
    i32x16 i;
    f32x16 size = absolute_f32(x), a = minimum_f32(size, F32(6.0f)), r = tw_piece_f32(a, 0x1.4a740ep1f, &i);
    f32x16 p = fma_f32(tw_lookup_f32(tw_gelu_table[5], i), r, tw_lookup_f32(tw_gelu_table[4], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_gelu_table[3], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_gelu_table[2], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_gelu_table[1], i));
    p = fma_f32(p, r, tw_lookup_f32(tw_gelu_table[0], i));
    p = select_f32(less_f32(F32(6.0f), size), F32(0), p);
    return subtract_f32(maximum_f32(x, F32(0)), p);
}

/* @section sigmoid_f32 needs: exp_f32 */
/* 1 / (1 + e^-x): 2.5 ulp. */
TW_INLINE f32x16 sigmoid_f32(f32x16 x) {
    f32x16 t = exp_f32(negative_f32(absolute_f32(x)));
    return divide_f32(select_f32(less_f32(x, F32(0)), t, F32(1)), add_f32(F32(1), t));
}

/* @section silu_f32 needs: sigmoid_f32 */
/* x / (1 + e^-x): 4 ulp, 1e-43 absolute below -87; NaN at -infinity. */
TW_INLINE f32x16 silu_f32(f32x16 x) { return multiply_f32(x, sigmoid_f32(x)); }

/* @section rsqrt_f32 needs: tw_base */
/* 1 / sqrt(x): 1.5 ulp. */
TW_INLINE f32x16 rsqrt_f32(f32x16 x) { return divide_f32(F32(1), sqrt_f32(x)); }

/* @section rsqrt_f64 needs: tw_base */
/* 1 / sqrt(x): 1.5 ulp. */
TW_INLINE f64x16 rsqrt_f64(f64x16 x) { return divide_f64(F64(1), sqrt_f64(x)); }

/* @section tanh_f64 needs: expm1_f64 */
/* Hyperbolic tangent: 3 ulp. */
TW_CALL f64x16 tanh_f64(f64x16 x) {
    f64x16 u = expm1_f64(multiply_f64(F64(-2), absolute_f64(x)));
    return copysign_f64(divide_f64(u, add_f64(u, F64(2))), x);
}

/* @section sigmoid_f64 needs: exp_f64 */
/* 1 / (1 + e^-x): 2.5 ulp. */
TW_CALL f64x16 sigmoid_f64(f64x16 x) {
    f64x16 t = exp_f64(negative_f64(absolute_f64(x)));
    return divide_f64(select_f64(less_f64(x, F64(0)), t, F64(1)), add_f64(F64(1), t));
}

/* @section silu_f64 needs: sigmoid_f64 */
/* x / (1 + e^-x): 4 ulp, 1e-320 absolute below -708; NaN at -infinity. */
TW_CALL f64x16 silu_f64(f64x16 x) { return multiply_f64(x, sigmoid_f64(x)); }

/* @section sinh_f64 needs: expm1_f64 exp_f64 */
/* Hyperbolic sine: 3 ulp. e^|x| / 2 is squared from its root where e^|x| overflows. */
TW_CALL f64x16 sinh_f64(f64x16 x) {
    f64x16 a = absolute_f64(x), u = expm1_f64(a), root = exp_f64(multiply_f64(a, F64(0.5)));
    f64x16 y = multiply_f64(F64(0.5), add_f64(u, divide_f64(u, add_f64(u, F64(1)))));
    return copysign_f64(select_f64(less_f64(F64(709), a), multiply_f64(multiply_f64(root, F64(0.5)), root), y), x);
}

/* @section cosh_f64 needs: exp_f64 */
/* Hyperbolic cosine: 3 ulp. */
TW_CALL f64x16 cosh_f64(f64x16 x) {
    f64x16 a = absolute_f64(x), e = exp_f64(a), root = exp_f64(multiply_f64(a, F64(0.5)));
    f64x16 y = fma_f64(e, F64(0.5), divide_f64(F64(0.5), e));
    return select_f64(less_f64(F64(709), a), multiply_f64(multiply_f64(root, F64(0.5)), root), y);
}

/* @section erf_f64 needs: tw_exp_f64 */
/* Error function: 2 ulp. Below 1 a polynomial, above 1 - e^(-x^2) P((x - 2) / (x + 2)). */
TW_CALL f64x16 erf_f64(f64x16 x) {
    f64x16 a = minimum_f64(absolute_f64(x), F64(6)), z = multiply_f64(a, a);
    f64x16 p = TW_POLY12(f64, z, 0x1.06eba8214db68p-3, -0x1.812746b0379b2p-2, 0x1.ce2f21a0408d1p-4, -0x1.b82ce311ee09bp-6,
                         0x1.565bccf7e2856p-8, -0x1.c02db0149d904p-11, 0x1.f9a2b75531772p-14, -0x1.f4ca204c771c5p-17,
                         0x1.b97e44280cfb9p-20, -0x1.5bfe76384472p-23, 0x1.d6e3ddfeb1f49p-27, -0x1.ab15c51d2ebebp-31);
    f64x16 near = fma_f64(a, p, a), t = divide_f64(subtract_f64(a, F64(2)), add_f64(a, F64(2)));
    f64x16 q = TW_POLY13(f64, t, 0x1.058671b52c776p-2, -0x1.b57034efd3f56p-2, 0x1.eeea7dc8a790bp-3, -0x1.437f0b68ccc3ep-4,
                         0x1.e947158adc6d3p-9, 0x1.ca95ed86409b3p-8, -0x1.bc258dc52d7b7p-11, -0x1.016b53754cf44p-10,
                         0x1.6d3531454c4d1p-15, 0x1.6d826933df764p-13, 0x1.cf70b00d29f7p-16, -0x1.be77748c2995fp-16,
                         -0x1.a844017c582cep-17);
    f64x16 e = tw_exp_f64(negative_f64(z), F64(0)), far = fma_f64(negative_f64(e), q, F64(1));
    return copysign_f64(select_f64(less_f64(F64(1), a), far, near), x);
}

/* @section gelu_erf_f64 needs: erf_f64 */
/* x (1 + erf(x / sqrt 2)) / 2: within 3e-16 max(|x|, 1); -0 at -infinity. */
TW_CALL f64x16 gelu_erf_f64(f64x16 x) {
    x = maximum_f64(x, F64(-40));
    f64x16 half = multiply_f64(x, F64(0.5));
    return multiply_f64(half, add_f64(F64(1), erf_f64(multiply_f64(x, F64(0x1.6a09e667f3bcdp-1)))));
}

/* @section tw_reduce_f64 needs: tw_base */
/* x = q pi / 2 + high + low with |high| <= pi / 4; q modulo 4 in the low bits. NaN for NaN and infinity. */
/* Payne and Hanek for |x| >= 2^29: the fraction of x 2 / pi from the bits of 2 / pi that matter, as upper + lower. */
TW_COLD int64_t tw_reduce_huge_f64(double x, double *upper, double *lower) {
    static const uint64_t bits_of_two_over_pi[21] = {
        0x0000000000000000, 0xa2f9836e4e441529, 0xfc2757d1f534ddc0, 0xdb6295993c439041,
        0xfe5163abdebbc561, 0xb7246e3a424dd2e0, 0x06492eea09d1921c, 0xfe1deb1cb129a73e,
        0xe88235f52ebb4484, 0xe99c7026b45f7e41, 0x3991d639835339f4, 0x9c845f8bbdf9283b,
        0x1ff897ffde05980f, 0xef2f118b5a0a6d1f, 0x6d367ecf27cb09b7, 0x4f463f669e5fea2d,
        0x7527bac7ebe5f17b, 0x3d0739f78a5292ea, 0x6bfb5fb11f8d5d08, 0x56033046fc7b6bab,
        0xf0cfbc209af4361d,};
    uint64_t bits;
    __builtin_memcpy(&bits, &x, 8);
    int first = (int)(bits >> 52 & 0x7ff) - 1075 + 62, word = first / 64, up = first % 64;
    uint64_t mantissa = (bits & 0xfffffffffffff) | 1ull << 52, window[3], product[3], high, low;
    for (int i = 0; i < 3; i++)
        window[i] = up ? bits_of_two_over_pi[word + i] << up | bits_of_two_over_pi[word + i + 1] >> (64 - up) : bits_of_two_over_pi[word + i];
    high = tw_upper_half_u64(mantissa, window[2], &product[2]);
    low = tw_upper_half_u64(mantissa, window[1], &product[1]);
    product[1] += high;
    product[0] = mantissa * window[0] + low + (product[1] < high);
    int64_t q = (int64_t)(product[0] >> 62);
    uint64_t f1 = product[0] << 2 | product[1] >> 62, f0 = product[1] << 2 | product[2] >> 62;
    int negative = (int)(f1 >> 63);
    if (negative) q++, f0 = 0 - f0, f1 = ~f1 + (f0 == 0);
    int zeros = f1 ? __builtin_clzll(f1) : 64;
    if (zeros == 64) f1 = f0, f0 = 0;
    else if (zeros) f1 = f1 << zeros | f0 >> (64 - zeros), f0 <<= zeros;
    double scale = 1.0;
    for (int i = 0; i < zeros; i++) scale *= 0.5;
    *upper = (double)(f1 >> 11) * 0x1p-53 * scale;
    *lower = (double)((f1 & 0x7ff) << 42 | f0 >> 22) * 0x1p-106 * scale;
    if (negative != (x < 0)) *upper = -*upper, *lower = -*lower;
    return x < 0 ? -q : q;
}
TW_INLINE i64x16 tw_reduce_f64(f64x16 x, f64x16 *high, f64x16 *low) {
    f64x16 sum = fma_f64(x, F64(0x1.45f306dc9c883p-1), F64(TW_MAGIC_f64)), n = subtract_f64(sum, F64(TW_MAGIC_f64));
    i64x16 q = bits_of_f64(sum);
    f64x16 first = fma_f64(n, F64(-0x1.921fb54442d18p0), x), h = fma_f64(n, F64(-0x1.1a62633145c07p-54), first);
    f64x16 l = fma_f64(n, F64(-0x1.1a62633145c07p-54), subtract_f64(first, h));
    l = fma_f64(n, F64(0x1.f1976b7ed8fbcp-110), l);
    m64x16 huge = less_equal_f64(F64(0x1p29), absolute_f64(x));
    if (__builtin_expect(any_i64(huge), 0)) {
        f64_lanes from = {x}, upper = {F64(0)}, lower = {F64(0)};
        i64_lanes turns = {q};
        uint32_t lanes = mask_bits_i64(huge);
        for (int i = 0; i < 16; i++)
            if (lanes >> i & 1 && from.lane[i] - from.lane[i] == 0)
                turns.lane[i] = tw_reduce_huge_f64(from.lane[i], &upper.lane[i], &lower.lane[i]);
        f64x16 u = upper.whole, p = multiply_f64(u, F64(0x1.921fb54442d18p0));
        f64x16 rest = fma_f64(u, F64(0x1.921fb54442d18p0), negative_f64(p));
        rest = fma_f64(lower.whole, F64(0x1.921fb54442d18p0), fma_f64(u, F64(0x1.1a62633145c07p-54), rest));
        h = select_f64(huge, p, h);
        l = select_f64(huge, rest, l);
        q = turns.whole;
        h = select_f64(is_finite_f64(x), h, F64(__builtin_nan("")));
    }
    *high = h;
    *low = l;
    return q;
}

/* @section tw_sin_f64 needs: tw_base */
/* sin and cos of high + low, |high| <= pi / 4; polynomials 2^-57, 2^-63. */
TW_INLINE f64x16 tw_sin_f64(f64x16 high, f64x16 low) {
    f64x16 z = multiply_f64(high, high);
    f64x16 p = TW_POLY6(f64, z, -0x1.5555555555548p-3, 0x1.111111110f75dp-7, -0x1.a01a019bf222ep-13, 0x1.71de355f05599p-19,
                        -0x1.ae5e5471f5503p-26, 0x1.5d8e3511cdcf2p-33);
    f64x16 tail = multiply_f64(low, fma_f64(z, F64(-0.5), F64(1)));
    return add_f64(high, fma_f64(multiply_f64(high, z), p, tail));
}
TW_INLINE f64x16 tw_cos_f64(f64x16 high, f64x16 low) {
    f64x16 z = multiply_f64(high, high), half = multiply_f64(z, F64(0.5)), w = subtract_f64(F64(1), half);
    f64x16 p = TW_POLY6(f64, z, 0x1.555555555554bp-5, -0x1.6c16c16c15016p-10, 0x1.a01a019c8f3eep-16, -0x1.27e4f7f19d4b2p-22,
                        0x1.1ee9dbd0d86a6p-29, -0x1.8fa681e38524p-37);
    f64x16 tail = fma_f64(multiply_f64(z, z), p, negative_f64(multiply_f64(high, low)));
    return add_f64(w, add_f64(subtract_f64(subtract_f64(F64(1), w), half), tail));
}

/* @section tw_circle_f64 needs: tw_reduce_f64 tw_sin_f64 */
/* sin (shift 0) or cos (shift 1) of x. */
TW_INLINE f64x16 tw_circle_f64(f64x16 x, int shift) {
    f64x16 high, low;
    i64x16 q = add_i64(tw_reduce_f64(x, &high, &low), broadcast_i64(shift));
    m64x16 odd = not_equal_i64(bitwise_and_i64(q, broadcast_i64(1)), broadcast_i64(0));
    f64x16 y = select_f64(odd, tw_cos_f64(high, low), tw_sin_f64(high, low));
    i64x16 sign = left_shift_i64(bitwise_and_i64(q, broadcast_i64(2)), broadcast_i64(62));
    return from_bits_f64(bitwise_xor_i64(bits_of_f64(y), sign));
}

/* @section sin_f64 needs: tw_circle_f64 */
/* Sine: 1 ulp, for every finite x. */
TW_CALL f64x16 sin_f64(f64x16 x) { return select_f64(equal_f64(x, F64(0)), x, tw_circle_f64(x, 0)); }

/* @section cos_f64 needs: tw_circle_f64 */
/* Cosine: 1 ulp, for every finite x. */
TW_CALL f64x16 cos_f64(f64x16 x) { return tw_circle_f64(x, 1); }

/* @section tan_f64 needs: tw_reduce_f64 tw_sin_f64 */
/* Tangent: 3 ulp, for every finite x. */
TW_CALL f64x16 tan_f64(f64x16 x) {
    f64x16 high, low;
    i64x16 q = bitwise_and_i64(tw_reduce_f64(x, &high, &low), broadcast_i64(1));
    f64x16 s = tw_sin_f64(high, low), c = tw_cos_f64(high, low);
    m64x16 odd = not_equal_i64(q, broadcast_i64(0));
    f64x16 y = divide_f64(select_f64(odd, negative_f64(c), s), select_f64(odd, s, c));
    return select_f64(equal_f64(x, F64(0)), x, y);
}

/* @section tw_circle_f32 needs: tw_reduce_f64 */
/* sin (shift 0) or cos (shift 1): the argument is reduced in float64, the polynomials (2^-32) are float32. */
TW_INLINE f32x16 tw_circle_f32(f32x16 x, int shift) {
    f64x16 high, low;
    i32x16 q = convert_i64_to_i32(tw_reduce_f64(convert_f32_to_f64(x), &high, &low));
    q = add_i32(q, broadcast_i32(shift));
    f32x16 r = convert_f64_to_f32(high), z = multiply_f32(r, r);
    f32x16 s = TW_POLY4(f32, z, -0x1.555556p-3f, 0x1.111164p-7f, -0x1.a04866p-13f, 0x1.77e1f8p-19f);
    f32x16 c = TW_POLY3(f32, z, 0x1.55554ap-5f, -0x1.6c0c2ap-10f, 0x1.99e91p-16f);
    s = fma_f32(multiply_f32(r, z), s, r);
    c = fma_f32(multiply_f32(z, z), c, fma_f32(z, F32(-0.5f), F32(1)));
    m32x16 odd = not_equal_i32(bitwise_and_i32(q, broadcast_i32(1)), broadcast_i32(0));
    i32x16 sign = left_shift_i32(bitwise_and_i32(q, broadcast_i32(2)), broadcast_i32(30));
    return from_bits_f32(bitwise_xor_i32(bits_of_f32(select_f32(odd, c, s)), sign));
}

/* @section sin_f32 needs: tw_circle_f32 */
/* Sine: 2 ulp, for every finite x. */
TW_INLINE f32x16 sin_f32(f32x16 x) { return select_f32(equal_f32(x, F32(0)), x, tw_circle_f32(x, 0)); }

/* @section cos_f32 needs: tw_circle_f32 */
/* Cosine: 2 ulp, for every finite x. */
TW_INLINE f32x16 cos_f32(f32x16 x) { return tw_circle_f32(x, 1); }

/* @section atan_f64 needs: tw_base */
/* Inverse tangent: 2 ulp. atan a = pi/4 + atan((a - 1) / (a + 1)) = pi/2 - atan(1 / a); polynomial 2^-59. */
TW_CALL f64x16 atan_f64(f64x16 x) {
    f64x16 a = absolute_f64(x), zero = F64(0);
    m64x16 middle = less_f64(F64(0x1.a827999fcef32p-2), a), large = less_f64(F64(0x1.3504f333f9de6p1), a);
    f64x16 t = divide_f64(select_f64(large, F64(-1), select_f64(middle, subtract_f64(a, F64(1)), a)),
                          select_f64(large, a, select_f64(middle, add_f64(a, F64(1)), F64(1))));
    f64x16 offset = select_f64(large, F64(0x1.921fb54442d18p0), select_f64(middle, F64(0x1.921fb54442d18p-1), zero));
    f64x16 rest = select_f64(large, F64(0x1.1a62633145c07p-54), select_f64(middle, F64(0x1.1a62633145c07p-55), zero));
    f64x16 z = multiply_f64(t, t);
    f64x16 p = TW_POLY11(f64, z, -0x1.555555555553dp-2, 0x1.999999999586dp-3, -0x1.24924922ad6edp-3, 0x1.c71c70e613401p-4,
                         -0x1.745cf8dcacc2cp-4, 0x1.3b11191f75b4cp-4, -0x1.10ebb86a779e9p-4, 0x1.df0f4dc533831p-5,
                         -0x1.9cd2cc3bca81p-5, 0x1.37d5d6ce4a028p-5, -0x1.256ae1c818bc7p-6);
    f64x16 y = add_f64(offset, add_f64(t, fma_f64(multiply_f64(t, z), p, rest)));
    return copysign_f64(y, x);
}

/* @section tw_asin_f64 needs: tw_base */
/* asin(s) - s for 0 <= s <= 1/2, z = s^2; polynomial 2^-59. */
TW_INLINE f64x16 tw_asin_f64(f64x16 s, f64x16 z) {
    f64x16 p = TW_POLY13(f64, z, 0x1.5555555555577p-3, 0x1.333333332e133p-4, 0x1.6db6db721247bp-5, 0x1.f1c71a95002fbp-6,
                         0x1.6e8bdedebf9ep-6, 0x1.1c49f077d5b96p-6, 0x1.ca1f8af1f1227p-7, 0x1.75859dad00263p-7,
                         0x1.613c1e6eff22dp-7, 0x1.e5fbe88b3f5dcp-9, 0x1.639a894f0e281p-6, -0x1.57fad0e0108cp-6,
                         0x1.0b45e9f7a2edbp-5);
    return multiply_f64(multiply_f64(s, z), p);
}

/* @section asin_f64 needs: tw_asin_f64 */
/* Inverse sine: 2 ulp; above 1/2 as pi/2 - 2 asin(sqrt((1 - x) / 2)). */
TW_CALL f64x16 asin_f64(f64x16 x) {
    f64x16 a = absolute_f64(x), half = fma_f64(a, F64(-0.5), F64(0.5));
    m64x16 large = less_f64(F64(0.5), a);
    f64x16 s = select_f64(large, sqrt_f64(half), a), z = select_f64(large, half, multiply_f64(a, a));
    f64x16 rest = tw_asin_f64(s, z), quarter = F64(0x1.921fb54442d18p0);
    f64x16 far = add_f64(quarter, fma_f64(F64(-2), s, fma_f64(F64(-2), rest, F64(0x1.1a62633145c07p-54))));
    return copysign_f64(select_f64(large, far, add_f64(s, rest)), x);
}

/* @section acos_f64 needs: tw_asin_f64 */
/* Inverse cosine: 2 ulp. */
TW_CALL f64x16 acos_f64(f64x16 x) {
    f64x16 a = absolute_f64(x), half = fma_f64(a, F64(-0.5), F64(0.5)), low = F64(0x1.1a62633145c07p-54);
    m64x16 large = less_f64(F64(0.5), a), negative = less_f64(x, F64(0));
    f64x16 s = select_f64(large, sqrt_f64(half), a), z = select_f64(large, half, multiply_f64(a, a));
    f64x16 rest = tw_asin_f64(s, z), twice = multiply_f64(F64(2), add_f64(s, rest));
    f64x16 obtuse = subtract_f64(F64(0x1.921fb54442d18p1), subtract_f64(twice, multiply_f64(F64(2), low)));
    f64x16 tail = select_f64(negative, add_f64(low, rest), subtract_f64(low, rest));
    f64x16 middle = add_f64(F64(0x1.921fb54442d18p0), add_f64(select_f64(negative, s, negative_f64(s)), tail));
    return select_f64(large, select_f64(negative, obtuse, twice), middle);
}

/* @section tan_f32 needs: tan_f64 */
/* Tangent: 0.51 ulp, computed in float64. */
TW_CALL f32x16 tan_f32(f32x16 x) { return convert_f64_to_f32(tan_f64(convert_f32_to_f64(x))); }

/* @section asin_f32 needs: asin_f64 */
/* Inverse sine: 0.51 ulp, computed in float64. */
TW_CALL f32x16 asin_f32(f32x16 x) { return convert_f64_to_f32(asin_f64(convert_f32_to_f64(x))); }

/* @section acos_f32 needs: acos_f64 */
/* Inverse cosine: 0.51 ulp, computed in float64. */
TW_CALL f32x16 acos_f32(f32x16 x) { return convert_f64_to_f32(acos_f64(convert_f32_to_f64(x))); }

/* @section atan_f32 needs: atan_f64 */
/* Inverse tangent: 0.51 ulp, computed in float64. */
TW_CALL f32x16 atan_f32(f32x16 x) { return convert_f64_to_f32(atan_f64(convert_f32_to_f64(x))); }

/* @section sinh_f32 needs: sinh_f64 */
/* Hyperbolic sine: 0.51 ulp, computed in float64. */
TW_CALL f32x16 sinh_f32(f32x16 x) { return convert_f64_to_f32(sinh_f64(convert_f32_to_f64(x))); }

/* @section cosh_f32 needs: cosh_f64 */
/* Hyperbolic cosine: 0.51 ulp, computed in float64. */
TW_CALL f32x16 cosh_f32(f32x16 x) { return convert_f64_to_f32(cosh_f64(convert_f32_to_f64(x))); }

/* @section tw_power needs: tw_base */
/* C99's special cases of x^y, given size = |x|^y (NaN only if an argument is NaN, or for 0 * infinity in y log|x|). */
TW_INLINE f64x16 tw_power(f64x16 x, f64x16 y, f64x16 size) {
    f64x16 one = F64(1), a = absolute_f64(x), half = multiply_f64(y, F64(0.5));
    m64x16 whole = equal_f64(trunc_f64(y), y), even = equal_f64(trunc_f64(half), half);
    m64x16 negative = less_i64(bits_of_f64(x), broadcast_i64(0));
    m64x16 odd = bitwise_and_i64(bitwise_and_i64(whole, bitwise_invert_i64(even)), negative);
    f64x16 r = select_f64(odd, negative_f64(size), size);
    m64x16 undefined = bitwise_and_i64(bitwise_and_i64(less_f64(x, F64(0)), is_finite_f64(x)), bitwise_invert_i64(whole));
    r = select_f64(undefined, F64(__builtin_nan("")), r);
    m64x16 unit = bitwise_and_i64(equal_f64(a, one), is_infinite_f64(y));
    return select_f64(bitwise_or_i64(bitwise_or_i64(equal_f64(x, one), equal_f64(y, F64(0))), unit), one, r);
}

/* @section pow_f32 needs: tw_power exp_f64 log_f64 */
/* x^y: 0.51 ulp, computed in float64. */
TW_CALL f32x16 pow_f32(f32x16 x, f32x16 y) {
    f64x16 a = convert_f32_to_f64(x), b = convert_f32_to_f64(y);
    return convert_f64_to_f32(tw_power(a, b, exp_f64(multiply_f64(b, log_f64(absolute_f64(a))))));
}

/* @section tw_sum_f64 needs: tw_base */
/* a + b rounded, and its error, for |a| >= |b|. */
TW_INLINE f64x16 tw_sum_f64(f64x16 a, f64x16 b, f64x16 *error) {
    f64x16 sum = add_f64(a, b);
    *error = subtract_f64(b, subtract_f64(sum, a));
    return sum;
}

/* @section pow_f64 needs: tw_power tw_exp_f64 tw_exponent_f64 tw_sum_f64 */
/* x^y: 1 ulp. log|x| = e ln 2 + 2 atanh(s), s = (m - 1) / (m + 1), as an unevaluated sum of two numbers; polynomial 2^-73. */
TW_CALL f64x16 pow_f64(f64x16 x, f64x16 y) {
    f64x16 a = absolute_f64(x), error;
    m64x16 small = less_f64(a, F64(0x1p-1022));
    i64x16 root = broadcast_i64(0x3fe6a09e667f3bcd);
    i64x16 bits = subtract_i64(bits_of_f64(select_f64(small, multiply_f64(a, F64(0x1p52)), a)), root);
    f64x16 e = add_f64(tw_exponent_f64(bits), select_f64(small, F64(-52), F64(0)));
    f64x16 f = subtract_f64(from_bits_f64(add_i64(bitwise_and_i64(bits, broadcast_i64(0xfffffffffffff)), root)), F64(1));
    /* s and z = s^2 with their errors */
    f64x16 d = add_f64(f, F64(2)), d_low = subtract_f64(f, subtract_f64(d, F64(2))), s = divide_f64(f, d);
    f64x16 s_low = divide_f64(fma_f64(negative_f64(s), d_low, fma_f64(negative_f64(s), d, f)), d);
    f64x16 z = multiply_f64(s, s), z_low = fma_f64(add_f64(s, s), s_low, fma_f64(s, s, negative_f64(z)));
    /* s^3 (2/3 + ...): v = 2/3 + ..., q = z v, t = s q */
    f64x16 p = TW_POLY8(f64, z, 0x1.999999999998ep-2, 0x1.24924924939bcp-2, 0x1.c71c71c4beac2p-3, 0x1.745d18782cb3ep-3,
                        0x1.3b1353c764554p-3, 0x1.11229592a429p-3, 0x1.ddf20b205e76fp-4, 0x1.eceecc4a0a26p-4);
    f64x16 v = tw_sum_f64(F64(0x1.5555555555555p-1), multiply_f64(z, p), &error), v_low = add_f64(error, F64(0x1.1ddd6cd86894p-55));
    f64x16 q = multiply_f64(z, v), q_low = fma_f64(z, v_low, fma_f64(z_low, v, fma_f64(z, v, negative_f64(q))));
    f64x16 t = multiply_f64(s, q), t_low = fma_f64(s, q_low, fma_f64(s_low, q, fma_f64(s, q, negative_f64(t))));
    f64x16 log = tw_sum_f64(add_f64(s, s), t, &error), log_low = add_f64(error, fma_f64(F64(2), s_low, t_low));
    f64x16 turns = multiply_f64(e, F64(0x1.62e42fefa38p-1)), sum = tw_sum_f64(turns, log, &error);
    /* e = 0: the larger term is the logarithm itself */
    m64x16 none = equal_f64(e, F64(0));
    sum = select_f64(none, log, sum);
    log_low = select_f64(none, log_low, add_f64(error, fma_f64(e, F64(0x1.ef35793c7673p-45), log_low)));
    /* y log|x|, infinite for |x| = 0 and infinity */
    sum = select_f64(equal_f64(a, F64(0)), F64(-__builtin_inf()), select_f64(less_f64(a, F64(__builtin_inf())), sum, a));
    f64x16 product = multiply_f64(y, sum);
    f64x16 low = fma_f64(y, log_low, fma_f64(y, sum, negative_f64(product)));
    low = select_f64(less_f64(absolute_f64(product), F64(800)), low, F64(0));
    return tw_power(x, y, tw_exp_f64(product, low));
}

/* @section philox4x32 needs: */
/* Ten rounds of Philox-4x32 (Salmon and others 2011, Random123) on 16 counters at once: counter[0..3] becomes random words. */
#if TW_SCALAR
TW_INLINE u32x16 tw_multiply_u32(u32x16 a, uint32_t factor, u32x16 *high) {
    for (int i = 0; i < 16; i++) {
        uint64_t product = (uint64_t)a.lane[i] * factor;
        high->lane[i] = (uint32_t)(product >> 32);
        a.lane[i] = (uint32_t)product;
    }
    return a;
}
#else
#if TW_AVX512 && !defined __clang__
#define TW_EVEN_PRODUCTS(a, b) (u64_part)__builtin_ia32_pmuludq512_mask((tw_v16si)(a), (tw_v16si)(b), (tw_v8di){0}, (uint8_t)-1)
#elif TW_AVX2 && !defined __clang__
#define TW_EVEN_PRODUCTS(a, b) (u64_part)__builtin_ia32_pmuludq256((i32_part)(a), (i32_part)(b))
#elif TW_SSE2 && !defined __clang__
#define TW_EVEN_PRODUCTS(a, b) (u64_part)__builtin_ia32_pmuludq128((i32_part)(a), (i32_part)(b))
#else
#define TW_EVEN_PRODUCTS(a, b) ((u64_part)(a) & ((u64_part){0} + 0xffffffff)) * ((u64_part)(b) & ((u64_part){0} + 0xffffffff))
#endif
TW_INLINE u32_part tw_upper_product_u32(u32_part a, u32_part b) {
    u64_part up = (u64_part){0} + 32, low = (u64_part){0} + 0xffffffff;
    u64_part even = TW_EVEN_PRODUCTS(a, b), odd = TW_EVEN_PRODUCTS((u64_part)a >> up, b);
    return (u32_part)((even >> up) | (odd & ~low));
}
#define TW_UPPER_PRODUCT(t, a, b) tw_upper_product_u32(a, b)
TW_INLINE u32x16 tw_multiply_u32(u32x16 a, uint32_t factor, u32x16 *high) {
    u32x16 b = broadcast_u32(factor);
    *high = TW_MAP2(32, u32, u32, TW_UPPER_PRODUCT, a, b);
    return multiply_u32(a, b);
}
#endif
TW_INLINE void philox4x32(u32x16 counter[4], const u32x16 key[2]) {
    u32x16 k0 = key[0], k1 = key[1], c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        u32x16 high0, high2, low0 = tw_multiply_u32(c0, 0xD2511F53u, &high0), low2 = tw_multiply_u32(c2, 0xCD9E8D57u, &high2);
        c0 = bitwise_xor_u32(bitwise_xor_u32(high2, c1), k0);
        c1 = low2;
        c2 = bitwise_xor_u32(bitwise_xor_u32(high0, c3), k1);
        c3 = low0;
        k0 = add_u32(k0, broadcast_u32(0x9E3779B9u));
        k1 = add_u32(k1, broadcast_u32(0xBB67AE85u));
    }
    counter[0] = c0;
    counter[1] = c1;
    counter[2] = c2;
    counter[3] = c3;
}

/* @section uniform_f32 needs: */
/* The upper 24 bits of a random word as k / 2^24 in [0, 1), exact. */
TW_INLINE f32x16 uniform_f32(u32x16 word) {
    return multiply_f32(convert_i32_to_f32(convert_u32_to_i32(right_shift_u32(word, broadcast_u32(8)))), broadcast_f32(0x1p-24f));
}

/* @section uniform_f64 needs: */
/* 27 bits of one word above 26 bits of the next as k / 2^53 in [0, 1), exact. */
TW_INLINE f64x16 uniform_f64(u32x16 upper, u32x16 lower) {
    f64x16 a = convert_i32_to_f64(convert_u32_to_i32(right_shift_u32(upper, broadcast_u32(5))));
    f64x16 b = convert_i32_to_f64(convert_u32_to_i32(right_shift_u32(lower, broadcast_u32(6))));
    return multiply_f64(fma_f64(a, broadcast_f64(0x1p26), b), broadcast_f64(0x1p-53));
}

/* @section tw_fmod_f64 needs: tw_base */
/* The exact rest of a / b with the sign of a, as C's fmod. */
TW_COLD double tw_fmod_scalar_f64(double a, double b) {
    double rest = a < 0 ? -a : a, size = b < 0 ? -b : b, step = size;
    if (a - a != 0 || b != b || b == 0) return __builtin_nan("");
    while (step <= rest * 0.5) step *= 2;
    /* rest < 2 step: every difference is exact (Sterbenz) */
    for (; step >= size && rest >= size; step *= 0.5)
        if (rest >= step) rest -= step;
    return __builtin_signbit(a) ? -rest : rest;
}
TW_INLINE f64x16 tw_fmod_f64(f64x16 a, f64x16 b) {
    f64x16 x = absolute_f64(a), y = absolute_f64(b), q = trunc_f64(divide_f64(x, y));
    /* q is right or one too large; then the rest is negative. Both sums are exact while q < 2^53. */
    f64x16 rest = fma_f64(negative_f64(q), y, x);
    rest = copysign_f64(select_f64(less_f64(rest, F64(0)), add_f64(rest, y), rest), a);
    m64x16 easy = bitwise_and_i64(less_f64(q, F64(0x1p53)), is_finite_f64(y));
    if (__builtin_expect(!all_i64(easy), 0)) {
        f64_lanes n = {a}, d = {b}, r = {rest};
        uint32_t hard = ~mask_bits_i64(easy);
        for (int i = 0; i < 16; i++)
            if (hard >> i & 1) r.lane[i] = tw_fmod_scalar_f64(n.lane[i], d.lane[i]);
        rest = r.whole;
    }
    return rest;
}

/* @section tw_fmod_f32 needs: tw_fmod_f64 */
TW_INLINE f32x16 tw_fmod_f32(f32x16 a, f32x16 b) {
    return convert_f64_to_f32(tw_fmod_f64(convert_f32_to_f64(a), convert_f32_to_f64(b)));
}

/* @section remainder_f32 needs: tw_fmod_f32 */
/* a - b floor(a / b), exact but for one rounding when the signs differ; zero has the sign of b (np.remainder). */
TW_CALL f32x16 remainder_f32(f32x16 a, f32x16 b) {
    f32x16 rest = tw_fmod_f32(a, b), zero = F32(0);
    m32x16 differ = bitwise_xor_i32(less_f32(b, zero), less_f32(rest, zero));
    f32x16 r = select_f32(differ, add_f32(rest, b), rest);
    return select_f32(equal_f32(rest, zero), copysign_f32(zero, b), r);
}

/* @section floor_divide_f32 needs: tw_fmod_f32 */
/* floor(a / b) from the exact remainder (np.floor_divide); a / b when b is 0. */
TW_CALL f32x16 floor_divide_f32(f32x16 a, f32x16 b) {
    f32x16 rest = tw_fmod_f32(a, b), zero = F32(0), quotient = divide_f32(a, b);
    m32x16 differ = bitwise_and_i32(not_equal_f32(rest, zero), bitwise_xor_i32(less_f32(b, zero), less_f32(rest, zero)));
    f32x16 q = subtract_f32(divide_f32(subtract_f32(a, rest), b), select_f32(differ, F32(1), zero)), down = floor_f32(q);
    down = add_f32(down, select_f32(less_f32(F32(0.5), subtract_f32(q, down)), F32(1), zero));
    down = select_f32(equal_f32(q, zero), copysign_f32(zero, quotient), down);
    return select_f32(equal_f32(b, zero), quotient, down);
}

/* @section remainder_f64 needs: tw_fmod_f64 */
/* a - b floor(a / b), exact but for one rounding when the signs differ; zero has the sign of b (np.remainder). */
TW_CALL f64x16 remainder_f64(f64x16 a, f64x16 b) {
    f64x16 rest = tw_fmod_f64(a, b), zero = F64(0);
    m64x16 differ = bitwise_xor_i64(less_f64(b, zero), less_f64(rest, zero));
    f64x16 r = select_f64(differ, add_f64(rest, b), rest);
    return select_f64(equal_f64(rest, zero), copysign_f64(zero, b), r);
}

/* @section floor_divide_f64 needs: tw_fmod_f64 */
/* floor(a / b) from the exact remainder (np.floor_divide); a / b when b is 0. */
TW_CALL f64x16 floor_divide_f64(f64x16 a, f64x16 b) {
    f64x16 rest = tw_fmod_f64(a, b), zero = F64(0), quotient = divide_f64(a, b);
    m64x16 differ = bitwise_and_i64(not_equal_f64(rest, zero), bitwise_xor_i64(less_f64(b, zero), less_f64(rest, zero)));
    f64x16 q = subtract_f64(divide_f64(subtract_f64(a, rest), b), select_f64(differ, F64(1), zero)), down = floor_f64(q);
    down = add_f64(down, select_f64(less_f64(F64(0.5), subtract_f64(q, down)), F64(1), zero));
    down = select_f64(equal_f64(q, zero), copysign_f64(zero, quotient), down);
    return select_f64(equal_f64(b, zero), quotient, down);
}

/* @section tw_power_integer needs: */
/* a^n modulo 2^width by squaring. A negative n gives the whole part of 1 / a^-n: 0 unless a is 1 or -1, and 0 for a = 0. */
#define TW_POWER_INTEGER(t)                                                                        \
    TW_CALL_INTEGER t##x16 pow_##t(t##x16 a, t##x16 n) {                                           \
        t##_lanes x = {a}, y = {n};                                                                \
        for (int i = 0; i < 16; i++) {                                                             \
            uint64_t base = (uint64_t)x.lane[i], power = 1, left = (uint64_t)y.lane[i];            \
            if (y.lane[i] < (t)1 && y.lane[i] != 0) {                                              \
                if (x.lane[i] != (t)1 && x.lane[i] != (t)-1) base = 0;                             \
                left &= 1;                                                                         \
                left += 2;                                                                         \
            }                                                                                      \
            for (; left; left >>= 1, base *= base)                                                 \
                if (left & 1) power *= base;                                                       \
            x.lane[i] = (t)power;                                                                  \
        }                                                                                          \
        return x.whole;                                                                            \
    }
#define TW_CALL_INTEGER static __attribute__((noinline, unused))

/* @section pow_i8 needs: tw_power_integer */
TW_POWER_INTEGER(i8)

/* @section pow_i16 needs: tw_power_integer */
TW_POWER_INTEGER(i16)

/* @section pow_i32 needs: tw_power_integer */
TW_POWER_INTEGER(i32)

/* @section pow_i64 needs: tw_power_integer */
TW_POWER_INTEGER(i64)

/* @section pow_u8 needs: tw_power_integer */
TW_POWER_INTEGER(u8)

/* @section pow_u16 needs: tw_power_integer */
TW_POWER_INTEGER(u16)

/* @section pow_u32 needs: tw_power_integer */
TW_POWER_INTEGER(u32)

/* @section pow_u64 needs: tw_power_integer */
TW_POWER_INTEGER(u64)

/* @section tw_dot_bytes needs: */
/* Lane l: sum + the products of its 4 bytes, unsigned in a and signed in b. Whole numbers: every machine gives the same. */
#if TW_AVX512 && defined __AVX512VNNI__ && (!defined __clang__ || __has_builtin(__builtin_ia32_vpdpbusd512))
#ifdef __clang__
TW_INLINE i32x16 tw_dot_bytes(i32x16 sum, i32x16 a, i32x16 b) { return __builtin_ia32_vpdpbusd512(sum, a, b); }
#else
TW_INLINE i32x16 tw_dot_bytes(i32x16 sum, i32x16 a, i32x16 b) {
    return (i32x16)__builtin_ia32_vpdpbusd_v16si((i32_part)sum, (i32_part)a, (i32_part)b);
}
#endif
#elif TW_AVX2
TW_INLINE i32_part tw_dot_bytes_part(i32_part sum, i32_part a, i32_part b) {
    typedef short words __attribute__((vector_size(32)));
    const words x = (words)a, y = (words)b, even = (words)(a & 0xff00ff), odd = (words)((__attribute__((vector_size(32))) unsigned short)x >> 8);
    return sum + (i32_part)__builtin_ia32_pmaddwd256(even, y << 8 >> 8) + (i32_part)__builtin_ia32_pmaddwd256(odd, y >> 8);
}
TW_INLINE i32x16 tw_dot_bytes(i32x16 sum, i32x16 a, i32x16 b) {
    for (int q = 0; q < 2; q++) sum.p[q] = tw_dot_bytes_part(sum.p[q], a.p[q], b.p[q]);
    return sum;
}
#else
TW_INLINE i32x16 tw_dot_bytes(i32x16 sum, i32x16 a, i32x16 b) {
    for (int i = 0; i < 32; i += 8) {
        const i32x16 x = bitwise_and_i32(right_shift_i32(a, broadcast_i32(i)), broadcast_i32(255));
        const i32x16 y = right_shift_i32(left_shift_i32(b, broadcast_i32(24 - i)), broadcast_i32(24));
        sum = add_i32(sum, multiply_i32(x, y));
    }
    return sum;
}
#endif

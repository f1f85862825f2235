"""The C vector library against NumPy, and the same bits on every instruction set that this machine runs."""

from __future__ import annotations

import ctypes
import math
import mmap
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from thalweg.codegen.c import library

Array = np.ndarray
FLAGS = ["-O2", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror"]
COMPILER = shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
DTYPES = {
    "f32": np.float32, "f64": np.float64,
    "i8": np.int8, "i16": np.int16, "i32": np.int32, "i64": np.int64,
    "u8": np.uint8, "u16": np.uint16, "u32": np.uint32, "u64": np.uint64,
}  # fmt: skip
IS_X86 = platform.machine() in ("x86_64", "AMD64")
INTEGERS = [name for name in DTYPES if name[0] != "f"]
FLOATS = ["f32", "f64"]
# The flags of each instruction set, and the processor feature without which its programs cannot run here.
TARGETS = {
    "native": (["-march=native"], None),
    "x86-64-v3": (["-march=x86-64-v3"], "avx2"),
    "x86-64": (["-march=x86-64"], "sse2"),
    "narrow": (["-march=native", "-DTW_BYTES=16"], None),
    "scalar": (["-DTW_SCALAR=1", "-std=c99", "-pedantic"], None),
}


def mask_type(t: str) -> str:
    return "i" + t[1:]


def function_text(name: str, result: str, arguments: Sequence[str]) -> str:
    """A C function over arrays of a multiple of 16 elements that applies the vector function ``name``."""
    parameters = ", ".join(f"const {t} *a{k}" for k, t in enumerate(arguments))
    loads = ", ".join(f"load_{t}(a{k} + i)" for k, t in enumerate(arguments))
    return (
        f"void test_{name}(int64_t n, {result} *r, {parameters}) {{\n"
        f"    for (int64_t i = 0; i < n; i += 16) store_{result}(r + i, {name}({loads}));\n}}\n"
    )


class Library:
    """A compiled shared object of test functions; ``results`` remembers the type that each one returns."""

    def __init__(self, text: str, results: dict[str, str], target: str, folder: Path) -> None:
        assert COMPILER is not None
        source, shared = folder / "test.c", folder / "test.so"
        source.write_text(text, encoding="utf-8")
        # libm is left out: none of its functions may be called.
        libraries = ["-nodefaultlibs", "-Wl,-z,defs", "-lc", "-lgcc"] if platform.system() == "Linux" else []
        flags = [*FLAGS, *TARGETS[target][0], "-shared", "-fPIC"]
        command = [COMPILER, *flags, str(source), "-o", str(shared), *libraries]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[:4000]
        self.library, self.results = ctypes.CDLL(str(shared)), results

    def __call__(self, name: str, *arguments: Array) -> Array:
        size = arguments[0].size
        padded = [np.concatenate([a.ravel(), np.ones(-size % 16, a.dtype)]) for a in arguments]
        result = np.zeros(padded[0].size, DTYPES[self.results[name]])
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (result, *padded)]
        getattr(self.library, f"test_{name}")(ctypes.c_int64(result.size), *pointers)
        return result[:size]


def runnable(target: str) -> bool:
    feature = TARGETS[target][1]
    if feature is None:
        return True
    if not IS_X86:
        return False
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return feature == "sse2"
    return f" {feature} " in flags.replace("\n", " ")


@pytest.fixture(scope="session", params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> str:
    if COMPILER is None:
        pytest.skip("no C compiler here (looked for gcc, cc and clang)")
    if not runnable(request.param):
        pytest.skip(f"this processor cannot run {request.param} programs")
    return str(request.param)


def vector_functions() -> dict[str, tuple[str, list[str]]]:
    """Name of every elementwise function of vector.h: (result type, argument types)."""
    table: dict[str, tuple[str, list[str]]] = {}
    for t in DTYPES:
        m = mask_type(t)
        for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
            table[f"{name}_{t}"] = (m, [t, t])
        table[f"select_{t}"] = (t, [m, t, t])
        for name in ("add", "subtract", "multiply", "minimum", "maximum"):
            table[f"{name}_{t}"] = (t, [t, t])
        for name in ("negative", "absolute"):
            table[f"{name}_{t}"] = (t, [t])
        for other in DTYPES:
            if other != t:
                table[f"convert_{t}_to_{other}"] = (other, [t])
    for t in INTEGERS:
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift",
                     "floor_divide", "remainder"):  # fmt: skip
            table[f"{name}_{t}"] = (t, [t, t])
        table[f"bitwise_invert_{t}"] = (t, [t])
    for t in FLOATS:
        for name in ("divide", "copysign"):
            table[f"{name}_{t}"] = (t, [t, t])
        for name in ("sqrt", "rint", "floor", "ceil", "trunc"):
            table[f"{name}_{t}"] = (t, [t])
        for name in ("is_nan", "is_finite", "is_infinite"):
            table[f"{name}_{t}"] = (mask_type(t), [t])
        table[f"fma_{t}"] = (t, [t, t, t])
    for t in ("f16", "bf16"):
        table[f"convert_{t}_to_f32"] = ("f32", ["u16"])
        table[f"convert_f32_to_{t}"] = ("u16", ["f32"])
    return table


@pytest.fixture(scope="session")
def vectors(target: str, tmp_path_factory: pytest.TempPathFactory) -> Library:
    functions = vector_functions()
    text = library.header() + "".join(function_text(name, r, a) for name, (r, a) in functions.items())
    return Library(
        text, {name: r for name, (r, _) in functions.items()}, target, tmp_path_factory.mktemp("vectors")
    )


def same(received: Array, expected: Array) -> None:
    """Equal bits, except that every NaN equals every NaN."""
    assert received.dtype == expected.dtype
    equal = received.view(f"u{received.itemsize}") == expected.view(f"u{expected.itemsize}")
    if received.dtype.kind == "f":
        equal |= np.isnan(received) & np.isnan(expected)
    at = np.flatnonzero(~equal)[:5]
    assert at.size == 0, f"at {at}: received {received[at]}, expected {expected[at]}"


def special_floats(t: str) -> Array:
    """Zeros, infinities, NaN, subnormals, neighbours of powers of two and of the limits of the integers."""
    dtype = DTYPES[t]
    info = np.finfo(dtype)
    limits = [2.0**k for k in (7, 8, 15, 16, 23, 24, 31, 32, 52, 53, 63, 64)]
    smallest = float(info.smallest_subnormal)
    values = [0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 0.1, 1e-3, 1e5, 88.5, 2**22 + 0.5, info.max, info.tiny, smallest]
    values += [3 * smallest, info.eps, np.inf, np.nan, *limits]
    near = np.array(values, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.concatenate([near, np.nextafter(near, dtype(0)), np.nextafter(near, dtype(np.inf))])
    return np.concatenate([near, -near])


def random_bits(t: str, count: int, seed: int = 0) -> Array:
    """Every bit pattern of the type is as likely as any other, so all exponents occur."""
    raw = np.random.default_rng(seed).integers(0, 256, count * np.dtype(DTYPES[t]).itemsize, dtype=np.uint8)
    return raw.view(DTYPES[t])


def samples(t: str, count: int = 4096, seed: int = 0) -> Array:
    if t in FLOATS:
        normal = np.random.default_rng(seed).normal(size=count).astype(DTYPES[t]) * DTYPES[t](4)
        return np.concatenate([special_floats(t), random_bits(t, count, seed), normal])
    info = np.iinfo(DTYPES[t])
    edges = np.array(
        [0, 1, 2, 3, 7, info.max, info.max - 1, info.min, info.min + 1, info.max // 2 + 1], DTYPES[t]
    )
    small = np.random.default_rng(seed).integers(0, 12, count).astype(DTYPES[t])
    return np.concatenate([edges, -edges, random_bits(t, count, seed), small, -small])


def pairs(t: str, count: int = 4096) -> tuple[Array, Array]:
    """All pairs of special values, then random ones."""
    special = special_floats(t) if t in FLOATS else samples(t, 8)
    a, b = np.meshgrid(special, special)
    return (
        np.concatenate([a.ravel(), samples(t, count, 1)]),
        np.concatenate([b.ravel(), samples(t, count, 2)[::-1]]),
    )


@pytest.mark.parametrize("t", list(DTYPES))
def test_comparisons_and_selection(vectors: Library, t: str) -> None:
    a, b = pairs(t)
    b = np.where(np.arange(b.size) % 3 == 0, a, b)
    for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
        same(vectors(f"{name}_{t}", a, b), -getattr(np, name)(a, b).astype(DTYPES[mask_type(t)]))
    mask = np.random.default_rng(3).integers(0, 2, a.size).astype(bool)
    same(vectors(f"select_{t}", -mask.astype(DTYPES[mask_type(t)]), a, b), np.where(mask, a, b))


@pytest.mark.parametrize("t", list(DTYPES))
def test_arithmetic(vectors: Library, t: str) -> None:
    a, b = pairs(t)
    names = ["add", "subtract", "multiply"] + (["divide"] if t in FLOATS else ["floor_divide", "remainder"])
    with np.errstate(all="ignore"):
        for name in names:
            same(vectors(f"{name}_{t}", a, b), getattr(np, name)(a, b))
        for name in ("negative", "absolute"):
            same(vectors(f"{name}_{t}", a), getattr(np, name)(a))
        first_of_equals = np.where(b < a, b, a), np.where(a < b, b, a)
    for name, expected in zip(("minimum", "maximum"), first_of_equals, strict=True):
        same(vectors(f"{name}_{t}", a, b), np.where(b != b, b, expected))


@pytest.mark.parametrize("t", INTEGERS)
def test_bits_and_shifts_by_any_count(vectors: Library, t: str) -> None:
    a, b = pairs(t)
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        same(vectors(f"{name}_{t}", a, b), getattr(np, name)(a, b))
    same(vectors(f"bitwise_invert_{t}", a), ~a)
    width = a.itemsize * 8
    inside = (b >= 0) & (b < width)
    count = np.where(inside, b, 0).astype(a.dtype)
    same(vectors(f"left_shift_{t}", a, b), np.where(inside, a << count, 0).astype(a.dtype))
    beyond = np.where(a < 0, -1, 0).astype(a.dtype)
    same(vectors(f"right_shift_{t}", a, b), np.where(inside, a >> count, beyond).astype(a.dtype))


@pytest.mark.parametrize("t", FLOATS)
def test_floating_point_functions_that_are_exact(vectors: Library, t: str) -> None:
    a, b = pairs(t)
    with np.errstate(all="ignore"):
        for name in ("sqrt", "rint", "floor", "ceil", "trunc"):
            same(vectors(f"{name}_{t}", a), getattr(np, name)(a))
        same(vectors(f"copysign_{t}", a, b), np.copysign(a, b))
    for name, reference in (("is_nan", np.isnan), ("is_finite", np.isfinite), ("is_infinite", np.isinf)):
        same(vectors(f"{name}_{t}", a), -reference(a).astype(DTYPES[mask_type(t)]))


def rounded_once(a: Array, b: Array, c: Array) -> Array:
    """a * b + c with one rounding, from exact fractions; only for finite arguments whose sum is not zero."""
    results = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        try:
            with np.errstate(over="ignore", under="ignore"):
                near = a.dtype.type(float(exact))
        except OverflowError:
            near = a.dtype.type(np.inf if exact > 0 else -np.inf)
        if a.dtype == np.float32 and np.isfinite(near):
            with np.errstate(over="ignore", under="ignore"):
                around = [
                    np.nextafter(near, np.float32(-np.inf)),
                    near,
                    np.nextafter(near, np.float32(np.inf)),
                ]
            finite = [v for v in around if np.isfinite(v)]
            near = min(finite, key=lambda v: (abs(Fraction(float(v)) - exact), int(v.view(np.uint32)) & 1))
        results.append(near)
    return np.array(results, a.dtype)


@pytest.mark.parametrize("t", FLOATS)
def test_fma_rounds_once(vectors: Library, t: str) -> None:
    random = np.random.default_rng(5)
    a, b, c = (random_bits(t, 3000, seed) for seed in (1, 2, 3))
    # Exponents that cancel or that end near the subnormal numbers need all bits of the product.
    digits = np.finfo(a.dtype).nmant
    for x in (a, b):
        x[1000:] = np.ldexp(random.uniform(1, 2, 2000), random.integers(-5, 5, 2000)).astype(a.dtype)
    with np.errstate(all="ignore"):
        c[1000:2000] = -(a * b * (1 + random.integers(-2, 3, 3000) * np.finfo(a.dtype).eps)).astype(a.dtype)[
            1000:2000
        ]
        c[2000:] = np.ldexp(a[2000:], random.integers(-2 * digits - 5, 2 * digits + 5, 1000))
        small = a.dtype.type(2.0 ** (np.finfo(a.dtype).minexp // 2))
        a[1500:2500] *= small
        b[1500:2500] *= small
        c[1500:2500] *= small * small
    ok = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    ok &= np.array([Fraction(x) * Fraction(y) + Fraction(z) != 0 if k else False
                    for x, y, z, k in zip(a.tolist(), b.tolist(), c.tolist(), ok, strict=True)])  # fmt: skip
    same(vectors(f"fma_{t}", a[ok], b[ok], c[ok]), rounded_once(a[ok], b[ok], c[ok]))
    special = np.array([0.0, -0.0, 1.0, -1.0, 3.0, np.inf, -np.inf, np.nan], a.dtype)
    a, b, c = (x.ravel() for x in np.meshgrid(special, special, special))
    with np.errstate(all="ignore"):
        same(vectors(f"fma_{t}", a, b, c), a * b + c)


@np.errstate(all="ignore")
def expected_conversion(a: Array, d: str) -> Array:
    """What vector.h documents, which is NumPy's astype wherever C defines the result."""
    if a.dtype.kind != "f" or d in FLOATS:
        return a.astype(DTYPES[d])
    whole = np.trunc(a.astype(np.float64))

    def inside(low: float, high: float, t: type) -> Array:
        return np.where((whole >= low) & (whole < high), whole, low).astype(t)

    if d == "u64":
        upper = np.where((whole >= 2.0**63) & (whole < 2.0**64), whole, 0).astype(np.uint64)
        return np.where(whole >= 2.0**63, upper, inside(-(2.0**63), 2.0**63, np.int64).view(np.uint64))
    if d in ("i64", "u32"):
        return inside(-(2.0**63), 2.0**63, np.int64).astype(DTYPES[d])
    return inside(-(2.0**31), 2.0**31, np.int32).astype(DTYPES[d])


@pytest.mark.parametrize("t", list(DTYPES))
def test_conversions_between_all_types(vectors: Library, t: str) -> None:
    a = samples(t)
    for d in DTYPES:
        if d != t:
            same(vectors(f"convert_{t}_to_{d}", a), expected_conversion(a, d))


def test_float_to_integer_conversions_are_numpys(vectors: Library) -> None:
    """An independent check of the defined range, since expected_conversion repeats the documentation."""
    for t in FLOATS:
        for d in INTEGERS:
            info = np.iinfo(DTYPES[d])
            a = samples(t)
            with np.errstate(all="ignore"):
                a = a[
                    np.isfinite(a)
                    & (np.trunc(a) >= info.min)
                    & (np.trunc(a).astype(np.float64) < float(info.max))
                ]
            same(vectors(f"convert_{t}_to_{d}", a), a.astype(DTYPES[d]))


def test_half_precision(vectors: Library) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    patterns = np.arange(65536).astype(np.uint16)
    halves = patterns.view(np.float16)
    brains = patterns.view(ml_dtypes.bfloat16)
    same(vectors("convert_f16_to_f32", patterns), halves.astype(np.float32))
    same(vectors("convert_bf16_to_f32", patterns), brains.astype(np.float32))
    # Every value of each format, the middles between neighbours, and their float32 neighbours.
    values = np.concatenate([halves.astype(np.float32), brains.astype(np.float32)])
    ordered = np.unique(values[np.isfinite(values)]).astype(np.float64)
    middles = ((ordered[1:] + ordered[:-1]) / 2).astype(np.float32)
    f = np.concatenate([values, middles, random_bits("f32", 4096), special_floats("f32")])
    with np.errstate(all="ignore"):
        f = np.concatenate([f, np.nextafter(f, np.float32(np.inf)), np.nextafter(f, np.float32(-np.inf))])
        for t, expected in (("f16", f.astype(np.float16)), ("bf16", f.astype(ml_dtypes.bfloat16))):
            bits = vectors(f"convert_f32_to_{t}", f)
            nan = np.isnan(f)
            same(bits[~nan], expected.view(np.uint16)[~nan])
            quiet = 0x7E00 if t == "f16" else 0x7FC0
            assert ((bits[nan] & quiet) == quiet).all()
            assert ((bits[nan] >> 15) == np.signbit(f[nan])).all()


# ---- memory, lanes, reductions -----------------------------------------------------------------------------

MEMORY_TYPES = {**{t: t for t in DTYPES}, "f16": "uint16_t", "bf16": "uint16_t", "bool": "uint8_t"}
MEMORY_DTYPES = {**DTYPES, "f16": np.uint16, "bf16": np.uint16, "bool": np.uint8}


def memory_text() -> str:
    text = ""
    for t, c in MEMORY_TYPES.items():
        text += (
            f"void partial_{t}({c} *r, const {c} *a, int n) {{\n"
            f"    store_partial_{t}(r, load_partial_{t}(a, n), n);\n}}\n"
            f"void whole_{t}({c} *r, const {c} *a) {{ store_{t}(r, load_{t}(a)); }}\n"
            f"void strided_{t}({c} *r, const {c} *a, int64_t s) {{ store_{t}(r, load_strided_{t}(a, s)); }}\n"
            f"void gather_all_{t}({c} *r, const {c} *a, const i32 *at) {{\n"
            f"    store_{t}(r, gather_{t}(a, load_i32(at)));\n"
            f"    store_{t}(r + 16, gather_wide_{t}(a, convert_i32_to_i64(load_i32(at))));\n}}\n"
        )
    for t in DTYPES:
        m = mask_type(t)
        reductions = ["sum", "product", "min", "max"]
        calls = "".join(f"    r[{k}] = {name}_{t}(load_{t}(a));\n" for k, name in enumerate(reductions))
        text += f"void reduce_{t}({t} *r, const {t} *a) {{\n{calls}}}\n"
        text += (
            f"void lanes_{t}({t} *r, const {t} *a, int64_t stride) {{\n    store_{t}(r, iota_{t}());\n"
            f"    store_{t}(r + 16, broadcast_{t}(a[0]));\n"
            f"    for (int i = 0; i < 16; i++) r[32 + i] = lane_{t}(load_{t}(a), i);\n"
            f"    r[48] = lane_{t}(load_{t}(a), 11);\n"
            f"    store_strided_{t}(r + 64, stride, load_{t}(a));\n}}\n"
        )
        if t == m:
            text += (
                f"void mask_{t}(uint32_t *r, const {t} *a) {{\n    {m}x16 v = load_{t}(a);\n"
                f"    r[0] = mask_bits_{t}(v);\n    r[1] = (uint32_t)any_{t}(v);\n"
                f"    r[2] = (uint32_t)all_{t}(v);\n"
                f"    for (int n = 0; n <= 16; n++) r[3 + n] = mask_bits_{t}(first_lanes_{t}(n));\n}}\n"
            )
    return text + (
        "void transpose(float *r, const float *a) {\n    f32x16 row[16];\n"
        "    for (int i = 0; i < 16; i++) row[i] = load_f32(a + 16 * i);\n    transpose_f32(row);\n"
        "    for (int i = 0; i < 16; i++) store_f32(r + 16 * i, row[i]);\n"
        "    for (int i = 0; i < 16; i++) row[i] = load_f32(a + 16 * i);\n"
        "    store_f32(r + 256, sum_rows_f32(row));\n}\n"
    )


@pytest.fixture(scope="session")
def memory(target: str, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return Library(library.header() + memory_text(), {}, target, tmp_path_factory.mktemp("memory")).library


def pointer(a: Array) -> ctypes.c_void_p:
    return ctypes.c_void_p(a.ctypes.data)


def memory_sample(t: str, count: int) -> Array:
    raw = np.random.default_rng(11).integers(
        0, 256, count * np.dtype(MEMORY_DTYPES[t]).itemsize, dtype=np.uint8
    )
    if t == "bool":
        return raw % np.uint8(2)
    if t in ("f16", "bf16"):
        return raw.view(np.uint16) & np.uint16(0xBBFF if t == "f16" else 0xBF7F)  # neither infinity nor NaN
    return raw.view(MEMORY_DTYPES[t]) if t not in FLOATS else np.arange(count).astype(MEMORY_DTYPES[t]) - 2.5


@pytest.mark.parametrize("t", list(MEMORY_TYPES))
def test_whole_partial_strided_and_gathered_memory(memory: ctypes.CDLL, t: str) -> None:
    a = memory_sample(t, 200)
    for n in range(17):
        r = np.zeros(48, a.dtype)
        r.view(np.uint8)[:] = 0xA5
        expected = r.copy()
        expected[16 : 16 + n] = a[3 : 3 + n]
        getattr(memory, f"partial_{t}")(pointer(r[16:]), pointer(a[3:]), n)
        same(r, expected)
    r = np.zeros(32, a.dtype)
    getattr(memory, f"whole_{t}")(pointer(r[1:]), pointer(a[5:]))
    same(r[1:17], a[5:21])
    for stride in (0, 1, 7, -2):
        start = 40
        getattr(memory, f"strided_{t}")(pointer(r), pointer(a[start:]), ctypes.c_int64(stride))
        same(r[:16], a[start + stride * np.arange(16)])
    at = np.random.default_rng(1).integers(-30, 30, 16).astype(np.int32)
    getattr(memory, f"gather_all_{t}")(pointer(r), pointer(a[60:]), pointer(at))
    same(r, np.tile(a[60 + at], 2))


@pytest.mark.skipif(platform.system() != "Linux", reason="needs mmap and mprotect of Linux")
@pytest.mark.parametrize("t", list(MEMORY_TYPES))
def test_partial_access_never_reaches_the_next_page(memory: ctypes.CDLL, t: str) -> None:
    """The elements end at a page that may not be touched; a wrong access ends the test run."""
    page = mmap.PAGESIZE
    pages = mmap.mmap(-1, 2 * page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 0) == 0
    a = memory_sample(t, 16)
    for n in range(17):
        size = n * a.itemsize
        ctypes.memmove(start + page - size, a.ctypes.data, size)
        r = np.zeros(16, a.dtype)
        getattr(memory, f"partial_{t}")(pointer(r), ctypes.c_void_p(start + page - size), n)
        same(r[:n], a[:n])
        getattr(memory, f"partial_{t}")(ctypes.c_void_p(start + page - size), pointer(a), n)
    assert libc.mprotect(ctypes.c_void_p(start + page), ctypes.c_size_t(page), 3) == 0


@pytest.mark.parametrize("t", list(DTYPES))
def test_lanes(memory: ctypes.CDLL, t: str) -> None:
    a = samples(t, 32)[-16:]
    r = np.zeros(200, a.dtype)
    getattr(memory, f"lanes_{t}")(pointer(r), pointer(a), ctypes.c_int64(3))
    same(r[:16], np.arange(16).astype(a.dtype))
    same(r[16:32], np.full(16, a[0]))
    same(r[32:48], a)
    same(r[48:49], a[11:12])
    same(r[64:112:3], a)
    assert not r[65:112:3].any()
    assert not r[66:112:3].any()


@pytest.mark.parametrize("t", list(DTYPES))
def test_reductions_in_the_documented_tree(memory: ctypes.CDLL, t: str) -> None:
    def first_of_equals(smaller: bool) -> Callable[[Array, Array], Array]:
        def choose(a: Array, b: Array) -> Array:
            better = b < a if smaller else a < b
            return np.where(b != b, b, np.where(better, b, a))

        return choose

    operations = [np.add, np.multiply, first_of_equals(True), first_of_equals(False)]
    for seed in range(40):
        a = np.random.default_rng(seed).permutation(samples(t, 64, seed))[:16]
        r = np.zeros(4, a.dtype)
        getattr(memory, f"reduce_{t}")(pointer(r), pointer(a))
        for k, operation in enumerate(operations):
            v = a
            with np.errstate(all="ignore"):
                while v.size > 1:
                    v = operation(v[: v.size // 2], v[v.size // 2 :]).astype(a.dtype)
            same(r[k : k + 1], v)


@pytest.mark.parametrize("t", ["i8", "i16", "i32", "i64"])
def test_masks(memory: ctypes.CDLL, t: str) -> None:
    for bits in [0, 0xFFFF, *(1 << k for k in range(16)), *(0xFFFF ^ 1 << k for k in range(16)), 0x5A3C]:
        mask = -((bits >> np.arange(16)) & 1).astype(DTYPES[t])
        r = np.zeros(20, np.uint32)
        getattr(memory, f"mask_{t}")(pointer(r), pointer(mask))
        assert r[:3].tolist() == [bits, int(bits != 0), int(bits == 0xFFFF)]
        assert r[3:].tolist() == [(1 << n) - 1 for n in range(17)]


def test_transpose(memory: ctypes.CDLL) -> None:
    a = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    r = np.zeros(272, np.float32)
    memory.transpose(pointer(r), pointer(a))
    same(r[:256], np.ascontiguousarray(a.T).ravel())
    v = a
    while v.shape[1] > 1:
        v = v[:, : v.shape[1] // 2] + v[:, v.shape[1] // 2 :]
    same(r[256:], v[:, 0])


def test_scalars_have_every_function_that_vectors_have() -> None:
    """scalar.h is a second implementation: what is added to one must be added to the other."""
    if COMPILER is None:
        pytest.skip("no C compiler here (looked for gcc, cc and clang)")

    def functions(scalar: int) -> set[str]:
        command = [COMPILER, "-E", "-P", f"-DTW_SCALAR={scalar}", "-x", "c", "-"]
        done = subprocess.run(command, input=library.header(), capture_output=True, text=True, check=True)
        names = re.findall(r"static[^;{}]*?(\w+)\([^;{}()]*\) \{", done.stdout)
        return {name for name in names if not name.startswith("tw_")}

    vectors, scalars = functions(0), functions(1)
    assert "load_even_f32" in vectors
    assert vectors - scalars == set()


# ---- mathematics -------------------------------------------------------------------------------------------


def erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x.astype(np.float64)])


def logistic(x: Array) -> Array:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


# Name: (reference, bound in ulp for f32, for f64). References run in a wider type than the function.
UNARY: dict[str, tuple[Callable[[Array], Array], float, float]] = {
    "exp": (np.exp, 1.0, 0.8),
    "expm1": (np.expm1, 1.5, 2),
    "log": (np.log, 1, 1),
    "log1p": (np.log1p, 1.5, 2),
    "sin": (np.sin, 2, 1),
    "cos": (np.cos, 2, 1),
    "tan": (np.tan, 0.51, 3),
    "asin": (np.arcsin, 0.51, 2),
    "acos": (np.arccos, 0.51, 2),
    "atan": (np.arctan, 0.51, 2),
    "sinh": (np.sinh, 0.51, 3),
    "cosh": (np.cosh, 0.51, 3),
    "tanh": (np.tanh, 2.5, 3),
    "sigmoid": (logistic, 2.5, 2.5),
    "rsqrt": (lambda x: 1 / np.sqrt(x), 1.5, 1.5),
    "erf": (erf, 2.5, 2.0),
}
ABSOLUTE = ("silu", "gelu_erf")  # bounded in other terms
# Values near the poles, the joints of the pieces and the ends of the ranges.
EDGES = [
    0.25,
    0.4142,
    0.5,
    0.7071,
    0.9999999,
    1.0000001,
    1.4142,
    1.5707964,
    2.4142,
    3.1415927,
    3.9499,
    3.9501,
]
EDGES += [
    5.9999,
    6.0001,
    6.2831853,
    9.0499,
    9.0501,
    17.3,
    36.1,
    40.1,
    87.3,
    88.72,
    88.73,
    103.97,
    104.1,
    354.9,
]
EDGES += [708.4, 709.7, 709.79, 710.4, 710.5, 745.13, 745.14, 746.1, 1e5, 5e8, 5.4e8, 1e15, 1e22, 1e300]


def mathematics_text() -> tuple[str, dict[str, str]]:
    functions: dict[str, tuple[str, list[str]]] = {}
    for t in FLOATS:
        functions.update({f"{name}_{t}": (t, [t]) for name in (*UNARY, *ABSOLUTE)})
        functions.update({f"{name}_{t}": (t, [t, t]) for name in ("pow", "remainder", "floor_divide")})
    functions.update({f"pow_{t}": (t, [t, t]) for t in INTEGERS})
    functions.update({"uniform_f32": ("f32", ["u32"]), "uniform_f64": ("f64", ["u32", "u32"])})
    assert {*functions, "philox4x32"} == library.names()
    text = library.header() + library.text_for(library.names())
    text += "".join(function_text(name, r, a) for name, (r, a) in functions.items())
    text += (
        "void test_philox(int64_t n, u32 *r, const u32 *a) {\n    for (int64_t i = 0; i < n; i += 6) {\n"
        "        u32x16 c[4], k[2];\n        for (int j = 0; j < 4; j++) c[j] = broadcast_u32(a[i + j]);\n"
        "        for (int j = 0; j < 2; j++) k[j] = broadcast_u32(a[i + 4 + j]);\n        philox4x32(c, k);\n"
        "        for (int j = 0; j < 4; j++) store_u32(r + (i / 6 * 4 + j) * 16, c[j]);\n    }\n}\n"
    )
    return text, {name: r for name, (r, _) in functions.items()}


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Library]:
    """The mathematics of every instruction set that this machine runs."""
    if COMPILER is None:
        pytest.skip("no C compiler here (looked for gcc, cc and clang)")
    text, results = mathematics_text()
    return {t: Library(text, results, t, tmp_path_factory.mktemp(t)) for t in TARGETS if runnable(t)}


def on_every_target(programs: dict[str, Library], name: str, *arguments: Array) -> Array:
    """The result, which must have the same bits on every instruction set."""
    results = {target: program(name, *arguments) for target, program in programs.items()}
    first = next(iter(results.values()))
    for result in results.values():
        same(result, first)
    return first


def ulps(received: Array, exact: Array) -> Array:
    """Errors in units in the last place of the exact result; the special values must be the same ones."""
    info = np.finfo(received.dtype)
    with np.errstate(all="ignore"):
        expected = exact.astype(received.dtype)
        special = ~np.isfinite(expected) | ~np.isfinite(received)
        same(received[special], expected[special])
        zero = (expected == 0) & (received == 0)
        same(received[zero], expected[zero])
        _, exponent = np.frexp(np.abs(exact[~special]).astype(np.longdouble))
        unit = np.ldexp(np.longdouble(1), np.maximum(exponent, info.minexp + 1) - info.nmant - 1)
        return np.asarray(np.abs(received[~special].astype(np.longdouble) - exact[~special]) / unit)


def mathematics_samples(t: str) -> Array:
    edges = np.array([v for v in EDGES if v < float(np.finfo(DTYPES[t]).max)], DTYPES[t])
    random = np.random.default_rng(4)
    spread = (random.uniform(-1, 1, 6000) * 2.0 ** random.integers(-20, 11, 6000)).astype(DTYPES[t])
    return np.concatenate([edges, -edges, spread, samples(t, 6000)])


def wider(a: Array) -> Array:
    return a.astype(np.float64 if a.dtype == np.float32 else np.longdouble)


LONG_DOUBLE_IS_WIDER = np.finfo(np.longdouble).nmant > 52


@pytest.mark.parametrize("t", FLOATS)
@pytest.mark.parametrize("name", list(UNARY))
def test_functions_of_one_argument(programs: dict[str, Library], name: str, t: str) -> None:
    reference, *bounds = UNARY[name]
    a = mathematics_samples(t)
    with np.errstate(all="ignore"):
        exact = reference(wider(a))
    received = on_every_target(programs, f"{name}_{t}", a)
    bound = bounds[FLOATS.index(t)] + (0 if t == "f32" or LONG_DOUBLE_IS_WIDER else 1)
    assert ulps(received, exact).max() <= bound


def test_functions_that_end_at_one_never_pass_it(programs: dict[str, Library]) -> None:
    for t in FLOATS:
        a = np.concatenate([np.linspace(0, 30, 40000).astype(DTYPES[t]), np.array([1e30, np.inf], DTYPES[t])])
        for name in ("tanh", "erf", "sigmoid"):
            y = on_every_target(programs, f"{name}_{t}", a)
            assert y.max() == 1, name
            assert y[-1] == 1, name
            if name != "sigmoid":
                same(on_every_target(programs, f"{name}_{t}", -a), -y)


@pytest.mark.parametrize("t", FLOATS)
def test_silu_and_gelu(programs: dict[str, Library], t: str) -> None:
    a = mathematics_samples(t)
    tiny = 1e-43 if t == "f32" else 1e-320
    with np.errstate(all="ignore"):
        exact = wider(a) * logistic(wider(a))
        silu = on_every_target(programs, f"silu_{t}", a)
        finite = np.isfinite(a)
        normal = finite & ((a > -87) | (a == 0))
        assert ulps(silu[normal], exact[normal]).max() <= 4
        assert np.abs(silu - exact)[finite & ~normal].max(initial=0) <= (tiny if t == "f32" else 1e-40)
        gelu = on_every_target(programs, f"gelu_erf_{t}", a)
        exact = wider(a) * np.array([math.erfc(-v / math.sqrt(2)) for v in a.astype(np.float64)]) / 2
        error = np.abs(gelu - exact)[finite]
        size = np.abs(a[finite]).astype(np.float64)
    assert (
        error <= np.maximum(size, 1) * (2.5e-7 / 6 if t == "f32" else 3e-16) + (2e-7 if t == "f32" else 0)
    ).all()
    assert error[size < 6].max() <= (2.5e-7 if t == "f32" else 2e-15)
    ends = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0], a.dtype)
    y = on_every_target(programs, f"gelu_erf_{t}", ends)
    assert y[0] == np.inf
    assert y[1] == 0
    assert np.isnan(y[2])
    same(y[3:], ends[3:])


@pytest.mark.parametrize("t", FLOATS)
def test_pow(programs: dict[str, Library], t: str) -> None:
    random = np.random.default_rng(6)
    info = np.finfo(DTYPES[t])
    ends = [info.smallest_subnormal, 1 / info.eps, 2 / info.eps - 1, info.max]  # odd and even whole numbers
    special = np.array([0.0, 1, 2, 3, 0.5, 1.5, 1e30, np.inf, np.nan, *ends])
    x, y = np.meshgrid(np.concatenate([special, -special]), np.concatenate([special, -special]))
    x = np.concatenate(
        [
            x.ravel(),
            random.uniform(0.5, 2, 4000),
            random.uniform(-20, 20, 4000),
            np.exp(random.normal(size=4000) * 40),
        ]
    )
    y = np.concatenate(
        [
            y.ravel(),
            random.uniform(-300, 300, 4000),
            random.integers(-20, 20, 4000),
            random.uniform(-4, 4, 4000),
        ]
    )
    with np.errstate(over="ignore", under="ignore"):
        x, y = x.astype(DTYPES[t]), y.astype(DTYPES[t])
    received = on_every_target(programs, f"pow_{t}", x, y)
    with np.errstate(all="ignore"):
        exact = np.power(wider(x), wider(y))
    assert ulps(received, exact).max() <= (0.51 if t == "f32" else 1 if LONG_DOUBLE_IS_WIDER else 2)


@pytest.mark.parametrize("t", INTEGERS)
def test_integer_pow(programs: dict[str, Library], t: str) -> None:
    x, y = pairs(t, 500)
    positive = np.abs(y) % 70
    same(on_every_target(programs, f"pow_{t}", x, positive), np.power(x, positive))
    if t[0] == "i":
        base = np.array([-3, -1, 0, 1, 2, -1], x.dtype)
        same(on_every_target(programs, f"pow_{t}", base, np.array([-1, -3, -2, -5, -1, -2], x.dtype)),
             np.array([0, -1, 0, 1, 0, 1], x.dtype))  # fmt: skip


@pytest.mark.parametrize("t", FLOATS)
def test_floor_division_and_remainder_are_numpys(programs: dict[str, Library], t: str) -> None:
    random = np.random.default_rng(8)
    x, y = pairs(t, 3000)
    whole = random.integers(-50, 50, (2, 2000)).astype(DTYPES[t])
    x = np.concatenate([x, whole[0], random.normal(size=2000).astype(DTYPES[t]) * 100])
    y = np.concatenate([y, whole[1], random.normal(size=2000).astype(DTYPES[t])])
    with np.errstate(all="ignore"):
        for name in ("remainder", "floor_divide"):
            same(on_every_target(programs, f"{name}_{t}", x, y), getattr(np, name)(x, y))


def test_philox_known_answers(programs: dict[str, Library]) -> None:
    """kat_vectors of Random123 (philox4x32, 10 rounds)."""
    ones = 0xFFFFFFFF
    pi = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0]
    cases = np.array([[0] * 6, [ones] * 6, pi], np.uint32)
    answers = np.array(
        [
            [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ],
        np.uint32,
    )
    for program in programs.values():
        r = np.zeros((12, 16), np.uint32)
        program.library.test_philox(ctypes.c_int64(18), pointer(r), pointer(cases))
        same(r, np.repeat(answers.reshape(12, 1), 16, axis=1))


def test_uniform_numbers(programs: dict[str, Library]) -> None:
    a, b = pairs("u32", 4000)
    same(
        on_every_target(programs, "uniform_f32", a), ((a >> 8).astype(np.float64) / 2**24).astype(np.float32)
    )
    f = on_every_target(programs, "uniform_f64", a, b)
    same(f, ((a >> 5).astype(np.float64) * 2**26 + (b >> 6).astype(np.float64)) / 2**53)
    assert f.max() < 1


# ---- library.py --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_selection_compiles_alone_without_warnings(compiler: str, tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    alone = [[name] for name in sorted(library.names())] if compiler == "gcc" else []
    for names in ([], sorted(library.names()), *alone):
        source = tmp_path / "selection.c"
        source.write_text(library.header() + library.text_for(names), encoding="utf-8")
        command = [compiler, *FLAGS, "-fsyntax-only", str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{names}: {done.stderr[:2000]}"


def test_selection_holds_what_is_needed_once_and_nothing_else() -> None:
    text = library.text_for(["silu_f32", "exp_f32", "silu_f32"])
    assert text.count("f32x16 exp_f32(f32x16 x) {") == 1
    assert text.index("f32x16 exp_f32(") < text.index("f32x16 sigmoid_f32(") < text.index("f32x16 silu_f32(")
    assert "log" not in text
    assert library.text_for([]) == ""
    with pytest.raises(KeyError, match=r"mathematics\.h has no function 'exp_f16'; it has acos_f32"):
        library.text_for(["exp_f16"])

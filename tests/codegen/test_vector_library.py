"""The C vector library against NumPy, and the same bits on every instruction set that this machine can run."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Sequence
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
INTEGERS = [name for name in DTYPES if name[0] != "f"]
FLOATS = ["f32", "f64"]
# The flags of each instruction set, and the processor feature without which its programs cannot run here.
TARGETS = {
    "native": (["-march=native"], None),
    "x86-64-v3": (["-march=x86-64-v3"], "avx2"),
    "x86-64": (["-march=x86-64"], "sse2"),
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
        command = [COMPILER, *FLAGS, *TARGETS[target][0], "-shared", "-fPIC", str(source), "-o", str(shared)]
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
    if platform.machine() not in ("x86_64", "AMD64"):
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
    """Zeros, infinities, NaN, subnormals, the neighbours of powers of two and of the limits of the integers."""
    dtype = DTYPES[t]
    info = np.finfo(dtype)
    limits = [2.0**k for k in (7, 8, 15, 16, 23, 24, 31, 32, 52, 53, 63, 64)]
    values = [0.0, 0.5, 1.0, 1.5, 2.5, 3.0, 0.1, 1e-3, 1e5, 88.5, 2**22 + 0.5, info.max, info.tiny,
              info.smallest_subnormal, 3 * float(info.smallest_subnormal), info.eps, np.inf, np.nan, *limits]  # fmt: skip
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

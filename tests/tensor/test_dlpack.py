"""Exchange with other frameworks: no copy, both ways, and a clear word where it cannot be."""

import numpy as np
import pytest

import thalweg as tw
from thalweg.errors import ArgumentError, DataError, DTypeError, TraceError

DTYPES = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_both_ways_without_a_copy(dtype):
    source = np.arange(6).reshape(2, 3).astype(dtype)
    t = tw.from_dlpack(source)
    assert str(t.dtype) == dtype and np.shares_memory(t.numpy(), source)
    back = np.from_dlpack(t)
    assert np.shares_memory(back, source) and back.dtype == source.dtype
    np.testing.assert_array_equal(back, source)


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (2, 1, 3)])
def test_shapes_and_strides(shape):
    source = np.zeros(shape, np.float32)
    assert np.from_dlpack(tw.tensor(source)).shape == shape
    assert np.from_dlpack(tw.tensor(source).transpose()).shape == shape[::-1]
    assert np.from_dlpack(tw.zeros((2, 3))).tolist() == [[0, 0, 0], [0, 0, 0]]  # a repeated number


def test_the_memory_lives_as_long_as_the_view():
    view = np.from_dlpack(tw.tensor([1.0, 2.0]) * 2)
    assert view.tolist() == [2, 4]


def test_torch_both_ways_without_a_copy():
    torch = pytest.importorskip("torch")
    t = tw.tensor(np.arange(6, dtype=np.float32).reshape(2, 3))
    theirs = torch.from_dlpack(t)
    assert theirs.data_ptr() == t.numpy().ctypes.data and theirs.tolist() == t.tolist()
    ours = tw.from_dlpack(theirs)
    assert ours.numpy().ctypes.data == theirs.data_ptr()
    assert tw.tensor(torch.ones(2)).tolist() == [1, 1]
    assert torch.from_dlpack(t.T).tolist() == t.T.tolist()
    assert tw.compile(lambda x: x * 2)(tw.from_dlpack(torch.ones(3))).tolist() == [2, 2, 2]


def test_what_torch_cannot_give():
    torch = pytest.importorskip("torch")
    with pytest.raises(DataError, match="bfloat16"):
        tw.from_dlpack(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(DataError, match="detach"):
        tw.from_dlpack(torch.ones(2, requires_grad=True))


def test_bfloat16_says_what_to_write():
    t = tw.tensor([1.0, 2.0]).bfloat16()
    with pytest.raises(DTypeError, match="view"):
        np.from_dlpack(t)
    torch = pytest.importorskip("torch")
    theirs = torch.from_numpy(t.numpy().view("int16").copy()).view(torch.bfloat16)
    assert theirs.tolist() == [1, 2]


def test_protocol_arguments():
    t = tw.tensor([1.0])
    assert t.__dlpack_device__() == (1, 0)
    t.__dlpack__(max_version=(1, 0), dl_device=(1, 0))
    with pytest.raises(ArgumentError, match="stream"):
        t.__dlpack__(stream=1)
    with pytest.raises(ArgumentError, match="host memory"):
        t.__dlpack__(dl_device=(2, 0))
    copied = np.from_dlpack(t, copy=True) if np.lib.NumpyVersion(np.__version__) >= "2.1.0" else None
    assert copied is None or not np.shares_memory(copied, t.numpy())
    with pytest.raises(ArgumentError, match=r"tw\.tensor"):
        tw.from_dlpack([1.0])


def test_a_traced_tensor_has_no_memory():
    with pytest.raises(TraceError, match="exporting a tensor"):
        tw.compile(lambda x: np.from_dlpack(x))(tw.tensor([1.0]))

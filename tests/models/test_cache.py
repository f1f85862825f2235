"""Caches of keys and values: written in place, read up to the newest token, filled in any way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import thalweg as tw
from thalweg.models.cache import KeyValueCache
from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel
from thalweg.ops.decoding import cached_attention
from thalweg.plan import Scope


def small(room: int = 64) -> tuple[GPT2LMHeadModel, KeyValueCache, Any]:
    tw.manual_seed(3)
    model = GPT2LMHeadModel(GPT2Config(29, n_positions=64, n_embd=24, n_layer=2, n_head=3)).eval()
    cache = model.new_cache(2, room)

    def step(ids: Any, mask: Any, first: bool = False) -> Any:
        return model.next_scores(ids, mask, cache, first=first)

    return model, cache, step


def test_a_step_writes_its_rows_only() -> None:
    _, _, step = small(512)
    ids = np.zeros((2, 1), np.int64)
    plan = tw.compile(step).plan(ids, ids + 1)
    caches = [buffer for buffer in plan.state if buffer.type.shape == (2, 3, 512, 8)]
    assert len(caches) == 4
    updates = [kernel for kernel in plan.kernels if kernel.kind == "dynamic_update_slice"]
    assert len(updates) == 5  # with the places that can be seen
    assert max(kernel.traffic for kernel in updates) <= 2 * 2 * 24 * 4
    copied = [root for kernel in plan.kernels if kernel.kind == "copy" for root in kernel.roots]
    assert all(root.size <= 2 for root in copied)  # the place and the lengths
    assert max(b.nbytes for b in plan.all_buffers if b.scope is Scope.PROGRAM) < 2 * 512


@pytest.mark.parametrize("backend", ["numpy", "c"])
def test_filling_in_parts_gives_the_same_scores(backend: str, needs_compiler: None) -> None:
    model, cache, step = small()
    compiled = tw.compile(step, backend=backend)
    ids = np.random.default_rng(0).integers(0, 29, (2, 20))
    mask = np.ones_like(ids)
    mask[1, :4] = 0  # a shorter text: padding before it
    places = np.maximum(np.cumsum(mask, 1) - 1, 0)
    whole = model(ids, mask, places).logits.numpy()
    start = 0
    for count in (7, 5, 1, 1, 6):  # the first ones, several more, one by one
        end = start + count
        scores = compiled(ids[:, start:end], mask[:, start:end], start == 0).numpy()
        np.testing.assert_allclose(scores, whole[:, end - 1], rtol=1e-4, atol=1e-5)
        start = end
    assert int(cache.place.numpy()) == 20
    cache.clear()
    scores = compiled(ids[:, :7], mask[:, :7], True).numpy()
    np.testing.assert_allclose(scores, whole[:, 6], rtol=1e-4, atol=1e-5)


def test_beams_change_places() -> None:
    _, cache, step = small()
    ids = np.array([[4, 5], [7, 8]])
    step(ids, np.ones_like(ids), True)
    before = [layer.keys.numpy().copy() for layer in cache.layers]
    cache.reorder(np.array([1, 1]))
    for layer, keys in zip(cache.layers, before, strict=True):
        np.testing.assert_array_equal(layer.keys.numpy(), keys[[1, 1]])


def test_rows_behind_the_newest_are_not_read(needs_compiler: None) -> None:
    query, keys = np.ones((1, 2, 1, 8), np.float32), np.ones((1, 2, 40, 8), np.float32)
    keys[:, :, 6:] = np.nan
    attend = tw.compile(lambda q, k, v, place: cached_attention(q, k, v, place), backend="c")
    np.testing.assert_array_equal(attend(query, keys, keys, np.int64(5)).numpy(), query)


def test_threads_and_instruction_sets_give_the_same_bits(needs_compiler: None) -> None:
    random = np.random.default_rng(1)
    query = random.standard_normal((3, 4, 2, 19)).astype(np.float32)
    keys, values = random.standard_normal((2, 3, 2, 700, 19)).astype(np.float32)
    found = set()
    for threads, target in ((1, "native"), (2, "native"), (7, "native"), (1, "x86-64-v3"), (3, "x86-64")):
        attend = tw.compile(
            lambda q, k, v, place: cached_attention(q, k, v, place), threads=threads, target=target
        )
        found.add(attend(query, keys, values, np.int64(611)).numpy().tobytes())
    assert len(found) == 1

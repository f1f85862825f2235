"""Text from a model, token by token: `generate` and `stream`.

In: a model of `models.gpt` or `models.t5` and prompts as token numbers, padded on the left where lengths
differ. Out: token numbers. A step is one compiled program that takes the newest tokens and keeps all earlier
keys and values in a cache; what is drawn from its scores is decided here, in NumPy. Called by users and by
the command line.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, ShapeError
from thalweg.models.beam import BeamSearch
from thalweg.models.cache import KeyValueCache
from thalweg.models.pretrained import PretrainedModel
from thalweg.models.transformer import check_range
from thalweg.tensor.compile import compile as compile_function
from thalweg.tensor.gradient import no_grad
from thalweg.tensor.random import default_generator
from thalweg.tensor.tensor import tensor

Array = np.ndarray[Any, Any]

_BLOCK = 32  # lengths of prompts are multiples, so that few programs serve all lengths
_ROOM = 256  # tokens of the smallest cache; larger ones are powers of two. What is not used costs no time


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen from scores; the names are those of `transformers`."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ArgumentError(
                f"temperature must be above 0, received {self.temperature}; without do_sample the best "
                "token is taken"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ArgumentError(f"top_k must be at least 1 (or None for all tokens), received {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ArgumentError(f"top_p must be above 0 and at most 1, received {self.top_p}")
        if not self.repetition_penalty > 0:
            raise ArgumentError(f"repetition_penalty must be above 0, received {self.repetition_penalty}")

    def penalised(self, scores: Array, texts: Array) -> Array:
        """Scores [B, V], worse for tokens that are in the texts [B, T], where -1 is padding (Keskar et al.,
        2019).
        """
        if self.repetition_penalty == 1:
            return scores
        count = scores.shape[1]
        known = np.zeros((len(scores), count + 1), bool)  # the last column takes the padding
        np.put_along_axis(known, np.where(texts < 0, count, texts), True, 1)
        worse = np.where(scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty)
        return np.where(known[:, :count], worse, scores)

    def probabilities(self, scores: Array) -> Array:
        """The distribution [B, V] that tokens are drawn from."""
        scores = scores.astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < scores.shape[1]:
            least = np.partition(scores, -self.top_k, axis=1)[:, -self.top_k, None]
            scores = np.where(scores < least, -np.inf, scores)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        if self.top_p < 1:  # the most likely tokens that together have top_p (Holtzman et al., 2020)
            order = np.argsort(weights, 1, kind="stable")
            below = np.cumsum(np.take_along_axis(weights, order, 1), 1)
            out = below <= 1 - self.top_p
            out[:, -1] = False
            np.put_along_axis(weights, order, np.where(out, 0, np.take_along_axis(weights, order, 1)), 1)
            weights /= weights.sum(1, keepdims=True)
        return np.asarray(weights)

    def next(self, scores: Array, texts: Array, random: np.random.Generator) -> Array:
        """One token [B] for each of the texts so far."""
        scores = self.penalised(scores, texts)
        if not self.do_sample:
            return np.asarray(scores.argmax(1))
        reached = np.cumsum(self.probabilities(scores), 1)
        drawn = random.random((len(scores), 1)) * reached[:, -1:]
        return np.asarray((reached <= drawn).sum(1))


class _Steps:
    """The compiled steps of a model for one batch size and length of the cache."""

    def __init__(self, model: Any, batch: int, length: int, encoded: int, backend: str | None) -> None:
        self.cache: KeyValueCache = model.new_cache(batch, length, encoded)
        cache, reference = self.cache, weakref.ref(model)

        def next_scores(first: bool, *arguments: Any) -> Any:
            ids, mask, *encoded_mask = arguments
            return reference().next_scores(ids, mask, cache, *encoded_mask, first=first)  # type: ignore[union-attr]

        def encode(ids: Any, mask: Any) -> None:
            reference().encode(ids, mask, cache)  # type: ignore[union-attr]

        self.next_scores: Callable[..., Any] = compile_function(next_scores, backend=backend)
        self.encode: Callable[..., Any] = compile_function(encode, backend=backend)


# The steps that each model has used last and nobody uses now; another batch size or length replaces them.
_idle: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], _Steps]] = weakref.WeakKeyDictionary()


class TextModel(PretrainedModel):
    """A model that writes text: it gives the scores of the next token, and keeps what it needs in a cache."""

    config: Any

    def new_cache(self, batch: int, length: int, encoded: int = 0) -> KeyValueCache:
        """A cache for `length` tokens of `batch` texts (answers to texts of `encoded` tokens)."""
        raise NotImplementedError

    def next_scores(self, *arguments: Any, **options: Any) -> Any:
        """`next_scores(ids, mask, cache, first=...)`: scores [B, V] of what follows new tokens [B, T], which
        go into the cache. `first`: nothing is in it yet. Models with an encoder also take its mask.
        """
        raise NotImplementedError

    def generate(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Any:
        """`models.generation.generate` with this model."""
        return generate(self, input_ids, attention_mask, **options)

    def stream(self, input_ids: Any, attention_mask: Any = None, **options: Any) -> Iterator[Array]:
        """`models.generation.stream` with this model."""
        return stream(self, input_ids, attention_mask, **options)


def generate(
    model: TextModel,
    input_ids: Any,
    attention_mask: Any = None,
    *,
    num_beams: int = 1,
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    **options: Any,
) -> Any:
    """Prompts [B, T] with what follows, [B, T + new] (T5: the answers [B, 1 + new], from the start token on).

    Texts that have ended are filled with `pad_token_id`. The options are those of `stream`; with `num_beams`
    above 1 the best text by beam search, for which `length_penalty` and `early_stopping` are.
    """
    prompt, mask = _prompt(model, input_ids, attention_mask)
    first = _start(model, prompt)
    if num_beams == 1:
        new = [row[:, None] for row in stream(model, prompt, mask, **options)]
        return tensor(np.concatenate([first, *new], 1))
    found = _best_beams(model, prompt, mask, num_beams, length_penalty, early_stopping, **options)
    return tensor(np.concatenate([first, found], 1))


def _best_beams(
    model: TextModel,
    prompt: Array,
    mask: Array,
    beams: int,
    length_penalty: float,
    early_stopping: bool | str,
    *,
    max_new_tokens: int = 20,
    repetition_penalty: float = 1.0,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop: Sequence[Sequence[int]] = (),
    backend: str | None = None,
    **sampling: Any,
) -> Array:
    """The new tokens [B, new] of beam search."""
    if sampling:
        raise ArgumentError(
            f"beam search draws nothing: leave out {', '.join(sampling)}, or write num_beams=1"
        )
    choice = Choice(repetition_penalty=repetition_penalty)
    ends, padding = end_tokens(model, eos_token_id, pad_token_id)
    search = BeamSearch(len(prompt), beams, max_new_tokens, ends, stop, length_penalty, early_stopping)
    prompt, mask = prompt.repeat(beams, 0), mask.repeat(beams, 0)
    texts = newest = _start(model, prompt)
    run = Run(model, prompt, mask, texts, max_new_tokens, backend)
    texts = _without_padding(model, texts, mask)
    while not search.done:
        scores = run(newest).astype(np.float64)
        scores -= scores.max(1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(1, keepdims=True))
        rows, tokens = search.advance(choice.penalised(scores, texts))
        newest = tokens[:, None]
        texts = np.concatenate([texts[rows], newest], 1)
        if not search.done:
            run.reorder(rows)
    run.release()
    found = search.best()
    result = np.full((len(found), max(map(len, found))), padding, np.int64)
    for row, written in enumerate(found):
        result[row, : len(written)] = written
    return result


def stream(
    model: Any,
    input_ids: Any,  # [B, T]
    attention_mask: Any = None,  # [B, T], 0 for padding (on the left)
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    stop: Sequence[Sequence[int]] = (),
    backend: str | None = None,
) -> Iterator[Array]:
    """The next tokens [B] of all texts, as soon as they are known; the arguments' names are Hugging Face's.

    Without `do_sample` the best token is taken. A text ends with a token of `eos_token_id` (default: that of
    `config.json`) or with one of the token sequences `stop`, and is filled with `pad_token_id`; the stream
    ends when all have, or after `max_new_tokens`. `seed` makes the draws repeatable, else `tw.manual_seed`
    does. Raises `ShapeError` where prompt and new tokens are longer than the model's positions.
    """
    choice = Choice(do_sample, temperature, top_k, top_p, repetition_penalty)
    prompt, mask = _prompt(model, input_ids, attention_mask)
    texts = _start(model, prompt)
    ends, padding = end_tokens(model, eos_token_id, pad_token_id)
    random = random_numbers(seed)
    run = Run(model, prompt, mask, texts, max_new_tokens, backend)
    known = _without_padding(model, texts, mask)
    return _stream(run, texts, known, max_new_tokens, choice, random, ends, padding, stop)


def _stream(
    run: Run,
    texts: Array,
    known: Array,  # the same with -1 for padding
    count: int,
    choice: Choice,
    random: np.random.Generator,
    ends: Array,
    padding: int,
    stop: Sequence[Sequence[int]],
) -> Iterator[Array]:
    newest, start, ended = texts, texts.shape[1], np.zeros(len(texts), bool)
    try:
        for number in range(count):
            tokens = np.where(ended, padding, choice.next(run(newest), known, random))
            newest = tokens[:, None]
            known = np.concatenate([known, newest], 1)
            ended |= np.isin(tokens, ends)
            for words in stop:
                if 0 < len(words) <= number + 1:
                    ended |= (known[:, start:][:, -len(words) :] == np.asarray(words)).all(1)
            yield tokens
            if ended.all():
                return
    finally:
        run.release()


class Run:
    """The steps of a model for some texts: called with the newest tokens of all texts [B, T], first with the
    whole `texts`, it gives scores [B, V] of the next ones.

    A run has its cache for itself until `release`.
    """

    def __init__(
        self, model: TextModel, prompt: Array, mask: Array, texts: Array, count: int, backend: str | None
    ) -> None:
        if count < 1:
            raise ArgumentError(f"max_new_tokens must be at least 1, received {count}")
        _check_length(model, mask, count)
        seq2seq = hasattr(model, "encode")
        length = texts.shape[1]
        # padding before prompts, up to a full block
        self.before = 0 if seq2seq else _up(length) - length
        self.mask = np.pad(np.ones_like(texts) if seq2seq else mask, ((0, 0), (self.before, 0)))
        encoded = _up(prompt.shape[1]) if seq2seq else 0
        dtype = str(next(iter(model.parameters())).dtype)
        self.model = model
        self.key = (len(texts), _room(length + self.before + count), encoded, backend, dtype)
        known = _idle.pop(model, None)
        self.steps = known[1] if known and known[0] == self.key else _Steps(model, *self.key[:4])
        self.steps.cache.clear()
        self.encoded_mask: tuple[Array, ...] = ()
        if seq2seq:
            behind = ((0, 0), (0, encoded - prompt.shape[1]))
            self.encoded_mask = (np.pad(mask, behind),)
            with no_grad():
                self.steps.encode(np.pad(prompt, behind), *self.encoded_mask)

    def __call__(self, newest: Array) -> Array:
        shown = self.mask
        if newest.shape[1] == shown.shape[1] - self.before:  # the texts; with one token each all are seen
            newest, self.before = np.pad(newest, ((0, 0), (self.before, 0))), 0
            self.mask = np.ones((len(newest), 1), np.int64)
        first = newest.shape[1] > 1
        with no_grad():
            scores = self.steps.next_scores(first, newest, shown, *self.encoded_mask)
        return np.asarray(scores.numpy(), np.float32)

    def reorder(self, rows: Array) -> None:
        """Text b goes on where text `rows[b]`, of the same prompt, is."""
        self.steps.cache.reorder(rows)

    def release(self) -> None:
        """Give the cache back for the next run with this model."""
        _idle[self.model] = (self.key, self.steps)


def _check_length(model: TextModel, mask: Array, count: int) -> None:
    longest, length = positions(model), int(mask.sum(1).max())
    if longest is not None and length + count > longest:
        raise ShapeError(
            f"the prompt has {length} tokens; with max_new_tokens={count} the text is longer than the "
            f"model's {longest} positions. Cut the prompt, or ask for fewer tokens"
        )


def _up(length: int) -> int:
    return -(-length // _BLOCK) * _BLOCK


def _room(length: int) -> int:
    """Tokens of the cache for texts of that length."""
    return max(_ROOM, 1 << (length - 1).bit_length())


def positions(model: Any) -> int | None:
    """How long a text of the model may be; None for any length."""
    config = getattr(model, "config", None)
    found = getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None)
    return None if found is None else int(found)


def _prompt(model: Any, input_ids: Any, attention_mask: Any) -> tuple[Array, Array]:
    """Checked prompts and masks [B, T] as arrays of int64."""
    if not isinstance(model, TextModel):
        raise ArgumentError(
            f"{type(model).__name__} does not generate text; use GPT2LMHeadModel, LlamaForCausalLM or "
            "T5ForConditionalGeneration"
        )
    if model.training:
        raise ArgumentError("the model is in training mode, with dropout; write model.eval() before")
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or 0 in ids.shape or ids.dtype.kind not in "iu":
        raise ShapeError(
            f"input_ids must be integers [batch, length] with at least one token, received {ids.dtype} "
            f"{ids.shape}; pad shorter prompts on the left and pass attention_mask"
        )
    check_range(ids, model.config.vocab_size, "input_ids", "token")
    mask = np.ones_like(ids) if attention_mask is None else (np.asarray(attention_mask) != 0)
    if mask.shape != ids.shape:
        raise ShapeError(f"attention_mask has shape {mask.shape}; expected that of input_ids, {ids.shape}")
    mask = mask.astype(np.int64)
    if not hasattr(model, "encode") and not mask[:, -1].all():
        raise ArgumentError(
            "a prompt ends with padding, behind which no text can go on; pad on the left "
            '(tokenizer.enable_padding(direction="left"))'
        )
    return ids.astype(np.int64), mask


def _start(model: Any, prompt: Array) -> Array:
    """What new tokens are appended to: the prompts, or for T5 the start token."""
    if not hasattr(model, "encode"):
        return prompt
    start = model.config.decoder_start_token_id
    if start is None:
        raise ArgumentError(
            "config.decoder_start_token_id is missing, with which T5's answers begin (T5 has 0)"
        )
    return np.full((len(prompt), 1), start, np.int64)


def _without_padding(model: TextModel, texts: Array, mask: Array) -> Array:
    """Texts with -1 in place of the prompts' padding."""
    return texts if hasattr(model, "encode") else np.where(mask, texts, -1)


def end_tokens(model: Any, eos_token_id: Any, pad_token_id: int | None) -> tuple[Array, int]:
    """The tokens that end a text, and the one that fills it then."""
    extra = model.config.extra
    given = extra.get("eos_token_id") if eos_token_id is None else eos_token_id
    ends = np.atleast_1d(np.asarray([] if given is None else given, np.int64))
    padding = pad_token_id
    if padding is None:
        padding = getattr(model.config, "pad_token_id", extra.get("pad_token_id"))
    if padding is None:
        padding = int(ends[0]) if ends.size else 0
    return ends, padding


def random_numbers(seed: int | None) -> np.random.Generator:
    """What tokens are drawn with: from a seed, or from the default generator's next number."""
    if seed is None:
        state = default_generator.draw()[0].numpy().astype(np.uint64)
        key: Array = state[0::2] | state[1::2] << np.uint64(32)  # seed and number of the draw
        return np.random.Generator(np.random.Philox(key=key))
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ArgumentError(f"seed must be an integer from 0 on, received {seed!r}")
    return np.random.Generator(np.random.Philox(seed))

"""GPT-2 small: a prompt of 128 tokens and one new token, in 32, 16, 8 and 4 bits, against PyTorch.

    python benchmarks/decode.py                                  # three processes for each side
    python benchmarks/decode.py --processes 1 --kinds float32,int8 --markdown decode.md

What a new token costs is reading the weights: the share is the bytes of all weights that it needs, divided
by its time and by the read bandwidth, which is measured in turn with it in the same process (the largest of
240 MB of integers). Weights are random, which changes no time. Sides run in fresh processes, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

KINDS = ("float32", "bfloat16", "int8", "int4")
PROMPT, TOKENS = 128, 24
Result = dict[str, float]


def seconds(function: Callable[[], Any]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def thalweg(kind: str, threads: int) -> Result:
    """Milliseconds for prompt and token, and the share of the bandwidth."""
    import thalweg as tw
    from thalweg.models.gpt import GPT2Config, GPT2LMHeadModel

    tw.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config()).eval()
    if kind == "bfloat16":
        model.to(kind)
    elif kind != "float32":
        tw.quantize(model, kind)
    cache = model.new_cache(1, 1024)

    def scores(ids: Any, mask: Any, first: bool) -> Any:
        return model.next_scores(ids, mask, cache, first=first)

    step = tw.compile(scores, threads=threads)
    read = tw.compile(lambda x: x.max(), threads=threads)
    prompt, token = np.zeros((1, PROMPT), np.int64), np.zeros((1, 1), np.int64)
    weights = sum(holder.data.nbytes for holder in (*model.parameters(), *model.buffers()))
    weights -= model.transformer.wpe.weight.data.nbytes
    block = np.ones(60_000_000, np.int32)
    with tw.no_grad():
        step(prompt, prompt + 1, True), step(token, token + 1, False), read(block)
        first = []
        for _ in range(4):
            cache.clear()
            first.append(seconds(lambda: step(prompt, prompt + 1, True)))
        tokens, reads = [], []
        for _ in range(TOKENS):
            tokens.append(seconds(lambda: step(token, token + 1, False)))
            reads.append(seconds(lambda: read(block)))
    shares = [weights / t / (block.nbytes / r) for t, r in zip(tokens, reads, strict=True)]
    return {
        "prompt": min(first) * 1e3,
        "token": statistics.median(tokens) * 1e3,
        "best": min(tokens) * 1e3,
        "share": statistics.median(shares),
        "share of best": weights / min(tokens) / (block.nbytes / min(reads)),
        "bandwidth": block.nbytes / min(reads) / 1e9,
    }


def torch(kind: str, threads: int) -> Result:
    """The same with PyTorch and transformers, which have no 8 and 4 bits without further packages."""
    import torch
    import transformers

    if kind not in ("float32", "bfloat16"):
        return {}
    torch.set_num_threads(threads)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval().to(getattr(torch, kind))
    prompt, token = torch.zeros(1, PROMPT, dtype=torch.long), torch.zeros(1, 1, dtype=torch.long)
    first, tokens = [], []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
            first.append(time.perf_counter() - start)
        for _ in range(TOKENS):
            tokens.append(seconds(lambda: model(token, past_key_values=cache, use_cache=True)))
    return {"prompt": min(first) * 1e3, "token": statistics.median(tokens) * 1e3, "best": min(tokens) * 1e3}


def measured(side: str, kind: str, threads: int) -> Result:
    """A side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--kinds", kind, "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def table(kinds: list[str], processes: int, threads: int) -> str:
    """Medians over the processes as a Markdown table."""
    lines = [
        "| weights | prompt, ms | PyTorch | token, ms | best | PyTorch | share of bandwidth | of best |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in kinds:
        pairs = [
            (measured("thalweg", kind, threads), measured("torch", kind, threads)) for _ in range(processes)
        ]
        ours = {name: statistics.median(p[0][name] for p in pairs) for name in pairs[0][0]}
        theirs = {name: statistics.median(p[1][name] for p in pairs) for name in pairs[0][1]}
        cells = [ours["prompt"], theirs.get("prompt"), ours["token"], ours["best"], theirs.get("token")]
        cells += [ours["share"], ours["share of best"]]
        row = " | ".join("" if cell is None else f"{cell:.2f}" for cell in cells)
        lines.append(f"| {kind} | {row} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run one side, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", choices=("thalweg", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    if options.side:
        print(json.dumps({"thalweg": thalweg, "torch": torch}[options.side](kinds[0], options.threads)))
        return
    text = table(kinds, options.processes, options.threads)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

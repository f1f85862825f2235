"""LoRA (Hu et al., 2022): train small low-rank additions to the linear layers of a frozen model.

In: a model, and which of its linear layers. Out: the same model with adapters, to be trained as any other,
and then merged, or saved in the files of the PEFT library, which reads them as we read its own. Called by
users.

    lora.inject(model, ["q_proj", "v_proj"], r=8, lora_alpha=16)
    optimizer = optim.AdamW(model.parameters(), lr=1e-3)        # trains the adapters only
    ...
    lora.save(model, "adapter")                                 # lora.load(model, "adapter") elsewhere
    lora.merge(model)                                           # or: plain linear layers again
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thalweg.errors import ArgumentError, DataError
from thalweg.io import safetensors
from thalweg.io.files import atomic_write
from thalweg.nn import init
from thalweg.nn.containers import replace_modules
from thalweg.nn.dropout import Dropout
from thalweg.nn.layer import size
from thalweg.nn.linear import Linear
from thalweg.nn.module import Module
from thalweg.nn.state import check_entries

__all__ = ["LoRALinear", "adapters", "inject", "load", "merge", "save"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of names in PEFT's files
# What a configuration may say only in this way, because the rest is not done here.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layers_to_transform": ([], None),
    "layer_replication": ([], None),
    "target_parameters": ([], None),
    "exclude_modules": ([], None),
    "lora_bias": (False, None),
}


class LoRALinear(Linear):
    """y = x weight^T + bias + scaling * dropout(x) A^T B^T with A [r, in_features] and B [out_features, r].

    It has the weight and bias of the layer `base`, frozen; B begins as 0, so that nothing changes at first.
    """

    def __init__(
        self, base: Linear, r: int, lora_alpha: float, lora_dropout: float = 0.0, use_rslora: bool = False
    ) -> None:
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        for frozen in base.own_parameters():
            frozen.trainable = False
        self.r = size("r", r)
        if not lora_alpha > 0:
            raise ArgumentError(f"lora_alpha must be above 0, received {lora_alpha!r}")
        self.lora_alpha, self.use_rslora = float(lora_alpha), bool(use_rslora)
        self.lora_dropout = Dropout(lora_dropout)
        dtype = base.weight.dtype
        self.lora_A = Linear(self.in_features, self.r, bias=False, dtype=dtype)
        self.lora_B = Linear(self.r, self.out_features, bias=False, dtype=dtype)
        init.zeros_(self.lora_B.weight)

    @property
    def scaling(self) -> float:
        """lora_alpha / r, or with `use_rslora` lora_alpha / sqrt(r) (Kalajdzievski, 2023)."""
        return self.lora_alpha / (math.sqrt(self.r) if self.use_rslora else self.r)

    def forward(self, x: Any) -> Any:
        return super().forward(x) + self.lora_B(self.lora_A(self.lora_dropout(x))) * self.scaling

    def merged(self) -> Linear:
        """A plain layer that does the same; the weight itself changes."""
        product = self.lora_B.weight.numpy().astype(np.float64) @ self.lora_A.weight.numpy().astype(
            np.float64
        )
        weight = self.weight.numpy()
        self.weight.replace((weight + self.scaling * product).astype(weight.dtype))
        layer = Linear(
            self.in_features, self.out_features, bias=self.bias is not None, dtype=self.weight.dtype
        )
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, r={self.r}, lora_alpha={self.lora_alpha:g}"


def adapters(model: Module) -> dict[str, LoRALinear]:
    """Path -> layer of every adapter in the model."""
    return {path: found for path, found in model.named_modules() if isinstance(found, LoRALinear)}


def inject(
    model: Module,
    target_modules: str | Sequence[str],
    r: int = 8,
    lora_alpha: float = 8,
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
) -> list[str]:
    """Put an adapter into each linear layer that is named, freeze all else, and return the layers' paths.

    `target_modules` is a list of names (`["q_proj", "v_proj"]`: the end of a path), a regular expression for
    whole paths, or "all-linear". For models of `thalweg.models` these are the paths in the checkpoint's
    files, as in PEFT. Raises `ArgumentError` where nothing is meant, or a weight is tied to another layer's.
    """
    if adapters(model):
        raise ArgumentError("the model has adapters already; merge them before others are injected")
    linears = {path: found for path, found in model.named_modules() if type(found) is Linear and path}
    chosen = [path for path in linears if _is_target(_file_path(model, path), target_modules)]
    if not chosen:
        names = sorted({_file_path(model, path).rpartition(".")[2] for path in linears})
        raise ArgumentError(
            f"no linear layer of {type(model).__name__} is meant by target_modules={target_modules!r}; its "
            f"linear layers are called {', '.join(names)}"
        )
    uses: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    tied = [path for path in chosen if uses[id(linears[path].weight)] > 1]
    if tied:
        raise ArgumentError(
            f"the weight of {', '.join(tied)} is tied to another layer's, which merging would change "
            "too; leave "
            "it out of target_modules"
        )
    made = {path: LoRALinear(linears[path], r, lora_alpha, lora_dropout, use_rslora) for path in chosen}
    model.requires_grad_(False)
    for path, layer in made.items():
        layer.train(linears[path].training)
        for adapter in (layer.lora_A, layer.lora_B):
            adapter.requires_grad_(True)
    replace_modules(model, {id(linears[path]): layer for path, layer in made.items()})
    return chosen


def merge(model: Module) -> Module:
    """Add every adapter to the weight of its layer, which is a plain one again; returns the model.

    Parameters stay frozen; `model.requires_grad_(True)` thaws them.
    """
    replace_modules(model, {id(layer): layer.merged() for layer in adapters(model).values()})
    return model


def save(model: Module, directory: str | os.PathLike[str], base_model: str | None = None) -> None:
    """Write the adapters as PEFT does: `adapter_config.json` and `adapter_model.safetensors`.

    `base_model` is the name or directory of the model that they belong to, for the configuration. Raises
    `ArgumentError` for a model without adapters, `DataError` when the files cannot be written.
    """
    found = adapters(model)
    if not found:
        raise ArgumentError(f"{type(model).__name__} has no adapters; call nn.lora.inject(model, ...) before")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(found.values()))
    transposed = [re.compile(pattern) for pattern in getattr(type(model), "transposed", ())]
    names = [_file_path(model, path) for path in found]
    values = {
        "peft_type": "LORA",
        "base_model_name_or_path": base_model,
        "target_modules": _targets(model, names),
        "r": first.r,
        "lora_alpha": first.lora_alpha,
        "lora_dropout": first.lora_dropout.p,
        "use_rslora": first.use_rslora,
        "bias": "none",
        # GPT-2's matrices lie transposed in its files
        "fan_in_fan_out": any(pattern.search(f"{name}.weight") for pattern in transposed for name in names),
        "inference_mode": True,
        "task_type": None,
    }
    arrays = {name: holder.numpy() for name, holder in _entries(model)}
    safetensors.save(folder / _WEIGHTS, arrays, {"format": "pt"})
    atomic_write(folder / _CONFIG, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())


def load(model: Module, directory: str | os.PathLike[str], trainable: bool = False) -> list[str]:
    """Give the model the adapters in a directory, ours or PEFT's; returns the paths of the layers.

    With `trainable` they can be trained further. Raises `DataError` for files that are missing or broken,
    `ArgumentError` for what does not fit or is not supported; the model is then as it was.
    """
    folder = Path(directory)
    values = _read_config(folder / _CONFIG)
    arrays, _ = safetensors.load(folder / _WEIGHTS)
    before = {id(holder): (holder, holder.trainable) for holder in model.parameters()}
    layers = dict(model.named_modules())
    paths = inject(
        model,
        values["target_modules"],
        values["r"],
        values["lora_alpha"],
        values.get("lora_dropout") or 0.0,
        bool(values.get("use_rslora")),
    )
    try:
        checked = check_entries(f"the adapters of {type(model).__name__}", _entries(model), arrays)
    except ArgumentError:
        replace_modules(model, {id(layer): layers[path] for path, layer in adapters(model).items()})
        for holder, was in before.values():
            holder.trainable = was
        raise
    for holder, value in checked:
        holder.replace(value)
        holder.trainable = trainable
    return paths


def _read_config(path: Path) -> dict[str, Any]:
    """The entries of `adapter_config.json` that are needed, and no others that would change the result."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{os.fspath(path)!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{os.fspath(path)!r} is a JSON {type(values).__name__}, expected an object")
    for name, accepted in _ONLY.items():
        if name in values and values[name] not in accepted:
            raise ArgumentError(f"{os.fspath(path)!r}: {name}={values[name]!r} is not supported")
    absent = [name for name in ("target_modules", "r", "lora_alpha") if values.get(name) is None]
    if absent:
        raise DataError(f"{os.fspath(path)!r} lacks {', '.join(absent)}")
    return values


def _entries(model: Module) -> list[tuple[str, Any]]:
    """Name in PEFT's files and parameter of every adapter."""
    return [
        (f"{_PREFIX}{_file_path(model, path)}.{part}.weight", getattr(layer, part).weight)
        for path, layer in adapters(model).items()
        for part in ("lora_A", "lora_B")
    ]


def _file_path(model: Module, path: str) -> str:
    """The path of a layer in the files of the model's checkpoint; the same where it has no names of its
    own.
    """
    named = getattr(type(model), "checkpoint_name", None)
    return path if named is None else str(named(f"{path}.weight")).removesuffix(".weight")


def _is_target(path: str, target: str | Sequence[str]) -> bool:
    if target == "all-linear":
        return True
    if isinstance(target, str):
        return re.fullmatch(target, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in target)


def _targets(model: Module, names: list[str]) -> str | list[str]:
    """These paths as a list or, where a path is also the end of another layer's, as a regular expression."""
    linears = [_file_path(model, path) for path, found in model.named_modules() if isinstance(found, Linear)]
    meant = [path for path in linears if _is_target(path, names)]
    return sorted(names) if len(meant) == len(names) else "|".join(map(re.escape, sorted(names)))

"""Models with published weights: `from_pretrained`, `save_pretrained`, and what their classes have in common.

In: a directory (or a name on the Hugging Face hub) with `config.json` and safetensors files. Out: a model; or
the same files back, which `transformers` reads. Called by users, and by the classes of `models.bert`,
`models.t5` and `models.gpt`, each of which has beside its layers a map from its names to those in the files.
No PyTorch is needed, and nothing in the files is executed.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from thalweg import nn, types
from thalweg.errors import ArgumentError, DataError
from thalweg.io import safetensors
from thalweg.io.files import atomic_write
from thalweg.nn.init import without_drawing
from thalweg.nn.lora import adapters
from thalweg.nn.quantised import QuantisedWeight, quantize
from thalweg.nn.state import check_entries
from thalweg.tensor.state import Buffer, Parameter

Array = np.ndarray[Any, Any]
C = TypeVar("C", bound="Config")
P = TypeVar("P", bound="PretrainedModel")

# Name in "architectures" of config.json -> (module of thalweg.models, class)
ARCHITECTURES = {
    "BertModel": ("bert", "BertModel"),
    "BertForPreTraining": ("bert", "BertForMaskedLM"),  # its other head predicts the next sentence
    "BertForMaskedLM": ("bert", "BertForMaskedLM"),
    "BertForSequenceClassification": ("bert", "BertForSequenceClassification"),
    "BertForTokenClassification": ("bert", "BertForTokenClassification"),
    "DistilBertModel": ("bert", "DistilBertModel"),
    "DistilBertForMaskedLM": ("bert", "DistilBertForMaskedLM"),
    "DistilBertForSequenceClassification": ("bert", "DistilBertForSequenceClassification"),
    "DistilBertForTokenClassification": ("bert", "DistilBertForTokenClassification"),
    "T5Model": ("t5", "T5Model"),
    "T5EncoderModel": ("t5", "T5EncoderModel"),
    "T5ForConditionalGeneration": ("t5", "T5ForConditionalGeneration"),
    "GPT2Model": ("gpt", "GPT2Model"),
    "GPT2LMHeadModel": ("gpt", "GPT2LMHeadModel"),
    "LlamaModel": ("gpt", "LlamaModel"),
    "LlamaForCausalLM": ("gpt", "LlamaForCausalLM"),
    "ResNetForImageClassification": ("resnet_pretrained", "ResNetForImageClassification"),
    "ViTModel": ("vit", "ViTModel"),
    "ViTForImageClassification": ("vit", "ViTForImageClassification"),
}
# The class where config.json names none.
_BASES = {
    "bert": "BertModel",
    "distilbert": "DistilBertModel",
    "t5": "T5Model",
    "gpt2": "GPT2Model",
    "llama": "LlamaModel",
    "vit": "ViTModel",
}
_WEIGHTS, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a repository on the hub


# ---- configurations ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Config:
    """What `config.json` says of a model, under Hugging Face's names. `extra` keeps what is not used here."""

    model_type: ClassVar[str]
    # field of the dataclass -> its name in files, where that is another
    written: ClassVar[Mapping[str, str]] = {}
    # entry of config.json -> the values that are supported
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, kw_only=True)

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
        """The configuration from the entries of a `config.json`; others than the fields go to `extra`."""
        for name, accepted in cls.supported.items():
            if name in values and values[name] not in accepted:
                raise ArgumentError(
                    f"{cls.__name__}: {name}={values[name]!r} is not supported; expected "
                    + " or ".join(map(repr, accepted))
                )
        rest = dict(values)
        known: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            if field.name == "extra":
                continue
            for name in (cls.written.get(field.name, field.name), field.name):
                if name in rest:
                    known.setdefault(field.name, rest.pop(name))
        return cls(**known, extra=rest)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kinds = {"int": int, "bool": bool, "float": (int, float), "str": str}
            kind, value = kinds.get(str(field.type)), getattr(self, field.name)
            # a bool is an int for Python, not for a configuration
            if kind and (not isinstance(value, kind) or (kind is not bool and isinstance(value, bool))):  # type: ignore[arg-type]
                raise ArgumentError(
                    f"{type(self).__name__}: {field.name} must be of type {field.type}, received {value!r}"
                )
            if kind is int and value < (0 if field.name.endswith("_token_id") else 1):
                raise ArgumentError(f"{type(self).__name__}: {field.name} must be positive, received {value}")

    def to_dict(self) -> dict[str, Any]:
        """The entries of `config.json`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        extra = fields.pop("extra")
        named = {self.written.get(name, name): value for name, value in fields.items()}
        return {**extra, **named, "model_type": self.model_type}


def labels_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a `config.json` with `num_labels`, which files give as the table `id2label`."""
    if "num_labels" in values or not values.get("id2label"):
        return dict(values)
    return {**values, "num_labels": len(values["id2label"])}


def label_tables(values: dict[str, Any]) -> dict[str, Any]:
    """The entries of a `config.json` with the tables of labels in place of their number."""
    count = values.pop("num_labels")
    if len(values.get("id2label") or ()) != count:
        values["id2label"] = {str(number): f"LABEL_{number}" for number in range(count)}
        values["label2id"] = {f"LABEL_{number}": number for number in range(count)}
    return values


# ---- models ------------------------------------------------------------------------------------------------


class PretrainedModel(nn.Module):
    """Base of the models that can be loaded and saved. A class is made from a configuration alone."""

    config_class: ClassVar[type[Config]]
    # Path of a module here ("*" for a number) -> its path in files; the same where it is not listed.
    names: ClassVar[Mapping[str, str]] = {}
    # In files, how the entries of the model without head begin where there is a head.
    prefix: ClassVar[str] = ""
    has_head: ClassVar[bool] = False
    # Entries of files that may be missing with strict=False, and begin with new values (patterns).
    may_be_new: ClassVar[tuple[str, ...]] = ()
    # Entries of files that say nothing (patterns).
    ignored: ClassVar[tuple[str, ...]] = ()
    # Entries of files that hold matrices as [in, out] (patterns).
    transposed: ClassVar[tuple[str, ...]] = ()
    # How the class is called in files.
    architecture: ClassVar[str] = ""

    config: Config

    def __init__(self, config: Any, *, initialise: bool = True, **options: Any) -> None:
        """The model of that configuration; without `initialise` its weights are to be set next."""
        self.config = config
        with without_drawing():
            self.build(config, **options)
        if initialise:
            self.initial_values()

    def build(self, config: Any) -> None:
        """Make the layers."""
        raise NotImplementedError

    def initial_values(self) -> None:
        """Draw the weights."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls: type[P], name: str | os.PathLike[str], **options: Any) -> P:
        """`models.from_pretrained(name)` as this class, whatever class the files were saved from."""
        return from_pretrained(name, model_class=cls, **options)  # type: ignore[return-value]

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write `config.json` and `model.safetensors` to a directory (made where it is missing), for
        `from_pretrained` here and in `transformers`.
        """
        if adapters(self):
            raise ArgumentError(
                f"{type(self).__name__} has adapters; merge them (nn.lora.merge(model)), or save them alone "
                "(nn.lora.save(model, directory))"
            )
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Array] = {}
        seen: set[int] = set()
        for name, holder in self.checkpoint_entries():
            if id(holder) not in seen:  # tied weights are written under their first name
                seen.add(id(holder))
                value = holder.numpy()
                arrays[name] = _turned(name, value, self.transposed)
        values = self.config.to_dict()
        kinds = {f"int{module.bits}" for module in self.modules() if isinstance(module, QuantisedWeight)}
        if kinds:  # so that transformers says that it does not know the format
            values["quantization_config"] = {"quant_method": "thalweg", "kinds": sorted(kinds)}
        values["architectures"] = [self.architecture or type(self).__name__]
        values["dtype"] = str(next(iter(self.parameters())).dtype)
        values.pop("torch_dtype", None)
        text = json.dumps(values, indent=2, sort_keys=True) + "\n"
        safetensors.save(folder / _WEIGHTS, arrays, {"format": "pt"})
        (folder / _INDEX).unlink(missing_ok=True)  # of an earlier checkpoint in shards
        atomic_write(folder / _CONFIG, text.encode())

    def checkpoint_entries(self) -> list[tuple[str, Parameter | Buffer]]:
        """Name in files and parameter, tied ones under each of their names."""
        quantised: list[tuple[str, Parameter | Buffer]] = [
            (f"{path}.{name}", holder)
            for path, module in self.named_modules()
            if isinstance(module, QuantisedWeight)
            for name, holder in (("weight", module.weight), ("scale", module.scale))
        ]
        entries = [*self.named_parameters(remove_duplicate=False), *quantised]
        return [(self.checkpoint_name(name), holder) for name, holder in entries]

    @classmethod
    def checkpoint_name(cls, name: str) -> str:
        """The name in files of the parameter that is called `name` here."""
        path, _, leaf = name.rpartition(".")
        numbers = re.findall(r"(?<=\.)\d+(?=\.|$)", path)
        theirs = cls.names.get(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path))
        if theirs is None:
            return name
        for number in numbers:
            theirs = theirs.replace("*", number, 1)
        return f"{theirs}.{leaf}" if theirs else leaf

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Raise `ArgumentError` where further files of a checkpoint ask for what the class does not do."""

    @classmethod
    def adapted(cls, config: Config, entries: Mapping[str, Any]) -> Config:
        """The configuration for a checkpoint with these entries, where they say more than `config.json`."""
        return config


def from_pretrained(
    name: str | os.PathLike[str],
    *,
    model_class: type[PretrainedModel] | None = None,
    dtype: Any = "float32",
    strict: bool = True,
    revision: str | None = None,
    **changes: Any,
) -> PretrainedModel:
    """The model in a directory, or of that name on the Hugging Face hub, in evaluation mode.

    The class follows from `config.json`, unless `model_class` says it. `changes` replaces entries of the
    configuration: `num_labels=3`, `hidden_dropout_prob=0.0`. With `strict=False` a head that the files do not
    have begins with new values (the body must be complete), and entries that the model does not have are
    left out. Files are memory-mapped; weights become `dtype`. Names on the hub need the extra `hub`; what is
    in its cache is found without a network.

    Raises `DataError` for files that are missing or broken, `ArgumentError` for a configuration or weights
    that do not fit, with all names that are missing, unexpected or misshapen.
    """
    folder = checkpoint_folder(name, revision)
    values = {**read_config(folder), **changes}
    cls = model_class or _class_for(values, folder)
    accepted = cls.config_class.model_type
    if values.get("model_type", accepted) != accepted:
        raise ArgumentError(
            f"{folder / _CONFIG} describes a model of type {values['model_type']!r}; {cls.__name__} needs "
            f"{accepted!r}. Write tw.models.from_pretrained(...) to let the file choose the class"
        )
    cls.check_folder(folder)
    arrays = _in_names_of(cls, _read_weights(folder))
    config = cls.adapted(cls.config_class.from_dict(values), arrays)
    model = cls(config, initialise=not strict)
    if types.dtype(dtype) is not types.float32:
        model.to(dtype)
    _quantise_like(model, arrays)
    _load(model, arrays, strict)
    return model.eval()


def read_config(folder: Path) -> dict[str, Any]:
    """The entries of `config.json` in a directory; raises `DataError`."""
    return read_json(folder / _CONFIG)


def _class_for(values: Mapping[str, Any], folder: Path) -> type[PretrainedModel]:
    """The class that `config.json` names, or the one without head for its `model_type`."""
    kind = values.get("model_type")
    listed = values.get("architectures") or [_BASES.get(str(kind))]
    for architecture in listed:
        if architecture in ARCHITECTURES:
            module, cls = ARCHITECTURES[architecture]
            return getattr(importlib.import_module(f"thalweg.models.{module}"), cls)  # type: ignore[no-any-return]
    raise ArgumentError(
        f"{folder / _CONFIG}: unknown architecture {', '.join(map(repr, listed))} (model_type {kind!r}); "
        f"known are {', '.join(ARCHITECTURES)}. For another head on a known model name the class: "
        "BertModel.from_pretrained(...)"
    )


# ---- files -------------------------------------------------------------------------------------------------


def checkpoint_folder(name: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The directory of that name, or that of a repository on the hub after download."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    text = os.fspath(name)
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or text.startswith("."):
        raise DataError(f"there is no directory {text!r}")
    try:
        from huggingface_hub import snapshot_download  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise DataError(
            f"there is no directory {text!r}; to download a model of that name from the Hugging Face hub "
            "install the extra: pip install 'thalweg[hub]'"
        ) from error
    try:
        return Path(snapshot_download(text, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # the library raises errors of many kinds, also those of its HTTP client
        raise DataError(
            f"there is no directory {text!r}, and it cannot be fetched from the Hugging Face hub: "
            f"{type(error).__name__}: {error}"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; raises `DataError`."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"cannot read {os.fspath(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{os.fspath(path)!r} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{os.fspath(path)!r} is a JSON {type(values).__name__}, expected an object")
    return values


def _read_weights(folder: Path) -> dict[str, Array]:
    """All arrays of a checkpoint in one file or in shards, memory-mapped."""
    if (folder / _WEIGHTS).is_file():
        return safetensors.load(folder / _WEIGHTS)[0]
    if not (folder / _INDEX).is_file():
        other = sorted(path.name for path in folder.glob("*.bin"))
        hint = (
            f"; {', '.join(other)} is PyTorch's pickle, which can run any code and is not read: convert it "
            "with transformers' save_pretrained"
            if other
            else ""
        )
        raise DataError(f"{os.fspath(folder)!r} has neither {_WEIGHTS} nor {_INDEX}{hint}")
    index = read_json(folder / _INDEX)
    places = index.get("weight_map")
    if not isinstance(places, dict) or not all(_is_file_name(shard) for shard in places.values()):
        raise DataError(f"{os.fspath(folder / _INDEX)!r} needs a weight_map from names to files beside it")
    shards = sorted(set(places.values()))
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent:
        raise DataError(
            f"{os.fspath(folder)!r}: {len(absent)} of {len(shards)} files of the checkpoint are missing: "
            f"{', '.join(absent)}; the download was interrupted, start it again"
        )
    loaded = {shard: safetensors.load(folder / shard)[0] for shard in shards}
    lost = [f"{name} (in {shard})" for name, shard in places.items() if name not in loaded[shard]]
    if lost:
        raise DataError(
            f"{os.fspath(folder / _INDEX)!r} lists arrays that the files do not have: {', '.join(lost[:20])}"
        )
    return {name: loaded[shard][name] for name, shard in places.items()}


def _is_file_name(shard: Any) -> bool:
    return isinstance(shard, str) and Path(shard).name == shard and shard.endswith(".safetensors")


# ---- weights -----------------------------------------------------------------------------------------------


def _turned(name: str, array: Array, transposed: tuple[str, ...]) -> Array:
    """Between our rows and the columns of files; whole numbers are our own format."""
    return array.T if _matches(name, transposed) and types.dtype(array.dtype).is_floating else array


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def _in_names_of(cls: type[PretrainedModel], arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays under the names that the class has in files, without those that say nothing.

    A model with a head may come from files without one, whose names lack the prefix, and the other way round.
    """
    prefix = cls.prefix
    prefixed = bool(prefix) and any(name.startswith(prefix) for name in arrays)
    result: dict[str, Array] = {}
    for name, array in arrays.items():
        new = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))  # of TensorFlow's time
        if prefix and prefixed and not cls.has_head:
            if not new.startswith(prefix):
                continue  # another head
            new = new.removeprefix(prefix)
        elif prefix and cls.has_head and not prefixed and not _matches(new, cls.may_be_new):
            new = prefix + new
        if not _matches(new, cls.ignored):
            result[new] = _turned(new, array, cls.transposed)
    return result


def _quantise_like(model: PretrainedModel, arrays: Mapping[str, Array]) -> None:
    """Quantise the layers of a new model that have whole numbers in the files."""
    found = {id(holder): arrays[name].dtype for name, holder in model.checkpoint_entries() if name in arrays}
    layers = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    for kind, written in (("int8", np.int8), ("int4", np.uint8)):
        others = {path for path, layer in layers.items() if found.get(id(layer.weight)) != written}
        if len(others) < len(layers):
            quantize(model, kind, skip=others)
            layers = {path: layers[path] for path in others}


def _load(model: PretrainedModel, arrays: Mapping[str, Array], strict: bool) -> None:
    """Set every parameter, or raise one error that lists what does not fit."""
    entries: list[tuple[str, Any]] = list(model.checkpoint_entries())
    owner = f"{type(model).__name__} (names as in the files)"
    advice = "write strict=False to begin with a new head, or to leave out what the model does not have"
    if not strict:
        given = {id(holder) for name, holder in entries if name in arrays}
        new_head = {id(holder) for name, holder in entries if _matches(name, model.may_be_new)} - given
        entries = [(name, holder) for name, holder in entries if id(holder) not in new_head]
        arrays = {name: arrays[name] for name, _ in entries if name in arrays}
    for holder, value in check_entries(owner, entries, arrays, True, advice):
        holder.replace(value)

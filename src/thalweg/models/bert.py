"""BERT (Devlin et al., 2019), DistilBERT (Sanh et al., 2019), and sentence encoders of the MiniLM type.

In: token numbers [B, T] and a mask of what is padding. Out: hidden states [B, T, D], or scores of a head.
DistilBERT is BERT without token types under other names. Arguments and results are Hugging Face's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from thalweg import nn
from thalweg.errors import ArgumentError
from thalweg.models.pretrained import Config, PretrainedModel, label_tables, labels_of, read_json
from thalweg.models.transformer import (
    HeadOutput,
    ModelOutput,
    activation,
    attend,
    collected,
    index_ids,
    key_mask,
    normal_weights,
    split_heads,
    token_ids,
    token_loss,
)
from thalweg.nn import functional
from thalweg.nn.layer import refuse_shape
from thalweg.ops.core import cast, operand
from thalweg.ops.elementwise import maximum

# ---- configurations ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BertConfig(Config):
    """Sizes of BERT; the defaults are those of BERT base."""

    model_type: ClassVar[str] = "bert"
    supported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_word_embeddings": (True,),
    }

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int | None = 0
    classifier_dropout: float | None = None
    problem_type: str | None = None
    num_labels: int = 2

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        return super().from_dict(labels_of(values))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden_size % self.num_attention_heads:
            raise ArgumentError(
                f"{type(self).__name__}: hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}"
            )

    def to_dict(self) -> dict[str, Any]:
        return label_tables(super().to_dict())

    @property
    def head_dropout(self) -> float:
        """Dropout before the classifier of a head."""
        return self.hidden_dropout_prob if self.classifier_dropout is None else self.classifier_dropout


@dataclass(frozen=True)
class DistilBertConfig(BertConfig):
    """Sizes of DistilBERT; in files they have other names."""

    model_type: ClassVar[str] = "distilbert"
    written: ClassVar[Mapping[str, str]] = {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
    }

    num_hidden_layers: int = 6
    classifier_dropout: float | None = 0.2


# ---- layers ------------------------------------------------------------------------------------------------


class BertEmbeddings(nn.Module):
    """The sum of the vectors of token, position and token type, normalised: [B, T] to [B, T, D]."""

    def __init__(self, config: BertConfig, token_types: int) -> None:
        width = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.token_types = nn.Embedding(token_types, width) if token_types else None
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Any, token_type_ids: Any = None, position_ids: Any = None) -> Any:
        ids = token_ids(input_ids, self.words.num_embeddings, self.positions.num_embeddings)  # [B, T]
        x = self.words(ids)  # [B, T, D]
        if self.token_types is None:
            if token_type_ids is not None:
                raise ArgumentError("token_type_ids: the model has no token types; leave the argument out")
        elif token_type_ids is None:
            x = x + self.token_types.weight[0]
        else:
            count = self.token_types.num_embeddings
            x = x + self.token_types(index_ids(token_type_ids, count, ids.shape, "token_type_ids"))
        if position_ids is None:
            x = x + self.positions.weight[: ids.shape[1]]  # [T, D]
        else:
            count = self.positions.num_embeddings
            x = x + self.positions(index_ids(position_ids, count, ids.shape, "position_ids"))
        return self.dropout(self.norm(x))


class BertLayer(nn.Module):
    """Attention and two linear layers, each added to its input and normalised after: [B, T, D]."""

    def __init__(self, config: BertConfig) -> None:
        width, eps = config.hidden_size, config.layer_norm_eps
        self.heads, self.attention_dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=eps)
        self.up = nn.Linear(width, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, width)
        self.output_norm = nn.LayerNorm(width, eps=eps)
        self.activation = activation(config.hidden_act)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Any, mask: Any = None) -> Any:  # [B, T, D], [B, 1, 1, T]
        query, key, value = (split_heads(f(x), self.heads) for f in (self.query, self.key, self.value))
        dropout = self.attention_dropout if self.training else 0.0
        mixed = attend(query, key, value, mask, dropout=dropout)  # [B, T, D]
        x = self.attention_norm(x + self.dropout(self.output(mixed)))
        inner = self.activation(self.up(x))  # [B, T, 4 D]
        return self.output_norm(x + self.dropout(self.down(inner)))


# Paths here -> paths in files.
_BERT_NAMES = {
    "embeddings.words": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.token_types": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.*.query": "encoder.layer.*.attention.self.query",
    "layers.*.key": "encoder.layer.*.attention.self.key",
    "layers.*.value": "encoder.layer.*.attention.self.value",
    "layers.*.output": "encoder.layer.*.attention.output.dense",
    "layers.*.attention_norm": "encoder.layer.*.attention.output.LayerNorm",
    "layers.*.up": "encoder.layer.*.intermediate.dense",
    "layers.*.down": "encoder.layer.*.output.dense",
    "layers.*.output_norm": "encoder.layer.*.output.LayerNorm",
    "pooler": "pooler.dense",
}
_DISTILBERT_NAMES = {
    "embeddings.words": "embeddings.word_embeddings",
    "embeddings.positions": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.*.query": "transformer.layer.*.attention.q_lin",
    "layers.*.key": "transformer.layer.*.attention.k_lin",
    "layers.*.value": "transformer.layer.*.attention.v_lin",
    "layers.*.output": "transformer.layer.*.attention.out_lin",
    "layers.*.attention_norm": "transformer.layer.*.sa_layer_norm",
    "layers.*.up": "transformer.layer.*.ffn.lin1",
    "layers.*.down": "transformer.layer.*.ffn.lin2",
    "layers.*.output_norm": "transformer.layer.*.output_layer_norm",
}


class BertModel(PretrainedModel):
    """BERT without a head: `ModelOutput` with states [B, T, D] and the pooled first token [B, D]."""

    config_class = BertConfig
    names = _BERT_NAMES
    prefix = "bert."
    may_be_new: ClassVar[tuple[str, ...]] = (r"^pooler\.",)
    ignored = (r"embeddings\.position_ids$",)
    has_token_types: ClassVar[bool] = True
    has_pooler: ClassVar[bool] = True
    pooled_activation: ClassVar[str] = "tanh"

    config: BertConfig

    def build(self, config: BertConfig, pooling: bool | None = None) -> None:
        self.embeddings = BertEmbeddings(config, config.type_vocab_size if self.has_token_types else 0)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))
        pooling = self.has_pooler if pooling is None else pooling
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if pooling else None

    def initial_values(self) -> None:
        normal_weights(self, self.config.initializer_range)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]: 1 for tokens, 0 for padding
        token_type_ids: Any = None,  # [B, T]
        position_ids: Any = None,  # [B, T]
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        x = self.embeddings(input_ids, token_type_ids, position_ids)  # [B, T, D]
        mask = key_mask(attention_mask, x.shape[0], x.shape[1])
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        pooled = None
        if self.pooler is not None:
            pooled = activation(self.pooled_activation)(self.pooler(states[-1][:, 0]))  # [B, D]
        return ModelOutput(states[-1], collected(states, output_hidden_states), pooled)


class DistilBertModel(BertModel):
    """DistilBERT without a head: no token types, no pooler."""

    config_class = DistilBertConfig
    names = _DISTILBERT_NAMES
    prefix = "distilbert."
    may_be_new = ()
    has_token_types = False
    has_pooler = False
    pooled_activation = "relu"


# ---- heads -------------------------------------------------------------------------------------------------


class _WithHead(PretrainedModel):
    """A body and a head; subclasses say which."""

    config_class: ClassVar[type[Config]] = BertConfig
    body_class: ClassVar[type[BertModel]] = BertModel
    prefix = "bert."
    has_head = True
    ignored: ClassVar[tuple[str, ...]] = (r"embeddings\.position_ids$",)

    config: BertConfig
    body: BertModel

    def initial_values(self) -> None:
        normal_weights(self, self.config.initializer_range)


def _with_body(prefix: str, names: Mapping[str, str], head: Mapping[str, str]) -> dict[str, str]:
    return {f"body.{ours}": prefix + theirs for ours, theirs in names.items()} | dict(head)


class MaskedLMHead(nn.Module):
    """Scores of the vocabulary for each token, [B, T, D] to [B, T, V]; the last matrix is the embedding's."""

    def __init__(self, config: BertConfig, words: nn.Embedding) -> None:
        width = config.hidden_size
        self.dense = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.activation = activation(config.hidden_act)
        self.decoder = nn.Linear(width, config.vocab_size)
        self.decoder.weight = words.weight
        self.bias = self.decoder.bias  # files name it twice

    def forward(self, x: Any) -> Any:
        return self.decoder(self.norm(self.activation(self.dense(x))))


class BertForMaskedLM(_WithHead):
    """`HeadOutput` with scores [B, T, V] of every token; `labels` [B, T], -100 where nothing was hidden."""

    names = _with_body(
        "bert.",
        _BERT_NAMES,
        {
            "predictions": "cls.predictions",
            "predictions.dense": "cls.predictions.transform.dense",
            "predictions.norm": "cls.predictions.transform.LayerNorm",
            "predictions.decoder": "cls.predictions.decoder",
        },
    )
    may_be_new: ClassVar[tuple[str, ...]] = (r"^cls\.",)
    ignored: ClassVar[tuple[str, ...]] = (
        r"embeddings\.position_ids$",
        r"^bert\.pooler\.",
        r"^cls\.seq_relationship\.",
    )

    def build(self, config: BertConfig) -> None:
        self.body = self.body_class(config, initialise=False, pooling=False)
        self.predictions = MaskedLMHead(config, self.body.embeddings.words)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]
        token_type_ids: Any = None,  # [B, T]
        position_ids: Any = None,  # [B, T]
        labels: Any = None,  # [B, T]
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        found = self.body(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits = self.predictions(found.last_hidden_state)  # [B, T, V]
        loss = None if labels is None else token_loss(logits, labels)
        return HeadOutput(loss, logits, found.hidden_states)


class DistilBertForMaskedLM(BertForMaskedLM):
    """As `BertForMaskedLM`, for DistilBERT."""

    config_class = DistilBertConfig
    body_class = DistilBertModel
    prefix = "distilbert."
    names = _with_body(
        "distilbert.",
        _DISTILBERT_NAMES,
        {
            "predictions": "vocab_projector",
            "predictions.dense": "vocab_transform",
            "predictions.norm": "vocab_layer_norm",
            "predictions.decoder": "vocab_projector",
        },
    )
    may_be_new = (r"^vocab_",)
    ignored = ()


class BertForSequenceClassification(_WithHead):
    """`HeadOutput` with scores [B, num_labels] of each text.

    `labels` [B] are classes; numbers where `num_labels` is 1 (regression), or [B, num_labels] with a 0 or 1
    for each (`problem_type="multi_label_classification"`, or floating-point labels).
    """

    names = _with_body("bert.", _BERT_NAMES, {})
    may_be_new = (r"^classifier\.", r"^bert\.pooler\.")

    def build(self, config: BertConfig) -> None:
        self.body = self.body_class(config, initialise=False, pooling=True)
        self.dropout = nn.Dropout(config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]
        token_type_ids: Any = None,  # [B, T]
        position_ids: Any = None,  # [B, T]
        labels: Any = None,  # [B] or [B, num_labels]
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        found = self.body(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits = self.classifier(self.dropout(found.pooler_output))  # [B, num_labels]
        loss = None if labels is None else _text_loss(logits, operand(labels), self.config.problem_type)
        return HeadOutput(loss, logits, found.hidden_states)


def _text_loss(logits: Any, labels: Any, problem: str | None) -> Any:
    """The loss of scores [B, C] for labels of texts: by `problem`, or by what the labels look like."""
    batch, count = logits.shape
    if problem is None and count == 1:
        problem = "regression"
    elif problem is None:
        integer = labels.dtype.is_integer
        problem = "single_label_classification" if integer else "multi_label_classification"
    if problem == "single_label_classification":
        if labels.shape != (batch,):
            refuse_shape(
                f"labels has shape {tuple(labels.shape)}; expected one class for each text: {(batch,)}"
            )
        return functional.cross_entropy(logits, labels)
    if problem not in ("regression", "multi_label_classification"):
        raise ArgumentError(
            f"problem_type={problem!r} is unknown; expected single_label_classification, "
            "multi_label_classification or regression"
        )
    if labels.shape != (batch, count) and not (count == 1 and labels.shape == (batch,)):
        refuse_shape(f"labels has shape {tuple(labels.shape)}; expected {(batch, count)} for {problem}")
    targets = cast(labels, logits.dtype).reshape(batch, count)
    if problem == "regression":
        return functional.mse_loss(logits, targets)
    return functional.binary_cross_entropy_with_logits(logits, targets)


class DistilBertForSequenceClassification(BertForSequenceClassification):
    """As `BertForSequenceClassification`, for DistilBERT."""

    config_class = DistilBertConfig
    body_class = DistilBertModel
    prefix = "distilbert."
    names = _with_body("distilbert.", _DISTILBERT_NAMES, {"body.pooler": "pre_classifier"})
    may_be_new = (r"^classifier\.", r"^pre_classifier\.")


class BertForTokenClassification(_WithHead):
    """`HeadOutput` with scores [B, T, num_labels] of each token; `labels` [B, T], -100 for none."""

    names = _with_body("bert.", _BERT_NAMES, {})
    may_be_new = (r"^classifier\.",)
    ignored = (r"embeddings\.position_ids$", r"^bert\.pooler\.")

    def build(self, config: BertConfig) -> None:
        self.body = self.body_class(config, initialise=False, pooling=False)
        distilled = isinstance(config, DistilBertConfig)  # its own entry is for texts only
        self.dropout = nn.Dropout(config.hidden_dropout_prob if distilled else config.head_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]
        token_type_ids: Any = None,  # [B, T]
        position_ids: Any = None,  # [B, T]
        labels: Any = None,  # [B, T]
        output_hidden_states: bool = False,
    ) -> HeadOutput:
        found = self.body(input_ids, attention_mask, token_type_ids, position_ids, output_hidden_states)
        logits = self.classifier(self.dropout(found.last_hidden_state))  # [B, T, num_labels]
        loss = None if labels is None else token_loss(logits, labels)
        return HeadOutput(loss, logits, found.hidden_states)


class DistilBertForTokenClassification(BertForTokenClassification):
    """As `BertForTokenClassification`, for DistilBERT."""

    config_class = DistilBertConfig
    body_class = DistilBertModel
    prefix = "distilbert."
    names = _with_body("distilbert.", _DISTILBERT_NAMES, {})


# ---- sentences ---------------------------------------------------------------------------------------------


class SentenceOutput(NamedTuple):
    """One vector [B, D] for each text, and the states [B, T, D] that it is the mean of."""

    sentence_embedding: Any
    last_hidden_state: Any


class SentenceEncoder(_WithHead):
    """The mean of BERT's states over the tokens of a text, of length 1: [B, T] to [B, D].

    As all-MiniLM-L6-v2 and other models of sentence-transformers (Reimers and Gurevych, 2019). The scalar
    product of two vectors is the cosine of their angle. `normalize=False` keeps the length of the mean.
    """

    names = _with_body("bert.", _BERT_NAMES, {})
    ignored = (r"embeddings\.position_ids$", r"^bert\.pooler\.")
    architecture = "BertModel"

    def build(self, config: BertConfig, normalize: bool = True) -> None:
        self.body = self.body_class(config, initialise=False, pooling=False)
        self.normalize = normalize

    @classmethod
    def check_folder(cls, folder: Path) -> None:
        """Directories of sentence-transformers say how states become one vector."""
        path = folder / "1_Pooling" / "config.json"
        if path.is_file():
            values = read_json(path)
            # one truth value for each kind, or the kind's name
            kinds = [name for name, value in values.items() if name.startswith("pooling_mode_") and value]
            kinds += [values["pooling_mode"]] if "pooling_mode" in values else []
            if any(kind not in ("pooling_mode_mean_tokens", "mean") for kind in kinds):
                raise ArgumentError(
                    f"{path}: {', '.join(map(str, kinds))} is not supported; SentenceEncoder takes the mean "
                    "over tokens"
                )

    def forward(
        self,
        input_ids: Any,  # [B, T]
        attention_mask: Any = None,  # [B, T]
        token_type_ids: Any = None,  # [B, T]
    ) -> SentenceOutput:
        states = self.body(input_ids, attention_mask, token_type_ids).last_hidden_state  # [B, T, D]
        if attention_mask is None:
            mean = states.mean(1)
        else:
            mask = cast(key_mask(attention_mask, *states.shape[:2])[:, 0, 0], states.dtype).unsqueeze(-1)
            mean = (states * mask).sum(1) / maximum(mask.sum(1), 1.0)  # [B, D]
        return SentenceOutput(functional.normalize(mean) if self.normalize else mean, states)

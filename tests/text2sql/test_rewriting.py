"""Rewriters: what is searched is what is scored, names are copied, texts are spelled as before."""

from pathlib import Path

import pytest
import torch

from tests.reading import NoReading
from tests.text2sql.rewriters import (
    LENGTHS,
    SIZES,
    causal_lm_folder,
    fit,
    generators,
    pointer_generator,
    ready,
    seq2seq,
    tokenizer,
    turns,
)
from text2sql.encoder import (
    Vocabulary,
    build_encoder,
    find_pretrained,
    load_encoder,
    tokenizer_from,
    train_tokenizer,
)
from text2sql.rewriter_networks import PointerGenerator, PretrainedCausalLM
from text2sql.rewriting import HINTS, TEXT, Rewriter, Source, spelled, to_rewrite, to_simplify
from text2sql.schema import Schema
from text2sql.words import plural

SOURCES = [to_rewrite(example) for example in turns()]
GOLDS = [str(example.rewrite) for example in turns()]
NAMES = ["pointer-generator", "bart", "t5", "gpt2", "llama"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rewriter]:
    return generators(tmp_path_factory.mktemp("models"))


def test_learning_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the masks that networks on a GPU get, which change nothing."""
    model = pointer_generator()
    expected = model.eval().loss(SOURCES, GOLDS)
    monkeypatch.setattr("text2sql.rewriter_networks.attention_mask", ready)
    with NoReading():
        loss = model.loss(SOURCES, GOLDS)
        loss.backward()
    torch.testing.assert_close(loss, expected)


# --- layout ---------------------------------------------------------------------------------------


def test_a_source_is_laid_out_oldest_turn_first(schema: Schema) -> None:
    model = pointer_generator()
    example = turns(schema)[2]
    features = model.features([to_rewrite(example, schema_words=True)])
    written = model.tokenizer.convert_ids_to_tokens(features.ids[0])
    ends = [place for place, word in enumerate(written) if word == "[SEP]"]
    assert written[0] == "[CLS]"
    roles = features.roles[0].tolist()
    assert [roles[end] for end in ends] == [2, 1, TEXT, HINTS]
    assert not features.content[0, [0, *ends]].any()
    assert len(written) == LENGTHS["source_tokens"]  # the names of columns are cut off
    question = to_simplify(example, "How many concerts are there in 2015?")
    assert question.context == example.history


def test_what_is_too_long_loses_its_oldest_words_and_never_the_utterance() -> None:
    model = pointer_generator()
    long = Source(("Show all singers. " * 12, "Which singers?"), "What are their names?")
    features = model.features([long])
    assert features.ids.shape[1] == LENGTHS["source_tokens"]
    kept = model.vocabulary.text(features.ids[0].tolist(), model.names(long))
    assert kept.endswith("which singers ? what are their names ?")
    everything = model.features([Source((), "Show all singers. " * 40)])
    assert everything.ids.shape[1] == LENGTHS["source_tokens"]
    assert int(everything.ids[0, -1]) == model.separator


def test_padding_changes_nothing(made: dict[str, Rewriter]) -> None:
    for name, model in made.items():
        model.eval()
        together, _ = model.log_prob(SOURCES, GOLDS)
        alone = [model.log_prob([s], [g])[0][0] for s, g in zip(SOURCES, GOLDS, strict=True)]
        torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_a_source_with_several_texts_is_read_once(made: dict[str, Rewriter], name: str) -> None:
    model = made[name].eval()
    sources, texts = SOURCES[:3], GOLDS[:6]
    together, lengths = model.log_prob(sources, texts)
    gradients = torch.autograd.grad(together.sum(), list(model.parameters()), allow_unused=True)
    apart, same = model.log_prob([s for s in sources for _ in range(2)], texts)
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=1e-4)
    assert torch.equal(lengths, same)
    expected = torch.autograd.grad(apart.sum(), list(model.parameters()), allow_unused=True)
    for left, right in zip(gradients, expected, strict=True):
        if left is not None and right is not None:
            torch.testing.assert_close(left, right, atol=1e-3, rtol=1e-3)
        assert (left is None) == (right is None)


# --- search and scores ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_search_and_sampling_score_is_the_log_probability(
    made: dict[str, Rewriter], name: str
) -> None:
    """Step by step from a cache, or all at once with teacher forcing: the same numbers."""
    model = made[name].train()
    found = {
        "beam": model.generate(SOURCES[:3], beam=3),
        "sample": model.sample(SOURCES[:3], 3, generator=torch.Generator().manual_seed(1)),
    }
    assert model.training
    for how, hypotheses in found.items():
        sources = [source for source in SOURCES[:3] for _ in range(3)]
        flat = [hypothesis for some in hypotheses for hypothesis in some]
        with torch.no_grad():
            scores, lengths = model.log_prob(sources, [h.tokens for h in flat])
        scores = scores / lengths if how == "beam" else scores
        assert [h.score for h in flat] == pytest.approx(scores.tolist(), abs=1e-3), how
        assert lengths.tolist() == [len(h.tokens) for h in flat]
        if how == "beam":
            assert all(some[0].score >= some[1].score >= some[2].score for some in hypotheses)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "pointer-generator" else pytest.mark.slow)
        for name in NAMES
    ],
)
def test_every_rewriter_learns(made: dict[str, Rewriter], name: str) -> None:
    """Eight turns by heart: searched texts are then the gold ones, spelled as people wrote them."""
    model = made[name]
    fit(model, SOURCES, GOLDS, steps=250 if name == "t5" else 150, lr=5e-3)
    written = [some[0].text for some in model.generate(SOURCES, beam=2)]
    assert sum(text == gold for text, gold in zip(written, GOLDS, strict=True)) >= 7, written


# --- the pointer-generator ------------------------------------------------------------------------


def test_the_mixture_is_a_distribution_and_copying_is_part_of_it() -> None:
    model = pointer_generator().eval()
    memory = model._encode(model.features(SOURCES[:2]))
    log_probs = model._next(memory, torch.tensor([model.begin, model.begin]))
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2))
    with torch.no_grad():
        model.generates.bias.fill_(-30.0)  # copies only
        log_probs = model._next(
            model._encode(model.features(SOURCES[:2])), torch.tensor([model.begin] * 2)
        )
    for row, features in enumerate(model.features(SOURCES[:2]).ids.tolist()):
        said = set(features)
        others = [i for i in range(len(model.tokenizer)) if i not in said]
        assert float(log_probs[row, others].exp().sum().detach()) < 1e-6


@pytest.mark.slow
def test_words_and_numbers_that_training_never_saw_are_copied() -> None:
    """The point of a pointer, though training knew all words: placeholders hid them at times."""
    names = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("amo", "elly", "itox", "ora")]
    pairs = [
        (
            Source((f"Show the {plural(name)} above {1000 + 37 * number}.",), "And the oldest?"),
            f"Show the oldest {name} above {1000 + 37 * number}.",
        )
        for number, name in enumerate(names)
    ]
    known = [(*source.context, source.text, target) for source, target in pairs[:44]]
    words = train_tokenizer(dict(zip(names, known, strict=False)), 400)
    assert all(name in words.get_vocab() for name in names[:44])
    torch.manual_seed(0)
    model = PointerGenerator(build_encoder(SIZES, words), words, 2, **LENGTHS)
    fit(model, [s for s, _ in pairs[:44]], [t for _, t in pairs[:44]], steps=150)
    sources, golds = zip(*pairs[44:], strict=True)
    written = [some[0].text for some in model.generate(sources)]
    right = sum(text == gold for text, gold in zip(written, golds, strict=True))
    assert right >= 0.9 * len(golds), written


def test_a_word_keeps_its_placeholder_and_comes_back_whole() -> None:
    vocabulary = Vocabulary(train_tokenizer({"": ["Show the name of them."] * 2}))
    text = "Show the bookings of Ann, the booking of 3222 and its categories."
    ids = vocabulary.ids(text)
    names = vocabulary.names(ids)
    read = vocabulary.read(ids, names)
    spoken = vocabulary.tokenizer.convert_ids_to_tokens(read)
    assert spoken[2:4] == ["[W0]", "##s"]
    assert spoken.count("[W0]") == 2
    whole = "show the bookings of ann , the booking of 3222 and its categories ."
    assert vocabulary.text(read, names) == whole
    torch.manual_seed(0)
    drawn = vocabulary.names(ids, renamed=True)
    assert drawn.keys() == names.keys()
    assert drawn != names
    assert vocabulary.text(vocabulary.read(ids, drawn), drawn) == whole
    # What the source does not have is written in characters.
    assert vocabulary.text(vocabulary.written(vocabulary.ids("home"), names), names) == "home"


def test_all_parameters_learn_and_embeddings_are_shared() -> None:
    model = pointer_generator()
    model.loss(SOURCES, GOLDS).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # Encoder positions are read with embedded words, the decoder's have parameters of their own;
    # segment types are not told apart, roles are. The encoder's pooler is not used.
    assert without <= {
        "encoder.pooler.dense.weight",
        "encoder.pooler.dense.bias",
        "goes_on",
    } | {n for n in without if n.endswith("self.key.bias") or n == "copy_key.bias"}
    words = model.encoder.get_input_embeddings()
    assert model.decoder.get_input_embeddings() is words


def test_the_decoder_begins_with_the_encoders_weights() -> None:
    model = pointer_generator()
    encoder, decoder = (dict(part.named_parameters()) for part in (model.encoder, model.decoder))
    for name in ("self.query.weight", "output.dense.weight"):
        first = encoder[f"encoder.layer.0.attention.{name}"]
        assert torch.equal(first, decoder[f"encoder.layer.0.attention.{name}"])
        assert torch.equal(first, decoder[f"encoder.layer.0.crossattention.{name}"])


def test_roles_tell_the_turns_apart() -> None:
    model = pointer_generator().eval()
    with torch.no_grad():
        before = model.log_prob(SOURCES[:1], GOLDS[:1])[0]
        model.roles.weight[1, ::2] += 1.0
        after = model.log_prob(SOURCES[:1], GOLDS[:1])[0]
    assert not torch.equal(before, after)


def test_autocast_trains_and_searches() -> None:
    model = pointer_generator()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.loss(SOURCES, GOLDS)
        found = model.generate(SOURCES[:2], beam=2)
    loss.backward()
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    assert all(some[0].score > -20 for some in found)


def test_encoders_that_cannot_be_decoders_are_refused() -> None:
    sizes = {"model_type": "distilbert", "dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 64}
    words = tokenizer()
    with pytest.raises(ValueError, match=r"encoder: distilbert .* take BERT, RoBERTa, ELECTRA"):
        PointerGenerator(build_encoder(sizes, words), words, 1, **LENGTHS)
    with pytest.raises(ValueError, match="reads 64 at most"):
        PointerGenerator(build_encoder(SIZES, words), words, source_tokens=100)
    with pytest.raises(ValueError, match="architecture:"):
        build_encoder({"model_type": "nothing"}, words)


# --- tokenizers and models from disk --------------------------------------------------------------


def test_a_learned_tokenizer_is_the_same_from_the_same_texts_and_from_its_json() -> None:
    first = tokenizer()
    assert first.backend_tokenizer.to_str() == tokenizer().backend_tokenizer.to_str()
    again = tokenizer_from(first.backend_tokenizer.to_str())
    text = "Which singers are from France?"
    assert again.encode(text) == first.encode(text)


def test_models_that_are_not_there_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no package 'not_here' is installed; MiniLM comes with"):
        find_pretrained("package:not_here/model")
    with pytest.raises(ValueError, match="has no folder 'nothing'"):
        find_pretrained("package:text2sql/nothing")
    with pytest.raises(ValueError, match=r"pretrained=.*cannot be loaded"):
        load_encoder(str(tmp_path))
    seq2seq(tmp_path / "bart", "bart")
    with pytest.raises(ValueError, match=r"pretrained=.*cannot be loaded"):
        seq2seq(tmp_path / "bart", "bart").pretrained(str(tmp_path))


def test_a_language_model_is_refused_texts_that_it_cannot_hold(tmp_path: Path) -> None:
    folder = causal_lm_folder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ValueError, match=r"source_tokens=60, target_tokens=16.*64 together"):
        PretrainedCausalLM.pretrained(str(folder), source_tokens=60, target_tokens=16)
    model = PretrainedCausalLM.pretrained(str(folder), **LENGTHS)
    model.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        PretrainedCausalLM(model.model, model.tokenizer, **LENGTHS)


# --- edits ----------------------------------------------------------------------------------------


# --- spelling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sources", "right"),
    [
        (
            "what country is jetblue airways affiliated with ?",
            ("Which is Jetblue Airways?",),
            "What country is Jetblue Airways affiliated with?",
        ),
        (
            "which flights cost more than 2 . 5 ?",
            ("Those that cost 2.5.",),
            "Which flights cost more than 2.5?",
        ),
        (
            "who wrote to ann @ mail . com ?",
            ("Write to Ann@mail.com, please.",),
            "Who wrote to Ann@mail.com?",
        ),
        ("list ids ( in order ) , please .", ("List ids.",), "List ids (in order), please."),
        ("what is the student ' s name", (), "What is the student's name"),
        ("show which singers", ("Which singers?", "SHOW them"), "SHOW which singers"),
        ("", ("Anything",), ""),
        ("who lives in zurich ?", ("Cafés in Zürich?",), "Who lives in Zürich?"),
        ("show 日 本 cafes", ("日本 has cafés",), "Show 日本 cafés"),
    ],
)
def test_an_uncased_text_is_spelled_as_its_sources(
    text: str, sources: tuple[str, ...], right: str
) -> None:
    assert spelled(text, sources) == right

"""A ready mask hides what the mask that it is made of hides, and nothing is read for it."""

import pytest
import torch

from tests.reading import NoReading
from tests.text2sql.rewriters import SIZES
from text2sql.encoder import TAKE_READY_MASKS, build_encoder, ready_mask, train_tokenizer

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", TAKE_READY_MASKS)
def test_a_ready_mask_hides_the_same(kind: str, attention: str) -> None:
    torch.manual_seed(0)
    words = train_tokenizer({"": ["Which singers are from France?"]}, 60)
    made = {**SIZES, "model_type": kind, "attn_implementation": attention}
    encoder = build_encoder(made, words).eval()
    inputs = torch.randn(2, 5, encoder.get_input_embeddings().embedding_dim)
    for mask in (MASK, torch.ones_like(MASK)):
        expected = encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
        with NoReading():
            ready = ready_mask(encoder.config, mask, inputs, None)
            found = encoder(inputs_embeds=inputs, attention_mask=ready).last_hidden_state
        torch.testing.assert_close(found, expected)

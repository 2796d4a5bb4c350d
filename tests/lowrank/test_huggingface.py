# SPDX-License-Identifier: Apache-2.0
"""Models of Hugging Face's transformers, built from their configuration."""

import pytest
import torch
from torch import nn

import phalanx as px
from tests.lowrank.full_rank import close, full_rank

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # what the library warns of is its own

WORDS = torch.arange(14).reshape(2, 7) * 3 % 50
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def bert():
    mask = torch.ones_like(WORDS)
    mask[0, 5:] = 0
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=16, **SMALL)
    return transformers.BertForMaskedLM(config), {"input_ids": WORDS, "attention_mask": mask, "labels": WORDS}


def gpt2():
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, **ends)
    return transformers.GPT2LMHeadModel(config), {"input_ids": WORDS, "labels": WORDS}


def vit():
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=5, **SMALL)
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).sin().reshape(2, 3, 16, 16)
    return transformers.ViTForImageClassification(config), {"pixel_values": images, "labels": torch.tensor([0, 1])}


def resnet():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [2, 1], "num_labels": 5}
    config = transformers.ResNetConfig(layer_type="bottleneck", **sizes)
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).mul(9).sin().reshape(2, 3, 32, 32)
    return transformers.ResNetForImageClassification(config), {"pixel_values": images, "labels": torch.tensor([0, 1])}


def t5():
    sizes = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(decoder_start_token_id=0, pad_token_id=0, **sizes)
    return transformers.T5ForConditionalGeneration(config), {"input_ids": WORDS, "labels": WORDS}


@pytest.fixture(params=[bert, gpt2, vit, resnet, t5])
def case(request):
    torch.manual_seed(0)
    model, inputs = request.param()
    return model.eval(), inputs


def test_full_rank_is_the_identity(case):
    dense, inputs = case
    low = full_rank(dense)
    with torch.no_grad():
        assert close(low(**inputs).logits, dense(**inputs).logits)
        assert close(px.lowrank.merge(low)(**inputs).logits, dense(**inputs).logits)


def test_it_trains_merges_saves_and_counts(case, tmp_path):
    dense, inputs = case
    plan = px.lowrank.plan(dense, 0.25, sample_input=inputs)
    low = px.factorize(dense, plan)
    assert plan.parameters == sum(p.numel() for p in dense.parameters())
    assert plan.parameters_after == sum(p.numel() for p in low.parameters()) < plan.parameters
    assert plan.macs_after < plan.macs
    low(**inputs).loss.backward()
    assert all(p.grad is not None for p in low.parameters())
    px.lowrank.save_pretrained(low, tmp_path)
    again = px.lowrank.from_pretrained(tmp_path, type(dense)(dense.config)).eval()
    merged = px.lowrank.merge(low)
    assert repr(merged) == repr(dense)
    with torch.no_grad():
        wanted = low(**inputs).logits
        assert torch.equal(again(**inputs).logits, wanted) and close(merged(**inputs).logits, wanted)


def test_a_shared_vocabulary_stays_shared_also_in_factors():
    dense, inputs = gpt2()
    low = px.factorize(dense, 0.25)
    assert low.lm_head.weight is low.transformer.wte.weight
    short = px.factorize(dense, 0.25, embedding=True)
    assert short.lm_head.v is short.transformer.wte.v
    merged = px.lowrank.merge(short.eval())
    assert merged.lm_head.weight is merged.transformer.wte.weight and isinstance(merged.lm_head, nn.Linear)
    with torch.no_grad():
        assert close(merged(**inputs).logits, short(**inputs).logits)


def test_a_factorized_decoder_generates():
    low = px.factorize(gpt2()[0], 0.25).eval()
    told = px.lowrank.merge(low).generate(WORDS[:1], max_new_tokens=4, do_sample=False)
    assert torch.equal(low.generate(WORDS[:1], max_new_tokens=4, do_sample=False), told)

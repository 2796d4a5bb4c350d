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


def logits(model, inputs):
    with torch.no_grad():
        return model.eval()(**inputs).logits


def test_its_own_save_pretrained_keeps_the_factors(case, tmp_path):
    dense, inputs = case
    low = px.factorize(dense, 0.25)
    wanted = logits(low, inputs)
    low.save_pretrained(tmp_path / "theirs", max_shard_size="3KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    assert "plan" in (tmp_path / "theirs/config.json").read_text()
    again = type(dense).from_pretrained(tmp_path / "theirs")
    assert torch.equal(logits(again, inputs), wanted)
    assert torch.equal(logits(px.lowrank.from_pretrained(tmp_path / "theirs"), inputs), wanted)
    again.save_pretrained(tmp_path / "twice")
    assert torch.equal(logits(type(dense).from_pretrained(tmp_path / "twice"), inputs), wanted)
    px.lowrank.save_pretrained(low, tmp_path / "ours")
    assert torch.equal(logits(type(dense).from_pretrained(tmp_path / "ours"), inputs), wanted)
    merged = px.lowrank.merge(again)
    merged.save_pretrained(tmp_path / "dense")
    assert "quant_method" not in (tmp_path / "dense/config.json").read_text()
    assert torch.equal(logits(type(dense).from_pretrained(tmp_path / "dense"), inputs), logits(merged, inputs))


def test_shared_factors_and_the_generation_config_survive_a_save(tmp_path):
    dense, inputs = gpt2()
    dense.generation_config.max_new_tokens = 7
    low = px.factorize(dense, 0.25, embedding=True)
    low.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.v is again.transformer.wte.v and again.generation_config.max_new_tokens == 7
    assert torch.equal(logits(again, inputs), logits(low, inputs))


def test_a_trainer_saves_and_goes_on_with_factors(tmp_path):
    pytest.importorskip("accelerate")
    dense, inputs = gpt2()
    low = px.factorize(dense, 0.25)
    rows = [{"input_ids": row, "labels": row} for row in WORDS.repeat(4, 1)]
    sizes = {"per_device_train_batch_size": 2, "save_steps": 2, "logging_strategy": "no", "report_to": [], "seed": 0}
    settings = transformers.TrainingArguments(tmp_path / "run", max_steps=4, use_cpu=True, **sizes)
    trainer = transformers.Trainer(low, settings, train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    wanted = logits(low, inputs)
    for folder in ("saved", "run/checkpoint-4"):
        assert torch.equal(logits(type(dense).from_pretrained(tmp_path / folder), inputs), wanted)
    again = transformers.Trainer(px.factorize(dense, 0.25), settings, train_dataset=rows)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert close(logits(again.model, inputs), wanted)


def test_a_process_without_the_module_refuses_the_folder(tmp_path, monkeypatch):
    from transformers.quantizers import auto

    from phalanx.lowrank import huggingface

    px.factorize(gpt2()[0], 0.25).save_pretrained(tmp_path)
    for table in (auto.AUTO_QUANTIZER_MAPPING, auto.AUTO_QUANTIZATION_CONFIG_MAPPING):
        monkeypatch.delitem(table, huggingface.METHOD)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_fused_experts_have_a_row_and_count():
    sizes = {
        "vocab_size": 50,
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "head_dim": 8,
    }
    mixture = transformers.MixtralForCausalLM(transformers.MixtralConfig(**SMALL, **sizes)).eval()
    with pytest.warns(UserWarning, match="of the parameters are experts of mixtures in one tensor each, which stay"):
        plan = px.lowrank.plan(mixture, 0.25, sample_input={"input_ids": WORDS})
    rows = [entry for entry in plan if entry.kind == "experts"]
    assert len(rows) == 4 and all(entry.rank is None and "no low-rank form" in entry.reason for entry in rows)
    assert plan.parameters == sum(p.numel() for p in mixture.parameters())
    chosen = 2 * WORDS.numel()  # two experts a word, of gate, up and down
    assert sum(entry.macs for entry in rows) == 2 * chosen * 3 * 32 * 64
    counted = px.lowrank.macs(mixture, WORDS)
    assert counted["model.layers.0.mlp.experts"] == chosen * 3 * 32 * 64
    with pytest.warns(UserWarning, match="which stay full"):
        low = px.factorize(mixture, 0.25)
    assert sum(p.numel() for p in low.parameters()) == plan.parameters_after


def test_adapters_are_left_alone_and_do_not_merge_into_factors():
    peft = pytest.importorskip("peft")
    dense, inputs = gpt2()
    adapted = peft.get_peft_model(dense, peft.LoraConfig(r=4, target_modules=["c_fc"], fan_in_fan_out=True))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    adapters = {name: p.clone() for name, p in adapted.named_parameters() if "lora_" in name}
    plan = px.lowrank.plan(adapted, 0.25)
    kept = [entry for entry in plan if "lora_" in entry.name]
    assert len(kept) == 4 and all((e.rank, e.reason) == (None, "an adapter of PEFT") for e in kept)
    low = px.factorize(adapted, plan)
    after = {name: p for name, p in low.named_parameters() if "lora_" in name}
    assert after.keys() == adapters.keys() and all(torch.equal(p, adapters[name]) for name, p in after.items())
    assert sum("base_layer.v" in name for name, _ in low.named_parameters()) == 2
    with pytest.raises(ValueError, match="cannot be merged into factors; make the model dense"):
        low.merge_and_unload()
    again = px.lowrank.merge(low)
    wanted = logits(again, inputs)
    assert close(logits(low, inputs), wanted)
    assert close(logits(again.merge_and_unload(), inputs), wanted)
    with pytest.raises(ValueError, match=r"LowRankLinear.* is not supported"):
        peft.get_peft_model(px.factorize(gpt2()[0], 0.25), peft.LoraConfig(target_modules=["c_fc"]))

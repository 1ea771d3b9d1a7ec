"""Pretrained text networks: random tiny ones, saved to a folder as the libraries save them."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch

from understudy.core import Feature, Unsupported, UserError, keys
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.pretrained.text import TransformersText
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_encoder, random_dataset

needs_transformers = pytest.mark.skipif(importlib.util.find_spec("transformers") is None,
                                        reason="extra transformers not installed")
WORDS = ("push", "pull", "the", "red", "blue", "block", "to", "bowl")
SENTENCES = ("push the red block", "pull the blue block to the bowl", "push", "push the red block")
TASK = {"observation.task": Feature("uint8", (40,), "text")}


def as_bytes(*texts, length=40):
    return torch.tensor([list(t.encode().ljust(length, b"\0")) for t in texts], dtype=torch.uint8)


def _save_tokenizer(folder):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = {t: i for i, t in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[
        ("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                            sep_token="[SEP]", model_max_length=12).save_pretrained(folder)
    return lambda text: torch.tensor([[2, *(tokens.get(w, 1) for w in text.split()), 3]])


def _bert():
    import transformers as t

    return t.BertModel(t.BertConfig(vocab_size=12, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                    intermediate_size=8, max_position_embeddings=12)).eval()


def _save(kind, folder):
    """Saves a network, and returns a function from a sentence to the vector that it should give."""
    import transformers as t

    ids = _save_tokenizer(folder)
    if kind == "clip":
        text = t.CLIPTextConfig(vocab_size=12, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                                intermediate_size=8, max_position_embeddings=12, eos_token_id=3, bos_token_id=2,
                                pad_token_id=0)
        vision = t.CLIPVisionConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                                    image_size=8, patch_size=4)
        model = t.CLIPModel(t.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(),
                                         projection_dim=8)).eval()
        model.save_pretrained(folder)
        return lambda s: model.text_model(input_ids=ids(s)).pooler_output[0]
    model = _bert()
    model.save_pretrained(folder)
    if kind == "bert":
        return lambda s: model(input_ids=ids(s)).last_hidden_state[0].mean(0)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""},
               {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
               {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({
        "word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}))

    def want(sentence):
        tokens = ids(sentence)
        tokens = tokens if tokens.shape[1] <= 5 else torch.cat([tokens[:, :4], tokens[:, -1:]], 1)
        return torch.nn.functional.normalize(model(input_ids=tokens).last_hidden_state[0, 0], dim=0)
    return want


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folders = {}

    def find(kind):
        if kind not in folders:
            folder = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                folders[kind] = folder, _save(kind, folder)
        return folders[kind]
    return find


@needs_transformers
@pytest.mark.parametrize("kind", ["bert", "clip", "sentence"])
@torch.no_grad()
def test_embeddings_are_those_of_the_network_and_each_sentence_is_read_once(saved, kind):
    folder, want = saved(kind)
    net = TransformersText(str(folder)).build(6)
    read, plain = [], net.embed
    net.embed = lambda sentences: read.extend(sentences) or plain(sentences)
    out = net(as_bytes(*SENTENCES))
    torch.testing.assert_close(out, net.leave(torch.stack([want(s) for s in SENTENCES])), rtol=1e-5, atol=1e-5)
    assert torch.equal(net(as_bytes(*SENTENCES[::-1], length=64)), out.flip(0))  # whatever the padding
    assert read == list(SENTENCES[:3])
    net(as_bytes("push the bowl"))
    assert read[3:] == ["push the bowl"]


@needs_transformers
def test_it_keeps_the_contract_of_encoders_and_only_the_last_layer_is_trained(saved):
    text = TransformersText(str(saved("clip")[0]))
    check_encoder(TokenEncoder(8, text=text), TASK)
    net = text.build(6)
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {"leave.weight", "leave.bias"}
    net.requires_grad_(True).train()(as_bytes(*SENTENCES)).sum().backward()
    assert all((p.grad is None) == (not n.startswith("leave")) for n, p in net.named_parameters())


@needs_transformers
@pytest.mark.parametrize("kind", ["clip", "sentence"])
@torch.no_grad()
def test_a_checkpoint_needs_no_pretrained_folder(saved, tmp_path, kind):
    shutil.copytree(saved(kind)[0], tmp_path / "weights")
    data = random_dataset({**TASK, "action": Feature("float32", (2,))}, episodes=2, steps=6)
    encoder = TokenEncoder(8, text=TransformersText(str(tmp_path / "weights")))
    with torch.enable_grad():
        method = Method(PolicyConfig(Regression(), MLP(8, 1), encoder), learner=BehaviorCloning(2, batch_size=4))
        policy = fit_method(method, data, seed=0).policy
    policy.save(tmp_path / "run")
    shutil.rmtree(tmp_path / "weights")
    again, obs = Policy.load(tmp_path / "run"), {"observation.task": as_bytes(*SENTENCES)[:, None]}
    noise = policy.noise(keys(0, range(4)), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(again.plan(obs, noise), policy.plan(obs, noise), rtol=1e-6, atol=1e-6)


@needs_transformers
def test_what_cannot_be_read_is_named(saved, tmp_path):
    shutil.copytree(saved("sentence")[0], tmp_path / "w")
    text = TransformersText(str(tmp_path / "w"))
    (tmp_path / "w/1_Pooling/config.json").write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(UserError, match="pooling pooling_mode_weightedmean_tokens is not one of mean"):
        text.build(8)
    (tmp_path / "w/modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": ""}]))
    with pytest.raises(Unsupported, match="with a module Dense"):
        text.build(8)
    config = json.loads((tmp_path / "w/config.json").read_text())
    (tmp_path / "w/config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
    with pytest.raises(Unsupported, match="with a decoder"):
        text.build(8)
    (tmp_path / "w/config.json").write_text(json.dumps(config))
    (tmp_path / "w/tokenizer.json").unlink()
    with pytest.raises(UserError, match="cannot be read"):
        text.build(8)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install 'understudy\[transformers\]'"):
        TransformersText("x").build(8)


@needs_transformers
def test_a_policy_that_reads_words_with_it_is_not_exported(saved, tmp_path):
    pytest.importorskip("onnxscript", reason="extra onnx not installed")
    from understudy.deploy.onnx import export

    encoder = TokenEncoder(8, text=TransformersText(str(saved("bert")[0])))
    data = random_dataset({**TASK, "action": Feature("float32", (2,))}, episodes=2, steps=6)
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), encoder), data.features()).fit_statistics(data)
    with pytest.raises(Unsupported, match="no tokenizer"):
        export(policy, tmp_path / "p.onnx")


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None,
                    reason="sentence-transformers not installed")
@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@torch.no_grad()
def test_embeddings_are_those_of_sentence_transformers(tmp_path, pooling):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    _save_tokenizer(tmp_path / "bert")
    _bert().save_pretrained(tmp_path / "bert")
    body = Transformer(str(tmp_path / "bert"), max_seq_length=6)
    reference = SentenceTransformer(modules=[body, Pooling(8, pooling_mode=pooling), Normalize()], device="cpu")
    reference.save(str(tmp_path / "whole"))
    embeddings = TransformersText(str(tmp_path / "whole")).build(4).embed(list(SENTENCES))
    torch.testing.assert_close(embeddings, torch.from_numpy(reference.encode(list(SENTENCES))), rtol=1e-5, atol=1e-5)

"""Exported folders in the pinned ``transformers``: with the modelling file that they carry, and as plain Llama."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
)

from benchmarks.llama_config import llama_config
from megatron_pixel.api import load
from megatron_pixel.config.errors import UserError
from megatron_pixel.data.tokenizer import Tokenizer
from megatron_pixel.generation.model import open_model
from megatron_pixel.generation.sampling import Sampling
from megatron_pixel.generation.tokens import write_tokens
from megatron_pixel.interop.exporting import ExportOptions, to_hf
from megatron_pixel.interop.importing import from_hf
from megatron_pixel.interop.open import open_any
from megatron_pixel.interop.source import open_released
from tests.interop.helpers import SMALL, full_tensors, write_canonical
from tests.interop.plain import Plain

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", autouse=True)
def own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Remote code is copied to a cache: to one of these tests, not to the user's."""
    place = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", place)
        patch.syspath_prepend(place)
        yield


@pytest.fixture(scope="module")
def remote(exported: Path, own_module_cache: None) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()


def test_the_same_logits_as_the_plain_architecture(remote: torch.nn.Module, exported: Path) -> None:
    plain = Plain(exported)
    page = torch.randint(0, 256, (9, 8, 8, 3), dtype=torch.uint8)
    strip = page.permute(3, 1, 0, 2).flatten(2).float() / 255
    tokens = torch.randint(3, SMALL.vocab_size, (7,))
    everything = torch.ones(16, dtype=torch.bool)
    with torch.no_grad():
        text = remote(input_ids=tokens[None])
        pixel = remote(pixel_values=strip[None])
        pair = remote(input_ids=tokens[None], pixel_values=strip[None])
        mask = everything.clone()
        mask[5:9] = False  # as the released code pads an image
        padded = remote(input_ids=tokens[None], pixel_values=strip[None], attention_mask=mask[None].long())
    states = plain.hidden(plain.tokens(tokens), torch.arange(7), everything[:7])
    torch.testing.assert_close(text.logits[0], plain.head("lm_token_head", states), **CLOSE)
    states = plain.hidden(plain.patches(strip), torch.arange(9), everything[:9])
    torch.testing.assert_close(pixel.logits_pixel[0], plain.head("lm_pixel_head", states), **CLOSE)
    embedded = torch.cat([plain.patches(strip), plain.tokens(tokens)])
    for output, content in ((pair, everything), (padded, mask)):
        states = plain.hidden(embedded, torch.arange(16), content)
        torch.testing.assert_close(output.logits_token[0], plain.head("lm_token_head", states[9:]), **CLOSE)
        kept = content[:9]
        expected = plain.head("lm_pixel_head", states[:9])[kept]
        torch.testing.assert_close(output.logits_pixel[0][kept], expected, **CLOSE)


def test_the_bare_model_and_what_transformers_saves_again(
    remote: torch.nn.Module, exported: Path, run: Path, tmp_path: Path
) -> None:
    plain, tokens = Plain(exported), torch.randint(3, SMALL.vocab_size, (7,))
    bare = AutoModel.from_pretrained(exported, trust_remote_code=True).eval()
    with torch.no_grad():
        hidden = bare(input_ids=tokens[None]).last_hidden_state[0]
    expected = plain.hidden(plain.tokens(tokens), torch.arange(7), torch.ones(7, dtype=torch.bool))
    torch.testing.assert_close(hidden, expected, **CLOSE)
    remote.save_pretrained(tmp_path / "again")
    again, ours = open_released(tmp_path / "again"), open_any(run)
    assert (again.model, again.pair) == (ours.model, ours.pair)
    assert all(torch.equal(again.read(name, "fp32"), ours.source.read(name, "fp32")) for name in ours.source.shapes)


def test_generate_with_and_without_its_cache_and_as_ours(remote: torch.nn.Module, exported: Path, run: Path) -> None:
    model = open_model(run)
    prompt = model.text_prompt("the congress")
    ids = torch.from_numpy(prompt.tokens)[None]
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = remote.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, remote.generate(ids, use_cache=False, **options))
    ours = write_tokens(model.decoder, [prompt], Sampling(), 12)[0].tokens
    assert cached[0, ids.shape[1] :].tolist() == ours


def test_a_page_is_read_with_a_cache(remote: torch.nn.Module) -> None:
    """Patches one by one give what they give at once."""
    strip = torch.rand(1, 3, 8, 6 * 8)
    with torch.no_grad():
        whole = remote(pixel_values=strip).logits_pixel
        cache, steps = None, []
        for i in range(6):
            output = remote(pixel_values=strip[..., i * 8 : (i + 1) * 8], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            steps.append(output.logits_pixel)
    torch.testing.assert_close(torch.cat(steps, 1), whole, **CLOSE)


def test_the_tokenizer_gives_the_same_ids(exported: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(exported, trust_remote_code=True)
    ours = Tokenizer(exported / "tokenizer.model")
    for text in ("the congress of the united states", "a  report, 2026: naïve", "ünïcode"):
        ids = theirs(text)["input_ids"]
        assert ids == [ours.bos_id, *ours.encode(text).tolist()]
    assert (theirs.bos_token_id, theirs.eos_token_id) == (ours.bos_id, ours.eos_id)


def test_a_classifier_scores_the_last_real_position(tmp_path: Path, tokenizer: Path) -> None:
    write_canonical(tmp_path / "run", SMALL, full_tensors(SMALL, labels=3), tokenizer, labels=["a", "b", "c"])
    to_hf(open_any(tmp_path / "run"), tmp_path / "out", ExportOptions())
    remote = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", trust_remote_code=True).eval()
    ids = torch.from_numpy(load(tmp_path / "run").parts.text_prompt("the congress met").tokens)[None]
    padded = torch.nn.functional.pad(ids, (0, 3))
    mask = torch.ones_like(padded)
    mask[:, -3:] = 0
    with torch.no_grad():
        plain, short = remote(input_ids=ids).logits, remote(input_ids=padded, attention_mask=mask).logits
    torch.testing.assert_close(plain, short, **CLOSE)
    for folder in ("run", "out"):
        ours = load(tmp_path / folder)
        assert ours.parts.checkpoint.labels == ("a", "b", "c")
        scores = ours.parts.decoder.head("score", ours.embed(["the congress met"]))
        torch.testing.assert_close(scores, plain, **CLOSE)


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(4)
    config = llama_config(
        SMALL,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        rope_theta=500.0,
        initializer_range=0.3,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("tied", [False, True])
def test_plain_llama_comes_in(tied: bool, tmp_path: Path) -> None:
    theirs = llama(tied)
    theirs.save_pretrained(tmp_path / "llama")
    checkpoint, lines = from_hf(open_released(tmp_path / "llama"), tmp_path / "ours")
    assert any("drawn anew" in line and "0.patches.projection.weight" in line for line in lines)
    model = open_model(checkpoint)
    tokens = torch.randint(3, SMALL.vocab_size, (1, 20))
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
    hidden = model.decoder.forward(model.decoder.embed_tokens(tokens), torch.arange(20)[None])
    torch.testing.assert_close(model.decoder.head("token", hidden), expected, **CLOSE)
    assert model.decoder.model.seq_length == 64
    # What is drawn anew has the spread of a model that begins.
    weight = model.checkpoint.source.read("0.patches.projection.weight", "fp32")
    assert weight.std().item() == pytest.approx(np.sqrt(2 / (SMALL.hidden + 768)), rel=0.1)


def test_a_head_that_is_missing_is_the_embedding_only_where_the_config_says_so(tmp_path: Path) -> None:
    llama(tied=True).save_pretrained(tmp_path / "llama")
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    source = open_released(tmp_path / "llama")
    assert torch.equal(source.read("4.heads.token.linear.weight", "fp32"), source.read("0.tokens.weight", "fp32"))
    (tmp_path / "llama" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"lm_head.weight \[300, 32\]: missing"):
        open_released(tmp_path / "llama")


def test_textgpt_goes_out_as_plain_llama(run: Path, tmp_path: Path) -> None:
    to_hf(open_any(run), tmp_path / "out", ExportOptions(layout="llama"))
    assert not (tmp_path / "out" / "modeling_ernie_pixel.py").exists()
    told = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["model_type"] == "llama"
    assert told["tie_word_embeddings"] is False, "some programs would take the embedding for the head"
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert isinstance(theirs, LlamaForCausalLM)
    ours = load(run)
    ids = torch.from_numpy(ours.parts.text_prompt("the congress").tokens)[None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=ids).logits[0], ours.logits("the congress"), **CLOSE)
    with pytest.raises(UserError, match="no patch embedder"):
        load(tmp_path / "out").embed(["the congress"], modality="pixel")

"""The loop that writes text: greedy and drawn, alone and as a batch, and where it ends."""

from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_pixel.config.errors import UserError
from megatron_pixel.generation.model import Model, open_model
from megatron_pixel.generation.prompts import Prompt
from megatron_pixel.generation.sampling import Sampler, Sampling, nucleus
from megatron_pixel.generation.tokens import write_tokens

GREEDY = Sampling()


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return open_model(run)


def uncached(model: Model, prompt: Prompt, count: int) -> list[int]:
    """The whole row read anew for every token: the truth of the loop."""
    decoder, tokens, found = model.decoder, prompt.tokens.tolist(), []
    for _ in range(count):
        row = Prompt(prompt.patches, np.array(tokens), gap=prompt.gap)
        hidden = decoder.forward(row.embedded(decoder)[None], row.position_ids()[None])
        found.append(int(decoder.head("token", hidden[0, -1]).argmax()))
        tokens.append(found[-1])
    return found


def test_greedy_equals_reading_everything_anew(model: Model) -> None:
    for prompt in (model.text_prompt("the congress"), model.reading_prompt("the congress")):
        assert write_tokens(model.decoder, [prompt], GREEDY, 9)[0].tokens == uncached(model, prompt, 9)


def test_a_page_is_read_as_its_pair_row_is_laid_out(model: Model) -> None:
    """Released layout: text begins after the cap of the image, whatever the image takes."""
    prompt = model.reading_prompt("we")
    patches = len(prompt.patches)
    assert patches < 16
    assert prompt.position_ids().tolist() == [*range(patches), 16]
    assert prompt.next_position == 17
    assert not prompt.patches[-1].any()
    assert prompt.tokens.tolist() == [model.tokenizer.bos_id]


def test_a_batch_gives_what_each_prompt_gives_alone(model: Model) -> None:
    prompts = [model.text_prompt(text) for text in ("we", "the congress of the united", "it is")]
    assert len({len(prompt) for prompt in prompts}) == 3
    together = write_tokens(model.decoder, prompts, GREEDY, 7)
    assert [row.tokens for row in together] == [write_tokens(model.decoder, [p], GREEDY, 7)[0].tokens for p in prompts]


def test_each_row_ends_where_it_says(model: Model) -> None:
    prompts = [model.text_prompt(text) for text in ("we", "the congress of the united")]
    free = [row.tokens for row in write_tokens(model.decoder, prompts, GREEDY, 8)]
    end = free[0][3]
    seen: list[tuple[int, int]] = []
    ended = write_tokens(model.decoder, prompts, GREEDY, 8, end, lambda row, token: seen.append((row, token)))
    for row, tokens in enumerate(free):
        cut = tokens.index(end) if end in tokens else len(tokens)
        assert ended[row].tokens == tokens[:cut]
        assert ended[row].ended_by == ("end of document" if end in tokens else "length")
        assert [token for number, token in seen if number == row] == tokens[:cut]


def test_the_context_is_filled_and_not_left(model: Model) -> None:
    prompt = model.text_prompt("the congress of the united states")
    written = write_tokens(model.decoder, [prompt], GREEDY, None)[0]
    assert len(prompt) + len(written.tokens) == model.decoder.model.seq_length
    assert written.ended_by == "length"
    with pytest.raises(UserError, match=r"the prompt takes \d+ positions; the model reads 32"):
        write_tokens(model.decoder, [model.text_prompt("the congress " * 20)], GREEDY, 1)
    with pytest.raises(UserError, match="prompt 2 is empty"):
        write_tokens(model.decoder, [prompt, Prompt()], GREEDY, 1)


def test_drawing_follows_the_probabilities() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]]).repeat(20_000, 1)
    for temperature in (0.5, 1.0, 2.0):
        drawn = Sampler(Sampling(temperature, seed=3), torch.device("cpu"))(logits)
        shares = torch.bincount(drawn, minlength=4) / len(drawn)
        torch.testing.assert_close(shares, torch.softmax(logits[0] / temperature, -1), atol=0.015, rtol=0)
    repeated = [Sampler(Sampling(1.0, seed=s), torch.device("cpu"))(logits) for s in (1, 1, 2)]
    assert torch.equal(repeated[0], repeated[1])
    assert not torch.equal(repeated[0], repeated[2])


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.1, [1]), (0.5, [1]), (0.51, [1, 3]), (0.8, [1, 3]), (0.81, [1, 2, 3]), (1.0, [0, 1, 2, 3])]
)
def test_the_nucleus_is_the_fewest_likeliest(top_p: float, kept: list[int]) -> None:
    probabilities = torch.tensor([[0.05, 0.5, 0.15, 0.3]])
    found = nucleus(probabilities, top_p)
    assert found.nonzero()[:, 1].tolist() == kept
    assert torch.equal(found[found > 0], probabilities[found > 0])


def test_only_the_nucleus_is_drawn_from() -> None:
    """At half the temperature two of four tokens make 0.9: they are drawn by their own shares, the others never."""
    probabilities = torch.tensor([0.05, 0.5, 0.15, 0.3])
    logits = probabilities.log().repeat(20_000, 1)
    drawn = Sampler(Sampling(0.5, top_p=0.9, seed=3), torch.device("cpu"))(logits)
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    squares = torch.tensor([0.0, 0.5**2, 0.0, 0.3**2])
    assert (0.5**2 + 0.3**2) / probabilities.square().sum() > 0.9
    assert shares[0] == shares[2] == 0
    torch.testing.assert_close(shares, squares / squares.sum(), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [(Sampling(-1.0), "--temperature"), (Sampling(1.0, 0.0), "--top-p"), (Sampling(1.0, 1.1), "--top-p")],
)
def test_settings_that_cannot_be(sampling: Sampling, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampler(sampling, torch.device("cpu"))

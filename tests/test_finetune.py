"""Fine-tuning on the KL of the language model's predictions."""

from dataclasses import replace

import pytest
import torch
import toys

import experiment
import tsae
from tsae_lab.data import language_model, splicing
from tsae_lab.jobs import finetune, plan, schedules, training
from tsae_lab.measures import evaluation

ALONE = schedules.Phases(pretrain=60, settle=0, introduce=0, refine=0)


@pytest.fixture(scope="module")
def unit(tmp_path_factory, lm_folder) -> plan.Unit:
    home = tmp_path_factory.mktemp("run")
    config = replace(toys.toy_config(home, lm_folder), steps=60, lr=3e-3)
    return toys.toy_unit(config, home / "unit")


def parts(lm, store, rows):
    """What `kl_gradient` reads of sequences, and reconstructions of them."""
    x = store.x(rows)
    x_hat = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) / 4
    ids = store.text.ids[rows]
    hidden = language_model.residual(lm, ids, store.hook).clone()
    hidden[:, len(lm.prefix) :] = x  # the store's, which are rounded
    masks = (store.read[rows], store.tokens.valid[rows], store.text.valid[rows])
    return ids, hidden, x_hat, *masks


def test_the_kl_is_that_of_splicing_and_its_gradient_is_the_slope(lm, unit):
    store, rows = unit.data.train, torch.tensor([0, 3, 5])
    above = language_model.layers_above(lm, store.hook, grad=True)
    ids, hidden, x_hat, *masks = parts(lm, store, rows)
    kl, slope = finetune.kl_gradient(above, ids, hidden, x_hat, *masks)
    given = {"own": lambda _: x_hat}
    spliced = splicing.splice(lm, ids, masks[2], store.hook, given, masks[0])["own"]
    assert kl == pytest.approx(spliced.kl.sum().item() / int(masks[2].sum()), rel=1e-3)
    step = 1e-2 * slope / slope.norm()
    high, low = (
        finetune.kl_gradient(above, ids, hidden, x_hat + sign * step, *masks)[0] for sign in (1, -1)
    )
    assert (high - low) / 2 == pytest.approx(1e-2 * slope.norm().item(), rel=0.05)
    assert (slope[~masks[1]] == 0).all()


def test_what_is_added_has_the_kls_gradient_as_large_as_the_error(lm, unit):
    store, rows = unit.data.train, torch.arange(8)
    leaf = parts(lm, store, rows)[2].requires_grad_()
    added = finetune.divergence_of(lm, store)(rows, leaf, torch.tensor(2.0))
    (grad,) = torch.autograd.grad(added, leaf)
    assert (grad.flatten(1) != 0).any(1).tolist() == [True, False] * 4  # every second sequence
    picked = rows[::2]
    above = language_model.layers_above(lm, store.hook, grad=True)
    ids, hidden, _, *masks = parts(lm, store, picked)
    kl, slope = finetune.kl_gradient(above, ids, hidden, leaf[picked].detach(), *masks)
    torch.testing.assert_close(grad[picked], 2 / kl * slope, rtol=1e-3, atol=1e-5)


def held_out_kl(unit, lm, sae) -> float:
    val = unit.data.val
    rows = evaluation.pick_rows(val, 10**6)
    own = {"own": evaluation.replacement(sae)}
    return evaluation.splice_losses(lm, val, rows, own)["own"]["kl"]


@pytest.mark.parametrize("temporal", [False, True])
def test_the_kl_of_held_out_tokens_falls_and_a_stopped_fine_tuning_goes_on(
    unit, lm, temporal, tmp_path, monkeypatch
):
    """More than by as many plain steps: from one start, of the last tenth of the steps."""
    monkeypatch.setattr(finetune, "KL_SHARE", 0.4)
    unit = replace(unit, folder=tmp_path, log=tmp_path / "log.jsonl")
    pretrained, static, _ = experiment.train_static(unit)
    plain = experiment.train_tsae(unit, pretrained, "run_2")[0] if temporal else static

    def start():
        return (
            experiment.start_tsae(unit, pretrained)
            if temporal
            else experiment.load_pretrained(unit)
        )

    tuned, seconds = finetune.trained(unit, "kl", start, experiment.fit, lm, temporal=temporal)

    def sae_of(trainer):
        if temporal:
            dials = training.final_dials(unit.config)
            return tsae.Sae(params=training.params_of(trainer), dials=dials)
        return tsae.static_sae(training.static_of(trainer), unit.config.k)

    after, before = (held_out_kl(unit, lm, sae_of(t)) for t in (tuned, plain))
    assert after < 0.97 * before
    cut = unit.folder / "kl.checkpoint.safetensors"
    cut.unlink()  # the one before it is of an earlier step
    again, same = finetune.trained(unit, "kl", start, experiment.fit, lm, temporal=temporal)
    assert all(torch.equal(again.named[n], t) for n, t in tuned.named.items())
    assert same > 0 < seconds

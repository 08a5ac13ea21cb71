"""The TSAE as a module: the same numbers as the functions, in the forms that others call."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import ROOT, random_model

import tsae
from tsae_lab import interop
from tsae_lab.data import language_model
from tsae_lab.interop import TSAE, CustomSAE, CustomTrainer
from tsae_lab.jobs import schedules, training
from tsae_lab.jobs.training import Recipe

DIALS = tsae.Dials(k=4, window=3)
NAMES = {"model_name": "gpt2", "hook_name": "blocks.2.hook_resid_post"}


def face() -> TSAE:
    return TSAE(tsae.Sae(params=random_model(), dials=DIALS), **NAMES)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_a_sequence_is_what_the_functions_make_of_it_and_tokens_stand_alone(batch, seq, seed):
    model, x = face(), torch.randn(batch, seq, 12, generator=torch.Generator().manual_seed(seed))
    x_hat, codes, _ = tsae.forward(model.sae.params, x, DIALS)
    features = model.encode(x)
    assert torch.equal(features, tsae.dense(codes, 96))
    torch.testing.assert_close(model.decode(features), x_hat, rtol=1e-5, atol=1e-5)
    both, same = model(x, output_features=True)
    assert torch.equal(both, model(x))
    assert torch.equal(both, model.decode(model.encode(x)))
    assert torch.equal(same, features)
    tokens = x.flatten(0, 1)
    alone = torch.cat([model.encode(token[None, None])[0] for token in tokens])
    torch.testing.assert_close(model.encode(tokens), alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(tokens), model.decode(model.encode(tokens)))


def test_features_may_be_edited_beyond_k():
    model, x = face(), torch.randn(2, 5, 12)
    features = model.encode(x).detach().clone()
    features[..., :20] -= 1.0
    wide = tsae.Codes(features, torch.arange(96).expand(2, 5, 96))
    expected, _ = tsae.decode(model.sae.params, wide, DIALS)
    torch.testing.assert_close(model.decode(features), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(model.decode(torch.zeros(3, 96)), model.decode(torch.zeros(3, 1, 96))[:, 0])


def test_it_is_saved_loaded_moved_and_copied(tmp_path):
    model, x = face(), torch.randn(2, 5, 12)
    model.save_pretrained(tmp_path / "saved")
    again = TSAE.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(x), model(x))
    assert again.cfg == model.cfg
    assert copy.deepcopy(model).state_dict().keys() == model.state_dict().keys()
    fresh = TSAE(tsae.Sae(params=random_model(seed=1), dials=DIALS), **NAMES)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))
    half = model.to(dtype=torch.float64)
    assert (half.dtype, half.cfg.dtype, half.scale.dtype) == (
        torch.float64,
        "float64",
        torch.float64,
    )
    assert half.device == torch.device("cpu")
    torch.testing.assert_close(half(x.double()).float(), again(x), rtol=1e-4, atol=1e-4)
    half.cfg.dtype = "changed"
    said = half.cfg.to_dict()
    assert (said["dtype"], said["architecture"], said["hook_layer"]) == ("changed", "tsae", 2)


def test_its_tensors_are_parameters_with_gradients():
    model = face()
    shapes = {"W_enc": (12, 96), "W_dec": (96, 12), "b_enc": (96,), "b_dec": (12,)}
    assert {name: tuple(getattr(model, name).shape) for name in shapes} == shapes
    model(torch.randn(2, 5, 12)).square().sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    for name in shapes:
        grad = grads[name]
        assert grad is not None
        assert grad.any()
    assert "scale" in model.state_dict()
    assert "scale" not in grads


def test_the_first_sketchs_arguments_make_a_tsae():
    model = CustomSAE(12, 40, 3, "gpt2", window_size=5, lstm_hidden_size=7, k=6)
    cfg = model.cfg
    assert (cfg.hook_layer, cfg.hook_name, cfg.model_name) == (
        3,
        "blocks.3.hook_resid_post",
        "gpt2",
    )
    assert (cfg.window_size, cfg.lstm_hidden_size, cfg.k, cfg.d_in, cfg.d_sae) == (5, 7, 6, 12, 40)
    features = model.encode(torch.randn(9, 12))
    assert ((features > 0).sum(-1) <= 6).all()
    assert torch.equal(CustomSAE(12, 40, 3, k=6).W_enc, model.W_enc)
    named = CustomSAE(12, 40, 3, hook_name="blocks.1.hook_mlp_out")
    assert (named.cfg.hook_name, named.cfg.hook_layer) == ("blocks.1.hook_mlp_out", 3)


def test_an_sae_of_another_library_has_the_same_face():
    folder = ROOT / "tests" / "fixtures" / "saes" / "dictionary_learning-GatedAutoEncoder"
    model = TSAE.from_pretrained(folder)
    x = torch.randn(4, 6)
    expected = tsae.forward(model.sae.params, x[:, None], model.sae.dials)[0][:, 0]
    torch.testing.assert_close(model(x), expected)
    assert isinstance(model.sae.params.static, tsae.Thresholded)


@pytest.mark.parametrize("shape", [(12,), (2, 3, 4, 12)])
def test_another_number_of_axes_is_refused(shape):
    with pytest.raises(ValueError, match=r"needs \(tokens, width\) or \(batch, seq, width\); got "):
        face().encode(torch.zeros(shape))
    assert interop.FaceConfig.architecture(face().cfg) == "tsae"


def test_a_trainer_of_other_peoples_activations_takes_the_steps_of_a_run():
    """Against the functions that a run's loop calls, called here one by one."""
    given = {"steps": 20, "k": 4, "seed": 3, "lstm_hidden_size": 6, "window_size": 5, "lr": 0.01}
    model = CustomTrainer(12, 40, warmup_steps=2, layer=1, lm_name="gpt2", **given)
    recipe, phases = (
        model.recipe,
        schedules.phase_steps(20, pretrain=0.5, settle=0.02, introduce=0.02),
    )
    assert (recipe.k, recipe.d_sae, recipe.window, recipe.hidden_dec) == (4, 40, 5, 6)
    assert (recipe.lr, recipe.warmup) == (0.01, 2)
    assert (recipe.coupling, recipe.beta) == (Recipe.coupling, Recipe.beta)
    low = language_model.fast_dtype(torch.device("cpu"))
    sketch = torch.randn(30, 12, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(1)
    which = torch.randint(30, (20, 8, 9), generator=generator)
    batches = sketch[which] + 0.1 * torch.randn(20, 8, 9, 12, generator=generator)
    start = batches[0].mean((0, 1))
    static = tsae.init_static(start, 40, generator=torch.Generator().manual_seed(3))
    trainer, infos = training.start_trainer(tsae.tensors(static), recipe), []
    for step, x in enumerate(batches):
        infos.append(model.update(step, x))
        if step == phases.pretrain:
            scale = float((x - trainer.named["b_dec"].detach()).square().mean().sqrt())
            valid = torch.ones(8, 9, dtype=torch.bool)
            other = torch.Generator().manual_seed(1_003)
            trainer = training.start_temporal(trainer, scale, x, valid, recipe, low, other)
        trainer, _ = training.train_step(trainer, x, torch.ones(8, 9), step, recipe, phases, low)
    ours = dict(model.ae.named_parameters()) | dict(model.ae.named_buffers())
    assert ours.keys() == trainer.named.keys()
    for name, tensor in trainer.named.items():
        assert torch.equal(ours[name], tensor), name
    assert infos[-1]["fve"] > infos[0]["fve"] + 0.1
    assert [info["phase"] for info in infos[::19]] == ["pretrain", "refine"]
    assert (model.ae.cfg.hook_name, model.ae.cfg.model_name) == ("blocks.1.hook_resid_post", "gpt2")
    assert model.config["activation_dim"] == 12
    with pytest.raises(ValueError, match="update needs step 20 next, of 0 to 19; got 20"):
        model.update(20, batches[0])


def test_a_trainer_says_what_does_nothing():
    with pytest.warns(UserWarning, match="l1_penalty=0.1 does nothing here: k sets"):
        CustomTrainer(12, 40, l1_penalty=0.1)
    with pytest.warns(UserWarning, match="resample_steps=9 does nothing here: an auxiliary loss"):
        model = CustomTrainer(12, 40, resample_steps=9, k=4)
    with pytest.raises(ValueError, match="ae needs a step"):
        _ = model.ae
    with pytest.raises(ValueError, match="needs step 0 next"):
        model.update(1, torch.zeros(3, 12))
    with pytest.raises(ValueError, match="acts of activation_dim=12"):
        model.update(0, torch.zeros(3, 2, 13))
    with pytest.warns(UserWarning, match="tokens that stand alone: they teach no memory"):
        model.update(0, torch.randn(30, 12))
    assert not model.ae.sae.temporal

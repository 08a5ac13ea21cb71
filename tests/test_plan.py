"""The planned runs without a language model: what a step is given."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import store_of

import experiment
import tsae
from tsae_lab import checksums
from tsae_lab.jobs import checkpoint, plan, schedules, training
from tsae_lab.jobs.plan import Config


def unit(*, n_seq: int, seq: int, pieces: int, batch: int, seed: int = 0) -> plan.Unit:
    """Every activation says where it lies: (sequence, position)."""
    x = torch.stack(
        [torch.arange(n_seq)[:, None].expand(n_seq, seq), torch.arange(seq).expand(n_seq, seq)], 2
    )
    valid = torch.arange(seq) < torch.full((n_seq,), seq).sub(torch.arange(n_seq) % 3)[:, None]
    zero = torch.zeros(n_seq, dtype=torch.int32)
    store = store_of(x, valid, document=zero, start=zero, chars=zero + seq)
    return plan.Unit(
        config=Config(seq=seq, pieces=pieces, batch=batch),
        data=plan.Data(name="none", train=store, val=store),
        seed=seed,
        folder=Path(),
        log=Path(),
        device=torch.device("cpu"),
        low=torch.float32,
    )


@pytest.mark.parametrize("pieces", [1, 3, 4, 11])
def test_an_epoch_reads_every_sequence_once_from_its_beginning_to_its_end(pieces):
    one = unit(n_seq=12, seq=11, pieces=pieces, batch=4)
    order = []
    for group in range(3):
        parts = [experiment.batch_at(one, group * pieces + piece) for piece in range(pieces)]
        x, weight = (torch.cat(found, 1) for found in zip(*parts, strict=True))
        rows = x[:, 0, 0].long()
        assert x.shape == (4, 11, 2)
        assert (x[..., 0] == rows[:, None]).all()
        assert (x[..., 1] == torch.arange(11)).all()
        assert torch.equal(weight, one.data.train.tokens.valid[rows].float())
        order += rows.tolist()
    assert sorted(order) == list(range(12))
    again = (
        torch.cat(
            [experiment.batch_at(one, (3 + group) * pieces)[0][:, 0, 0] for group in range(3)]
        )
        .long()
        .tolist()
    )
    assert sorted(again) == list(range(12))
    assert again != order  # another order in the next epoch


def test_steps_depend_on_the_seed_and_on_nothing_that_came_before():
    one, other = (unit(n_seq=12, seq=8, pieces=2, batch=4, seed=seed) for seed in (0, 1))
    late = experiment.batch_at(one, 5)
    experiment.batch_at(one, 0)
    assert all(map(torch.equal, experiment.batch_at(one, 5), late))
    assert not torch.equal(experiment.batch_at(other, 5)[0], late[0])


@pytest.mark.parametrize(("pieces", "seq"), [(0, 8), (9, 8), (-1, 8)])
def test_pieces_that_no_sequence_has_are_refused(pieces, seq):
    with pytest.raises(ValueError, match="pieces needs 1 <= pieces <= seq"):
        plan.check_config(Config(seq=seq, pieces=pieces))


def test_a_given_static_sae_begins_as_it_is_with_the_moments_of_a_few_steps(tmp_path):
    saved = tsae.init_static(
        torch.tensor([3.0, 4.0]), 16, generator=torch.Generator().manual_seed(1)
    )
    sae = tsae.static_sae(saved, k=3)
    checkpoint.save_sae(tmp_path / "sae", sae, model_name="none", hook_name="blocks.0")
    one = unit(n_seq=12, seq=8, pieces=2, batch=4)
    one = replace(
        one, config=replace(one.config, static_sae=str(tmp_path / "sae"), k=3, d_sae=16, warmup=3)
    )
    alone = schedules.Phases(pretrain=one.config.steps, settle=0, introduce=0, refine=0)
    trainer = experiment.given_static(one, alone)
    for name, tensor in vars(saved).items():
        torch.testing.assert_close(trainer.named[name].detach(), tensor)
    moments = training.snapshot(trainer)
    for name in training.STATIC:
        assert moments[f"adam.{name}.step"] == 3
        assert moments[f"adam.{name}.exp_avg"].any()
    wrong = replace(one, config=replace(one.config, static_sae=str(tmp_path / "none")))
    with pytest.raises((ValueError, OSError), match="none"):
        experiment.given_static(wrong, alone)


def test_a_run_with_retired_options_is_read_and_goes_on_where_they_changed_nothing(tmp_path):
    config, path = Config(beta=0.7), tmp_path / "config.json"
    plan.claim(tmp_path, config, "run_2")
    old = json.loads(path.read_text()) | dict.fromkeys(plan.RETIRED, 1.0)
    del old[checksums.SEAL]
    path.write_text(json.dumps(old))
    found, name = plan.run_config(tmp_path)
    assert (vars(found), name) == (vars(config), "run_2")
    plan.refuse_other(tmp_path, config, "run_2")
    path.write_text(json.dumps(old | {"lr_bridge": 0.5}))
    with pytest.raises(ValueError, match=r"sets lr_bridge=0\.5: options"):
        plan.run_config(tmp_path)
    with pytest.raises(ValueError, match=r"another configuration \(lr_bridge=0\.5 there"):
        plan.refuse_other(tmp_path, config, "run_2")
    with pytest.raises(ValueError, match="beta"):
        plan.refuse_other(tmp_path, replace(config, beta=0.8), "run_2")


def test_a_text_with_fewer_tokens_than_asked_for_is_said_with_its_epochs(lm, tmp_path, capsys):
    (tmp_path / "short.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 400)
    asked: dict[str, Any] = {
        "train_tokens": 10**6,
        "val_tokens": 10**6,
        "seq": 24,
        "pieces": 2,
        "batch": 4,
    }
    config = Config(hook="blocks.1.hook_resid_post", cache_dir=str(tmp_path), steps=900, **asked)
    data = plan.load_data(config, lm, str(tmp_path / "short.txt"))
    lines = " ".join(capsys.readouterr().err.split())
    for split, store in (("validation", data.val), ("training", data.train)):
        assert f"{split}: {store.tokens.n_tokens:,} tokens" in lines
    assert lines.count("1,000,000 were asked for, the text has no more") == 2
    epochs = plan.epochs(config, len(data.train))
    assert epochs == 1800 / len(data.train)
    assert f"training reads each {epochs:.1f} times" in lines
    assert len(data.train.tokens.document.unique()) > 5


def test_validation_takes_part_of_every_document(lm, tmp_path, capsys):
    for i in range(40):
        text = f"{i} " + "the quick brown fox jumps over the lazy dog. " * 40
        (tmp_path / f"{i}.txt").write_text(text)
    config = Config(hook="blocks.1.hook_resid_post", cache_dir=str(tmp_path / "cache"), seq=24,
                    val_tokens=100)  # fmt: skip
    found = plan.split_store(config, lm, str(tmp_path), "validation").tokens
    assert sorted(found.document.tolist()) == [0, 0, 1, 2, 3]
    assert found.n_tokens == 100
    assert "no more" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"tau": float("inf")}, "tau needs a finite number; got inf"),
        ({"cap": float("nan")}, "cap needs a finite number; got nan"),
        ({"settle": float("nan")}, "settle needs a finite number"),
        ({"k_multiple": float("inf")}, "k_multiple needs a finite number"),
        ({"beta": 1e39}, "beta needs to be below"),
        ({"coupling": 1e39}, "coupling needs to be in"),
        ({"dead_after": 10**30}, "dead_after needs to be in"),
        ({"threads": -1}, "threads needs to be in"),
        ({"seq": 1, "pieces": 1}, "seq needs at least 2 tokens"),
        ({"device": "foo"}, "device 'foo' cannot be used here"),
        ({"device": "meta"}, "device 'meta' cannot be used here"),
        ({"datasets": "/texts/log.jsonl.txt"}, "would have the folder log.jsonl"),
        ({"datasets": "/"}, "a run's own name"),
    ],
)
def test_options_that_no_run_can_have_are_named_before_any_work(change, needle):
    with pytest.raises(ValueError, match=needle) as caught:
        plan.check_config(replace(Config(), **change))
    assert "\n" not in str(caught.value)


def test_the_folder_of_a_path_is_inside_the_runs_directory(tmp_path):
    (tmp_path / "texts" / "sub").mkdir(parents=True)
    assert plan.folder_name(f"{tmp_path}/texts/sub/..") == "texts"
    assert plan.folder_name("a/b.c.txt") == "b.c"
    assert plan.folder_name("notes.txt") == "notes.txt"


@pytest.mark.parametrize(
    "datasets", ["en/train.txt,de/train.txt", "sotu,sotu", "a/My text.txt,b/my_text.md", "x/A,y/a"]
)
def test_two_texts_that_would_share_a_folder_are_refused(datasets):
    with pytest.raises(ValueError, match="would share the folder"):
        plan.check_config(Config(datasets=datasets))


def test_a_text_whose_links_go_in_a_circle_is_no_file(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"unknown corpus .*a\.txt'"):
        plan.checked(Config(datasets=str(tmp_path / "a.txt")))

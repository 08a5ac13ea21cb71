"""Checkpoints: which one is gone on from, and what is written beside it."""

from dataclasses import replace

import pytest
import torch
import toys

import experiment
from tsae_lab import checksums
from tsae_lab.jobs import resuming, training


@pytest.fixture
def unit(tmp_path, lm_folder):
    return toys.toy_unit(toys.toy_config(tmp_path, lm_folder), tmp_path / "unit")


def test_the_last_checkpoint_that_is_not_too_late_is_gone_on_from(unit):
    start = lambda: experiment.start_static(unit)  # noqa: E731
    fresh, begin, seconds = resuming.resumed(unit, "static", start, range(2, 9))
    assert (begin, seconds > 0) == (2, True)
    path = resuming.checkpoint_of(unit, "static")
    for step in (4, 6):
        meta = {"model": "static", "step": step, "seconds": 1.0 * step}
        resuming.save_trainer(unit, path, fresh, meta)
    assert len(list(unit.folder.glob("*static.checkpoint.safetensors"))) == 2
    for stop, found in ((9, 6), (5, 4), (3, 2)):
        trainer, begin, _ = resuming.resumed(unit, "static", start, range(2, stop))
        assert begin == found
        assert torch.equal(trainer.named["W_enc"], fresh.named["W_enc"])
    saved, meta = resuming.restored(unit, path, "static")
    assert meta["identity"] == unit.identity
    assert training.snapshot(saved).keys() == training.snapshot(fresh).keys()
    with pytest.raises(ValueError, match="is of the model static; needed is tsae"):
        resuming.restored(unit, path, "tsae")


def test_a_log_is_cut_at_the_checkpoint_and_one_rank_alone_writes_it(unit, monkeypatch):
    of_model = {"dataset": "toy", "seed": 0, "model": "static"}
    lines = (checksums.log_line({**of_model, "step": step}) for step in range(1, 6))
    unit.log.write_text("".join(lines))
    with resuming.opened_log(unit, of_model, 3) as log:
        log.write("more\n")
        resuming.flushed(log)
        assert unit.log.read_text().count("\n") == 4
    monkeypatch.setattr(resuming.ranks, "rank", lambda: 1)
    with resuming.opened_log(replace(unit), of_model, 0) as log:
        log.write("of another rank\n")
        resuming.flushed(log)
    assert unit.log.read_text().splitlines()[-1] == "more"

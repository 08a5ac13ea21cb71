"""Fixtures of several test files: toy language models, one per session, that no test changes."""

import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread per worker, in the commands that it starts too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import toys
from hypothesis import settings

import experiment
from tsae_lab import devices, files
from tsae_lab.data.language_model import LanguageModel
from tsae_lab.jobs import study
from tsae_lab.jobs.plan import Config

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_addoption(parser) -> None:
    parser.addoption("--device", default="cpu", help="where tests/test_device.py runs")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config) -> None:
    """The whole suite is shared by two processes, file by file; what is asked for by name runs in
    this one, as does everything with `-n 0` or `--pdb`.
    """
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    alone = hasattr(config, "workerinput") or config.option.usepdb
    if whole and not alone and config.getoption("numprocesses", 0) is None:
        config.option.numprocesses, config.option.dist = 2, "loadfile"
        config.option.loadscopereorder = False  # as collected, the longest first


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    """Of `--device`: CUDA where a person with a GPU asks for it."""
    return devices.check_device(request.config.getoption("--device"))


def pytest_collection_modifyitems(items) -> None:
    """`EXAMPLES=10` in the environment takes ten times the examples of every property test.

    The longest file comes first, so that no process is left with it at the end.
    """
    items.sort(key=lambda item: item.path.name != "test_study.py")
    times, name = int(os.environ.get("EXAMPLES", "1")), "_hypothesis_internal_use_settings"
    for test in {item.obj for item in items if hasattr(item.obj, name)}:
        own = getattr(test, name)
        setattr(test, name, settings(own, max_examples=times * own.max_examples))


@pytest.fixture(autouse=True)
def same_cache():
    """A command takes over the cache directory of its model's run: not for the next test."""
    with files.cache_at(""):
        yield


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory) -> Path:
    return toys.save_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def lm(lm_folder) -> LanguageModel:
    return toys.load_toy(lm_folder)


@pytest.fixture(scope="session", params=toys.KINDS)
def any_lm(request, tmp_path_factory) -> LanguageModel:
    return toys.load_toy(toys.save_model(tmp_path_factory.mktemp(request.param), request.param))


@pytest.fixture(scope="session")
def runs_folder(tmp_path_factory) -> Path:
    """run_2 and run_3 of a toy model on text that tries to be HTML."""
    home = tmp_path_factory.mktemp("report")
    lm = toys.save_model(home, "llama", texts=(toys.HOSTILE_TEXT,) * 9, vocab_size=400)
    (home / "letters").mkdir()
    for i in range(24):
        words = toys.HOSTILE_TEXT.split(" ")
        turned = " ".join(words[i * 3 % len(words) :] + words[: i * 3 % len(words)])
        (home / "letters" / f"{i:02}.txt").write_text(turned)
    config = Config(
        lm=str(lm), hook=toys.HOOK, datasets=str(home / "letters"), seq=24, pieces=2, batch=4,
        steps=10, seeds=2, d_sae=64, k=4, hidden_enc=4, hidden_dec=4, warmup=2, train_tokens=2000,
        val_tokens=600, splice_tokens=100, device="cpu", checkpoint_every=50,
        sections="stability,lifetimes,transitions",
    )  # fmt: skip
    study.run_study(home / "run_3", config, train=experiment.run)
    return home

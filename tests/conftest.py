"""Fixtures of several test files: toy language models, one per session, that no test changes."""

from pathlib import Path

import pytest
import toys

from tsae_lab import files
from tsae_lab.data.language_model import LanguageModel


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

"""What the documents say: their code blocks run, and their commands and options exist."""

import re
import shlex
from typing import Any

import pytest
import typer
from toys import ROOT, save_model

import experiment
from tsae import Dials

NAMES = ("README.md", "docs/OWN.md", "docs/RESULTS.md")
DOCUMENTS = {name: (ROOT / name).read_text() for name in NAMES}
CALL = r"(?:python experiment\.py|\btsae) (?:--|[a-z-]+ )[^`\n&]+"
CALLS = sorted({
    (name, " ".join(call.split()))
    for name, text in DOCUMENTS.items()
    for call in re.findall(CALL, text)
    if "--help" not in call
})  # fmt: skip


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENTS[name], flags=re.DOTALL)


def run_blocks(name: str) -> None:
    """All Python blocks of a document, one after the other, with one set of names."""
    names: dict[str, object] = {}
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), names)


def test_the_code_of_the_readme_runs(capsys):
    assert len(blocks("README.md", "python")) == 1
    run_blocks("README.md")
    l0, jaccard, tss = map(float, capsys.readouterr().out.split())
    assert 0 < l0 <= Dials().k
    assert 0 <= jaccard <= 1
    assert 0 <= tss <= 1


def test_the_readme_names_two_commands_the_tests_being_the_second_and_what_is_ones_own():
    first, second, own = blocks("README.md", "bash")
    assert "python experiment.py --out_dir=run_2" in first
    assert second.strip().endswith("python -m pytest")
    assert "stability gpt2-small-res-jb/blocks.8.hook_resid_pre" in own


def test_the_blocks_on_own_models_texts_saes_and_sets_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "my_model", "llama")
    assert len(blocks("docs/OWN.md", "python")) == 8
    run_blocks("docs/OWN.md")
    shape, lengths, codes, slopes, overlap, *items = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\(\d+, 24, 24\)", shape)
    assert sum(map(int, lengths.split())) == len("A line of text, and another.\n\n") * 200
    assert codes == "(2, 63, 8)"
    assert re.match(r"tensor\(\[\[0\.0000, 0\.0000, 0\.0000, [1-9]", slopes)
    assert 0 < float(overlap) < 1
    assert items == ["it 1", "[0, 1]", " are"]


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_a_command_in_a_document_exists_with_its_options(name, call):
    app: Any = typer.main.get_command(experiment.app)
    arguments = shlex.split(call.removeprefix("python experiment.py").removeprefix("tsae"))
    command = next((word for word in arguments if word in app.commands), None)
    if command:
        assert arguments[0] == command, f"{name}: {call}"
        app.commands[command].make_context(command, arguments[1:])
    else:
        assert all(word.startswith("-") for word in arguments), f"{name}: {call}"
        app.make_context("experiment.py", arguments)


def test_the_readme_names_every_command():
    words = set(re.findall(r"[a-z-]+", DOCUMENTS["README.md"]))
    app: Any = typer.main.get_command(experiment.app)
    assert app.commands.keys() <= words


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_option_that_a_document_names_exists(name):
    app: Any = typer.main.get_command(experiment.app)
    parameters = [p for command in (app, *app.commands.values()) for p in command.params]
    options = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", DOCUMENTS[name])) <= options | {
        "--help",
        "--no-deps",  # pip's
        "--nproc-per-node",  # torchrun's
    }


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_file_that_a_document_links_is_there(name):
    links = re.findall(r"\]\(([^)#]+)\)", DOCUMENTS[name])
    assert links or name == "docs/OWN.md"
    for link in links:
        assert ((ROOT / name).parent / link).exists(), f"{name}: {link}"


def test_the_readme_is_for_a_newcomer():
    assert len(DOCUMENTS["README.md"].splitlines()) <= 150

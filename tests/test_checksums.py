"""JSON objects with their checksum: read as they were written, or refused in a line."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from strategies import json_values

from tsae_lab import checksums, files
from tsae_lab.jobs import checkpoint, foreign, identity, study
from tsae_lab.sections import context

objects = st.dictionaries(
    st.text(max_size=5).filter(lambda key: key != checksums.SEAL), json_values
)


@given(objects, objects)
def test_what_was_sealed_is_unsealed_and_nothing_else_is(content, other):
    sealed = json.loads(json.dumps(checksums.sealed(content)))
    assert checksums.unsealed("it", sealed) == content
    assert checksums.checksum(content) == checksums.checksum(dict(reversed(content.items())))
    assume(json.dumps(other, sort_keys=True) != json.dumps(content, sort_keys=True))
    with pytest.raises(ValueError, match="it is damaged: its content does not have the checksum"):
        checksums.unsealed("it", other | {checksums.SEAL: sealed[checksums.SEAL]})


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_a_flipped_bit_in_a_file_changes_nothing_or_is_refused_or_said(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("sealed") / "numbers.json"
    content = {"fve": 0.8437, "of": {"n": [1, None, 2.5], "text": "é"}}
    checksums.write_sealed(path, content)
    whole = bytearray(path.read_bytes())
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        read = checksums.read_sealed(path)
    except ValueError as error:
        told = str(error)
        read = content if told.startswith(str(path)) and "\n" not in told else {}
    key = next((name for name in read if name not in content), None)  # the checksum's own name
    assert {name: value for name, value in read.items() if name != key} == content


def test_what_has_no_checksum_is_read_and_said_once(tmp_path, capsys):
    path = tmp_path / "old.json"
    files.write_json(path, {"a": 1})
    assert checksums.read_sealed(path) == checksums.read_sealed(path) == {"a": 1}
    assert capsys.readouterr().err.count("old.json has no checksum") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is not JSON"), ("{", "is not JSON"), ("[1]", "needs a JSON object; got \\[1\\]"),
     ("3", "needs a JSON object; got 3"), ("[" * 100_000, "nested too deep"),
     ("\udcff", "is not UTF-8 text"), ("\0", "NUL byte")],
)  # fmt: skip
def test_a_file_without_an_object_is_refused_in_a_line(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    for read in (checksums.read_object, checksums.read_sealed, foreign.json_object):
        with pytest.raises(ValueError, match=rf"^{path}.*{message}") as caught:
            read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="nested too deep"):
        files.json_value("[" * 100_000)
    with pytest.raises(FileNotFoundError):
        checksums.read_object(tmp_path / "absent")


def test_a_result_that_is_missing_damaged_or_of_another_form_is_made_again(tmp_path, capsys):
    path, result = tmp_path / "section.json", {"numbers": {"a": 1.0}, "intervals": []}
    assert checksums.read_result(path) is None
    checksums.write_sealed(path, result)
    assert checksums.read_result(path) == result
    path.write_text(path.read_text().replace("1.0", "2.0"))
    assert checksums.read_result(path) is None
    assert "section.json is damaged" in capsys.readouterr().err
    checksums.write_sealed(path, {"numbers": 3, "intervals": []})
    assert checksums.read_result(path) is None
    assert "made again" in capsys.readouterr().err


rows = st.lists(
    st.fixed_dictionaries({"word": st.text(max_size=4), "n": st.integers()}), max_size=3
)


@settings(deadline=None, max_examples=20)
@given(first=rows, second=rows, data=st.data())
def test_a_section_with_a_table_that_was_damaged_or_is_missing_is_made_again(
    tmp_path_factory, first, second, data
):
    folder = tmp_path_factory.mktemp("section")
    section = context.Section({"a": 1.0}, {"intervals": first, "words": second}, {})
    study.write_section(folder, "stability", section)
    names = ["stability_intervals.csv", "words.csv"]
    assert sorted(path.name for path in folder.glob("*.csv")) == names
    saved = study.read_section(folder / "stability.json")
    assert saved is not None
    assert checksums.wrong_tables(folder, saved) == {}
    path = folder / data.draw(st.sampled_from(names))
    content = bytearray(path.read_bytes())
    if content and data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
        told = "is damaged: it is not what was written with its section"
    else:
        path.unlink()
        told = "is missing"
    assert checksums.wrong_tables(folder, saved) == {path.name: told}
    assert study.read_section(folder / "stability.json") is None


def test_each_texts_numbers_have_a_checksum(tmp_path):
    info = {"a": {"means": {"fve": 0.5}}, "b": {"means": {}}}
    checksums.write_numbers(tmp_path / "info.json", info)
    read = json.loads((tmp_path / "info.json").read_text())
    assert {name: checksums.unsealed(name, text) for name, text in read.items()} == info
    checksums.write_sealed(tmp_path / "config.json", {"k": 3})
    checksums.write_numbers(tmp_path / "info.json", info)
    seal = checksums.read_object(tmp_path / "config.json")[checksums.SEAL]
    for name, text in json.loads((tmp_path / "info.json").read_text()).items():
        assert checksums.unsealed(name, text) == info[name] | {checksums.CONFIG: seal}


def test_a_folder_is_moved_whole_and_a_target_that_is_there_stays(tmp_path):
    for name in ("draft", "later"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        files.move_whole(tmp_path / name, tmp_path / "target")
    assert (tmp_path / "target" / "file").read_text() == "draft"
    assert not (tmp_path / "draft").exists()


def test_lines_of_a_log_that_were_cut_or_are_others_are_left_out_and_counted(tmp_path, capsys):
    step = {"dataset": "a", "seed": 0, "model": "tsae", "step": 1}
    lines = [json.dumps(step), '{"dataset": "a", "se', "3", "[]", '{"step": 2}', "[" * 100_000]
    (tmp_path / "log").write_bytes("\n".join(lines).encode() + b"\n\xff")
    assert checksums.log_lines(tmp_path / "log") == [step]
    assert "log: 6 of 7 lines are cut or damaged, and left out" in capsys.readouterr().err
    assert checksums.log_lines(tmp_path / "absent") == []


@given(st.floats(), st.data())
def test_a_flipped_bit_in_a_log_changes_no_number_of_it(tmp_path_factory, loss, data):
    log = tmp_path_factory.mktemp("log") / "log.jsonl"
    steps = [{"dataset": "a", "seed": 0, "model": "b", "step": i, "loss": loss} for i in (1, 2)]
    text = "".join(map(checksums.log_line, steps)).encode()
    log.write_bytes(text)
    assert str(checksums.log_lines(log)) == str(steps)  # nan is not equal to itself
    place = data.draw(st.integers(0, len(text) - 1))
    log.write_bytes(text[:place] + bytes([text[place] ^ 1 << data.draw(st.integers(0, 7))])
                    + text[place + 1 :])  # fmt: skip
    for step in checksums.log_lines(log):
        assert str({name: step.get(name) for name in steps[0]}) in map(str, steps)


@pytest.mark.parametrize(
    "odd", [None, 3, "x", [], {}, {"lm": "x"}, {"texts": []}, {"texts": {"a": 1}}]
)
def test_an_identity_of_another_form_is_none(odd):
    whole = {
        "texts": {"a": {"training": "0"}},
        "lm": "x",
        "lm_dtype": "float32",
        "static_sae": None,
    }
    assert identity.form_of(whole) == whole == identity.of_cfg({"metadata": {"identity": whole}})
    assert identity.form_of(whole | odd if isinstance(odd, dict) and "texts" in odd else odd) == {}
    assert identity.of_cfg({}) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [({"model_name": 3}, "needs a text model_name; got 3"), ({"metadata": []}, "needs an object"),
     ({"metadata": {"contents": [1]}}, "needs an object contents"),
     ({"norm_scaling_factor": "x"}, "needs a number norm_scaling_factor")],
)  # fmt: skip
def test_an_entry_of_a_wrong_kind_in_a_cfg_is_named(tmp_path, change, message):
    path = Path(tmp_path / "cfg.json")
    files.write_json(path, {"architecture": "topk"} | change)
    with pytest.raises(ValueError, match=message):
        foreign.json_object(path)


def test_checkpoints_alone_are_removed(tmp_path):
    for name in ("static.checkpoint", "before.static.checkpoint", "pretrained"):
        (tmp_path / f"{name}.safetensors").touch()
    checkpoint.remove_checkpoints(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pretrained.safetensors"]

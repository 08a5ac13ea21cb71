"""Sets by dataset name: fetched by the real client from a hub on this machine, and equal to the
same set as files.
"""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import dataset, serve, table
from toys import DATA, ROOT, blimp, linzen, real, write

from tsae_lab.data import public_sets, records

WINOGENDER = [
    {
        "sentid": f"baker.guest.{answer}.{gender}.txt",
        "sentence": f"The baker told the guest that {word} was late.",
    }
    for answer in (0, 1)
    for gender, word in (("male", "he"), ("female", "she"), ("neutral", "they"))
]
WIC = {"word": "bed", "sentence1": "a bed.", "start1": 2, "end1": 5, "idx": 0} | {
    "sentence2": "In the beds",
    "start2": 7,
    "end2": 11,
}


def fetched(url: str, home: Path, calls: dict[str, str], **environment: str) -> dict[str, object]:
    """What each `loader: name` gives in a fresh process, or the text of its ValueError."""
    code = (
        "import json, pickle, sys\nfrom tsae_lab.data import public_sets\nout = {}\n"
        "for name, loader in json.loads(sys.argv[1]).items():\n"
        "    try:\n        out[name] = getattr(public_sets, loader)(name)\n"
        "    except ValueError as error:\n        out[name] = str(error)\n"
        "pickle.dump(out, open(sys.argv[2], 'wb'))"
    )
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    place = {"HF_ENDPOINT": url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT)}
    call = [sys.executable, "-c", code, json.dumps(calls), str(home / "out.pkl")]
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        call, env=kept | place | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return pickle.loads((home / "out.pkl").read_bytes())


def test_a_name_is_told_from_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("nyu-mll/blimp", "a/b:c", "a.b/c_d:e-f:train"):
        assert records.is_name(name)
        assert records.is_name(Path(name))
    for name in (
        "blimp",
        "data/blimp.jsonl",
        "a/b/c",
        "/a/b",
        "a/b:c:d:e",
        "../a",
        "train.data.txt",
        "a/x.txt.test",
        "a/x.TSV",
        "",
    ):
        assert not records.is_name(name)
    write(tmp_path / "data" / "set", "x")
    assert not records.is_name("data/set")


def test_sets_are_fetched_by_name_as_they_are_read_from_files_and_kept(tmp_path):
    pairs = [json.loads(blimp()), json.loads(blimp("The cat sits.", "The cat sit."))]
    agreement = [json.loads(linzen()), json.loads(linzen(good="is", bad="are"))]
    repositories = {
        ("nyu-mll/blimp", "main"): dataset({"one": {"train": pairs}, "two": {"train": pairs[:1]}}),
        ("a/winogender", "main"): {"README.md": b"", "winogender.py": b"raise SystemExit"},
        ("a/winogender", records.CONVERTED): {
            "all/test/0000.parquet": table(WINOGENDER),
            "gotcha/test/0000.parquet": table(WINOGENDER[:1]),
        },
        ("aps/super_glue", "main"): dataset(
            {"wic": {"train": [WIC | {"label": 1}], "test": [WIC | {"label": -1}]}}
        ),
        ("a/linzen", "main"): dataset({"default": {"validation": agreement}}),
    }
    calls = {
        "nyu-mll/blimp:one": "load_blimp",
        "a/winogender:all": "load_items",
        "a/winogender:all:test": "load_winogender_pairs",
        "aps/super_glue:wic": "load_items",
        "aps/super_glue:wic:test": "load_wic",
        "a/linzen": "load_linzen",
    }
    with serve(repositories) as url:
        found = fetched(url, tmp_path / "home", calls)
        wrong = {
            "nyu-mll/blimp": "load_blimp",
            "a/none": "load_items",
            "a/linzen:default:test": "load_linzen",
        }
        refused = fetched(url, tmp_path / "home", wrong)
    tables = {
        "nyu-mll/blimp:one": pairs,
        "a/winogender:all": WINOGENDER,
        "a/winogender:all:test": WINOGENDER,
        "aps/super_glue:wic": [WIC | {"label": True}],
        "a/linzen": agreement,
    }
    for name, rows in tables.items():
        path = write(tmp_path / "set.jsonl", *map(json.dumps, rows))
        assert found[name] == getattr(public_sets, calls[name])(path), name
    pair = found["a/winogender:all:test"].items[0]
    assert pair.sentence_good == "The baker told the guest that the baker was late."
    assert found["aps/super_glue:wic"].items[0].other == ("In the beds", 7, 11)
    assert "has no usable line: there is no label (1)" in found["aps/super_glue:wic:test"]
    assert re.search("no dataset of that name could be read: .*(one|two)", refused["nyu-mll/blimp"])
    assert (
        "there is no file a/none, and no dataset of that name could be read: " in refused["a/none"]
    )
    assert (
        refused["a/linzen:default:test"]
        == "a/linzen:default:test has no split test: there are validation"
    )
    assert not any("\n" in text for text in refused.values())
    kept = {
        name: loader for name, loader in calls.items() if "winogender" not in name
    }  # the cache does not serve a script
    offline = fetched("http://127.0.0.1:9", tmp_path / "home", kept, HF_HUB_OFFLINE="1")
    assert offline == {name: found[name] for name in kept}


@real
def test_winobias_by_name_is_winobias_from_its_files(tmp_path):
    path = DATA / "coreference/winobias/pro_stereotyped_type1.txt.dev"
    rows, kept = [], []
    for line in records.lines(path):
        words = line.split()[1:]
        first = [i for i, word in enumerate(words) if word.startswith("[")]
        last = [i for i, word in enumerate(words) if re.search(r"\][.,]?$", word)]
        plain = [word.replace("[", "").replace("]", "") for word in words]
        if len(first) == len(last) >= 2:
            rows.append(
                {
                    "tokens": plain,
                    "coreference_clusters": [
                        str(x) for p in zip(first, last, strict=True) for x in p
                    ],
                }
            )
            kept.append(line)
    assert any(len(row["coreference_clusters"]) == 6 for row in rows)
    for part in ("male", "female"):
        write(
            tmp_path / f"{part}_occupations.txt",
            *records.lines(path.with_name(f"{part}_occupations.txt")),
        )
    by_file = public_sets.load_items(write(tmp_path / "x_type1.txt.dev", *kept))
    with serve(
        {("uclanlp/wino_bias", "main"): dataset({"type1_pro": {"validation": rows}})}
    ) as url:
        found = fetched(url, tmp_path / "home", {"uclanlp/wino_bias:type1_pro": "load_items"})
    by_name = found["uclanlp/wino_bias:type1_pro"]
    assert len(by_name.items) > 380
    assert set(by_name.items) <= set(by_file.items)
    rows_file = write(tmp_path / "rows.jsonl", *map(json.dumps, rows))
    assert public_sets.load_items(rows_file) == by_name


def test_winobias_rows_that_mark_no_person_and_pronoun_are_skipped_and_counted(tmp_path):
    words = "The mover paid the baker because he left".split()  # noqa: SIM905
    places = [[0, 1, 6, 6], [3, 4, 6, 6], [0, 1], [6, 6, 0, 1], [0, 1, 9, 9]]
    rows = [json.dumps({"tokens": words, "coreference_clusters": at}) for at in places]
    found = public_sets.load_items(write(tmp_path / "rows.jsonl", *rows))
    assert [item.label for item in found.items] == [1, 0]
    assert sum(found.skipped.values()) == 3


@pytest.mark.parametrize("places", [[[0, 1], [7, 7]], [None, 1, 7, 7], 7, ["x", 1, 3, 3]])
def test_odd_winobias_rows_are_refused_by_line(tmp_path, places):
    row = {"tokens": ["The", "mover", "saw", "her"], "coreference_clusters": places}
    with pytest.raises(ValueError, match=r"rows.jsonl, line 1: "):
        public_sets.load_items(write(tmp_path / "rows.jsonl", json.dumps(row)))


@pytest.mark.parametrize("value", [["a"], {"en": "a"}])
def test_a_field_that_is_no_text_is_refused(tmp_path, value):
    row = {"sentid": "baker.guest.0.male.txt", "sentence": value}
    with pytest.raises(
        ValueError, match=r"rows.jsonl, line 1: needs a text or a number in sentence"
    ):
        public_sets.load_items(write(tmp_path / "rows.jsonl", json.dumps(row)))


def test_wic_refuses_a_label_of_the_wrong_kind(tmp_path):
    with pytest.raises(
        ValueError, match=r"line 1: label needs to be 0 or 1, false or true; got 'True'"
    ):
        public_sets.load_wic(write(tmp_path / "rows.jsonl", json.dumps(WIC | {"label": "True"})))


@real
def test_winogender_pairs_are_those_of_the_templates():
    folder = DATA / "coreference/winogender"
    by_template = public_sets.load_winogender_pairs(folder / "templates.tsv").items
    by_sentence = public_sets.load_winogender_pairs(folder / "all_sentences.tsv").items
    assert len(by_sentence) == len(by_template)
    ours, theirs = (
        {pair.sentence_good.lower() for pair in pairs} for pairs in (by_sentence, by_template)
    )
    assert len(ours & theirs) >= 0.95 * len(theirs)

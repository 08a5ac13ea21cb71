"""Sets as people have them: clones, tables re-saved by other programs, rows of their own."""

import csv
import gzip
import io
import json
from pathlib import Path

import pandas
import pytest
from toys import DATA, blimp, real, write

from tsae_lab.data import own_sets, public_sets, records
from tsae_lab.jobs import study
from tsae_lab.jobs.plan import Config

TEMPLATES = "occupation(0)\tother-participant(1)\tanswer\tsentence"
TEMPLATE = "baker\tguest\t0\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN was late."
GAP = {
    "ID": "1", "Text": '"Ann," said Bea, "left." She saw her.', "Pronoun": "She",
    "Pronoun-offset": 25, "A": "Ann", "A-offset": 1, "A-coref": True, "B": "Bea", "B-offset": 12,
    "B-coref": False, "URL": "u",
}  # fmt: skip


def clones(folder: Path) -> Path:
    """The repositories as they are cloned, side by side."""
    for place in ("blimp/data", "LM_syneval-master/data", "winogender-schemas/data"):
        (folder / place).mkdir(parents=True)
    write(folder / "blimp" / "data" / "anaphor.jsonl", blimp())
    write(folder / "LM_syneval-master" / "data" / "simple.jsonl", blimp(), "", blimp("a b", "a c"))
    write(folder / "winogender-schemas" / "data" / "templates.tsv", TEMPLATES, "", TEMPLATE)
    write(folder / "winogender-schemas" / "data" / "occupations.tsv", "x")
    return folder


def test_sets_are_found_from_a_clone_its_parent_and_its_data_folder(tmp_path):
    folder = clones(tmp_path)
    sets, absent = public_sets.find_sets(folder, 5)
    assert {name: len(pairs) for name, (pairs, _) in sets.items()} == {
        "blimp": 1,
        "lm_syneval": 2,
        "winogender": 1,
    }
    assert absent == ()
    for place in ("blimp", "blimp/data"):
        sets, absent = public_sets.find_sets(folder / place, 5)
        assert list(sets) == ["blimp"]
        assert absent == ("lm_syneval", "winogender")
    there = own_sets.set_paths(folder / "winogender-schemas")
    assert [path.name for path in there["winogender"]] == ["templates.tsv"]
    assert own_sets.set_paths(folder / "blimp" / "data")["lm_syneval"] == []


def test_what_is_left_out_of_run_3_is_said(tmp_path, capsys):
    study.say_absent(Config(data_dir=str(clones(tmp_path))))
    assert capsys.readouterr().err == ""
    study.say_absent(Config(data_dir=str(tmp_path / "blimp")))
    said = capsys.readouterr().err
    assert "left out: the minimal pairs of lm_syneval, winogender (not in" in said
    assert own_sets.LAYOUT in said
    study.say_absent(Config())
    assert "blimp, lm_syneval, winogender (no --data_dir; wanted are" in capsys.readouterr().err
    study.say_absent(Config(sections="stability"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["gap.tsv", "gap.csv", "gap.json", "gap.jsonl.gz", "pandas.tsv"])
def test_gap_is_read_as_published_and_as_others_save_it_again(tmp_path, name):
    rows, path = [GAP, GAP | {"ID": "2", "A-coref": False, "B-coref": True}], tmp_path / name
    if name == "gap.tsv":
        words = [
            [str(v).upper() if isinstance(v, bool) else str(v) for v in r.values()] for r in rows
        ]
        write(path, *("\t".join(line) for line in (GAP, *words)))
    elif name == "gap.json":
        path.write_text(json.dumps(rows, indent=1))
    elif name == "gap.jsonl.gz":
        path.write_bytes(gzip.compress("\n\n".join(map(json.dumps, rows)).encode()))
    else:
        frame = pandas.DataFrame(rows)
        frame.to_csv(path, sep="\t" if name == "pandas.tsv" else ",", index=name == "gap.csv")
    first, second = public_sets.load_items(path).items
    assert (first.label, second.label) == (1, 0)
    assert first.text[first.begin : first.end] == "She"
    assert first.text == GAP["Text"]


@real
def test_gap_saved_again_by_pandas_gives_the_items_of_the_published_file(tmp_path):
    published = next((DATA / "coreference").rglob("gap-*.tsv"))
    expected = public_sets.load_items(published)
    frame = pandas.read_csv(published, sep="\t", quoting=csv.QUOTE_NONE)
    frame.to_csv(tmp_path / "gap.csv", index=False)
    frame.to_csv(tmp_path / "gap.tsv", index=False, sep="\t")
    for name in ("gap.csv", "gap.tsv"):
        assert public_sets.load_items(tmp_path / name) == expected


OWN = [
    {"text": "A bank of the river.", "word": "bank", "label": "shore"},
    {"text": "The bank lends.", "begin": 4, "end": 8, "label": "money"},
    {"text": "A bank is a bank.", "word": "bank", "label": "money"},
]


@pytest.mark.parametrize("name", ["own.csv", "own.tsv", "own.jsonl", "own.json"])
def test_an_own_set_needs_three_columns(tmp_path, name):
    path, columns = tmp_path / name, ("text", "word", "begin", "end", "label")
    if name.startswith("own.j"):
        text = json.dumps(OWN) if name == "own.json" else "\n".join(map(json.dumps, OWN))
    else:
        out = io.StringIO(newline="")
        writer = csv.DictWriter(out, columns, delimiter="," if name == "own.csv" else "\t")
        writer.writeheader()
        writer.writerows(OWN)
        text = out.getvalue()
    path.write_text(text)
    loaded = public_sets.load_items(path)
    assert loaded == own_sets.load_own(path)
    assert [(i.text[i.begin : i.end], i.label, i.unit) for i in loaded.items] == [
        ("bank", 1, "own"),
        ("bank", 0, "own"),
    ]
    assert loaded.skipped == {"the word is not in the text once": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a b", "label": 1}, "line 2: needs begin and end, or word"),
        ({"text": "a b", "word": "b", "label": 0}, "needs two labels; got 1: 0"),
        ({"text": "a b", "word": "b", "label": None}, "line 2: needs the columns text, label; mis"),
    ],
)
def test_an_own_set_that_does_not_serve_is_refused_in_one_line(tmp_path, row, message):
    first = {"text": "a c", "word": "c", "label": 0}
    path = write(tmp_path / "own.jsonl", json.dumps(first), json.dumps(row))
    with pytest.raises(ValueError, match=message):
        public_sets.load_items(path)


def test_rows_of_any_table_are_read_alike(tmp_path):
    write(tmp_path / "a.csv", "a,b", '1,"x, y"', "", "2,z")
    write(tmp_path / "a.tsv", "a\tb", "1\tx, y", "2\tz")
    write(tmp_path / "a.json", '[{"a": 1, "b": "x, y"}, {"a": 2, "b": "z"}]')
    for name in ("a.csv", "a.tsv", "a.json"):
        read = records.rows(tmp_path / name, ("a", "b"), lambda row: (str(row["a"]), row["b"]))
        assert read.items == (("1", "x, y"), ("2", "z"))
    with pytest.raises(ValueError, match=r"a\.csv, line 1: needs the columns a, c; missing: c"):
        records.rows(tmp_path / "a.csv", ("a", "c"), dict)

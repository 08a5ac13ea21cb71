"""Sets as people have them: clones, tables re-saved by other programs, rows of their own."""

import csv
import gzip
import io
import json
import pickle
from pathlib import Path

import pandas
import pytest
from toys import DATA, blimp, real, write

from tsae_lab.data import own_sets, public_sets, records, tables
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


# protocol 0, as Python 2 wrote them: {"sing_MS_MV": [("the author laughs", "the author laugh")]}
PICKLED = (
    b"(dp0\nS'sing_MS_MV'\np1\n(lp2\n(S'the author laughs'\np3\nS'the author laugh'\np4\ntp5\nas."
)
POLARITY = pickle.dumps({"past": [("no man ever", "the man ever", "most men ever")]}, protocol=2)


def as_published(folder: Path) -> Path:
    """Clones with what else is in them: results, copies of pages, pickles in three places."""
    copies = ("data/templates", "EMNLP2018/templates", "EMNLP2018/old-templates")
    for name, content in {
        "blimp/raw_results/summary/models_summary.jsonl": b'{"UID": "island", "gpt2": 0.9}\n',
        "blimp/data/island.jsonl": blimp().encode(),
        **{f"LM_syneval/{place}/simple_agrmt.pickle": PICKLED for place in copies},
        "LM_syneval/data/templates/simple_npi_anim.pickle": POLARITY,
        "LM_syneval/other.pickle": pickle.dumps({"a": 1}),
        "wg/data/templates.tsv": f"{TEMPLATES}\n{TEMPLATE}\n".encode(),
        "notes/templates.tsv": b"a\tb\n",
        "notes/bad.jsonl": b"\xff",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def test_clones_are_read_as_they_are_published(tmp_path):
    sets, absent = public_sets.find_sets(as_published(tmp_path), 5)
    assert {name: (len(pairs), rule) for name, (pairs, rule) in sets.items()} == {
        "blimp": (1, "sentence"), "lm_syneval": (1, "word"), "winogender": (1, "sentence"),
    }  # fmt: skip
    assert absent == ()
    (pair,) = sets["lm_syneval"][0]
    assert (pair.prefix, pair.good, pair.bad, pair.group) == (
        *("the author", " laughs", " laugh"),
        "simple_agrmt",
    )
    (path,) = own_sets.set_paths(tmp_path)["lm_syneval"]
    assert path.relative_to(tmp_path) == Path("LM_syneval/data/templates/simple_agrmt.pickle")
    for place in ("LM_syneval", "LM_syneval/data", "LM_syneval/data/templates"):
        assert own_sets.set_paths(tmp_path / place)["lm_syneval"] == [path]
    one, _ = public_sets.find_sets(path, 5)
    assert one["simple_agrmt.pickle"] == sets["lm_syneval"]
    (tmp_path / "blimp" / "data" / "island.jsonl").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"island\.jsonl is not UTF-8 text"):
        own_sets.set_paths(tmp_path)


def test_nothing_in_a_pickle_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    for data, message in (
        (pickle.dumps(Bomb()), r"is no pickle of plain texts: it asks for \w+\.open"),
        (pickle.dumps({"a": [Bomb()]}, protocol=0), "it asks for"),
        (PICKLED[:40], "is no pickle of plain texts"),
        (pickle.dumps([1]), "needs a dictionary of pairs; got list"),
        (POLARITY, "holds no pairs of sentences"),
    ):
        (tmp_path / "a.pickle").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            own_sets.pickled_pairs(tmp_path / "a.pickle")
    assert not (tmp_path / "ran").exists()


WINOBIAS = "1 [The developer] argued with the designer because [she] did not like the design."


def probing_clones(folder: Path) -> None:
    """The repositories of sets for probes, as they are cloned."""
    wino = "corefBias/WinoBias/wino/data"
    for name, content in {
        f"{wino}/anti_stereotyped_type1.txt.dev": f"{WINOBIAS}\n",
        f"{wino}/pro_stereotyped_type1.txt.test": f"{WINOBIAS.replace('[she]', '[he]')}\n",
        f"{wino}/pro_stereotyped_type2.txt.dev": "other\n",
        f"{wino}/.ipynb_checkpoints/pro_stereotyped_type1.txt-checkpoint.dev": "other\n",
        f"corefBias/_site/{wino[10:]}/pro_stereotyped_type1.txt.dev": "other\n",
        f"{wino}/male_occupations.txt": "developer\n",
        f"{wino}/female_occupations.txt": "designer\n",
        "gap-coreference/gap-test.tsv": "ID\tText\tPronoun\tPronoun-offset\n",
        "gap-coreference/constants.py": "x = 1\n",
        "winogender-schemas/data/all_sentences.tsv": "sentid\tsentence\n",
        "WikipediaHomographData/data/train/bass.tsv": '"homograph"\t"wordid"\n',
        "WikipediaHomographData/data/eval/bass.tsv": '"homograph"\t"wordid"\n',
        "WikipediaHomographData/data/train/x.tsv": "other\n",
        "merged/train.tsv": "homograph\twordid\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def test_a_probing_set_is_found_from_its_clone_its_parent_and_its_data_folder(tmp_path):
    probing_clones(tmp_path)
    for name, places, files in (
        ("WinoBias", ("corefBias/WinoBias/wino/data", "corefBias/WinoBias", "corefBias"),
         ["anti_stereotyped_type1.txt.dev", "pro_stereotyped_type1.txt.test"]),
        ("GAP", ("gap-coreference",), ["gap-test.tsv"]),
        ("Winogender", ("winogender-schemas", "winogender-schemas/data"), ["all_sentences.tsv"]),
        ("homographs", ("WikipediaHomographData", "WikipediaHomographData/data/train"),
         ["bass.tsv"]),
        ("homographs", ("merged",), ["train.tsv"]),
    ):  # fmt: skip
        for place in places:
            title, paths = own_sets.item_paths(tmp_path / place)
            assert (title, [path.name for path in paths]) == (name, files), place
    with pytest.raises(ValueError, match=r"holds several sets: GAP in .*; give one of them"):
        own_sets.item_paths(tmp_path)
    alone = tmp_path / "alone"
    alone.mkdir()
    (tmp_path / "corefBias").rename(alone / "corefBias")
    _, paths = own_sets.item_paths(alone)
    assert sum(len(public_sets.load_items(path).items) for path in paths) == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no probing set; wanted are pro_ and anti_"):
        own_sets.item_paths(tmp_path / "empty")


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


@pytest.mark.parametrize("name", ["own.csv", "own.tsv", "own.jsonl", "own.json", "own.parquet"])
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
    if name == "own.parquet":
        pandas.DataFrame(OWN).to_parquet(path)
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


def test_a_parquet_file_gives_its_rows_and_a_damaged_one_is_refused_in_one_line(tmp_path):
    pandas.DataFrame(rows := [{"a": 1, "b": "x"}, {"a": 2, "b": None}]).to_parquet(tmp_path / "a")
    assert tables.parquet_rows(tmp_path / "a") == rows
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.parquet: Parquet"):
        public_sets.load_items(tmp_path / "a.parquet")


def test_rows_of_any_table_are_read_alike(tmp_path):
    write(tmp_path / "a.csv", "a,b", '1,"x, y"', "", "2,z")
    write(tmp_path / "a.tsv", "a\tb", "1\tx, y", "2\tz")
    write(tmp_path / "a.json", '[{"a": 1, "b": "x, y"}, {"a": 2, "b": "z"}]')
    for name in ("a.csv", "a.tsv", "a.json"):
        read = records.rows(tmp_path / name, ("a", "b"), lambda row: (str(row["a"]), row["b"]))
        assert read.items == (("1", "x, y"), ("2", "z"))
    with pytest.raises(ValueError, match=r"a\.csv, line 1: needs the columns a, c; missing: c"):
        records.rows(tmp_path / "a.csv", ("a", "c"), dict)

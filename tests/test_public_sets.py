"""The loaders: what they read, what they leave out and count, and what they refuse, by file and
line.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import DATA, blimp, linzen, real, write

import probes
from probes import Item, Pair
from tsae_lab.data import public_sets, records
from tsae_lab.data.records import Loaded

GAP = (
    "ID",
    "Text",
    "Pronoun",
    "Pronoun-offset",
    "A",
    "A-offset",
    "A-coref",
    "B",
    "B-offset",
    "B-coref",
    "URL",
)
TEXT = "Ann met Bea when she left."


def gap(**rest: str) -> str:
    row = dict(
        zip(
            GAP,
            ("x-1", TEXT, "she", "17", "Ann", "0", "TRUE", "Bea", "8", "FALSE", "u"),
            strict=True,
        )
    )
    return "\t".join((row | rest).values())


HOMOGRAPH = "homograph\twordid\tsentence\tstart\tend"


def homographs(n: int = 8) -> list[str]:
    """Sentences with a two-byte letter before the word, so that bytes and characters differ."""
    rows = []
    for i in range(n):
        for sense, begin in (("lead_metal", "Café"), ("lead_verb", "Zoë")):
            sentence = f"{begin} {i} took the lead."
            start = len(sentence[: sentence.index("lead")].encode())
            rows.append(f"lead\t{sense}\t{sentence}\t{start}\t{start + 4}")
    return rows


# ------------------------------------------------------------------------------------ minimal pairs

tokens = st.sampled_from(["a", "cat", "cats", "sleep", "sleeps.", "cat.", "is", "not", ".", "!"])
sentences = st.lists(tokens, min_size=1, max_size=6).map(" ".join)


def pairs_of(folder: Path, good: str, bad: str) -> Loaded[Pair]:
    """The pair, after one that always serves: a file without any would be refused."""
    return public_sets.load_blimp(write(folder / "b.jsonl", blimp(), blimp(good, bad)))


@settings(deadline=None)
@given(sentences, sentences)
def test_a_pair_puts_both_sentences_together_again_and_its_forms_differ_in_full(
    tmp_path_factory, good, bad
):
    loaded = pairs_of(tmp_path_factory.getbasetemp(), good, bad)
    if loaded.skipped:
        assert good == bad or not (good[0].isalpha() and bad[0].isalpha())
        return
    pair = loaded.items[1]
    assert (pair.sentence_good, pair.sentence_bad) == (good, bad)
    assert pair.good.strip()
    assert pair.bad.strip()
    assert pair.good != pair.bad
    assert not pair.prefix.endswith(" ")
    assert not pair.good.endswith(" ")
    assert not pair.bad.endswith(" ")
    assert (pair.good[0] == " ") == (pair.bad[0] == " ") == bool(pair.prefix)


@pytest.mark.parametrize(
    ("good", "bad", "forms"),
    [
        ("a a .", "a .", ("", "a a", "a", " .")),
        ("She smiled .", "She smiled today .", ("She", " smiled", " smiled today", " .")),
        ("Today she smiled.", "she smiled.", ("", "Today she", "she", " smiled.")),
        ("She smiled", "She smiled today", ("She", " smiled", " smiled today", "")),
        ("She smiled.", "She smiled today.", ("She", " smiled", " smiled today", ".")),
    ],
)
def test_the_forms_of_an_insertion_hold_the_word_before_or_after_it(tmp_path, good, bad, forms):
    pair = pairs_of(tmp_path, good, bad).items[1]
    assert (pair.prefix, pair.good, pair.bad, pair.suffix) == forms


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        ("a b", "a  b", "good and bad form are equal"),
        ("a b ", "a b", "good and bad form are equal"),
        (" ", "a", "a sentence is empty"),
        (". a", "b. a", "a form would be empty"),
    ],
)
def test_sentences_that_make_no_pair_are_skipped_by_reason(tmp_path, good, bad, reason):
    loaded = pairs_of(tmp_path, good, bad)
    assert len(loaded.items) == 1
    assert loaded.skipped == {reason: 1}


def test_a_full_stop_that_both_forms_carry_belongs_to_the_suffix(tmp_path):
    path = write(tmp_path / "b.jsonl", blimp("Ann saw herself.", "Ann saw themselves."))
    (pair,) = public_sets.load_blimp(path).items
    assert pair == Pair(
        prefix="Ann saw", good=" herself", bad=" themselves", suffix=".", group="agreement"
    )


def test_winogender_puts_the_participant_in_the_place_of_the_pronoun(tmp_path):
    head = "occupation(0)\tother-participant(1)\tanswer\tsentence"
    row = "baker\tguest\t1\tThe $OCCUPATION thanked the $PARTICIPANT for $POSS_PRONOUN advice."
    pair = public_sets.load_winogender_pairs(write(tmp_path / "t.tsv", head, row)).items[0]
    assert pair.sentence_good == "The baker thanked the guest for the guest's advice."
    assert pair.sentence_bad == "The baker thanked the guest for the baker's advice."
    assert pair.group == "baker"


def test_equal_good_and_bad_forms_are_skipped_and_counted(tmp_path):
    path = write(tmp_path / "b.jsonl", blimp(), blimp("The cat sits.", "The cat sits."))
    for loader in (public_sets.load_blimp, public_sets.load_lm_syneval):
        found = loader(path)
        assert len(found.items) == 1
        assert found.skipped == {"good and bad form are equal": 1}
    path = write(tmp_path / "l.jsonl", linzen(), linzen(good="are", bad="are"))
    assert public_sets.load_linzen_pairs(path).skipped == {"good and bad form are equal": 1}
    assert public_sets.load_linzen(path).skipped == {"good and bad form are equal": 1}


def test_linzen_gives_the_pair_and_the_number_at_the_word_before_the_verb(tmp_path):
    path = write(
        tmp_path / "l.jsonl",
        linzen(),
        linzen(good="is", bad="are", attractors=["x", "y"], subject="key"),
    )
    first, second = public_sets.load_linzen(path).items
    told = (first.word, first.label, first.frame, first.congruent)
    assert told == ("it", 1, "0 attractors", None)  # there is no attractor that could agree
    assert (second.label, second.group, second.congruent) == (0, "key", None)
    pair = public_sets.load_linzen_pairs(path).items[1]
    assert (pair.sentence_good, pair.group) == ("the keys to it is here", "2 attractors")


def test_lines_about_attractors_hold_sentences_that_have_them(tmp_path):
    path = write(tmp_path / "l.jsonl", linzen(), linzen(attractors=["x"]), linzen(attractors=1))
    masks = probes.breakdown(public_sets.load_linzen(path).items)
    assert masks.keys() == {"all", "0 attractors", "1 attractors"}
    assert masks["1 attractors"].tolist() == [False, True, True]


# -------------------------------------------------------------------------------------- coreference


def test_gap_says_whether_the_first_name_is_meant_and_reads_at_the_pronoun(tmp_path):
    swapped = gap(**{"A": "Bea", "A-offset": "8", "B": "Ann", "B-offset": "0"})
    found = public_sets.load_gap(write(tmp_path / "g.tsv", "\t".join(GAP), gap(), swapped))
    assert [(item.word, item.label, item.group) for item in found.items] == [
        ("she", 1, "u"),
        ("she", 0, "u"),
    ]


def test_gap_leaves_out_what_does_not_serve_and_counts_it(tmp_path):
    lines = [
        gap(),
        gap(**{"A-offset": "900"}),
        gap(**{"Pronoun-offset": "16"}),
        gap(**{"A-coref": "FALSE"}),
        gap(**{"B-coref": "TRUE"}),
        gap(
            Text="When she left, Ann met Bea",
            **{"Pronoun-offset": "5", "A-offset": "15", "B-offset": "23"},
        ),
    ]
    found = public_sets.load_gap(write(tmp_path / "g.tsv", "\t".join(GAP), *lines))
    assert found.skipped == {
        "an offset is not at its word": 2,
        "neither or both names are the antecedent": 2,
        "a name comes after the pronoun": 1,
    }


def test_winogender_items_say_whether_the_first_named_is_meant(tmp_path):
    rows = ["sentid\tsentence"] + [
        f"baker.guest.{answer}.female.txt\tThe guest told the baker that she was late."
        for answer in (0, 1)
    ]
    items = public_sets.load_winogender(write(tmp_path / "all_sentences.tsv", *rows)).items
    assert [(item.word, item.label, item.group) for item in items] == [
        ("late", 0, "baker"),
        ("late", 1, "baker"),
    ]


def winobias(folder: Path, *lines: str) -> Path:
    write(folder / "male_occupations.txt", "mover", "CEO", "construction worker")
    write(folder / "female_occupations.txt", "baker")
    return write(folder / "pro_stereotyped_type1.txt.dev", *lines)


def test_winobias_finds_the_other_person_and_skips_odd_brackets(tmp_path):
    path = winobias(
        tmp_path,
        "1 [The CEO] paid the baker because [he] was late.",
        "2 The construction worker saw [the baker] and [she] waved.",
        "3 The mover saw the baker and waved.",
        "4 [The mover saw the baker because [he] waved.",
        "5 [The mover] saw nobody because [he] slept.",
    )
    found = public_sets.load_winobias(path)
    assert [(item.label, item.group, item.word) for item in found.items] == [
        (1, "baker/ceo", "late"),
        (0, "baker/construction worker", "waved"),
    ]
    assert found.items[0].text == "The CEO paid the baker because he was late."
    assert sum(found.skipped.values()) == 3


def test_winobias_without_its_other_half_gets_a_warning(tmp_path):
    pro = winobias(
        tmp_path,
        "1 [The CEO] paid the baker because [he] was late.",
        "2 The CEO paid [the baker] because [she] asked for her money.",
    )
    anti = write(
        tmp_path / "anti_stereotyped_type1.txt.dev",
        "1 [The CEO] paid the baker because [she] was late.",
        "2 The CEO paid [the baker] because [he] asked for his money.",
    )
    halves = [public_sets.load_items(path).items for path in (pro, anti)]
    for half in halves:
        told = public_sets.warning(half)
        assert told.startswith("of 2 sentences of WinoBias 0 are there with both genders")
    assert public_sets.warning((*halves[0], *halves[1])) == ""
    assert public_sets.warning(public_sets.load_linzen(write(tmp_path / "l", linzen())).items) == ""


@real
def test_the_pronoun_solves_one_half_of_the_real_winobias_and_not_both():
    files = [DATA / f"coreference/winobias/{kind}_stereotyped_type1.txt.dev"
             for kind in ("pro", "anti")]  # fmt: skip
    halves = [public_sets.load_items(file).items for file in files]
    both = (*halves[0], *halves[1])
    right = []
    for items in (*halves, both):
        words = probes.baselines(items)["bag of words"]
        right.append(probes.scores(words, items, k=None).mean())
    assert [bool(public_sets.warning(items)) for items in (*halves, both)] == [True, True, False]
    assert right[2] < 0.6


# -------------------------------------------------------------------------------------- word senses


def test_homograph_offsets_are_bytes(tmp_path):
    items = public_sets.load_homographs(write(tmp_path / "h.tsv", HOMOGRAPH, *homographs())).items
    assert {item.word for item in items} == {"lead"}
    assert [sum(item.label == label for item in items) for label in (0, 1)] == [8, 8]
    assert len({item.group for item in items}) == 16


def test_homographs_with_an_offset_outside_the_text_or_off_the_word_are_skipped(tmp_path):
    lines = [
        *homographs(),
        "lead\tlead_verb\tThey lead.\t5\t99",
        "lead\tlead_verb\tThey lead us.\t4\t8",
    ]
    found = public_sets.load_homographs(write(tmp_path / "h.tsv", HOMOGRAPH, *lines))
    assert found.skipped == {"an offset is not at its word": 2}


def test_senses_are_balanced_and_rare_ones_left_out(tmp_path):
    rows = homographs()
    found = public_sets.load_homographs(
        write(tmp_path / "h.tsv", HOMOGRAPH, *rows[:-2], rows[-1]), min_items=7
    )
    assert len(found.items) == 14
    assert found.skipped == {"a sense is too rare, or has more sentences than the other": 1}
    with pytest.raises(ValueError, match=r"h.tsv has no usable line: a sense is too rare.*\(15\)"):
        public_sets.load_homographs(tmp_path / "h.tsv", min_items=8)


def coarsewsd(folder: Path, n: int = 8) -> Path:
    write(folder / "bank" / "train.gold.txt", *(str(i % 2) for i in range(2 * n)))
    return write(folder / "bank" / "train.data.txt", *(f"1\tthe bank {i} ." for i in range(2 * n)))


def test_coarsewsd_reads_a_word_folder(tmp_path):
    items = public_sets.load_items(coarsewsd(tmp_path)).items
    assert {(item.unit, item.word) for item in items} == {("bank", "bank")}
    assert sum(item.label for item in items) == 8


def test_wic_compares_two_sentences(tmp_path):
    write(tmp_path / "train.gold.txt", "T", "F")
    path = write(
        tmp_path / "train.data.txt",
        "bed\tN\t1-2\ta bed .\tin the bed",
        "bed\tN\t0-7\tbed .\tin the bed",
    )
    found = public_sets.load_items(path)
    (item,) = found.items
    assert (item.word, item.label, item.group) == ("bed", 1, "bed")
    assert item.other == ("in the bed", 7, 10)
    assert found.skipped == {"the position lies outside the sentence": 1}


# ------------------------------------------------------------------------------------------ records


@given(st.lists(st.sampled_from(["-1", "20", "skip", "x"]), max_size=6))
def test_lines_are_parsed_or_counted_by_reason_or_refused_by_number(lines):
    def number(line: str) -> int:
        if line == "skip":
            raise records.Skip("no use")
        return records.number_of({"n": line}, "n")

    numbers, n_skipped = [int(line) for line in lines if line in ("-1", "20")], lines.count("skip")
    if "x" in lines:
        message = f"here, line {lines.index('x') + 1}: needs a whole number n; got 'x'"
        with pytest.raises(ValueError, match=message):
            records.parsed("here", lines, number)
    elif not numbers:
        reason = rf"no use \({n_skipped}\)" if n_skipped else "it is empty"
        with pytest.raises(ValueError, match=f"here has no usable line: {reason}"):
            records.parsed("here", lines, number)
    else:
        loaded = records.parsed("here", lines, number, skipped={"before": 2})
        assert loaded.items == tuple(numbers)
        assert Counter(loaded.skipped) == Counter({"before": 2}) + Counter({"no use": n_skipped})


cells = st.text(
    st.characters(codec="utf-8", exclude_characters='\0\t\n\r"'), min_size=1, max_size=4
)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=4))
def test_a_table_quoted_or_not_and_the_same_rows_as_json_lines_are_read_alike(
    tmp_path_factory, table
):
    folder, columns = tmp_path_factory.getbasetemp(), ("one", "two")
    rows = [dict(zip(columns, values, strict=True)) for values in table]
    plain = write(folder / "plain.tsv", *("\t".join(values) for values in (columns, *table)))
    fields = (("\t".join(f'"{v}"' for v in values)) for values in (columns, *table))
    quoted = write(folder / "quoted.tsv", *fields)
    lines = write(folder / "rows.jsonl", *map(json.dumps, rows))
    for path in (plain, quoted, lines):
        assert records.tsv(path, columns, dict).items == tuple(rows)
        assert records.columns_of(path) == list(columns)
    assert records.jsonl(lines, dict).items == tuple(rows)


def test_columns_of_running_text_are_its_first_line_and_of_damaged_json_an_error(tmp_path):
    assert records.columns_of(write(tmp_path / "a.txt", "some text", "more")) == ["some text"]
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: "):
        records.columns_of(write(tmp_path / "b.jsonl", '{"a": '))


def test_lines_end_at_a_line_feed_alone_and_an_empty_last_one_is_none(tmp_path):
    path = tmp_path / "a.txt"
    for data, lines in (
        (b"", []),
        (b"\xef\xbb\xbfa\r\n\r\nb\r\n", ["a", "", "b"]),
        ("a\u2028b\x0bc\nd".encode(), ["a\u2028b\x0bc", "d"]),
    ):
        path.write_bytes(data)
        assert records.lines(path) == lines


def test_a_gold_file_is_read_line_by_line_beside_its_data(tmp_path):
    data = write(tmp_path / "x.data.txt", "a", "b", "c")
    write(tmp_path / "x.gold.txt", "1", "2", "3")
    both = records.with_gold(data, lambda line, gold: line + gold)
    assert both.items == ("a1", "b2", "c3")
    with pytest.raises(ValueError, match=r"needs a name that ends in .data.txt"):
        records.with_gold(tmp_path / "x.gold.txt", lambda line, gold: line + gold)


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (records.text_of, {"a": "a"}, ["", 1, None, ["a"]]),
        (records.whole_of, {0: 0, -3: -3}, ["1", 1.0, True, None]),
        (records.number_of, {"0": 0, "-12": -12, "12.0": 12}, ["", "1.5", "x", " 1"]),
        (records.truth_of, {"TRUE": True, "FALSE": False, "True": True}, ["", "yes", "1"]),
    ],
)
def test_a_field_is_what_it_needs_to_be_or_is_refused_by_name(field, good, bad):
    for value, read in good.items():
        assert field({"x": value}, "x") == read
    for value in bad:
        with pytest.raises(ValueError, match=r"needs .*x.* got"):
            field({"x": value}, "x")


def test_pairs_come_with_the_rule_of_their_set(tmp_path):
    path = write(tmp_path / "b.jsonl", blimp())
    assert public_sets.load_pairs(path) == (public_sets.load_blimp(path), "sentence")
    path = write(tmp_path / "s.jsonl", blimp().replace("UID", "id"))
    assert public_sets.load_pairs(path) == (public_sets.load_lm_syneval(path), "word")
    path = write(tmp_path / "l.jsonl", linzen())
    assert public_sets.load_pairs(path) == (public_sets.load_linzen_pairs(path), "word")
    with pytest.raises(ValueError, match=r"holds no minimal pairs known here: .* has 'hello'"):
        public_sets.load_pairs(write(tmp_path / "x.txt", "hello"))


# ---------------------------------------------------------------------------------------- bad input


def test_a_missing_file_an_empty_one_and_one_that_is_not_text_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no.jsonl does not exist"):
        public_sets.load_blimp(tmp_path / "no.jsonl")
    with pytest.raises(ValueError, match=r"empty.jsonl has no usable line: it is empty"):
        public_sets.load_blimp(write(tmp_path / "empty.jsonl"))
    for data, why in (
        (b"\xff", "byte 0xff at offset 0"),
        (b"\xff\xfe", "it begins as UTF-16 does"),
    ):
        (tmp_path / "b.jsonl").write_bytes(data)
        with pytest.raises(ValueError, match=f"b.jsonl is not UTF-8 text: {why}$"):
            public_sets.load_blimp(tmp_path / "b.jsonl")


def test_a_truncated_file_is_refused_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"b.jsonl, line 2: "):
        public_sets.load_blimp(write(tmp_path / "b.jsonl", blimp(), blimp()[:30]))
    with pytest.raises(ValueError, match=r"h.tsv, line 17: needs 5 fields; got 2"):
        public_sets.load_homographs(
            write(tmp_path / "h.tsv", HOMOGRAPH, *homographs()[:-1], "lead\tlead_verb")
        )
    with pytest.raises(ValueError, match=r"g.tsv, line 3: needs 11 fields"):
        public_sets.load_gap(write(tmp_path / "g.tsv", "\t".join(GAP), gap(), gap()[:20]))
    path = coarsewsd(tmp_path)
    write(tmp_path / "bank" / "train.gold.txt", "0")
    with pytest.raises(
        ValueError, match=r"train.data.txt has 16 lines and .*train.gold.txt 1: one is truncated"
    ):
        public_sets.load_coarsewsd(path)


def test_a_missing_column_or_field_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"g.tsv, line 1: needs the columns .*missing: URL"):
        public_sets.load_gap(write(tmp_path / "g.tsv", "\t".join(GAP[:-1]), gap()))
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: needs a text sentence_bad; got None"):
        public_sets.load_blimp(write(tmp_path / "b.jsonl", blimp(bad=None)))
    with pytest.raises(
        ValueError, match=r"l.jsonl, line 1: needs a whole number attractors; got '2'"
    ):
        public_sets.load_linzen(write(tmp_path / "l.jsonl", linzen(attractors="2")))
    with pytest.raises(ValueError, match=r"g.tsv, line 2: needs a whole number A-offset; got 'x'"):
        public_sets.load_gap(write(tmp_path / "g.tsv", "\t".join(GAP), gap(**{"A-offset": "x"})))


def test_a_verb_index_outside_the_sentence_is_skipped(tmp_path):
    path = write(
        tmp_path / "l.jsonl",
        linzen(),
        linzen(verb_index=6),
        linzen(verb_index=-1),
        linzen(verb_index=0),
    )
    assert public_sets.load_linzen(path).skipped == {
        "verb_index lies outside the sentence": 2,
        "there is no word before the verb": 1,
    }


def test_load_items_knows_the_formats_and_refuses_minimal_pairs_and_the_rest(tmp_path):
    assert (
        public_sets.load_items(write(tmp_path / "g.tsv", "\t".join(GAP), gap())).items[0].word
        == "she"
    )
    assert public_sets.load_items(write(tmp_path / "l.jsonl", linzen())).items[0].word == "it"
    with pytest.raises(ValueError, match="holds minimal pairs: they are compared, not probed"):
        public_sets.load_items(write(tmp_path / "b.jsonl", blimp()))
    with pytest.raises(ValueError, match=r"x.txt: line 1 is of no format known here: 'hello'"):
        public_sets.load_items(write(tmp_path / "x.txt", "hello"))


# ---------------------------------------------------------------------------------------- real sets


@real
@pytest.mark.parametrize(
    "path", sorted(DATA.glob("agreement/*/*.jsonl")), ids=lambda path: path.stem
)
def test_the_real_minimal_pairs_differ_in_one_word(path):
    found: Loaded[Pair] = (
        public_sets.load_blimp if path.parent.name == "blimp" else public_sets.load_lm_syneval
    )(path)
    assert not found.skipped
    assert len(found.items) == len(path.read_text().splitlines())
    assert all(len(pair.good.split()) == len(pair.bad.split()) == 1 for pair in found.items)


@real
@pytest.mark.parametrize(
    ("file", "n", "skipped"),
    [
        ("coreference/gap/gap-development.tsv", 1378, 622),
        ("coreference/gap/gap-validation.tsv", 298, 156),
        ("coreference/winogender/all_sentences.tsv", 720, 0),
        ("coreference/winobias/pro_stereotyped_type1.txt.dev", 396, 0),
        ("wordsense/wikipedia_homographs/train.tsv", 3906, 10581),
    ],
)
def test_the_real_sets_load_and_are_near_balance(file, n, skipped):
    found = public_sets.load_items(DATA / file)
    assert len(found.items) == n
    assert sum(found.skipped.values()) == skipped
    assert 0.45 <= sum(item.label for item in found.items) / n <= 0.55
    assert all(
        item.word == item.text[item.begin : item.end] and item.word.strip() for item in found.items
    )


@real
def test_real_homographs_are_read_at_the_homograph():
    items: tuple[Item, ...] = public_sets.load_homographs(
        DATA / "wordsense/wikipedia_homographs/train.tsv"
    ).items
    assert all(item.word.lower() == item.unit for item in items)
    assert len({item.unit for item in items}) > 80


@real
def test_the_real_winogender_templates_give_pairs():
    pairs = public_sets.load_winogender_pairs(DATA / "coreference/winogender/templates.tsv").items
    assert len(pairs) == 120
    assert not any("$" in pair.sentence_good + pair.sentence_bad for pair in pairs)

"""The generators: balance, crossing, twins, and no way to the label but through what came
before.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import probes
from probes import Item
from tsae_lab.data import tasks

ITEMS = {name: make() for name, make in tasks.GENERATORS.items()}
NAMES = tuple(ITEMS)


@given(st.lists(st.text("ab'-", min_size=1, max_size=4), min_size=1, max_size=6), st.data())
def test_an_item_reads_out_the_word_at_its_place(words, data):
    place = data.draw(st.integers(0, len(words) - 1))
    item = tasks.item_at(words, place, unit="u", label=1, group="g", frame="f")
    assert tasks.word_span(words, place) == (item.begin, item.end)
    assert item.word == words[place]
    assert item.text[: item.begin].split(" ") == [*words[:place], ""]
    assert item.text.split(" ") == words
    assert (item.unit, item.label, item.group, item.frame) == ("u", 1, "g", "f")


def factors(item: Item) -> dict[str, str]:
    """Every single factor of an item that a probe might exploit, by name."""
    own = {f"factor {name}": value for name, value in item.factors.items()}
    return own | {
        "word": item.word,
        "distance": str(item.distance),
        "congruent": str(item.congruent),
        "frame": item.frame,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_label_is_independent_of_every_other_single_factor_in_every_unit_and_group(name):
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for item in ITEMS[name]:
        if not name.startswith("disambiguation"):  # there a group is a cue, of one label: see below
            counts[item.unit, item.group, "any", ""][item.label] += 1
        for factor, value in factors(item).items():
            counts[item.unit, "", factor, value][item.label] += 1
    uneven = {key: count for key, count in counts.items() if count[0] != count[1]}
    assert not uneven


@pytest.mark.parametrize("name", [n for n in NAMES if not n.startswith("disambiguation")])
def test_within_a_group_too_the_label_is_independent_of_the_read_out_word_and_the_congruence(name):
    counts: dict[tuple, Counter] = defaultdict(Counter)
    for item in ITEMS[name]:
        counts[item.unit, item.group, item.word, item.distance][item.label] += 1
    assert all(count[0] == count[1] for count in counts.values())


@pytest.mark.parametrize("name", ["disambiguation", "disambiguation_long"])
def test_cues_of_both_senses_are_equally_many_and_belong_to_one_sense_of_their_homonym(name):
    labels: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for item in ITEMS[name]:
        labels[item.unit][item.group].add(item.label)
    assert len(labels) == (tasks.N_LONG if name.endswith("long") else len(tasks.HOMONYMS))
    for groups in labels.values():
        assert Counter(next(iter(found)) for found in groups.values()) == {0: 8, 1: 8}
        assert all(len(found) == 1 for found in groups.values())


@pytest.mark.parametrize(
    ("name", "frames", "n"),
    [("agreement", tasks.FRAMES, 18), ("agreement_long", tasks.LONG_FRAMES, 12)],
)
def test_agreement_crosses_all_its_factors_fully_and_equally(name, frames, n):
    """`n`: lengths of the filler times adverbs."""
    cells: dict[str, Counter] = defaultdict(Counter)
    for item in ITEMS[name]:
        cells[item.unit][item.label, *sorted(item.factors.items())] += 1
    sizes = {unit: 2 * n * 2 ** tasks.FRAMES[unit] for unit in frames}
    assert {unit: len(found) for unit, found in cells.items()} == sizes
    assert all(len(set(found.values())) == 1 for found in cells.values())


@pytest.mark.parametrize("name", ["coreference", "coreference_long"])
def test_coreference_crosses_order_pronoun_verb_place_length_and_adverb(name):
    for unit, verbs in (("gender", 5), ("number", 5)):
        ours = [item for item in ITEMS[name] if item.unit == unit]
        cells = Counter(
            (item.factors["verb"], item.distance, item.word, item.label) for item in ours
        )
        assert len(cells) == verbs * len(tasks.PLACES) * len(tasks.AFTER_PRONOUN) * 2
        assert len(set(cells.values())) == 1


@pytest.mark.parametrize(
    ("name", "n"), [("agreement", 100), ("coreference", 30), ("disambiguation", 500)]
)
def test_there_are_enough_groups_to_hold_some_out(name, n):
    assert len({item.group for item in ITEMS[name]}) >= n


def test_the_vocabulary_is_large_and_its_parts_are_disjoint():
    assert len(set(tasks.SUBJECTS)) >= 100
    assert len(set(tasks.ATTRACTORS)) >= 40
    forms = [
        form(noun)
        for noun in (*tasks.SUBJECTS, *tasks.ATTRACTORS)
        for form in (tasks.singular, tasks.plural)
    ]
    assert len(forms) == len(
        set(forms)
    )  # no form is both a subject and an attractor, or both numbers
    assert not set(tasks.WOMEN) & set(tasks.MEN)


def test_verbs_in_relative_clauses_show_no_number():
    assert all(verb.endswith("ed") for verb in tasks.PAST_VERBS)


@pytest.mark.parametrize("name", NAMES)
def test_the_read_out_word_is_a_whole_word_and_the_last(name):
    for item in ITEMS[name]:
        assert item.word in item.text.split()
        assert item.end == len(item.text)
        assert item.begin == 0 or item.text[item.begin - 1] == " "


LONG = tuple(name for name in NAMES if name.endswith("_long"))


def deciding(item: Item) -> str:
    """The word that decides the label, by the item's distance."""
    words = item.text.split()
    return words[len(words) - 1 - item.distance]


def test_in_the_long_variants_the_deciding_word_is_over_20_words_away():
    assert LONG == ("agreement_long", "coreference_long", "disambiguation_long")
    for name in LONG:
        for item in ITEMS[name]:
            assert 20 < item.distance < 60
            words = item.text.split()
            assert words.count("-") == 2
            assert words.index("-") > len(words) - 1 - item.distance
    assert all(deciding(item) == item.text.split()[1] for item in ITEMS["agreement_long"])
    names = {*tasks.WOMEN, *tasks.MEN, *map(tasks.plural, tasks.PEOPLE)}
    assert all(deciding(item) in names for item in ITEMS["coreference_long"])
    assert all(
        deciding(item).strip(",") == item.group.split(": ")[1]
        for item in ITEMS["disambiguation_long"]
    )


def test_what_stands_between_says_nothing_of_any_label():
    words = {word for clause in tasks.CLAUSES for word in clause.split()}
    nouns = {form(noun) for noun in tasks.SUBJECTS + tasks.ATTRACTORS
             for form in (tasks.singular, tasks.plural)}  # fmt: skip
    cues = {cue for target, senses in tasks.HOMONYMS.items() for cue in (target, *sum(senses, ()))}
    pronouns = {"he", "she", "they", "it", "his", "her", "their", "this", "these", "those"}
    marked = {"is", "are", "was", "were", "has", "does"}
    read_out = {*tasks.ADVERBS, *tasks.AFTER_PRONOUN}
    assert not words & (nouns | cues | pronouns | marked | read_out)
    assert {len(clause.split()) for clause in tasks.CLAUSES} == {9}
    for name in LONG:  # and twins share it: all that differs is a word before it
        labels: dict[tuple[str, str, str], Counter] = defaultdict(Counter)
        for item in ITEMS[name]:
            group = "" if name == "disambiguation_long" else item.group
            labels[item.unit, group, item.text.partition(" - ")[2]][item.label] += 1
        assert all(found[0] == found[1] for found in labels.values())


@given(st.integers(0, 8), st.integers(0, 10))
def test_an_aside_has_nine_words_per_clause_and_no_clause_twice(n_clauses, seed):
    words = tasks.aside(n_clauses, torch.Generator().manual_seed(seed))
    assert words[0] == words[-1] == "-"
    inner = " ".join(words[1:-1])
    assert len(words) == 9 * n_clauses + 2
    assert len(set(inner.split(", ")) & set(tasks.CLAUSES)) == n_clauses


def test_the_label_of_agreement_is_the_number_of_its_subject():
    numbers = {
        form(noun): at
        for noun in tasks.SUBJECTS
        for at, form in enumerate((tasks.singular, tasks.plural))
    }
    for item in (*ITEMS["agreement"], *ITEMS["agreement_long"]):
        words = item.text.split()
        assert item.label == numbers[words[1]]
        assert item.distance == len(words) - 2
        irregular = ("women", "men", "wives", "thieves", "fishermen")
        assert tasks.singular(item.group) in words[1] or words[1] in irregular


def test_congruent_says_whether_the_last_noun_has_the_number_of_the_subject():
    forms = {
        form(noun): at
        for noun in tasks.ATTRACTORS
        for at, form in enumerate((tasks.singular, tasks.plural))
    }
    for item in (*ITEMS["agreement"], *ITEMS["agreement_long"]):
        nouns = [forms[word] for word in item.text.split()[2:] if word in forms]
        assert len(nouns) == tasks.FRAMES[item.unit]
        assert item.congruent == (nouns[-1] == item.label if nouns else None)


def referent(item: Item) -> int:
    """Which mention, 0 or 1, the pronoun means, worked out from the words alone."""
    kinds = {name: "she" for name in tasks.WOMEN} | {name: "he" for name in tasks.MEN}
    words = item.text.split()
    mentions = [kinds.get(word, "they" if word.lower() == "the" else "") for word in words[:5]]
    mentions = [kind for kind in mentions if kind][:2]
    pronoun = next(word for word in words[3:] if word in ("she", "he", "they"))
    return mentions.index(pronoun)


def test_the_label_of_coreference_is_which_mention_the_pronoun_means():
    items = (*ITEMS["coreference"], *ITEMS["coreference_long"])
    assert all(item.label == 1 - referent(item) for item in items)


def test_in_the_control_the_pronoun_may_mean_either_and_orders_are_twins():
    twins: dict[frozenset[str], list[int]] = defaultdict(list)
    for item in ITEMS["unresolvable"]:
        words = item.text.split()
        assert {words[0], words[2]} <= set(tasks.WOMEN) or {words[0], words[2]} <= set(tasks.MEN)
        twins[frozenset((words[0], words[2], *item.text.split(" ", 3)[3:]))].append(item.label)
    assert all(sorted(labels) in ([0, 1], [0, 0, 1, 1]) for labels in twins.values())


def test_they_can_only_mean_the_group_of_people_that_is_named():
    people = {tasks.plural(noun) for noun in tasks.PEOPLE}
    assert not set(tasks.PEOPLE) & set(tasks.ANIMALS)
    for item in of_unit((*ITEMS["coreference"], *ITEMS["coreference_long"]), "number"):
        words = item.text.lower().split()
        assert words[words.index("the") + 1] in people
        assert "met" not in words  # two who meet are "they" together


def of_one_stem(one: str, other: str) -> bool:
    """Whether one word stands in the other, or both begin with the same four letters."""
    short, long = sorted((one, other), key=len)
    return (len(short) >= 3 and short in long) or short[:4] == long[:4]


def test_no_cue_has_the_stem_of_another_or_of_its_homonym():
    for target, senses in tasks.HOMONYMS.items():
        pairs = itertools.combinations((target, *senses[0], *senses[1]), 2)
        assert [pair for pair in pairs if of_one_stem(*pair)] == []
    assert of_one_stem("dance", "dancer")
    assert of_one_stem("basketball", "ball")


def test_cues_and_homonyms_are_words_that_the_is_put_before():
    words = [word for target, both in tasks.HOMONYMS.items() for word in (target, *sum(both, ()))]
    assert all(word.isalpha() and word.islower() for word in words)  # no month, day or name


def test_the_cue_comes_5_to_11_words_before_its_homonym_and_nowhere_else():
    for item in ITEMS["disambiguation"]:
        target, cue = item.group.split(": ")
        words = [word.strip(",") for word in item.text.split()]
        at = words.index(cue)
        assert words[-1] == target == item.unit
        assert item.distance == len(words) - 1 - at
        assert 5 <= item.distance <= 11
        assert cue in tasks.HOMONYMS[target][item.label]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_items_and_another_seed_others(name):
    make = tasks.GENERATORS[name]
    assert make(seed=3) == make(seed=3)
    assert make(seed=3) != make(seed=4)


@pytest.mark.parametrize("name", NAMES)
def test_no_text_stands_twice_in_a_unit_with_two_labels(name):
    labels: dict[tuple[str, str], set[int]] = defaultdict(set)
    for item in ITEMS[name]:
        labels[item.unit, item.text].add(item.label)
    ambiguous = [text for text, found in labels.items() if len(found) > 1]
    assert len(ambiguous) <= (0.1 * len(labels) if name == "unresolvable" else 0)


def of_unit(items: Sequence[Item], unit: str) -> list[Item]:
    return [item for item in items if item.unit == unit]


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(NAMES), st.integers(2, 6), st.integers(0, 9))
def test_splits_share_no_group_and_every_fold_has_both_labels(name, n_folds, seed):
    unit = ITEMS[name][seed].unit
    ours = of_unit(ITEMS[name], unit)
    labels = np.array([item.label for item in ours])
    fold = probes.folds([item.group for item in ours], labels, n_folds, seed=seed)
    where: dict[str, set[int]] = defaultdict(set)
    for item, at in zip(ours, fold.tolist(), strict=True):
        where[item.group].add(at)
    assert all(len(found) == 1 for found in where.values())
    assert all(set(labels[fold == at]) == {0, 1} for at in range(n_folds))


def test_names_are_held_out_with_their_group():
    names = tasks.WOMEN + tasks.MEN
    where: dict[str, set[str]] = defaultdict(set)
    for item in (*ITEMS["coreference"], *ITEMS["coreference_long"], *ITEMS["unresolvable"]):
        for word in item.text.split():
            if word in names:
                where[word].add(item.group)
    assert len(where) == 120
    assert all(len(groups) == 1 for groups in where.values())

"""Probing tasks: what an item and a minimal pair are, and three balanced, seeded generators of items.

A task is temporal only if the label is not in the word that is read out. In every generator an item has twins that
differ from it in the label and in what decides the label, and in nothing else, all in one group. So the label is
independent of every other factor, the read-out word included, in any split of the groups: a probe on embeddings is at
chance. Everything a generator draws is a function of its seed.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

import torch

from lexicon import (
    ADVERBS,
    AFTER_PRONOUN,
    ATTRACTORS,
    FILLERS,
    HOMONYMS,
    MEETINGS,
    MEN,
    OPENINGS,
    PAST_VERBS,
    PLACES,
    PREPOSITIONS,
    SENSE_FRAMES,
    SUBJECTS,
    WOMEN,
    plural,
    singular,
)

T = TypeVar("T")
Rest = tuple[tuple[str, str], str, str]  # verb and conjunction, place, adverb after the pronoun
NUMBERS = ("singular", "plural")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A minimal pair: `prefix + good + suffix` is a sentence, `prefix + bad + suffix` is none; no character is added.

    `good` and `bad` are the words that differ, with the space before them (none at the start of the sentence);
    `suffix` is what comes after, with its own space or full stop. They are never equal.
    """

    prefix: str
    good: str
    bad: str
    suffix: str
    group: str
    """condition that accuracy is reported for: paradigm, case, occupation"""

    @property
    def sentence_good(self) -> str:
        """The grammatical, or the intended, sentence."""
        return self.prefix + self.good + self.suffix

    @property
    def sentence_bad(self) -> str:
        """The other one."""
        return self.prefix + self.bad + self.suffix


@dataclass(frozen=True, kw_only=True)
class Item:
    """A text with the word that is read out, and what a probe should find there."""

    unit: str
    """what one probe is trained for: a frame of agreement, a homonym"""
    text: str
    begin: int
    """character at which the read-out word begins"""
    end: int
    """character after its last: a code that is read there has seen `text[:end]`"""
    label: int
    """0 or 1"""
    group: str
    """lemma, names or cue: never on both sides of a split"""
    frame: str = ""
    distance: int = 0
    """words from what decides the label to the read-out word; 0 where it is not known"""
    congruent: bool | None = None
    """whether the nearest distractor agrees with the label; None where there is none"""
    factors: Mapping[str, str] = field(default_factory=dict, hash=False)
    """what else was crossed, by name"""
    other: tuple[str, int, int] | None = None
    """a second text with its `begin` and `end`, where the label is about both: the probe reads |difference| of codes"""

    @property
    def word(self) -> str:
        """The read-out word."""
        return self.text[self.begin : self.end]


def _item(words: Sequence[str], at: int, **rest: object) -> Item:
    """The item that reads out `words[at]`; words are joined by spaces."""
    begin = len(" ".join(words[:at])) + (at > 0)
    return Item(text=" ".join(words), begin=begin, end=begin + len(words[at]), **rest)  # type: ignore[arg-type]


def _shuffled(values: Sequence[T], generator: torch.Generator) -> list[T]:
    return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]


def _one(values: Sequence[T], generator: torch.Generator) -> T:
    return values[int(torch.randint(len(values), (), generator=generator))]


# ------------------------------------------------------------------------------------------ agreement


FRAMES = MappingProxyType({"simple": 0, "PP": 1, "2PP": 2, "subject RC": 1, "object RC": 1})  # attractors in each


def agreement(*, seed: int = 0, cells: int = 3) -> list[Item]:
    """Number of the subject, read out at an adverb before the verb; one unit a frame, one group a subject lemma.

    Attractor numbers x filler length x adverb is a grid of 18 (simple), 36 or 72 (two PPs) cells; every one of 120
    lemmas stands in `cells` of them, in both numbers. With a multiple of 3, all cells of a frame are equally frequent.
    Verbs in relative clauses are in the past tense; `congruent`: the last attractor has the subject's number.
    """
    generator = torch.Generator().manual_seed(seed)
    items = []
    for frame, n_attractors in FRAMES.items():
        numbers_of = itertools.product(NUMBERS, repeat=n_attractors)
        grid = [(ns, filler, adverb) for ns in numbers_of for filler in FILLERS for adverb in ADVERBS]
        for i, lemma in enumerate(_shuffled(SUBJECTS, generator)):
            for j in range(i * cells, (i + 1) * cells):
                numbers, length, adverb = grid[j % len(grid)]
                nouns = [_inflected(_one(ATTRACTORS, generator), number) for number in numbers]
                between = [*_attractors(frame, nouns, generator), *_one(FILLERS[length], generator).split()]
                factors = {"filler": str(length), "adverb": adverb}
                factors |= {f"attractor {n + 1}": number for n, number in enumerate(numbers)}
                items += [_agreement_item(frame, lemma, number, between, factors) for number in NUMBERS]
    return items


def _agreement_item(frame: str, lemma: str, number: str, between: list[str], factors: dict[str, str]) -> Item:
    words = ["The", _inflected(lemma, number), *between, factors["adverb"]]
    nearest = factors.get(f"attractor {FRAMES[frame]}")
    at = len(words) - 1
    return _item(
        words, at, unit=frame, frame=frame, label=NUMBERS.index(number), group=singular(lemma), distance=at - 1,
        congruent=None if nearest is None else nearest == number, factors=factors,
    )  # fmt: skip


def _inflected(noun: str, number: str) -> str:
    return plural(noun) if number == "plural" else singular(noun)


def _attractors(frame: str, nouns: list[str], generator: torch.Generator) -> list[str]:
    """The words between subject and filler."""
    verb = _one(PAST_VERBS, generator)
    if frame == "subject RC":
        return ["that", verb, "the", nouns[0]]
    if frame == "object RC":
        return ["that", "the", nouns[0], verb]
    return [word for noun in nouns for word in (_one(PREPOSITIONS, generator), "the", noun)]


# ---------------------------------------------------------------------------------------- coreference


GRID = tuple(itertools.product(MEETINGS, PLACES, AFTER_PRONOUN))  # 60 cells
PRONOUN = MappingProxyType({"woman": "she", "man": "he", "group": "they"})


def coreference(*, seed: int = 0, cells: int = 6) -> list[Item]:
    """Whether a pronoun means the one who was named first (1) or second (0), read out at an adverb after it.

    Unit "gender": a woman and a man, he or she; unit "number": a person and a group, he or she or they. The label is
    order XOR pronoun: all four combinations of an order and a pronoun are twins. Groups are 30 sets of names that no
    other group has; each stands in `cells` of 60 cells verb x place x adverb. A multiple of 2 makes cells equally
    frequent.
    """
    items = []
    for group, (women, men), rests, generator in _name_groups(seed, cells):
        for place, rest in enumerate(rests):
            woman, man = women[place % 2], men[place // 2 % 2]
            person = ("woman", woman) if place % 2 else ("man", man)
            many = ("group", f"the {plural(_one(ATTRACTORS, generator))}")
            pairs = {"gender": (("woman", woman), ("man", man)), "number": (person, many)}
            for unit, pair in pairs.items():
                for first, meant in itertools.product((0, 1), (0, 1)):
                    named = (pair[first], pair[1 - first])
                    items.append(_coreference_item(unit, group, named, PRONOUN[pair[meant][0]], first == meant, rest))
    return items


def unresolvable(*, seed: int = 0, cells: int = 12) -> list[Item]:
    """The control of `coreference`: two women, or two men, so that the pronoun may mean either.

    In each sentence one of the two is drawn to be "meant", and the label says whether that name comes first; its twin
    has the names the other way round. Nothing tells who is meant: every probe is at chance, or the split leaks.
    """
    items = []
    for group, people, rests, generator in _name_groups(seed, cells):
        for (kind, names), rest in itertools.product(zip(("woman", "man"), people, strict=True), rests):
            meant, other = ((kind, name) for name in _shuffled(names, generator))
            for named, is_first in (((meant, other), True), ((other, meant), False)):
                items.append(_coreference_item("unresolvable", group, named, PRONOUN[kind], is_first, rest))
    return items


def _name_groups(
    seed: int, cells: int
) -> Iterator[tuple[str, tuple[list[str], list[str]], list[Rest], torch.Generator]]:
    """Of each group: its name, two women and two men, its cells of the grid with a place drawn, and the generator."""
    generator = torch.Generator().manual_seed(seed)
    women: list[str] = _shuffled(WOMEN, generator)
    men: list[str] = _shuffled(MEN, generator)
    for at in range(0, len(women), 2):
        people = (women[at : at + 2], men[at : at + 2])
        begin = at // 2 * cells
        grid = [GRID[i % len(GRID)] for i in range(begin, begin + cells)]
        rests = [(meeting, _one(PLACES[length], generator), after) for meeting, length, after in grid]
        yield "/".join((*people[0], *people[1])), people, rests, generator


def _coreference_item(unit: str, group: str, named: tuple, pronoun: str, is_first: bool, rest: Rest) -> Item:
    (first_kind, first), (_, second) = named
    (verb, conjunction), place, after = rest
    opening = [*first.split(), verb, *second.split()]
    opening[0] = opening[0][0].upper() + opening[0][1:]
    words = [*opening, *place.split(), conjunction, pronoun, after]
    at = len(words) - 1
    factors = {"order": first_kind, "pronoun": pronoun, "adverb": after, "verb": verb, "place": place}
    return _item(
        words, at, unit=unit, frame=f"{verb} {conjunction}", label=int(is_first), group=group,
        distance=at - len(opening) + 1, factors=factors,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- disambiguation


def disambiguation(*, seed: int = 0) -> list[Item]:
    """Which of its two senses a homonym has, read out at the homonym; one unit a homonym, one group a cue.

    36 homonyms x two senses x eight cues x six frames, fully crossed; the cue comes 5 to 11 words before the homonym
    and is held out. The opening of a sentence is drawn, the same for both senses.
    """
    generator = torch.Generator().manual_seed(seed)
    items = []
    for target, senses in HOMONYMS.items():
        for pair in zip(*senses, strict=True):
            for n, frame in enumerate(SENSE_FRAMES):
                opening = _one(OPENINGS, generator)
                items += [_sense_item(target, label, cue, n, frame, opening) for label, cue in enumerate(pair)]
    return items


def _sense_item(target: str, label: int, cue: str, n: int, frame: str, opening: str) -> Item:
    body = frame if not opening else frame[0].lower() + frame[1:]
    slots = [*opening.split(), *body.split()]
    at, cue_at = slots.index("{target}"), slots.index("{cue}")
    words = [word.format(cue=cue, target=target) for word in slots]
    return _item(
        words, at, unit=target, frame=str(n), label=label, group=f"{target}: {cue}", distance=at - cue_at,
        factors={"opening": opening},
    )  # fmt: skip


GENERATORS: Mapping[str, Callable[..., list[Item]]] = MappingProxyType(
    {"agreement": agreement, "coreference": coreference, "disambiguation": disambiguation}
)

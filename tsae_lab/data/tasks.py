"""Probing tasks: three balanced, seeded generators of items, their long variants, and a control.

A task is temporal only if the label is not in the word that is read out. Every item has twins that
differ from it in the label and in what decides the label, and in nothing else, all in one group. So
the label is independent of every other factor, the read-out word included, in any split of the
groups: a probe on embeddings is at chance. Everything a generator draws is a function of its seed.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from probes import Item, Task

# 120 subjects and 48 attractors, disjoint; a plural that is not made by rule stands after a slash.
# Both forms have equally many tokens in the embedded language model: twins can be aligned.
SUBJECTS = tuple(
    """
    farmer teacher doctor lawyer driver painter writer singer dancer player sailor soldier
    officer guard manager merchant trader broker barber emperor plumber ambassador weaver miner
    hunter fisherman/fishermen woman/women man/men child/children wife/wives thief/thieves king
    queen prince diplomat consultant knight priest monk nun bishop pilot captain general engineer
    architect scientist chemist physicist professor student scholar author poet lecturer editor
    journalist reporter critic actor director producer musician drummer tutor violinist
    composer conductor judge senator governor athlete minister president passenger clerk
    accountant assistant customer client patient nurse surgeon dentist therapist gardener cook
    chef waiter servant historian butler neighbor visitor tourist traveler stranger guest tenant
    landlord owner boss worker builder designer inventor explorer wizard runner swimmer skater
    boxer wrestler coach referee fan winner loser champion rival
    """.split()  # noqa: SIM905
)
ANIMALS = tuple(
    """
    dog cat horse cow goat pig rabbit lion tiger bear monkey elephant camel fox eagle parrot
    duck turtle snake frog wolf/wolves
    """.split()  # noqa: SIM905
)
PEOPLE = tuple(
    """
    boy girl brother sister citizen orphan cousin son daughter friend enemy partner witness
    suspect spy rebel pirate beggar cowboy robber prisoner inspector detective parent agent
    lady/ladies hero/heroes
    """.split()  # noqa: SIM905
)
ATTRACTORS = ANIMALS + PEOPLE
PREPOSITIONS = ("near", "behind", "beside", "with")
PAST_VERBS = ("chased", "followed", "watched", "avoided", "ignored", "noticed", "feared", "saved")
# Adverbs before a verb: no noun, no number. By length in words.
FILLERS: Mapping[int, tuple[str, ...]] = {
    0: ("",),
    2: ("quite clearly", "almost certainly", "more recently", "very probably"),
    4: (
        "more or less openly", "now and then apparently", "not so very surprisingly",
        "once again rather suddenly",
    ),
}  # fmt: skip
# What stands between in the long variants: clauses of nine words without noun, number or gender.
CLAUSES: tuple[str, ...] = (
    "as had been said quite openly now and then",
    "or so at least after having looked more closely",
    "not at once but later on and rather slowly",
    "more or less just like before and ever since",
    "though hardly as soon as could have been hoped",
    "perhaps not quite so much as earlier or elsewhere",
    "for better or worse and whether known or not",
    "however strange or even absurd when heard here today",
)
ASIDES = (2, 3, 5)  # clauses in one: 20, 29 or 47 words with the dashes around them
ADVERBS = ("often", "never", "always", "usually", "really", "still")  # read out here

WOMEN = tuple(
    """
    Mary Anna Emma Sarah Lucy Alice Laura Julia Helen Jane Kate Susan Linda Karen Lisa Maria
    Rachel Rebecca Jennifer Jessica Emily Olivia Sophia Hannah Grace Claire Diana Nancy Betty
    Barbara Carol Sandra Martha Victoria Amanda Michelle Elizabeth Margaret Catherine Caroline
    Charlotte Eleanor Ruth Rose Ellen Amy Sally Judy Sharon Kathleen Christine Teresa Heather
    Melissa Stephanie Nicole Angela Janet Joan Isabella
    """.split()  # noqa: SIM905
)
MEN = tuple(
    """
    John James Robert David William Richard Thomas Charles Daniel Matthew Mark Paul Steven
    Andrew George Edward Brian Kevin Peter Henry Arthur Frank Jack Adam Simon Oliver Harry
    Michael Joseph Anthony Donald Kenneth Joshua Ronald Timothy Jason Jeffrey Ryan Jacob Gary
    Nicholas Eric Stephen Larry Justin Scott Benjamin Samuel Gregory Patrick Alexander Tyler
    Dennis Jerry Aaron Nathan Douglas Walter Albert Philip
    """.split()  # noqa: SIM905
)
MEETINGS = (  # verb, conjunction
    ("warned", "because"),
    ("called", "before"),
    ("thanked", "after"),
    ("saw", "when"),
    ("visited", "while"),
)
PLACES: Mapping[int, tuple[str, ...]] = {  # by length in words
    0: ("",),
    3: ("at the station", "in the garden", "on the island", "outside the theater"),
    7: (
        "at the old station near the river", "in the small garden behind the house",
        "on the quiet island in the lake", "outside the new theater in the village",
    ),
}  # fmt: skip
AFTER_PRONOUN = ("really", "finally", "suddenly", "quickly")  # read out here

# The target is read out; the cue comes 5 to 11 words before it.
SENSE_FRAMES = (
    "Everybody who mentioned the {cue} also spoke about the {target}",
    "The {cue} was mentioned first, then the {target}",
    "With the {cue} in mind, we looked at the {target}",
    "They talked about the {cue} for quite a long time, and the {target}",
    "After the {cue} there really was not much to say about the {target}",
    "There was the {cue} in the picture, and next to it we saw the {target}",
)
N_LONG = 12  # homonyms of the long variant
OPENINGS = ("", "Yesterday,", "Once again,", "As it happened,")
# homonym: cues of one sense | cues of the other: nouns of WordNet 3.1 in the singular, no names;
# no stem twice, or a held-out cue would be known from its kin
_SENSES = """
bank: loan cashier deposit mortgage robber vault credit money
    | river stream shore canoe fishing water mud reed
bat: baseball pitcher inning stadium cricket umpire glove league
    | cave moth vampire owl night mammal insect dusk
crane: bird heron plumage nest stork marsh egg beak
    | construction scaffold steel concrete harbor cargo truck builder
bass: guitar drummer singer concert jazz amplifier melody choir
    | fisherman lake trout angler boat hook rod pond
spring: winter thaw meadow autumn blossom season tulip breeze
    | coil mattress metal tension lever watch screw clock
seal: penguin ice whale walrus ocean blizzard otter zoo
    | envelope wax stamp letter document signature king ring
pitcher: baseball catcher inning umpire batter stadium coach league
    | water lemonade juice glass kitchen jug milk table
mole: skin doctor cancer wart cheek dermatologist face birthmark
    | burrow garden tunnel lawn rat hedgehog soil worm
bark: dog puppy kennel collar pet wolf leash hound
    | tree oak trunk forest pine branch wood birch
match: football tennis stadium referee team goal player tournament
    | candle fire flame smoke lighter stove fuel cigar
club: golf ball tournament bunker course caddy fairway tee
    | membership dance nightlife bartender party disco society music
trunk: elephant zoo ivory tusk mammoth circus calf herd
    | car suitcase luggage tire driver engine garage vehicle
palm: coconut beach island lagoon tree desert oasis leaf
    | finger wrist thumb hand glove fist skin knuckle
pupil: school teacher lesson classroom homework exam grade textbook
    | eye iris lens retina vision optician cornea cataract
mint: herb tea lemon spice sauce basil candy garden
    | coin money treasury gold silver currency penny dollar
date: calendar month deadline year schedule week birthday century
    | fig fruit raisin palm dessert nut almond apricot
organ: church hymn choir chapel piano music cathedral pedal
    | liver kidney heart hormone surgeon donor lung hospital
nail: hammer wood carpenter screw plank board tool wall
    | finger polish manicure toe thumb salon cuticle hand
pen: ink paper letter stationery writer notebook signature desk
    | meadow pig farmer fence shepherd goat barn lamb
deck: ship captain sailor anchor mast yacht ocean cabin
    | roulette poker dealer ace joker casino gambler bluff
bow: arrow archer target quiver hunter string forest castle
    | ribbon gift hair dress package wrapping silk lace
chest: heart lung rib muscle breath shoulder stomach skeleton
    | treasure pirate gold lid box lock attic necklace
cell: prison guard inmate jail parole trial warden sentence
    | biology membrane protein nucleus tissue gene virus lab
plant: leaf soil garden flower seed root pot greenhouse
    | factory worker machine industry production engine manager steel
mouse: cat cheese trap tail hole rat hamster barn
    | computer keyboard screen laptop click cursor monitor software
ring: diamond wedding gold bride jewel engagement finger necklace
    | boxer referee fight champion helmet arena rope bell
bolt: nut screw wrench metal door lock hinge thread
    | lightning thunder storm cloud rain sky flash weather
court: judge lawyer jury trial verdict witness crime prosecutor
    | tennis racket net coach stadium player squash ball
draft: writer editor novel manuscript essay chapter author text
    | attic chill wind chimney door breeze winter air
port: harbor ship dock sailor cargo ferry anchor coast
    | wine bottle glass grape vineyard sherry dessert cork
band: guitar drummer singer concert album stage song rock
    | rubber wrist waist watch hair cloth metal plastic
scale: turtle fin snake lizard dragon skin reptile crocodile
    | weight pound diet kilogram bathroom balance grocer ounce
fan: football stadium team celebrity concert idol autograph supporter
    | heat summer air breeze thermostat ceiling blade noise
jam: bread toast strawberry pancake butter marmalade fruit sugar
    | traffic highway car road bus commuter truck driver
pitch: football grass player referee goal stadium soccer team
    | melody voice note singer tone piano tune violin
ball: tennis soccer striker tournament goal racket player league
    | prince gown waltz dance palace orchestra duchess costume
"""
HOMONYMS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    target: tuple(tuple(sense.split()) for sense in cues.split("|"))
    for target, cues in re.findall(r"^(\w+): (.*\n.*)", _SENSES, re.MULTILINE)
}


def plural(noun: str) -> str:
    """The plural of an entry: what stands after the slash, else by the rule of spelling."""
    if "/" in noun:
        return noun.split("/")[1]
    if noun.endswith(("s", "x", "ch", "sh")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


def singular(noun: str) -> str:
    """The singular of an entry."""
    return noun.split("/")[0]


Element = TypeVar("Element")
Rest = tuple[tuple[str, str], str, str]  # verb and conjunction, place, adverb after the pronoun
NUMBERS = ("singular", "plural")


def word_span(words: Sequence[str], place: int) -> tuple[int, int]:
    """Begin and end, in characters, of `words[place]` in the words joined by spaces."""
    begin = len(" ".join(words[:place])) + (place > 0)
    return begin, begin + len(words[place])


def item_at(words: Sequence[str], place: int, **fields: Any) -> Item:
    """The item that reads out `words[place]` in the words joined by spaces; `fields` are its other
    fields.
    """
    begin, end = word_span(words, place)
    return Item(text=" ".join(words), begin=begin, end=end, **fields)


def _shuffled(values: Sequence[Element], generator: torch.Generator) -> list[Element]:
    return [values[i] for i in torch.randperm(len(values), generator=generator).tolist()]


def aside(n_clauses: int, generator: torch.Generator) -> list[str]:
    """Words of a parenthesis of so many clauses, no clause twice: `9 n_clauses + 2` words, each at
    least one token. It says nothing of any label.
    """
    return f"- {', '.join(_shuffled(CLAUSES, generator)[:n_clauses])} -".split()


def _one(values: Sequence[Element], generator: torch.Generator) -> Element:
    return values[int(torch.randint(len(values), (), generator=generator))]


# ---------------------------------------------------------------------------------------- agreement


FRAMES = {"simple": 0, "PP": 1, "2PP": 2, "subject RC": 1, "object RC": 1}  # attractors in each
LONG_FRAMES = ("simple", "PP", "object RC")


def agreement(*, seed: int = 0, cells: int = 3, long: bool = False) -> list[Item]:
    """Number of the subject, read out at an adverb before the verb; one unit per frame, one group
    per subject lemma.

    Attractor numbers x filler length x adverb is a grid of 18 (simple), 36 or 72 (two PPs) cells;
    each of 120 lemmas is in `cells` of them, in both numbers. With a multiple of 3, all cells of a
    frame are equally frequent. Verbs in relative clauses are in the past tense. `congruent`: the
    last attractor has the subject's number. `long`: an `aside` in place of the filler, four adverbs
    and `LONG_FRAMES`: grids of 12 or 24 cells, equally frequent with any `cells`.
    """
    generator = torch.Generator().manual_seed(seed)
    frames, lengths = (LONG_FRAMES, ASIDES) if long else (FRAMES, FILLERS)
    items = []
    for frame in frames:
        numbers_of = itertools.product(NUMBERS, repeat=FRAMES[frame])
        adverbs = ADVERBS[: 4 if long else None]
        grid = list(itertools.product(numbers_of, lengths, adverbs))
        for i, lemma in enumerate(_shuffled(SUBJECTS, generator)):
            for j in range(i * cells, (i + 1) * cells):
                numbers, length, adverb = grid[j % len(grid)]
                nouns = [_inflected(_one(ATTRACTORS, generator), number) for number in numbers]
                between = _attractors(frame, nouns, generator)
                filler = () if long else FILLERS[length]
                between += aside(length, generator) if long else _one(filler, generator).split()
                factors = {"filler": str(length), "adverb": adverb}
                factors |= {f"attractor {n + 1}": number for n, number in enumerate(numbers)}
                items += [
                    _agreement_item(frame, lemma, number, between, factors) for number in NUMBERS
                ]
    return items


def _agreement_item(
    frame: str, lemma: str, number: str, between: list[str], factors: dict[str, str]
) -> Item:
    words = ["The", _inflected(lemma, number), *between, factors["adverb"]]
    nearest = factors.get(f"attractor {FRAMES[frame]}")
    return item_at(
        words,
        len(words) - 1,
        unit=frame,
        frame=frame,
        label=NUMBERS.index(number),
        group=singular(lemma),
        distance=len(words) - 2,
        congruent=None if nearest is None else nearest == number,
        factors=factors,
    )


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


# -------------------------------------------------------------------------------------- coreference


PRONOUN = {"woman": "she", "man": "he", "group": "they"}


def coreference(*, seed: int = 0, cells: int = 6, long: bool = False) -> list[Item]:
    """Whether a pronoun means the person named first (1) or second (0), read out at an adverb after
    it.

    Unit "gender": a woman and a man, he or she; unit "number": a person and a group, he or she or
    they. The label is order XOR pronoun: all four combinations of an order and a pronoun are twins.
    Groups are 30 disjoint sets of names; each is in `cells` of 60 cells verb x place x adverb. With
    a multiple of 2, all cells are equally frequent. `long`: an `aside` in place of the place.
    """
    items = []
    for group, (women, men), rests, generator in _name_groups(seed, cells, long):
        for place, rest in enumerate(rests):
            woman, man = women[place % 2], men[place // 2 % 2]
            person = ("woman", woman) if place % 2 else ("man", man)
            many = ("group", f"the {plural(_one(PEOPLE, generator))}")
            pairs = {"gender": (("woman", woman), ("man", man)), "number": (person, many)}
            for unit, pair in pairs.items():
                for first, meant in itertools.product((0, 1), (0, 1)):
                    named, pronoun = (pair[first], pair[1 - first]), PRONOUN[pair[meant][0]]
                    item = _coreference_item(unit, group, named, pronoun, first == meant, rest)
                    items.append(item)
    return items


def unresolvable(*, seed: int = 0, cells: int = 12) -> list[Item]:
    """The control of `coreference`: two women, or two men, so that the pronoun may mean either.

    In each sentence one of the two is drawn to be "meant", and the label says whether that name
    comes first; the twin has the names in the other order. Nothing tells who is meant: every probe
    is at chance, or the split leaks.
    """
    items = []
    for group, people, rests, generator in _name_groups(seed, cells):
        kinds = zip(("woman", "man"), people, strict=True)
        for (kind, names), rest in itertools.product(kinds, rests):
            meant, other = ((kind, name) for name in _shuffled(names, generator))
            for named, first in (((meant, other), True), ((other, meant), False)):
                item = _coreference_item("unresolvable", group, named, PRONOUN[kind], first, rest)
                items.append(item)
    return items


def _name_groups(
    seed: int, cells: int, long: bool = False
) -> Iterator[tuple[str, tuple[list[str], list[str]], list[Rest], torch.Generator]]:
    """Of each group: name, two women and two men, cells with a place drawn, and the generator."""
    generator = torch.Generator().manual_seed(seed)
    women: list[str] = _shuffled(WOMEN, generator)
    men: list[str] = _shuffled(MEN, generator)
    grid = list(itertools.product(MEETINGS, ASIDES if long else PLACES, AFTER_PRONOUN))  # 60 cells

    def place_of(length: int) -> str:
        return " ".join(aside(length, generator)) if long else _one(PLACES[length], generator)

    for i in range(len(women) // 2):
        people = (women[2 * i : 2 * i + 2], men[2 * i : 2 * i + 2])
        own = [grid[cell % len(grid)] for cell in range(i * cells, (i + 1) * cells)]
        rests = [(meeting, place_of(length), after) for meeting, length, after in own]
        yield "/".join((*people[0], *people[1])), people, rests, generator


def _coreference_item(
    unit: str, group: str, named: tuple, pronoun: str, is_first: bool, rest: Rest
) -> Item:
    (first_kind, first), (_, second) = named
    (verb, conjunction), place, after = rest
    opening = [*first.split(), verb, *second.split()]
    opening[0] = opening[0][0].upper() + opening[0][1:]
    words = [*opening, *place.split(), conjunction, pronoun, after]
    factors = {"order": first_kind, "pronoun": pronoun, "adverb": after}
    return item_at(
        words,
        len(words) - 1,
        unit=unit,
        frame=f"{verb} {conjunction}",
        label=int(is_first),
        group=group,
        distance=len(words) - len(opening),
        factors=factors | {"verb": verb, "place": place},
    )


# ----------------------------------------------------------------------------------- disambiguation


def disambiguation(*, seed: int = 0, long: bool = False) -> list[Item]:
    """Which of its two senses a homonym has, read out at the homonym; one unit per homonym, one
    group per cue.

    36 homonyms x two senses x eight cues x six frames, fully crossed; the cue comes 5 to 11 words
    before the homonym and is held out. The opening of a sentence is drawn, the same for both
    senses. `long`: `N_LONG` homonyms, drawn, with an `aside` after the cue; every cue has each
    length in two frames.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = _shuffled(list(HOMONYMS), generator)[:N_LONG] if long else HOMONYMS
    items = []
    for target in targets:
        for i, pair in enumerate(zip(*HOMONYMS[target], strict=True)):
            for n, frame in enumerate(SENSE_FRAMES):
                opening = _one(OPENINGS, generator)
                between = aside(ASIDES[(i + n) % len(ASIDES)], generator) if long else []
                items += [
                    _sense_item(target, label, cue, n, frame, opening, between)
                    for label, cue in enumerate(pair)
                ]
    return items


def _sense_item(
    target: str, label: int, cue: str, n: int, frame: str, opening: str, between: Sequence[str]
) -> Item:
    body = frame if not opening else frame[0].lower() + frame[1:]
    slots = [*opening.split(), *body.split()]
    after_cue = slots.index("{cue}") + 1
    slots[after_cue:after_cue] = between
    place = slots.index("{target}")
    return item_at(
        [word.format(cue=cue, target=target) for word in slots],
        place,
        unit=target,
        frame=str(n),
        label=label,
        group=f"{target}: {cue}",
        distance=place - after_cue + 1,
        factors={"opening": opening},
    )


# -------------------------------------------------------------------------------------------- tasks

GENERATORS: Mapping[str, Callable[..., list[Item]]] = {
    "agreement": agreement,
    "coreference": coreference,
    "disambiguation": disambiguation,
    "unresolvable": unresolvable,
    "agreement_long": partial(agreement, cells=1, long=True),
    "coreference_long": partial(coreference, cells=2, long=True),
    "disambiguation_long": partial(disambiguation, long=True),
}
"""In the long variants the deciding word lies over 20 words, so over 20 tokens, before the read-out
word: outside a window of 16.
"""


def generated(name: str, *, seed: int = 0) -> Task:
    """A generator's task. A homonym's probe is trained on two cues per sense (24 items) and tested
    on the other six.
    """
    if name not in GENERATORS:
        raise ValueError(f"a task is one of {', '.join(GENERATORS)}; got {name!r}")
    items, few = tuple(GENERATORS[name](seed=seed)), name.startswith("disambiguation")
    return Task(name=name, items=items, n_folds=4 if few else 5, few=few)


def all_tasks(*, share: float = 1.0, seed: int = 0) -> tuple[Task, ...]:
    """Agreement, coreference, disambiguation, the unresolvable control, and the long variants of
    the three, of one seed.

    With a `share` below 1, that share of each unit's groups, at least two per fold; of
    disambiguation that share of the homonyms, at least one.
    """
    return tuple(_sampled(generated(name, seed=seed), share, seed) for name in GENERATORS)


def _sampled(task: Task, share: float, seed: int) -> Task:
    if share >= 1:
        return task
    rng = np.random.default_rng(seed)
    least = 1 if task.few else 2 * task.n_folds

    def names_of(item: Item) -> tuple[str, str]:
        """Where a sample is drawn, and what is drawn: a unit's groups, or all units."""
        return ("", item.unit) if task.few else (item.unit, item.group)

    names: dict[str, list[str]] = {}
    for whole, name in dict.fromkeys(names_of(item) for item in task.items):
        names.setdefault(whole, []).append(name)
    drawn = set()
    for whole, members in names.items():
        n = min(len(members), max(least, round(share * len(members))))
        drawn |= {(whole, members[i]) for i in rng.permutation(len(members))[:n]}
    return replace(task, items=tuple(item for item in task.items if names_of(item) in drawn))

"""Words of the probing tasks: nouns, names, homonyms with the cues of their two senses, and neutral fillers."""

from types import MappingProxyType

# 120 subjects and 48 attractors, disjoint; a plural that is not made by rule stands after a slash.
SUBJECTS = tuple(
    """
    farmer teacher doctor lawyer driver painter writer singer dancer player sailor soldier officer guard manager
    banker baker butcher barber carpenter plumber tailor weaver miner hunter fisherman/fishermen woman/women man/men
    child/children wife/wives thief/thieves king queen prince princess duke knight priest monk nun bishop pilot captain
    general engineer architect scientist chemist physicist professor student scholar author poet novelist editor
    journalist reporter critic actor director producer musician drummer pianist violinist composer conductor judge
    senator governor mayor minister president secretary clerk accountant assistant customer client patient nurse surgeon
    dentist therapist gardener cook chef waiter servant maid butler neighbor visitor tourist traveler stranger guest
    tenant landlord owner boss worker builder designer inventor explorer climber runner swimmer skater boxer wrestler
    coach referee fan winner loser champion rival
    """.split()  # noqa: SIM905
)
ATTRACTORS = tuple(
    """
    dog cat horse cow goat pig rabbit lion tiger bear monkey elephant camel donkey eagle parrot duck turtle snake frog
    boy girl brother sister uncle aunt cousin son daughter friend enemy partner witness suspect spy rebel pirate beggar
    cowboy robber prisoner inspector detective sheriff agent lady/ladies hero/heroes wolf/wolves
    """.split()  # noqa: SIM905
)
PREPOSITIONS = ("near", "behind", "beside", "with")
PAST_VERBS = ("chased", "followed", "watched", "avoided", "ignored", "noticed", "feared", "saved")
# Adverbs before a verb: no noun, no number. By length in words.
FILLERS = MappingProxyType(
    {
        0: ("",),
        2: ("quite clearly", "almost certainly", "more recently", "very probably"),
        4: ("more or less openly", "now and then apparently", "not so very surprisingly", "once again rather suddenly"),
    }
)
ADVERBS = ("often", "never", "always", "usually", "really", "still")  # read out here

WOMEN = tuple(
    """
    Mary Anna Emma Sarah Lucy Alice Laura Julia Helen Jane Kate Susan Linda Karen Lisa Maria Rachel Rebecca Jennifer
    Jessica Emily Olivia Sophia Hannah Grace Claire Diana Nancy Betty Barbara Carol Sandra Martha Victoria Amanda
    Michelle Elizabeth Margaret Catherine Caroline Charlotte Eleanor Ruth Rose Ellen Amy Sally Judy Sharon Kathleen
    Christine Teresa Heather Melissa Stephanie Nicole Angela Janet Joan Isabella
    """.split()  # noqa: SIM905
)
MEN = tuple(
    """
    John James Robert David William Richard Thomas Charles Daniel Matthew Mark Paul Steven Andrew George Edward Brian
    Kevin Peter Henry Arthur Frank Jack Adam Simon Oliver Harry Michael Joseph Anthony Donald Kenneth Joshua Ronald
    Timothy Jason Jeffrey Ryan Jacob Gary Nicholas Eric Stephen Larry Justin Scott Benjamin Samuel Gregory Patrick
    Alexander Tyler Dennis Jerry Aaron Nathan Douglas Walter Albert Philip
    """.split()  # noqa: SIM905
)
MEETINGS = (  # verb, conjunction
    ("met", "because"), ("called", "before"), ("thanked", "after"), ("saw", "when"), ("visited", "while"),
)  # fmt: skip
PLACES = MappingProxyType(
    {
        0: ("",),
        3: ("at the station", "in the garden", "on the island", "outside the theater"),
        7: (
            "at the old station near the river", "in the small garden behind the house",
            "on the quiet island in the lake", "outside the new theater in the village",
        ),
    }
)  # fmt: skip
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
OPENINGS = ("", "Yesterday,", "Once again,", "As it happened,")
_SENSES = """
bank: loan cashier deposit mortgage robber vault credit money | river stream shore canoe fishing water mud reed
bat: baseball pitcher inning batter cricket umpire glove league | cave wings vampire owl night mammal insect roost
crane: bird heron feathers nest stork marsh egg beak | construction scaffold steel concrete harbor cargo truck builder
bass: guitar drummer singer concert jazz amplifier melody choir | fishing lake trout angler boat hook salmon pond
spring: winter April flowers autumn blossom season tulip May | coil mattress metal tension lever watch screw clock
seal: penguin ice whale walrus ocean polar fish zoo | envelope wax stamp letter document signature king ring
pitcher: baseball catcher inning umpire batter stadium coach league | water lemonade juice glass kitchen jug milk table
mole: skin doctor cancer freckle cheek dermatologist face birthmark | burrow garden tunnel lawn rat hedgehog soil worm
bark: dog puppy kennel growl howl wolf leash hound | tree oak trunk forest pine branch wood birch
match: football tennis stadium referee team goal player tournament | candle fire flame smoke lighter stove fuel cigar
club: golf ball swing putt course caddy fairway tee | members dance nightlife dancer party disco society music
trunk: elephant zoo ivory tusk mammoth circus calf herd | car suitcase luggage tire driver engine spare vehicle
palm: coconut beach island tropics tree desert oasis leaf | finger wrist thumb hand glove fist skin fortune-teller
pupil: school teacher lesson classroom homework exam grade textbook | eye iris lens retina vision glasses cornea eyelid
mint: herb tea lemon leaves sauce basil candy garden | coin money treasury gold silver currency penny dollar
date: calendar month deadline year schedule week birthday Monday | fig fruit raisin palm dessert nut almond apricot
organ: church hymn choir chapel piano music cathedral pedal | liver kidney heart transplant surgeon donor lung hospital
nail: hammer wood carpenter screw plank board tool wall | finger polish manicure toe thumb salon cuticle hand
pen: ink paper letter pencil writer notebook signature desk | sheep pig farmer fence cattle goat barn lamb
deck: ship captain sailor anchor mast yacht ocean cabin | cards poker dealer ace joker casino gambler shuffle
bow: arrow archer target quiver hunter string shooting medieval | ribbon gift hair dress present wrapping silk lace
chest: heart lung rib muscle breath shoulder cough x-ray | treasure pirate gold lid box lock attic jewels
cell: prison guard inmate jail bars convict warden sentence | biology membrane protein nucleus tissue gene bacteria lab
plant: leaf soil garden flower seed root pot gardener | factory worker machine industry production engine manager steel
mouse: cat cheese trap tail hole rat squeak barn | computer keyboard screen laptop click cursor monitor software
ring: diamond wedding gold bride jewel engagement finger necklace | boxer referee fight champion gloves punch rope bell
bolt: nut screw wrench metal door lock hinge thread | lightning thunder storm cloud rain sky flash weather
court: judge lawyer jury trial verdict witness crime prosecutor | tennis racket net serve basketball player squash ball
draft: writer editor novel manuscript essay chapter author text | window cold wind chimney door breeze winter air
port: harbor ship dock sailor cargo ferry anchor coast | wine bottle glass grape vineyard sherry dessert cork
band: guitar drummer singer concert album stage song rock | rubber wrist elastic watch hair cloth metal stretch
scale: fish fin snake lizard dragon skin reptile salmon | weight pound diet kilogram bathroom balance grocer gram
fan: football stadium team celebrity concert idol autograph supporter | heat summer air breeze cool ceiling blade noise
jam: bread toast strawberry breakfast butter marmalade fruit sugar | traffic highway car road bus rush-hour truck driver
pitch: football grass player referee goal stadium soccer team | melody voice note singer tone piano tune violin
ball: tennis soccer kick throw goal racket player bounce | prince gown waltz dance palace orchestra Cinderella costume
"""  # each line: homonym: cues of the one sense | cues of the other
HOMONYMS = MappingProxyType(
    {
        target: tuple(tuple(part.split()) for part in cues.split("|"))
        for target, cues in (line.split(":") for line in _SENSES.strip().splitlines())
    }
)


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

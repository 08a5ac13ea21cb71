"""Probing tasks: what an item and a minimal pair are, and three balanced, seeded generators of items.

A task is temporal only if the label is not in the word that is read: every generator crosses the label with the
read-out word exactly, so that a probe on embeddings is at chance.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A minimal pair: `prefix + good + suffix` is a sentence, `prefix + bad + suffix` is none; no character is added.

    `good` and `bad` are the words that differ, with the space before them (none at the start of the sentence);
    `suffix` is what comes after, with its own space or full stop. They are never empty and never equal.
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

"""The prompts that an Ollama has cached: the part of a new one that begins in the same way costs nothing."""


class Prefixes:
    """The last texts, as lists of words, the most recent at the end."""

    def __init__(self):
        self.recent = []

    def matched(self, words):
        """Return how many of the first WORDS are still there."""
        return max((shared(words, other) for other in self.recent), default=0)

    def remember(self, words, size):
        """Keep WORDS among the last SIZE texts, in place of one that they go on from."""
        kept = [other for other in self.recent if shared(words, other) < len(other)]
        self.recent = [*kept, words][-size:]


def shared(one, other):
    """Return how many words ONE and OTHER have in common at their beginning."""
    return next((at for at, (left, right) in enumerate(zip(one, other)) if left != right), min(len(one), len(other)))

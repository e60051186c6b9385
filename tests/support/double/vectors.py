"""The vectors of the double: made from the model's name and the text, exact as float32, of length one."""
import functools
import hashlib
import math
from array import array

from tests.support.double.rules import normal

FRAME_TOKENS = 2                # what the model puts around a text


def vector_for(model, text, dimensions=None, *, length=768, voice=''):
    """Return the floats that MODEL makes of TEXT, each a float32; LENGTH and VOICE are attributes of the model.

    DIMENSIONS fewer than LENGTH are cut off and made of length one again.
    """
    seed = f'{normal(model)}\0{voice}\0{text}'.encode('utf-8', 'surrogatepass')
    vector = of_length_one(array('h', hashlib.shake_128(seed).digest(2 * length)))
    return list(of_length_one(vector[:dimensions]) if dimensions and dimensions < length else vector)


def of_length_one(vector):
    """Return VECTOR with length one, rounded to float32."""
    norm = math.sqrt(sum(value * value for value in vector)) or 1.0
    return array('f', [value / norm for value in vector])


@functools.lru_cache(2048)
def written(model, text, dimensions, length, voice):
    """Return the JSON of a vector; nine digits identify any float32."""
    vector = vector_for(model, text, dimensions, length=length, voice=voice)
    return ('[' + ('%.9g,' * len(vector) % tuple(vector))[:-1] + ']').encode()


def text_tokens(text):
    """Return how many tokens TEXT is to a model of embeddings."""
    return len(text.split()) + FRAME_TOKENS


def cut(text, window):
    """Return the beginning of TEXT that fits WINDOW tokens."""
    return text if text_tokens(text) <= window else ' '.join(text.split()[:max(window - FRAME_TOKENS, 0)])

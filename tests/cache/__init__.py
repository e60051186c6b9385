"""What the tests of the cache have in common."""

KEYS = [f"{n:064x}" for n in range(1500)]
LONG = 30.0  # seconds that no test takes


def put(store, key, value):
    """Set an entry of the present epoch."""
    return store.set(key, value, store.get(key).epoch)


def got(store, key):
    """The value of an entry."""
    return store.get(key).value

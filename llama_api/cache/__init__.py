"""Stored answers: an exact LRU in the process, and the stores that processes share behind it."""

from .answers import TRUST_SECONDS, AnswerCache, Entry
from .guarded import GuardedStore, open_store
from .lru import LRUCache
from .store import Claim, Store, StoreError

__all__ = ["TRUST_SECONDS", "AnswerCache", "Claim", "Entry", "GuardedStore", "LRUCache", "Store", "StoreError",
           "open_store"]

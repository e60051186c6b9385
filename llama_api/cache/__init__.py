"""Stored answers: an exact LRU in the process, and the shared stores behind it."""

from .answers import TRUST_SECONDS, AnswerCache, Entry
from .examination import Examination, examine
from .guarded import GuardedStore, open_store
from .keeper import KEEP_EVERY, KEPT_FOR, Keeper
from .lru import LRUCache
from .store import UNDER_WAY, Claim, Found, Kept, Lease, LeasingStore, Store, StoreError

__all__ = ["KEEP_EVERY", "KEPT_FOR", "TRUST_SECONDS", "UNDER_WAY", "AnswerCache", "Claim", "Entry", "Examination",
           "Found", "GuardedStore", "Keeper", "Kept", "LRUCache", "Lease", "LeasingStore", "Store", "StoreError",
           "examine", "open_store"]

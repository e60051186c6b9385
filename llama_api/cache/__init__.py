"""Stored answers: an exact LRU in the process, and the shared stores behind it."""

from .answers import TRUST_SECONDS, AnswerCache, Entry
from .inspection import Examination, inspect_store
from .guarded import GuardedStore, open_store
from .renewer import LEASE_SECONDS, RENEW_EVERY, Renewer
from .lru import LRUCache
from .store import UNDER_WAY, Claim, Found, Lease, LeasingStore, Renewal, Store, StoreError

__all__ = ["RENEW_EVERY", "LEASE_SECONDS", "TRUST_SECONDS", "UNDER_WAY", "AnswerCache", "Claim", "Entry", "Examination",
           "Found", "GuardedStore", "Renewer", "Renewal", "LRUCache", "Lease", "LeasingStore", "Store", "StoreError",
           "inspect_store", "open_store"]

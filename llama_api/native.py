"""The originals of functions that gevent replaces: native threads, and waits that block all greenlets."""

from gevent.monkey import get_original

start_thread = get_original("_thread", "start_new_thread")
allocate_lock = get_original("_thread", "allocate_lock")
sleep = get_original("time", "sleep")
poll = get_original("select", "poll")
SimpleQueue = get_original("queue", "SimpleQueue")

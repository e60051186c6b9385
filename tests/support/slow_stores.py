"""The service with stores that may take their time: a starved machine must not spoil a scene about sharing."""

from llama_api.cache import guarded, redis_connection, sqlite, sqlite_file

for _module, _names in ((guarded, ("ADMISSION", "PATIENCE")), (redis_connection, ("BUDGET",)),
                        (sqlite, ("BUDGET", "SLOW_BUDGET")), (sqlite_file, ("BUSY",))):
    for _name in _names:
        setattr(_module, _name, 5.0)

from wsgi import app  # noqa: E402

__all__ = ["app"]

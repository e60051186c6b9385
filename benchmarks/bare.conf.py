"""gunicorn settings of the baselines: the service's own, without those that only the service needs."""

import os
import runpy

globals().update({name: value for name, value in runpy.run_path("gunicorn.conf.py").items()
                  if name not in ("__name__", "__file__", "on_starting", "on_reload", "post_worker_init",
                                  "child_exit")})

if worker := os.environ.get("BENCH_WORKER"):
    worker_class, threads = worker, 64
    del globals()["post_request"]

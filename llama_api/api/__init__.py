"""The doors: each translates one outer API into a call of the service, and its answer back."""

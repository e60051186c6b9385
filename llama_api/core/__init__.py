"""From a call to its answer, through cache, flight and claim."""

from .embeddings import MOST_TEXTS, EmbeddingReply, Embeddings
from .flights import Flight, Flights, Landing
from .models import Models
from .service import Directives, Timings, Reply, Service

__all__ = ["MOST_TEXTS", "Directives", "EmbeddingReply", "Embeddings", "Timings", "Flight", "Flights", "Landing",
           "Models", "Reply", "Service"]

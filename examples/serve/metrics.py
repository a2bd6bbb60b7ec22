"""What the service tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "blockdance_requests",
            "Requests by outcome: answered, refused (bad input), full (queue), late (timeout), left (client gone), failed.",
            ["outcome"],
            registry=registry,
        )
        self.waiting = Gauge("blockdance_waiting", "Requests that wait for a batch.", registry=registry)
        self.restarts = Gauge("blockdance_model_restarts", "Times that the model's process began anew.", registry=registry)
        self.batch_size = Histogram(
            "blockdance_batch_size", "Images of a batch.", buckets=[1, 2, 4, 8, 16, 32, 64], registry=registry
        )
        self.batch_seconds = Histogram(
            "blockdance_batch_seconds", "Time that a batch took.", buckets=[0.1, 0.3, 1, 3, 10, 30, 100], registry=registry
        )
        self.compute_saved = Histogram(
            "blockdance_compute_saved",
            "Share of the denoising MACs saved, per image.",
            buckets=[0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8],
            registry=registry,
        )
        self.latency = Histogram(
            "blockdance_latency_seconds",
            "Time from a request to its image.",
            buckets=[0.1, 0.3, 1, 3, 10, 30, 100],
            registry=registry,
        )

"""The Collector, Prometheus, Alertmanager, Jaeger and Loki on one machine, without containers."""

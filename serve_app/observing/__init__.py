"""What a process tells of its own work: stages of requests, metrics, log lines. Of people nothing: no name, no vector."""

"""Ray Serve deployments: thin, batched wrappers around the models."""

"""The subcommands of `kinlens`."""

"""Settings, model packs and operating points."""

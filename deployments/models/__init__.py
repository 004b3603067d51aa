"""Model packs and the code that drives each model family. No Ray here: plain classes on arrays."""

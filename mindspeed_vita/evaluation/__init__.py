"""Whether a model works: held-out loss, visual needles, choice files, and adapters for the field's evaluators."""

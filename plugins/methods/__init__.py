"""Built-in ways of pretraining."""

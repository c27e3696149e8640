"""How a pretraining run goes, without labels: held-out loss, rank and spread of features, warnings in words."""

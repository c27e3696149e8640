"""What a finetuned or probed run is worth, measured on any labelled images after its training."""

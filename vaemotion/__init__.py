"""The model, its data, training and evaluation."""

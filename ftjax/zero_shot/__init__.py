"""Learning without a labelled example: classes are described, texts are scored, and the model adapts to the surest scores."""

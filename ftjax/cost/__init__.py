"""What a step costs: predicted by compiling it for chips that need not be there, or timed on this machine."""

"""Opening models of others: code, checkpoints, hubs; and guarding against what they do."""

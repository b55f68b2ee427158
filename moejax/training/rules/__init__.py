"""What training does to parameters beside AdamW: one rule a file, held by `TrainConfig.rules`."""

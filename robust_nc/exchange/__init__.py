"""Exchange with others: RobustBench, the Hugging Face Hub, submissions."""

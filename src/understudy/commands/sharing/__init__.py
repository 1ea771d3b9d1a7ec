"""Commands that share data sets and runs on the Hugging Face hub."""

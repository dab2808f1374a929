"""PocketEval: held-out prompts with exact ground truth, a recogniser of rendered scenes, and scores."""

"""Native checkpoints, Hugging Face folders, and the maps of weight names between them."""

"""GPT-2 itself: modules, byte-pair encoding, sampling, model folders. It knows nothing of preferences."""

"""What each op means, in plain PyTorch that can be checked by eye. Imports nothing of fastgen."""

"""How fast the trainer is: its step beside PyTorch's, what the loop costs, how it scales."""

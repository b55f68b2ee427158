"""The experts of every token and their gates, from the router's logits."""

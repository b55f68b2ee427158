"""What routers did with a text (`trace`), and what can be learned from it; numpy only."""

"""Side-by-side measurements with a peer; nobody imports this package but its own verb and tests."""

"""What the wrappers cached, journaled and recorded have in common."""

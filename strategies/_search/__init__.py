"""Search over steps of answers: one step (steps), the effects (driver), and the decisions, pure, in the rest."""

"""How well a model counts: its predictions, scores, figures, report and card."""

"""How well a model counts: predictions, scores, figures, report and model card."""

"""What a served model sees, counted: against its validation photos, and against true labels that come later."""

"""What every host and every pool has to keep: one class each, inherited by its tests."""

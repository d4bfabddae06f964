"""The Python API: what `import binsweep` offers, for scripts and notebooks."""

"""One sweep's trials: which runs when, on which resources, in processes of this machine."""

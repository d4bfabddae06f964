"""Where photos come from: a folder of bins on this machine, and how the names in it are understood."""

"""`binsweep ui`: the page that shows a home's sweeps and models, and steers them."""

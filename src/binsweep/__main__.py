"""`python -m binsweep`: the command line."""

from binsweep.search.cli.main import main

if __name__ == "__main__":
    main()

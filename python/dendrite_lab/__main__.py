"""`python -m dendrite_lab`: the same as `dendrite-lab`."""

from .cli import main

if __name__ == "__main__":  # not in the processes of runs side by side, which import it too
    main()

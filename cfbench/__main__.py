"""``python -m cfbench``."""

from cfbench.cli import main

if __name__ == "__main__":
    main()

"""``python -m cfmodel``."""

from cfmodel.cli import main

if __name__ == "__main__":
    main()

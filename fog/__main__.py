"""`python -m fog` is `e2llm`."""

from fog.cli import main

if __name__ == "__main__":
    main()

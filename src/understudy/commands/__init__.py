"""One file per command. Each has the command's options as a frozen dataclass, and `main(args)`."""

"""One file a command: its options as a frozen dataclass, and `main(args)`."""

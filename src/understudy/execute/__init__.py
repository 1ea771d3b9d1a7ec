"""From plans to actions. Nothing here has a memory: state is a value that the caller keeps."""

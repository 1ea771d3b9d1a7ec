"""The studio: a page in the browser on which a person shows a task, checks, trains, watches and compares."""

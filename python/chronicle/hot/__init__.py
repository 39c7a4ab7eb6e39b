"""The hot thread: handlers, their audit, the thread itself, its guard and its meter."""

"""Graph to plan: which nodes run in one kernel (`fuse`), in which phase and task (`phases`), in which
bytes (`memory`)."""

from thalweg.schedule.planning import schedule

__all__ = ["schedule"]

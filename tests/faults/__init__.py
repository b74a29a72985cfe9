"""Faults injected on purpose: cancellations, dead sockets, forks, exits that misbehave."""

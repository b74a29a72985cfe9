"""A project with Channels, on real servers, bare and guarded."""

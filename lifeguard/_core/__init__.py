"""The idea: two nested lifetimes, Worker and Unit. Nothing in here knows a host or a driver."""

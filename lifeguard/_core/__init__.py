"""The idea: two nested lifetimes, Worker and Unit. No framework, driver or protocol is named in here."""

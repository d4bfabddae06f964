"""What people ask of a sweep while it is searched: requests, the rules that they must keep, what is in force."""

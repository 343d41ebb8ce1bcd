"""The guest's side: the client library of a session, scripted guests, and a real VMM on /dev/kvm."""

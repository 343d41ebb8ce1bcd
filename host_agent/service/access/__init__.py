"""Who may call what: principals out of certificates, one matrix of roles and calls, and what is whose."""

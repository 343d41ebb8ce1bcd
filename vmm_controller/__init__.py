"""The userspace VMM's side: policies (pure) that answer an exit, and the loop that receives exits."""

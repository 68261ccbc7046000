"""What the operator wrote: host settings and fleet as frozen records. Nothing here acts on the machine."""

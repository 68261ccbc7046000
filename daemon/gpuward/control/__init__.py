"""Both ends of the control socket."""

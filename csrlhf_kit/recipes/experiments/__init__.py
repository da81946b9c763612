"""The commands that train many policies on the toy world: `csrlhf run`, `csrlhf sweep` and `csrlhf rounds`."""

"""The endpoints: one module a resource, one short function an endpoint: parse, call, answer."""

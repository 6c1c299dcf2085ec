"""The web service: uploads, the queue, the worker, the HTTP interface and the command line."""

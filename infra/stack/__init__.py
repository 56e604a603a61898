"""The stack of one machine, without Docker: servers on loopback under one supervisor.

    infra/stack.toml ─► settings ─► services ─► supervision: supervisord.conf ─► supervisord ─► run_service ─► a server
                                                      └─► start, wait until each answers, stop, sweep

`python -m infra.stack up|status|logs|down [--file FILE]`; make up, make status, make logs and make down call it.

The supervisor is supervisord (PyPI: supervisor): twenty years old and still released, in Python without dependencies,
with what would be ours otherwise: restarts with growing pauses, whole process groups stopped, rotated logs, and an API
on a Unix socket. Of the others, circus is hardly maintained, honcho restarts nothing, and systemd is not in containers.
"""

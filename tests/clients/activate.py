"""Opens a listening socket on 127.0.0.1:PORT and becomes PROGRAM with it, as systemd's socket activation does.

Usage: activate.py PORT PROGRAM ARGUMENTS...
Source: sd_listen_fds(3): the first socket is descriptor 3, LISTEN_PID names the receiver.
"""

import os
import socket
import sys

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen(128)
os.dup2(listener.fileno(), 3, inheritable=True)
if listener.fileno() == 3:
    listener.detach()
os.environ["LISTEN_FDS"] = "1"
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])

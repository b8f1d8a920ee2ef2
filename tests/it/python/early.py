"""Uploads 4 MiB to a proxy that refuses at once, and counts the refusals that arrive.

early.py ADDRESS TRIES [CA]: over TLS with the authority in that file, else plain.
"""

import http.client
import ssl
import sys

host, port = sys.argv[1].rsplit(":", 1)
tries = int(sys.argv[2])
body = b"x" * (4 << 20)
arrived = 0
for _ in range(tries):
    if len(sys.argv) > 3:
        context = ssl.create_default_context(cafile=sys.argv[3])
        connection = http.client.HTTPSConnection("localhost", int(port), timeout=20, context=context)
    else:
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        connection.request("POST", "/upload", body=body)
        answer = connection.getresponse()
        arrived += answer.status == 503 and b"queue_full" in answer.read()
    except OSError as error:
        print(repr(error), file=sys.stderr)
    connection.close()
print(arrived)

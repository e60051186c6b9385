"""A certificate for the tests that speak TLS."""

import ssl
import subprocess
from pathlib import Path

from tests.support.programs import needed


def certify(directory, certificate="fullchain.pem", key="privkey.pem"):
    """Sign a certificate for localhost by itself; the paths of it and of its key, in ``directory``."""
    paths = Path(directory) / certificate, Path(directory) / key
    subprocess.run([needed("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
                    "-nodes", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
                    "-days", "2", "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def server_context(certificate, key):
    """The TLS context of a server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context

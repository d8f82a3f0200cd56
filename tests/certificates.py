"""Certificates for tests, made by openssl: short-lived, of an authority of their own."""
import pathlib
import subprocess

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments):
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


class Authority:
    """Its certificate is `self.certificate`."""

    def __init__(self, folder):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.certificate, self._key = self._folder / "ca.pem", self._folder / "ca.key"
        _openssl("req", "-x509", *KEY, "-keyout", self._key, "-out", self.certificate, "-days", 2, "-subj", "/CN=test CA")

    def sign(self, certificate, key, names):
        """Files of a new certificate and its key. `names`: as subjectAltName has them."""
        request, extensions = self._folder / "request.csr", self._folder / "names"
        extensions.write_text(f"subjectAltName={','.join(names)}\n")
        _openssl("req", *KEY, "-keyout", key, "-out", request, "-subj", f"/CN={pathlib.Path(certificate).stem}")
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial", "-days", 2,
                 "-extfile", extensions, "-out", certificate)

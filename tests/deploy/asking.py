"""One HTTP call. Standard library only."""
import json
import urllib.error
import urllib.request


def get(url, body=None, context=None):
    """Status and text; 0 and why, if nobody answers. With a body, a POST of it as JSON."""
    request = urllib.request.Request(url, data=body and json.dumps(body).encode(),
                                     headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()
    except OSError as e:
        return 0, str(e)

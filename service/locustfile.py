"""What Locust does in `make bench-serve`: post the photos of the folder that PHOTOS names."""

import os
from pathlib import Path

from locust import HttpUser, task

FILES = [path.read_bytes() for path in sorted(Path(os.environ["PHOTOS"]).iterdir())]


class Client(HttpUser):
    """One person who posts photos, one after the other, without a pause."""

    sent = 0

    @task
    def detect(self):
        self.sent += 1
        with self.client.post("/detect", files={"image": FILES[self.sent % len(FILES)]},
                              catch_response=True) as response:
            if response.status_code != 200 or "probabilities" not in response.text:
                response.failure(f"{response.status_code} {response.text[:100]}")

"""python -m service: serve on HOST, PORT. Apart from app.py, so that the processes that decode photos do not load it."""

from service import app

app.main()
